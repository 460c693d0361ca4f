"""The layers import downward only: bench -> export -> fastgraph -> kernels -> torch."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LAYERS = ["kernels", "fastgraph", "export", "bench"]  # each may import those before it


def imported(path: Path) -> set[str]:
    """Top-level names of all modules that a file imports, anywhere in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names.add(node.module.partition(".")[0])
    return names


@pytest.mark.parametrize("layer", LAYERS)
def test_imports_go_downward(layer: str) -> None:
    above = {*LAYERS[LAYERS.index(layer) + 1 :], "tests"}
    files = list((ROOT / layer).rglob("*.py"))
    assert files
    assert {f"{path.name}: {name}" for path in files for name in imported(path) & above} == set()


def test_the_check_sees_an_import(tmp_path: Path) -> None:
    file = tmp_path / "bad.py"
    file.write_text("def f():\n    from bench.cases import Case\n    import export.onnx\n")
    assert imported(file) == {"bench", "export"}


def test_references_do_not_import_fast_code() -> None:
    files = list((ROOT / "kernels").rglob("reference.py"))
    assert len(files) == 3
    for path in files:
        modules = [n.module or "" for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.ImportFrom)]
        ours = [m for m in modules if m.startswith("kernels")]
        assert all(m.endswith(".reference") for m in ours), path


def test_kernels_work_without_fastgraph() -> None:
    code = """
import sys
for name in ("fastgraph", "export", "bench"):
    sys.modules[name] = None
import torch, kernels
print(torch.ops.fastgraph.mlp.default(torch.ones(1, 2), [torch.ones(3, 2)], [None], ["relu"]).tolist())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.stdout.strip() == "[[2.0, 2.0, 2.0]]", done.stderr


def test_another_package_named_kernels_is_named_in_one_sentence(tmp_path: Path) -> None:
    """`fastgraph` beside a foreign `kernels`, in a Python that does not see the installed one."""
    (tmp_path / "kernels").mkdir()
    (tmp_path / "kernels" / "__init__.py").write_text("")
    (tmp_path / "fastgraph").symlink_to(ROOT / "fastgraph")
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import fastgraph"
    done = subprocess.run([sys.executable, "-S", "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path)
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError: fastgraph needs its own package 'kernels', but the one imported is ")
    assert str(tmp_path) in last


def test_kernel_sources_know_neither_torch_nor_python() -> None:
    """Only the bindings do; and code that is compiled for one ISA uses none of the standard library's templates."""
    files = [p for p in (ROOT / "kernels").rglob("*") if p.suffix in {".cpp", ".h", ".inl"}]
    sources = [p for p in files if p.name not in {"bindings.cpp", "door.cpp", "structure.cpp", "structure.h", "gc.h"}]
    assert len(sources) > 10
    for path in sources:
        text = path.read_text()
        assert not any(word in text for word in ("Python.h", "nanobind", "torch/", "ATen/")), path
        if path.suffix == ".inl" or path.name in {"simd.h", "tile.h", "activation.h"}:
            assert "std::" not in text, path
