"""The native core, which knows neither Python nor torch, under AddressSanitizer and UndefinedBehaviorSanitizer."""

import os
import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.conftest import ISAS

ROOT = Path(__file__).parent.parent
COMPILER = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++") or ""
SANITIZERS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]

# Without inlining and optimisation: 9 s for the AVX2 kernels, against 300 with -O1 as the library inlines them.
FLAGS = ["-std=c++17", "-O0", "-g1", "-ffp-contract=off", "-w", "-pthread", "-DFASTGRAPH_NO_INLINE"]

# Its cases are those of seeds SEED, SEED + 1, ...; one alone: its SEED and 1
SEED, CASES = 1, 40


def compiler(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([COMPILER, *map(str, arguments)], capture_output=True, text=True, check=False)


def sources() -> dict[Path, list[str]]:
    """The files of the native library except those that tests/native replaces, with the flags of their own."""
    build = (ROOT / "CMakeLists.txt").read_text()
    target = re.search(r"nanobind_add_module\(_native([^)]*)\)", build)
    assert target is not None
    flags = dict(re.findall(r'set_source_files_properties\((\S+) PROPERTIES COMPILE_OPTIONS "([^"]*)"', build))
    names = [name for name in target[1].split() if name.endswith(".cpp")]
    others = {f"kernels/runtime/{name}.cpp" for name in ("bindings", "guard", "structure")} | {"kernels/cpu/arena.cpp"}
    core = [name for name in names if name not in others]
    assert set(names) - set(core) == others
    own = sorted((ROOT / "tests/native").glob("*.cpp"))
    library = {ROOT / name: flags[name].split(";") if name in flags else [] for name in core}
    return library | {source: [] for source in own}


def is_run_here(source: Path) -> bool:
    """False for the kernels of an ISA that this machine does not have."""
    return source.parent.name != "isa" or not ISAS or source.stem in ISAS


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """tests/native with the native core, built with both sanitizers."""
    folder = tmp_path_factory.mktemp("sanitize")
    if not COMPILER:
        pytest.skip("no C++ compiler")
    probe = folder / "probe.cpp"
    probe.write_text("#include <sanitizer/asan_interface.h>\nint main() {}\n")
    done = compiler(probe, *SANITIZERS, "-o", folder / "probe")
    if done.returncode or subprocess.run([folder / "probe"], capture_output=True, check=False).returncode:
        pytest.skip(f"{COMPILER} cannot build with {SANITIZERS[0]}")

    def build(item: tuple[Path, list[str]]) -> Path:
        source, flags = item
        built = folder / f"{source.parent.parent.name}_{source.parent.name}_{source.stem}.o"
        checks = SANITIZERS if is_run_here(source) else []
        done = compiler(*FLAGS, *flags, *checks, "-c", source, "-o", built)
        assert done.returncode == 0, done.stderr
        return built

    slowest_first = sorted(sources().items(), key=lambda item: item[0].parent.name != "isa")
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(build, slowest_first))
    done = compiler(*SANITIZERS, "-pthread", *objects, "-o", folder / "sanitize")
    assert done.returncode == 0, done.stderr
    return folder / "sanitize"


def run(program: Path, seed: int, cases: int) -> subprocess.CompletedProcess[str]:
    # Leaks need ptrace, which containers refuse. NaN in fresh memory; stack frames that are gone stay poisoned.
    options = "detect_leaks=0:detect_stack_use_after_return=1:max_malloc_fill_size=1000000000:malloc_fill_byte=255"
    environment = {**os.environ, "ASAN_OPTIONS": options, "UBSAN_OPTIONS": "print_stacktrace=1"}
    return subprocess.run(
        [program, str(seed), str(cases)], capture_output=True, text=True, env=environment, timeout=500, check=False
    )


def test_random_shapes_between_guards(program: Path) -> None:
    done = run(program, SEED, CASES)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr[:5000]}"
    found = re.fullmatch(r"(\d+) cases of each op on (.*), scratch in (\d+) threads\n", done.stdout)
    assert found is not None, done.stdout
    assert int(found[1]) == CASES
    assert found[2].split() == (ISAS or found[2].split())
    assert int(found[3]) > 1  # workers did take part
