"""The inside of the fork server and of its workers: one object each, whose methods the parent calls over a pipe.

Started by ``fork_server.ForkServer`` as ``python -m fastgraph.bench.process.child FD MODULE..``. It imports the
modules, then forks a worker for each request on the socket. In a worker the first message is ``(class, arguments)``,
every other one ``(method, arguments)``; each is answered by ``("done", result)`` or ``("failed", reason)``.
"""

from __future__ import annotations

import os
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

from fastgraph.bench.process.prctl import die_with_parent

FORK, WAIT = b"F", b"W"  # requests: a process with the two files that come along; the end of the process named
REQUEST, ANSWER = struct.Struct("!cq"), struct.Struct("!q")


def main() -> None:
    """Forks a worker for each request until the parent closes the socket. Only the main thread may exist here."""
    control = socket.socket(fileno=int(sys.argv[1]))
    die_with_parent()
    for name in sys.argv[2:]:
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
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {shorten(lines[0], 200)}" if lines else type(error).__name__


def _work(pipe: int, output: int) -> NoReturn:
    """Serves until the parent closes the pipe; never returns to what this process was forked from."""
    status = 1
    try:
        os.setsid()
        die_with_parent()
        for stream in (1, 2):
            os.dup2(output, stream)  # what libraries print is kept for the reason of a failure
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


if __name__ == "__main__":
    main()
