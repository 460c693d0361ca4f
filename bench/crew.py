"""Worker processes seen from the parent: one runs at a time, all others are stopped, and none can take it down."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from multiprocessing import Pipe
from tempfile import TemporaryFile
from typing import Any

START_LIMIT_S = 120.0  # importing torch on a busy machine


class WorkerFailed(Exception):
    """A worker raised, crashed, or gave no answer in time; the message says which."""


class Worker:
    """An object of its own process: ``ask`` calls its methods.

    Between two questions the process is stopped (SIGSTOP), so that threads which spin for more work (onnxruntime's,
    OpenVINO's, OpenMP's) take nothing from the one whose turn it is, and spinning may stay on while it is timed.
    """

    def __init__(self, make: Callable[..., Any], *arguments: Any, threads: int) -> None:
        """Starts the process, which makes the object ``make(*arguments)``; both must be picklable."""
        here, there = Pipe()
        self._connection = here
        self._said = TemporaryFile()  # noqa: SIM115 - closed with the worker
        self._started = False
        self._reason: str | None = None
        self._process = subprocess.Popen(
            [sys.executable, "-m", "bench.worker", str(there.fileno())],
            pass_fds=[there.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=self._said,
            stderr=self._said,
            env=_environment(threads),
            start_new_session=True,  # Ctrl-C is for the parent, which then ends its workers
        )
        there.close()
        self._connection.send((make, arguments))

    @property
    def alive(self) -> bool:
        """Whether it can still be asked."""
        return self._reason is None

    def start(self, limit_s: float = START_LIMIT_S) -> None:
        """Waits until the object is made; several workers may be starting at once before.

        Raises:
            WorkerFailed: it could not be made.
        """
        if not self._started:
            self._started = True
            try:
                self._answer(limit_s)
            except WorkerFailed as failure:
                self._reason = str(failure)
                raise

    def ask(self, method: str, *arguments: Any, limit_s: float) -> Any:
        """The result of ``method(*arguments)`` of the worker's object.

        Raises:
            WorkerFailed: the method raised (the worker lives on), the process ended, or ``limit_s`` went by (it is
                ended then).
        """
        self.start()
        if self._reason is not None:
            raise WorkerFailed(self._reason)
        self._process.send_signal(signal.SIGCONT)
        try:
            self._connection.send((method, arguments))
        except OSError:
            self._gone()
        return self._answer(limit_s)

    def close(self) -> None:
        """Ends the process."""
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        self._connection.close()
        self._said.close()
        self._reason = self._reason or "its process was closed"

    def _answer(self, limit_s: float) -> Any:
        """Waits for one answer, then stops the process."""
        try:
            if not self._connection.poll(limit_s):
                self._process.kill()
                self._reason = f"gave no answer within {limit_s:.0f} s and was ended"
                raise WorkerFailed(self._reason)
            kind, result = self._connection.recv()
        except (EOFError, OSError):
            self._gone()
        self._process.send_signal(signal.SIGSTOP)
        if kind == "failed":
            raise WorkerFailed(result)
        return result

    def _gone(self) -> None:
        """Raises what the end of the process tells."""
        status = self._process.wait()
        how = signal.Signals(-status).name if status < 0 else f"status {status}"
        last = self._last_line()
        self._reason = f"its process ended with {how}" + (f": {last}" if last else "")
        raise WorkerFailed(self._reason) from None

    def _last_line(self) -> str:
        """The last line that the process printed."""
        self._said.seek(0)
        lines = self._said.read().decode(errors="replace").strip().splitlines()
        return lines[-1][:200] if lines else ""


def _environment(threads: int) -> dict[str, str]:
    """The parent's environment and import path, and the number of threads for whoever asks there."""
    count = str(threads)
    path = os.pathsep.join(entry for entry in sys.path if entry)
    return os.environ | {"OMP_NUM_THREADS": count, "MKL_NUM_THREADS": count, "PYTHONPATH": path}
