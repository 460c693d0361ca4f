"""The machine that was measured on, and what ran there."""

from __future__ import annotations

import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

import fastgraph
from fastgraph.bench.ceilings.caches import cache_bytes

PACKAGES = ("torch", "triton", "onnxruntime", "onnxruntime-gpu", "openvino", "numpy")
ROOT = Path(__file__).resolve().parents[1]  # of the checkout, through the link fastgraph/bench


def machine() -> dict[str, Any]:
    """What the figures depend on: processor, caches, instruction set, versions, commit (None outside a checkout)."""
    return {
        "cpu": _cpu_model(),
        "cores": torch.get_num_threads(),
        "l2_bytes": cache_bytes(2, 0) or None,
        "l3_bytes": cache_bytes(3, 0) or None,
        "isa": fastgraph.cpu_capability(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": {"fastgraph": fastgraph.__version__}
        | {name: release for name in PACKAGES if (release := _version(name))},
        "commit": _commit(),
    }


def machine_lines(about: dict[str, Any]) -> list[str]:
    """The machine for people: processor and instruction set; versions and commit; the GPU."""
    versions = ", ".join(f"{name} {text}" for name, text in about["versions"].items())
    gpu = about["gpu"]
    return [
        f"{about['cpu']}, {about['cores']} cores, {about['isa']} kernels",
        f"python {about['python']}, {versions}; commit {about['commit'] or '-'}",
        f"GPU: {gpu}" if gpu else "GPU: no CUDA device here, so there is no comparison of CPU and CUDA",
    ]


def _version(package: str) -> str | None:
    """The installed version, without importing the package."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _cpu_model() -> str:
    """The processor's name."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _commit(root: Path = ROOT) -> str | None:
    """The commit of the checkout at ``root``, "-dirty" where files differ; None where there is none or no git."""
    if not (root / ".git").exists():
        return None
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--exclude=*"], cwd=root, capture_output=True, text=True
        )
    except OSError:
        return None
    return described.stdout.strip() or None
