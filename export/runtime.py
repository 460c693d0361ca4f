"""onnxruntime sessions that really run where they were asked to."""

from __future__ import annotations

import os
import re
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fastgraph.extras import require

if TYPE_CHECKING:
    import onnxruntime

SPIN_US = 50
"""So long idle threads wait for work before they sleep. `DeepLearningModel` at batch 1 on two threads, AVX-512,
onnxruntime 1.31, takes 24 us with pauses of 0 and 50 us between calls, where threads that never spin make it 44 to 74
and endless spinning 37 to 39; behind pauses of 100 us it is 47, 51 and 39. An idle session takes no processor time."""
SPIN_DURATION = (1, 31)  # the first onnxruntime that is known to have a duration
PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}


def session(
    model: str | Path | bytes,
    provider: str = "cpu",
    threads: int | None = None,
    *,
    spinning: bool | int | str = SPIN_US,
) -> onnxruntime.InferenceSession:
    """An onnxruntime session that runs on ``provider``, or none.

    All graph optimisations on; operators run one after another, each on ``threads`` threads. On CUDA it is torch's
    current device, with TF32 only where ``torch.set_float32_matmul_precision`` allows it; onnxruntime itself keeps
    arithmetic on sizes, and operators that it has for the CPU alone, on the CPU.

    Args:
        model: the ONNX file, or its contents.
        provider: ``"cpu"`` or ``"cuda"``.
        threads: threads within an operator; by default ``torch.get_num_threads()``.
        spinning: how many microseconds idle threads wait for work busily before they sleep, by default 50 (an
            onnxruntime that knows no such number, before 1.31: not at all). False: not at all. True: as long as
            onnxruntime does by itself: an idle session keeps cores from others. ``"run"``: only while a call runs.

    Raises:
        ValueError: ``provider`` is neither of the two, ``threads`` is less than 1, or ``spinning`` less than 0 or
            another word.
        RuntimeError: onnxruntime cannot run on ``provider``, with the reason it gave, where it would have used another
            one.
        ModuleNotFoundError: onnxruntime is not installed.
    """
    made, said = open_session(model, provider, threads, spinning=spinning)
    sys.stderr.write(said)
    return made


def open_session(
    model: str | Path | bytes,
    provider: str = "cpu",
    threads: int | None = None,
    *,
    spinning: bool | int | str = SPIN_US,
) -> tuple[onnxruntime.InferenceSession, str]:
    """``session``, and what onnxruntime wrote to standard error, which is not passed on."""
    if provider not in PROVIDERS:
        raise ValueError(f"session: provider must be one of {', '.join(PROVIDERS)}; got {provider!r}")
    if threads is not None and threads < 1:
        raise ValueError(f"session: threads must be at least 1; got {threads}")
    if spinning != "run" and (not isinstance(spinning, int) or spinning < 0):
        raise ValueError(f"session: spinning must be a number of microseconds, False, True or 'run'; got {spinning!r}")
    require("onnxruntime", by="export.session")
    import onnxruntime

    name, offered = PROVIDERS[provider], onnxruntime.get_available_providers()
    if name not in offered:
        raise RuntimeError(_cannot_run(provider, f"this build of onnxruntime has only {', '.join(offered)}"))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads() if threads is None else threads
    options.inter_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    _set_spinning(options, spinning)
    with standard_error() as said:
        chosen = (name, _cuda_options()) if provider == "cuda" else name
        made = onnxruntime.InferenceSession(model, options, providers=[chosen])
    if made.get_providers()[0] != name:
        raise RuntimeError(_cannot_run(provider, _reason(said[0])))
    return made, said[0]


def _set_spinning(options: onnxruntime.SessionOptions, spinning: bool | int | str) -> None:
    """The entries for ``session``'s argument: one that onnxruntime does not know it would ignore, and spin on."""
    import onnxruntime

    lasting = isinstance(spinning, int) and not isinstance(spinning, bool)
    if lasting:
        known = tuple(map(int, re.findall(r"\d+", onnxruntime.__version__)[:2])) >= SPIN_DURATION
        spinning = spinning if known else False
    for pool in ("intra_op", "inter_op"):
        options.add_session_config_entry(f"session.{pool}.allow_spinning", "1" if spinning else "0")
    if lasting and spinning:
        options.add_session_config_entry("session.intra_op.spin_duration_us", str(spinning))
    options.add_session_config_entry("session.force_spinning_stop", "1" if spinning == "run" else "0")


def _cuda_options() -> dict[str, str]:
    """Where torch would compute, and how exactly; CUDA's libraries are loaded from where torch has them."""
    import onnxruntime

    onnxruntime.preload_dlls()
    device = torch.cuda.current_device() if torch.cuda.is_available() else 0
    return {"device_id": str(device), "use_tf32": "0" if torch.get_float32_matmul_precision() == "highest" else "1"}


def _cannot_run(provider: str, reason: str) -> str:
    return f"session: provider {provider!r} ({PROVIDERS[provider]}) cannot run here: {reason}"


def _reason(log: str) -> str:
    """What onnxruntime's log says of a provider that it could not make, without colours, times and places."""
    lines = [re.sub(r"\x1b\[[0-9;]*m", "", line).strip() for line in log.splitlines()]
    for line in lines:
        if found := re.search(r"with error: (.*)", line):
            return found.group(1)
    said = [line.rpartition("] ")[2] for line in lines if line]
    return said[-1] if said else "onnxruntime gave no reason"


@contextmanager
def standard_error() -> Iterator[list[str]]:
    """What the process writes to its standard error, native code included, goes into the list instead."""
    said: list[str] = []
    sys.stderr.flush()
    with tempfile.TemporaryFile() as file:
        before = os.dup(2)
        os.dup2(file.fileno(), 2)
        try:
            yield said
        finally:
            os.dup2(before, 2)
            os.close(before)
            file.seek(0)
            said.append(file.read().decode(errors="replace"))


class Binding:
    """Calls a session on torch tensors where they are: on a GPU nothing goes through the host's memory.

    ``Binding(session(path, "cuda"))(x)`` returns the tuple of outputs, tensors on the inputs' device that own their
    memory. Not for several threads at once.
    """

    def __init__(self, running: onnxruntime.InferenceSession) -> None:
        self._session = running
        self._binding = running.io_binding()
        self._inputs = [value.name for value in running.get_inputs()]
        self._outputs = {value.name: value.type for value in running.get_outputs()}

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """The outputs for ``inputs``, in the order of the file.

        Raises:
            TypeError: not as many tensors as the file has inputs, or tensors of several devices.
        """
        devices = {tensor.device for tensor in inputs}
        if len(inputs) != len(self._inputs) or len(devices) != 1:
            where = ", ".join(str(tensor.device) for tensor in inputs)
            raise TypeError(f"Binding: needs {len(self._inputs)} tensor(s) on one device; got {len(inputs)} ({where})")
        (device,) = devices
        index = device.index or 0
        held = [tensor.detach().contiguous() for tensor in inputs]
        values = [_ort_value(tensor) for tensor in held]
        for name, value in zip(self._inputs, values, strict=True):
            self._binding.bind_ortvalue_input(name, value)
        for name in self._outputs:
            self._binding.bind_output(name, device.type, index)
        if device.type == "cuda":
            torch.cuda.current_stream(device).synchronize()  # the session has a stream of its own
        self._session.run_with_iobinding(self._binding)
        self._binding.synchronize_outputs()
        results = [torch.from_dlpack(value) for value in self._binding.get_outputs()]
        self._binding.clear_binding_inputs()
        self._binding.clear_binding_outputs()
        kinds = zip(results, self._outputs.values(), strict=True)
        return tuple(result.view(torch.bool) if kind == "tensor(bool)" else result for result, kind in kinds)


def _ort_value(tensor: Tensor) -> onnxruntime.OrtValue:
    """The same memory. onnxruntime 1.31 knows truth values in DLPack as bytes only."""
    import onnxruntime
    from onnxruntime.capi import onnxruntime_pybind11_state as C

    if tensor.dtype is not torch.bool:
        return onnxruntime.OrtValue.from_dlpack(tensor)
    return onnxruntime.OrtValue(C.OrtValue.from_dlpack(tensor.view(torch.uint8).__dlpack__(), True))
