"""A backend inside its worker process: made ready for one case at a time, then timed in blocks."""

from __future__ import annotations

import copy
import gc
import resource
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastgraph.bench.backends import Backend, Setting
from fastgraph.bench.cases import Built, Case, in_dtype
from fastgraph.bench.check import accuracy
from fastgraph.bench.plan import Plan, lead_in
from fastgraph.bench.process import cuda, load_generator, timer
from fastgraph.bench.process.prctl import sharpen_sleep
from fastgraph.bench.timing import Seconds, Usage


@dataclass(frozen=True)
class Ready:
    """A backend's first answer for a case.

    ``output`` is what it computed, widened to float32, and ``dtype`` what it gave that in. ``prepare_s`` is the time to
    make it ready, None where what an earlier batch size had prepared serves this one too; ``first_call_s`` that of its
    first call (there torch.compile compiles). ``fused``: the share of FLOPs in fused kernels.
    """

    where: str
    prepare_s: float | None
    first_call_s: float
    output: NDArray[np.float32]
    dtype: str
    fused: float | None


class Runner:
    """One backend at one setting."""

    def __init__(self, make: Callable[[], Backend], setting: Setting) -> None:
        torch.set_num_threads(setting.threads)
        if setting.device == "cuda":
            cuda.ieee_fp32()
        self._make, self._setting = make, setting
        self._model: str | None = None
        self._base_memory = 0

    def prepare(self, case: Case) -> Ready:
        """Builds the case, makes the backend ready for it, and runs it once."""
        built = case.build()
        prepare_s = None
        if self._model != case.model:
            self._model = None  # whatever happens now, the next case begins anew
            self._begin(built)
            prepare_s = self._prepare(built)
            self._model = case.model
        elif not self._backend.any_batch:
            prepare_s = self._prepare(built)
        self._x = self._given(built.x)
        self._built, self._batch = built, case.batch
        with torch.inference_mode():
            start = time.perf_counter()
            output = self._backend.run(self._x)
            self._synchronize()
            first_call_s = time.perf_counter() - start
            self._call = self._timed_call()
            if not isinstance(output, Tensor):
                raise TypeError(f"the model's output must be one tensor; got {type(output).__name__}")
            values = output.detach().cpu().float().numpy().copy()
        _forget_peak()
        self._spent, self._rests = np.zeros(6), False
        where, fused = self._backend.ran_on(), self._backend.fused()
        return Ready(where, prepare_s, first_call_s, values, str(output.dtype).removeprefix("torch."), fused)

    def accuracy(self) -> float | None:
        """Share of the held-out digits that it classifies right, 0..1; None where the case has no digits."""

        def run(x: Tensor) -> Tensor:
            given = self._given(x)  # outside inference mode, as in prepare: torch.compile would compile anew
            with torch.inference_mode():
                return self._backend.run(given)

        return accuracy(run, self._built.held_out, self._batch)

    def warm_up(self, plan: Plan) -> timer.WarmUp:
        """Runs until it is stable."""
        if not plan.tight:
            sharpen_sleep()  # now that its threads are there, which would inherit it

        def finished() -> None:
            self._call()
            self._synchronize()

        with torch.inference_mode():
            return timer.warm_up(finished, plan)

    def block(self, count: int, limit_s: float = float("inf"), pause_s: float = 0.0) -> Seconds:
        """Seconds of each of ``count`` calls, or of as many as are over in ``limit_s`` on the CPU."""
        setting, self._rests = self._setting, pause_s > 0
        with torch.inference_mode():
            if setting.device == "cpu" or setting.copies:  # a call that ends in the host's memory has ended
                return self._counted(lambda: timer.block(self._call, count, limit_s, pause_s=pause_s), lead_in)
            cold = setting.cache == "cold"
            return cuda.block(self._call, count, cuda.flusher(self._x.device) if cold else None)

    def serve(self, due_s: Seconds) -> Seconds:
        """Seconds from arrival to answer of the queries that are due then; fewer when it cannot keep up."""
        self._rests = True
        with torch.inference_mode():
            return self._counted(lambda: load_generator.serve(self._call, due_s), lambda count: 0)

    def together(self, start_s: float, end_s: float) -> tuple[Seconds, float]:
        """Seconds of the calls between two moments of ``time.perf_counter``, and calls a second."""
        with torch.inference_mode():
            return load_generator.together(self._call, start_s, end_s)

    def usage(self) -> Usage | None:
        """What the calls of ``block`` and ``serve`` cost; None where none was made on the CPU."""
        calls, called_s, wall_s, cpu_s, kernel_s, faults = self._spent.tolist()
        if not calls:
            return None
        between_s = (wall_s - called_s) / calls if self._rests else None
        return Usage(cpu_s / calls, kernel_s / cpu_s if cpu_s else 0.0, faults / calls, between_s)

    def peak_memory(self) -> int | None:
        """Bytes that the process had grown by at most while it was timed, since before the backend was prepared."""
        peak = _memory("VmHWM")
        return None if peak is None else max(0, peak - self._base_memory)

    def _counted(self, timed: Callable[[], Seconds], ahead: Callable[[int], int]) -> Seconds:
        """What ``timed`` gives; adds up what it and the untimed calls ``ahead`` of it cost, for ``usage``."""
        before = _resources()
        seconds = timed()
        calls = len(seconds) + ahead(len(seconds))
        self._spent += [calls, calls * float(seconds.mean() if calls else 0), *(_resources() - before)]
        return seconds

    def _timed_call(self) -> Callable[[], Any]:
        """What is timed: the backend's call, on CUDA with copies or as a graph where the setting says so."""
        if self._setting.copies:
            return cuda.with_copies(self._backend.run, self._x, self._x.device)
        if self._setting.launch == "graph":
            return cuda.captured(lambda: self._backend.run(self._x))
        return lambda: self._backend.run(self._x)

    def _synchronize(self) -> None:
        """Waits for the device."""
        if self._setting.device == "cuda":
            torch.cuda.synchronize()

    def _begin(self, built: Built) -> None:
        """A new backend for a new model; what the one before it held is given back first."""
        self._backend = self._make()
        gc.collect()
        self._base_memory = _memory("VmRSS") or 0
        self._given_model = built.model
        dtype = self._setting.torch_dtype if self._backend.casts_model else torch.float32
        if (dtype, self._setting.device) != (torch.float32, "cpu"):
            self._given_model = copy.deepcopy(built.model).to(self._setting.device, dtype)

    def _prepare(self, built: Built) -> float:
        """Seconds that the backend takes to become ready."""
        start = time.perf_counter()
        self._backend.prepare(self._given_model, self._given(built.x), self._setting)  # not in inference mode
        return time.perf_counter() - start

    def _given(self, x: Tensor) -> Tensor:
        """``x`` on the device, as the backend takes it."""
        x = in_dtype(x, self._setting.torch_dtype) if self._backend.casts_model else x
        return x.to(self._setting.device)


def _resources() -> NDArray[np.float64]:
    """The time, and what this process has used: processor seconds, those in the kernel, page faults."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return np.array([time.perf_counter(), used.ru_utime + used.ru_stime, used.ru_stime, used.ru_minflt])


def _memory(field: str) -> int | None:
    """Bytes of ``field`` in this process's status; None where the system does not tell."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    values = [line.split()[1] for line in lines if line.startswith(f"{field}:")]
    return int(values[0]) * 1024 if values else None


def _forget_peak() -> None:
    """Sets the process's memory peak back to what it has now (Linux: "5" to clear_refs, proc(5))."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return
