"""The layers import downward only: bench -> export -> fastgraph -> kernels -> torch.

They are installed as `fastgraph.bench`, `fastgraph.export`, `fastgraph` and `fastgraph.kernels`.
"""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LAYERS = ["kernels", "fastgraph", "export", "bench"]  # each may import those before it
ABOVE = re.compile(r"fastgraph\.(\w+)(\.\w+)*(:\w+)?")


def files_of(layer: str) -> list[Path]:
    """The files of a folder at the top, without those behind the links in `fastgraph/`."""
    linked = {folder for folder in (ROOT / layer).iterdir() if folder.is_symlink()}
    return [path for path in (ROOT / layer).rglob("*.py") if not linked & set(path.parents)]


def imported(path: Path) -> Iterator[str]:
    """All modules that a file imports, anywhere in it and by name too (`import_module("fastgraph.bench")`)."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and ABOVE.fullmatch(node.value):
            yield node.value


def layer_of(module: str) -> str | None:
    """The layer that a module belongs to; None for what is not ours. The old names are layers too."""
    top, _, rest = module.partition(".")
    inner = re.split(r"[.:]", rest)[0]
    if top == "fastgraph":
        return inner if inner in LAYERS else top
    return top if top in {*LAYERS, "tests"} else None


def upward(path: Path, layer: str) -> set[str]:
    """What a file of this layer imports from above it, or by a name that is not the installed one."""
    allowed = LAYERS[: LAYERS.index(layer) + 1]
    found = {module: layer_of(module) for module in imported(path)}
    outside = {module for module, of in found.items() if of and module.partition(".")[0] != "fastgraph"}
    return outside | {module for module, of in found.items() if of and of not in allowed}


@pytest.mark.parametrize("layer", LAYERS)
def test_imports_go_downward(layer: str) -> None:
    files = files_of(layer)
    assert len(files) > 10
    assert {f"{path.name}: {name}" for path in files for name in upward(path, layer)} == set()


@pytest.mark.parametrize(
    ("layer", "code", "found"),
    [
        ("kernels", "from fastgraph import lazy", {"fastgraph.lazy"}),
        ("kernels", "from fastgraph.capture import capture", {"fastgraph.capture.capture"}),
        ("kernels", "import fastgraph", {"fastgraph"}),
        ("kernels", "from fastgraph.kernels import native; import torch", set()),
        ("kernels", "from fastgraph import kernels", set()),
        ("kernels", "import kernels.mlp.op", {"kernels.mlp.op"}),
        ("fastgraph", "def f():\n    from fastgraph import export", {"fastgraph.export"}),
        ("fastgraph", "places = {'to_onnx': 'fastgraph.export.onnx:to_onnx'}", {"fastgraph.export.onnx:to_onnx"}),
        ("fastgraph", "import fastgraph.bench.cases as cases", {"fastgraph.bench.cases"}),
        ("fastgraph", "from fastgraph.kernels.mlp import op\nfrom fastgraph import models", set()),
        ("export", "from fastgraph.bench import run", {"fastgraph.bench.run"}),
        ("export", "from fastgraph import optimize\nfrom fastgraph.export import graphs", set()),
        ("export", "import export.onnx", {"export.onnx"}),
        ("bench", "from tests.reference import scaled", {"tests.reference.scaled"}),
        ("bench", "from fastgraph.export import to_onnx", set()),
    ],
)
def test_the_check_sees_an_import(layer: str, code: str, found: set[str], tmp_path: Path) -> None:
    file = tmp_path / "file.py"
    file.write_text(code)
    assert upward(file, layer) == found


def test_references_do_not_import_fast_code() -> None:
    files = list((ROOT / "kernels").rglob("reference.py"))
    assert len(files) == 3
    for path in files:
        ours = [module for module in imported(path) if layer_of(module)]
        assert all("reference" in module.split(".") for module in ours), path
    assert any(layer_of(module) for path in files for module in imported(path))


def test_kernels_work_without_fastgraph() -> None:
    """Only the package's name is there: nothing in its __init__.py, and no module of it but the kernels'."""
    code = """
import sys, types
package = types.ModuleType("fastgraph")
package.__path__ = ["fastgraph"]
sys.modules["fastgraph"] = package
import torch, fastgraph.kernels
print(torch.ops.fastgraph.mlp.default(torch.ones(1, 2), [torch.ones(3, 2)], [None], ["relu"]).tolist())
print([name for name in sys.modules if name.startswith("fastgraph.") and name.split(".")[1] != "kernels"])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.stdout.split("\n")[:2] == ["[[2.0, 2.0, 2.0]]", "[]"], done.stderr


def test_kernel_sources_know_neither_torch_nor_python() -> None:
    """Only the bindings do; and code that is compiled for one ISA uses none of the standard library's templates."""
    files = [p for p in (ROOT / "kernels").rglob("*") if p.suffix in {".cpp", ".h", ".inl"}]
    bindings = {"bindings.cpp", "guard.cpp", "torch.h", "structure.cpp", "structure.h", "gc.h"}
    sources = [p for p in files if p.name not in bindings]
    assert len(sources) > 10
    for path in sources:
        text = path.read_text()
        assert not any(word in text for word in ("Python.h", "nanobind", "torch/", "ATen/")), path
        if path.suffix == ".inl" or path.name in {"simd.h", "tile.h", "activation.h"}:
            assert "std::" not in text, path
