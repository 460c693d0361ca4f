"""The fork server seen from the parent: one process imports what all workers need, and each is forked from it.

Importing PyTorch and this package takes seconds of processor time, and a session has ten backends.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from multiprocessing.connection import Connection
from tempfile import TemporaryFile
from typing import IO

from fastgraph.bench.process.child import ANSWER, FORK, REQUEST, WAIT

START_LIMIT_S = 120.0  # importing torch on a busy machine


class ForkServer:
    """The process that workers with the same number of threads are forked from.

    It has begun no thread of PyTorch or OpenMP, so what is forked from it is as good as new.
    """

    def __init__(self, threads: int, preload: Sequence[str] = ()) -> None:
        """Starts the process; it imports the modules ``preload`` while this one goes on."""
        self._control, there = socket.socketpair()
        self._control.settimeout(START_LIMIT_S)
        self._output = TemporaryFile()  # noqa: SIM115 - closed with the server
        self._process = subprocess.Popen(
            [sys.executable, "-m", "fastgraph.bench.process.child", str(there.fileno()), *preload],
            pass_fds=[there.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=self._output,
            stderr=self._output,
            env=_environment(threads),
            start_new_session=True,  # Ctrl-C is for the parent, which then ends its workers
        )
        there.close()

    def fork(self, pipe: Connection, output: IO[bytes]) -> int:
        """The process id of a new worker with this end of a pipe; what it prints goes to ``output``.

        Raises:
            OSError: the fork server has ended or gives no answer.
        """
        socket.send_fds(self._control, [REQUEST.pack(FORK, 0)], [pipe.fileno(), output.fileno()])
        return self._answer()

    def wait(self, pid: int) -> int:
        """The exit status of the worker ``pid`` once it has ended, negative for a signal, as in ``subprocess``."""
        try:
            self._control.sendall(REQUEST.pack(WAIT, pid))
            return os.waitstatus_to_exitcode(self._answer())
        except OSError:
            return -signal.SIGKILL  # workers end with the fork server

    def close(self) -> None:
        """Ends the process."""
        self._control.close()
        self._process.kill()
        self._process.wait()
        self._output.close()

    def _answer(self) -> int:
        content = self._control.recv(ANSWER.size, socket.MSG_WAITALL)
        if not content:
            raise ConnectionError(f"the process that workers are forked from has ended: {last_line(self._output)}")
        (value,) = ANSWER.unpack(content)
        return value


def last_line(output: IO[bytes]) -> str:
    """The last line that a process printed, its first 200 characters."""
    output.seek(0)
    lines = output.read().decode(errors="replace").strip().splitlines()
    return lines[-1][:200] if lines else ""


def _environment(threads: int) -> dict[str, str]:
    """The parent's environment and import path, and the number of threads for whoever asks there."""
    count = str(threads)
    path = os.pathsep.join(entry for entry in sys.path if entry)
    return os.environ | {"OMP_NUM_THREADS": count, "MKL_NUM_THREADS": count, "PYTHONPATH": path}
