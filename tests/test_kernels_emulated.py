"""The AVX-512 kernels on a machine without it, emulated by SIMDe: the same bits as AVX2 and scalar."""

import os
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.conftest import ISAS
from tests.test_kernels_sanitize import FLAGS, ROOT, compiler, sources

EMULATED = ["-mavx2", "-mfma", "-include", str(ROOT / "tests/native/emulated_avx512.h")]
SEED, CASES = 1000, 40


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """tests/native with the native core, AVX-512 emulated."""
    if "avx512" in ISAS or "avx2" not in ISAS:
        pytest.skip("AVX-512 itself is here" if "avx512" in ISAS else "AVX-512 is emulated in AVX2, which is not here")
    folder = tmp_path_factory.mktemp("emulated")
    probe = folder / "probe.cpp"
    probe.write_text("#include <simde/x86/avx512.h>\nint main() {}\n")
    if compiler("-w", "-fsyntax-only", probe).returncode:
        pytest.skip("SIMDe's headers are not here (apt install libsimde-dev)")

    def build(item: tuple[Path, list[str]]) -> Path:
        source, flags = item
        built = folder / f"{source.parent.parent.name}_{source.parent.name}_{source.stem}.o"
        source = ROOT / "tests/native/emulated/features.cpp" if source.name == "features.cpp" else source
        flags = EMULATED if source.name == "avx512.cpp" else flags
        done = compiler(*FLAGS, *flags, "-c", source, "-o", built)
        assert done.returncode == 0, done.stderr
        return built

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(build, sources().items()))
    done = compiler("-pthread", *objects, "-o", folder / "emulated")
    assert done.returncode == 0, done.stderr
    return folder / "emulated"


def test_avx512_gives_the_same_bits(program: Path) -> None:
    command = [program, str(SEED), str(CASES)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr[:5000]}"
    assert done.stdout.startswith(f"{CASES} cases of each op on avx512 avx2 scalar"), done.stdout
