"""The wheel and the sdist: what is in them, and that they leave other people's packages alone.

Another package named `kernels` (Hugging Face's), `bench` or `export` keeps working beside ours, whichever of the two
was installed first, and when ours is uninstalled.
"""

import os
import subprocess
import sys
import tarfile
import venv
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
import torch

pytest.importorskip("scikit_build_core", reason="scikit-build-core is not installed")
# Not by importing it: setuptools takes an import of pip for a build, and hands out the standard library's distutils.
pytestmark = pytest.mark.skipif("pip" not in metadata.packages_distributions(), reason="pip is not installed")

ROOT = Path(__file__).parent.parent
THEIRS = ("kernels", "bench", "export")
LIBRARIES = str(Path(torch.__file__).parents[1])  # in which the dependencies are
USE_THEIRS = "".join(f"import {name}; assert {name}.get() == 'theirs', {name}\n" for name in THEIRS)
USE_OURS = f"""
import sys
sys.path.append({LIBRARIES!r})
import importlib.metadata, torch, fastgraph, fastgraph.kernels.mlp.op
assert fastgraph.__file__.startswith(sys.prefix), fastgraph.__file__
assert importlib.metadata.version("fastgraph") == fastgraph.__version__
fast = fastgraph.optimize(torch.nn.Sequential(torch.nn.Linear(8, 4), torch.nn.ReLU()), (torch.ones(2, 8),))
assert "mlp" in str(fast.explain())
assert fast(torch.ones(5, 8)).shape == (5, 4)
"""


def build(what: str, folder: Path) -> Path:
    """Our wheel (without the compiled kernels) or sdist, built as pip builds it, from this checkout."""
    settings = {"wheel.cmake": "false", "build-dir": str(folder / "build")}
    code = f"from scikit_build_core.build import build_{what}; print(build_{what}({str(folder)!r}, {settings}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return folder / done.stdout.split()[-1]


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("wheel", tmp_path_factory.mktemp("ours"))


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A package that is called `kernels`, and holds a `bench` and an `export` too."""
    wheel = tmp_path_factory.mktemp("theirs") / "kernels-0.17.0-py3-none-any.whl"
    about = "kernels-0.17.0.dist-info"
    files = {f"{name}/__init__.py": "def get():\n    return 'theirs'\n" for name in THEIRS}
    files |= {"kernels/mlp.py": "", f"{about}/METADATA": "Metadata-Version: 2.1\nName: kernels\nVersion: 0.17.0\n"}
    files |= {f"{about}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"}
    files |= {f"{about}/RECORD": "".join(f"{name},,\n" for name in [*files, f"{about}/RECORD"])}
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return wheel


def python(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs a virtual environment's Python, without this checkout."""
    command = [str(folder / "bin" / "python"), *arguments]
    variables = {**os.environ, "FASTGRAPH_CPU": "aten", **environment}
    return subprocess.run(command, capture_output=True, text=True, env=variables, check=False, cwd=folder)


def pip(folder: Path, *arguments: str) -> None:
    command = [sys.executable, "-m", "pip", "--python", str(folder / "bin" / "python"), "--quiet", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("ours_first", [True, False], ids=["ours first", "theirs first"])
def test_beside_another_package_named_kernels(ours_first: bool, ours: Path, theirs: Path, tmp_path: Path) -> None:
    venv.create(tmp_path, symlinks=True)
    for wheel in (ours, theirs) if ours_first else (theirs, ours):
        pip(tmp_path, "install", "--no-deps", "--no-index", str(wheel))
    done = python(tmp_path, "-c", USE_THEIRS + USE_OURS + USE_THEIRS)
    assert done.returncode == 0, done.stderr
    command = "bench" if ours_first else "export"
    done = python(tmp_path, "-m", command, "--help", PYTHONPATH=LIBRARIES)
    assert done.stdout.startswith(f"usage: python -m {command} "), done.stderr
    pip(tmp_path, "uninstall", "--yes", "fastgraph")
    (left,) = tmp_path.glob("lib/python*/site-packages")
    assert {path.name for path in left.iterdir()} - {"__pycache__"} == {*THEIRS, "kernels-0.17.0.dist-info"}
    done = python(tmp_path, "-c", USE_THEIRS)
    assert done.returncode == 0, done.stderr


def test_the_scripts_of_an_installation(ours: Path, tmp_path: Path) -> None:
    venv.create(tmp_path, symlinks=True)
    pip(tmp_path, "install", "--no-deps", "--no-index", str(ours))
    for name in ("bench", "export"):
        script = [tmp_path / "bin" / f"fastgraph-{name}", "--help"]
        variables = {**os.environ, "FASTGRAPH_CPU": "aten", "PYTHONPATH": LIBRARIES}
        done = subprocess.run(script, capture_output=True, text=True, env=variables, check=False, cwd=tmp_path)
        assert done.stdout.startswith(f"usage: python -m {name} "), done.stderr


def test_the_wheel_holds_what_runs(ours: Path) -> None:
    names = set(zipfile.ZipFile(ours).namelist())
    outside = {name for name in names if not name.startswith(("fastgraph/", "fastgraph-"))}
    assert outside == {"bench/__main__.py", "export/__main__.py"}  # no __init__.py: a package of that name stays theirs
    sources = {str(path.relative_to(ROOT)) for path in ROOT.glob("fastgraph/**/*.py")}
    links = {path.name for path in (ROOT / "fastgraph").iterdir() if path.is_symlink()}
    sources |= {f"fastgraph/{path.relative_to(ROOT)}" for name in links for path in (ROOT / name).glob("**/*.py")}
    assert sources <= names
    assert {f"fastgraph/{name}/__init__.py" for name in ("kernels", "export", "bench")} <= names
    data = {"py.typed", "bench/report/page.html", "bench/report/report.schema.json", "export/clients/client.cc"}
    assert {f"fastgraph/{name}" for name in data} <= names
    assert not [name for name in names if name.endswith((".cpp", ".h", ".inl", ".png"))]


def test_the_sdist_holds_files_and_no_links(tmp_path: Path) -> None:
    with tarfile.open(build("sdist", tmp_path)) as archive:
        members = {member.name.partition("/")[2]: member for member in archive.getmembers()}
    assert all(member.isfile() for member in members.values())
    assert {"fastgraph/kernels/mlp/op.py", "kernels/mlp/cpu.cpp", "CMakeLists.txt", "fastgraph/py.typed"} <= set(
        members
    )
