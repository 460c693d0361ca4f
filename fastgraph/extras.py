"""Packages that only a part of fastgraph needs: where one is missing, `require` says which pip line brings it."""

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version

# module: its package's name, and the extra of fastgraph that brings it (pyproject.toml)
_PACKAGES = {
    "google.protobuf": ("protobuf", "onnx"),
    "onnx": ("onnx", "onnx"),
    "onnx_ir": ("onnx-ir", "onnx"),
    "onnxruntime": ("onnxruntime", "onnx"),
    "onnxscript": ("onnxscript", "onnx"),
    "graphviz": ("graphviz", "pictures"),
    "torchviz": ("torchviz", "pictures"),
    "PIL": ("pillow", "bench"),
    "kaleido": ("kaleido", "bench"),
    "plotly": ("plotly", "bench"),
    "sklearn": ("scikit-learn", "bench"),
    "torchvision": ("torchvision", "bench"),
    "openvino": ("openvino", "peers"),
}


def require(*modules: str, by: str) -> None:
    """Imports optional `modules`, which the function `by` needs.

    ModuleNotFoundError where some are not installed: their packages' names and the pip line. A package that is there
    and cannot be imported raises its own error.
    """
    missing = [name for name in modules if not _can_import(name)]
    if not missing:
        return
    packages = " and ".join(_PACKAGES[name][0] for name in missing)
    extras = ",".join(dict.fromkeys(_extra(name) for name in missing))
    raise ModuleNotFoundError(f"{by} needs {packages}: pip install 'fastgraph[{extras}]'", name=missing[0])


def _can_import(module: str) -> bool:
    try:
        import_module(module)
    except ImportError as error:
        if error.name is None:  # raised by what blocks the import
            return False
        if isinstance(error, ModuleNotFoundError) and f"{module}.".startswith(f"{error.name}."):
            return False
        raise
    return True


def _extra(module: str) -> str:
    """The extra that brings `module`; beside onnxruntime-gpu the one that does not write onnxruntime over it."""
    extra = _PACKAGES[module][1]
    return "onnx-gpu" if extra == "onnx" and _is_installed("onnxruntime-gpu") else extra


def _is_installed(package: str) -> bool:
    try:
        version(package)
    except PackageNotFoundError:
        return False
    return True
