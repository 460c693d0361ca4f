"""Worker processes seen from the parent: one runs at a time, all others are stopped, and none can take it down."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from multiprocessing import Pipe
from tempfile import TemporaryFile
from typing import Any, NoReturn

from fastgraph.bench.process.fork_server import START_LIMIT_S, ForkServer, last_line


class WorkerFailed(Exception):
    """A worker raised, crashed, or gave no answer in time; the message says which. ``status`` is its row's."""

    status = "failed"


class Worker:
    """An object of its own process: ``ask`` calls its methods.

    Between two questions the process is stopped (SIGSTOP), so that threads which spin for more work (onnxruntime's,
    OpenVINO's, OpenMP's) take nothing from the one whose turn it is, and spinning may stay on while it is timed.
    """

    def __init__(self, fork_server: ForkServer, make: Callable[..., Any], *arguments: Any) -> None:
        """The process starts with the first question and makes the object ``make(*arguments)``, both picklable."""
        self._fork_server, self._made_by = fork_server, (make, arguments)
        self._connection, self._there = Pipe()
        self._output = TemporaryFile()  # noqa: SIM115 - closed with the worker
        self.pid: int | None = None
        self._status: int | None = None
        self._reason: str | None = None

    def start(self, limit_s: float = START_LIMIT_S) -> None:
        """Waits until the object is made.

        Raises:
            WorkerFailed: it could not be made.
        """
        if self.pid is not None or self._reason is not None:
            return
        try:
            self.pid = self._fork_server.fork(self._there, self._output)
            self._there.close()
            self._connection.send(self._made_by)
            self.answer(limit_s)
        except WorkerFailed as failure:
            self._reason = str(failure)
            raise
        except OSError as error:
            self._reason = f"its process could not be started: {error}"
            raise WorkerFailed(self._reason) from error

    def ask(self, method: str, *arguments: Any, limit_s: float) -> Any:
        """The result of ``method(*arguments)`` of the worker's object.

        Raises:
            WorkerFailed: the method raised (the worker lives on), the process ended, or ``limit_s`` went by (it is
                ended then).
        """
        self.begin(method, *arguments)
        return self.answer(limit_s)

    def begin(self, method: str, *arguments: Any) -> None:
        """Asks without waiting, so that several may work at once; ``answer`` has to follow. Raises WorkerFailed."""
        self.start()
        if self._reason is not None:
            raise WorkerFailed(self._reason)
        self._signal(signal.SIGCONT)
        try:
            self._connection.send((method, arguments))
        except OSError:
            self._gone()

    def close(self) -> None:
        """Ends the process."""
        self._signal(signal.SIGKILL)
        self._wait()
        self._there.close()
        self._connection.close()
        self._output.close()
        self._reason = self._reason or "its process was closed"

    def answer(self, limit_s: float) -> Any:
        """Waits for one answer, then stops the process. Raises WorkerFailed."""
        try:
            if not self._connection.poll(limit_s):
                self._signal(signal.SIGKILL)
                self._reason = f"gave no answer within {limit_s:.0f} s and was ended"
                raise WorkerFailed(self._reason)
            kind, result = self._connection.recv()
        except (EOFError, OSError):
            self._gone()
        self._signal(signal.SIGSTOP)
        if kind == "failed":
            raise WorkerFailed(result)
        return result

    def _signal(self, number: signal.Signals) -> None:
        """Sends a signal, as long as the process id is its own."""
        if self.pid is not None and self._status is None:
            os.kill(self.pid, number)

    def _wait(self) -> int:
        """The exit status, once the process has ended."""
        if self._status is None and self.pid is not None:
            self._status = self._fork_server.wait(self.pid)
        return self._status or 0

    def _gone(self) -> NoReturn:
        """Raises what the end of the process tells."""
        status = self._wait()
        how = signal.Signals(-status).name if status < 0 else f"status {status}"
        last = last_line(self._output)
        self._reason = f"its process ended with {how}" + (f": {last}" if last else "")
        raise WorkerFailed(self._reason) from None
