"""The package as a user has it: what an import costs, what is optional, where its names are, what it prints."""

import importlib.metadata
import os
import re
import subprocess
import sys
import tomllib
from contextlib import suppress
from pathlib import Path

import pytest
import torch

import fastgraph
from fastgraph import extras, lazy
from fastgraph.bench.machine import machine, machine_lines

ROOT = Path(__file__).parent.parent
SAID = "fastgraph: no compiled kernels"  # all that may be on standard error, where there are none
OPTIONAL = sorted({name.partition(".")[0] for name in extras._PACKAGES} - {"google"} | {"google.protobuf"})
BLOCK = f"import sys\nsys.modules.update(dict.fromkeys({OPTIONAL}))\n"  # None: as if it were not installed


def python(code: str, cwd: Path = ROOT, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs `code` as `python -c` does, with this checkout's fastgraph wherever it runs."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    variables = {**os.environ, "PYTHONPATH": path, **environment}
    command = [sys.executable, "-c", code]
    return subprocess.run(command, capture_output=True, text=True, env=variables, check=False, cwd=cwd)


def unexpected(stderr: str) -> list[str]:
    """The lines of standard error that are not ours; the warning of a package without kernels has two."""
    lines = stderr.splitlines()
    return [a for a, b in zip(lines, ["", *lines], strict=False) if SAID not in a and SAID not in b]


@pytest.mark.parametrize("names", ["", "fastgraph.load, fastgraph.save, fastgraph.optimize, fastgraph.models"])
def test_what_is_not_imported_before_it_is_needed(names: str) -> None:
    code = f"""
import sys, torch
before = set(sys.modules)
import fastgraph
{names}
assert torch.ops.fastgraph.mlp.default
new = {{name.partition(".")[0] for name in set(sys.modules) - before if not name.startswith("torch.")}}
print("torch._dynamo" in sys.modules, sorted(new & set({[*OPTIONAL, "rich"]})))
"""
    done = python(code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "False []"


def test_the_public_names() -> None:
    code = """
import fastgraph
assert set(fastgraph.__all__) <= set(dir(fastgraph)), dir(fastgraph)
assert "optimize" not in vars(fastgraph)
from fastgraph import *
from fastgraph.module import optimize as the_same
assert optimize is the_same is fastgraph.optimize is vars(fastgraph)["optimize"]
import fastgraph.models
assert models is fastgraph.models
"""
    done = python(code)
    assert done.returncode == 0, done.stderr
    assert not hasattr(fastgraph, "optimise")
    with pytest.raises(AttributeError, match=r"^module 'fastgraph' has no attribute 'optimise'$"):
        fastgraph.optimise  # noqa: B018


def test_a_name_is_looked_up_once(monkeypatch: pytest.MonkeyPatch) -> None:
    package = type(sys)("package")
    monkeypatch.setitem(sys.modules, "package", package)
    get, names = lazy.attributes("package", {"sin": "math:sin", "path": "os.path"})
    assert {"sin", "path", "__name__"} <= set(names())
    assert get("sin")(0) == 0
    assert vars(package)["sin"] is get("sin")
    assert get("path") is os.path


def test_without_any_optional_package() -> None:
    """Optimizing, saving, loading, explaining and torch.compile work; what does not says so in one sentence."""
    code = """
import os, tempfile, torch, fastgraph
from fastgraph import data, export
model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 4)).eval()
x = torch.randn(3, 8)
fast = fastgraph.optimize(model, (x,))
with tempfile.TemporaryDirectory() as folder:
    fastgraph.save(fast, f"{folder}/model")
    again = fastgraph.load(f"{folder}/model")
    with torch.no_grad():
        compiled = torch.compile(model, backend=fastgraph.backend.fastgraph_backend)
        for other in (fast, again, compiled):
            torch.testing.assert_close(other(x), model(x))
    assert "linear" in str(fast.explain())
    picture = export.graphs.draw(fast, (x,))
    assert "Rewritten (fastgraph)" in export.graphs.to_html("page", [picture])
    for attempt in (
        lambda: export.to_onnx(fast, (x,), f"{folder}/model.onnx"),
        lambda: export.session(f"{folder}/model.onnx"),
        lambda: export.graphs.to_dot(picture),
        lambda: data.digits(),
        lambda: data.photograph(),
        lambda: data.photograph("own.png"),
    ):
        try:
            attempt()
        except ModuleNotFoundError as error:
            print(error)
"""
    done = python(BLOCK + "import fastgraph.backend\n" + code)
    assert done.returncode == 0, done.stderr
    onnx = "onnx-gpu" if extras._is_installed("onnxruntime-gpu") else "onnx"
    assert done.stdout.splitlines() == [
        f"export.to_onnx needs onnx and onnx-ir and onnxscript and onnxruntime: pip install 'fastgraph[{onnx}]'",
        f"export.session needs onnxruntime: pip install 'fastgraph[{onnx}]'",
        "export.graphs.to_dot needs graphviz: pip install 'fastgraph[pictures]'",
        "fastgraph.data.digits needs scikit-learn: pip install 'fastgraph[bench]'",
        "fastgraph.data.photograph needs pillow and torchvision and scikit-learn: pip install 'fastgraph[bench]'",
        "fastgraph.data.photograph needs pillow and torchvision: pip install 'fastgraph[bench]'",
    ]
    assert unexpected(done.stderr) == []


@pytest.mark.parametrize("program", ["fastgraph.bench", "fastgraph.export"])
def test_a_command_without_its_packages_ends_with_one_line(program: str, tmp_path: Path) -> None:
    code = (
        f"import runpy\nsys.argv = ['', '--out', {str(tmp_path)!r}]\nrunpy.run_module({program!r}, run_name='__main__')"
    )
    done = python(BLOCK + code)
    assert done.returncode == 2
    (line,) = unexpected(done.stderr)
    assert re.fullmatch(r"python -m (bench|export): error: .* needs .*: pip install 'fastgraph\[[\w,-]+\]'", line)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("program", ["fastgraph.bench", "fastgraph.export"])
def test_the_commands_from_the_checkout(program: str) -> None:
    command = [sys.executable, "-m", program, "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"usage: python -m {program.removeprefix('fastgraph.')} ")


def test_a_missing_package_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "plotly", None)
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    extras.require("torchvision", "PIL", by="nobody")
    monkeypatch.setattr(extras, "_is_installed", lambda package: False)
    message = r"^f needs plotly and onnxscript: pip install 'fastgraph\[bench,onnx\]'$"
    with pytest.raises(ModuleNotFoundError, match=message):
        extras.require("plotly", "PIL", "onnxscript", by="f")
    monkeypatch.setattr(extras, "_is_installed", lambda package: package == "onnxruntime-gpu")
    with pytest.raises(ModuleNotFoundError, match=r"^f needs onnxscript: pip install 'fastgraph\[onnx-gpu\]'$"):
        extras.require("onnxscript", by="f")


@pytest.mark.parametrize(
    "content", ["import a_package_of_its_own", "raise ImportError('no such symbol', name='graphviz._library')"]
)
def test_a_package_that_is_there_but_broken_says_so_itself(
    content: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "graphviz.py").write_text(content)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "graphviz", raising=False)
    with pytest.raises(ImportError, match=r"a_package_of_its_own|no such symbol"):
        extras.require("graphviz", by="f")


def test_every_optional_package_is_in_its_extra() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    listed = project["optional-dependencies"]
    for package, extra in extras._PACKAGES.values():
        assert package in listed[extra]
    both = {re.split(r"[; ]", line)[0] for line in listed["onnx-gpu"]}
    assert both - {"onnxruntime-gpu"} == set(listed["onnx"])
    assert {extra for _, extra in extras._PACKAGES.values()} - {"peers"} == {"onnx", "pictures", "bench"}
    assert listed["all"] == ["fastgraph[onnx,pictures,bench]"]


def test_the_version_stands_once_and_in_every_report() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert "version" in project["project"]["dynamic"]
    with suppress(importlib.metadata.PackageNotFoundError):  # run from a checkout that is not installed
        assert importlib.metadata.version("fastgraph") == fastgraph.__version__
    about = machine()
    assert about["versions"]["fastgraph"] == fastgraph.__version__
    assert any(f"fastgraph {fastgraph.__version__}" in line for line in machine_lines(about))


def test_files_of_the_same_names_in_the_current_folder(tmp_path: Path) -> None:
    for name in ("kernels", "export", "bench", "lazy", "extras", "models"):
        (tmp_path / f"{name}.py").write_text("mine = True")
    code = """
import kernels, export, bench, lazy, extras, models
assert kernels.mine and export.mine and bench.mine
import torch, fastgraph
from fastgraph import export
assert not hasattr(export, "mine")
fast = fastgraph.optimize(torch.nn.Sequential(torch.nn.Linear(8, 4), torch.nn.ReLU()), (torch.ones(2, 8),))
assert fast(torch.ones(5, 8)).shape == (5, 4)
assert kernels.mine
"""
    done = python(code, cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_nothing_is_said_at_exit() -> None:
    """Results with gradients, and modules, that are alive at the end of the process are no leaks."""
    code = """
import torch, fastgraph
from torch import nn
convolution = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 5)).eval()
kept = []
for model, x in ((nn.Linear(8, 4), torch.randn(2, 8)), (convolution, torch.randn(2, 3, 8, 8))):
    fast = fastgraph.optimize(model, (x,))
    kept += [fast, fast(x)]
    with torch.no_grad():
        kept.append(fast(x))
assert kept[1].requires_grad
"""
    done = python(code)
    assert done.returncode == 0, done.stderr
    assert unexpected(done.stderr) == []


def test_the_check_of_standard_error() -> None:
    warning = f"file.py:1: RuntimeWarning: {SAID}, running through ATen\n  warnings.warn("
    assert unexpected(warning) == []
    assert unexpected(f"{warning}\nnanobind: leaked 1 instances!") == ["nanobind: leaked 1 instances!"]


def test_torch_reads_the_same_ops_after_the_import() -> None:
    assert torch.ops.fastgraph.conv_pool_mlp.default.name() == "fastgraph::conv_pool_mlp"
