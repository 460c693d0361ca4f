"""The inside of worker processes: one object each, whose methods the parent calls over a pipe.

Started by ``bench.nursery.Nursery`` as ``python -m fastgraph.bench.worker FD``. It imports what all workers need, then
forks one for each request on the socket. In a worker the first message is ``(class, arguments)``, every other one
``(method, arguments)``; each is answered by ``("done", result)`` or ``("failed", reason)``.
"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import struct
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from multiprocessing.connection import Connection
from textwrap import shorten
from typing import Any, NoReturn

PR_SET_PDEATHSIG = 1  # linux/prctl.h
FORK, WAIT = b"F", b"W"  # requests: a process with the two files that come along; the end of the process named
REQUEST, ANSWER = struct.Struct("!cq"), struct.Struct("!q")
SHARED = (
    "fastgraph.bench.contestant",
    "fastgraph.bench.ceilings",
    "fastgraph.module",
    "sklearn.datasets",
    "torch._dynamo",
    "torchvision.transforms",
)


def main() -> None:
    """Forks a worker for each request until the parent closes the socket. Only the main thread may exist here."""
    control = socket.socket(fileno=int(sys.argv[1]))
    _die_with_parent()
    for name in SHARED:
        with suppress(ModuleNotFoundError):  # whoever needs it says what is missing
            import_module(name)
    while True:
        content, files, *_ = socket.recv_fds(control, REQUEST.size, 2, socket.MSG_WAITALL)
        if not content:
            return
        kind, pid = REQUEST.unpack(content)
        if kind == FORK:
            answer = os.fork()
            if answer == 0:
                control.close()
                _work(*files)
            for file in files:
                os.close(file)
        else:
            answer = os.waitpid(pid, 0)[1]
        control.sendall(ANSWER.pack(answer))


def one_line(error: BaseException) -> str:
    """The kind of the error and the beginning of what it says."""
    said = str(error).strip().splitlines()
    return f"{type(error).__name__}: {shorten(said[0], 200)}" if said else type(error).__name__


def _work(pipe: int, said: int) -> NoReturn:
    """Serves until the parent closes the pipe; never returns to what this process was forked from."""
    status = 1
    try:
        os.setsid()
        _die_with_parent()
        for stream in (1, 2):
            os.dup2(said, stream)  # what libraries print is kept for the reason of a failure
        _serve(Connection(pipe))
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def _serve(connection: Connection) -> None:
    """Answers one message after another."""
    make, arguments = connection.recv()
    served: Any = None

    def start(*_: object) -> None:
        nonlocal served
        served = make(*arguments)

    _answer(connection, start)
    while True:
        try:
            method, arguments = connection.recv()
        except EOFError:
            return
        _answer(connection, getattr(served, method), *arguments)


def _answer(connection: Connection, work: Callable[..., Any], *arguments: Any) -> None:
    """Does the work and sends back what came of it."""
    try:
        answer = ("done", work(*arguments))
    except Exception as error:  # whatever a backend raises is the parent's to report
        traceback.print_exc()
        answer = ("failed", one_line(error))
    connection.send(answer)


def _die_with_parent() -> None:
    """Linux ends this process when the parent is gone: one that is stopped would not notice a closed pipe."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


if __name__ == "__main__":
    main()
