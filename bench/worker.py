"""The inside of a worker process: one object, whose methods the parent calls over a pipe.

Started by ``bench.crew.Worker`` as ``python -m bench.worker FD``. The first message is ``(class, arguments)``, every
other one ``(method, arguments)``; each is answered by ``("done", result)`` or ``("failed", reason)``.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from textwrap import shorten
from typing import Any

PR_SET_PDEATHSIG = 1  # linux/prctl.h


def main() -> None:
    """Serves until the parent closes the pipe."""
    connection = Connection(int(sys.argv[1]))
    _die_with_parent()
    os.dup2(2, 1)  # what libraries print belongs with their complaints
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


def one_line(error: BaseException) -> str:
    """The kind of the error and the beginning of what it says."""
    said = str(error).strip().splitlines()
    return f"{type(error).__name__}: {shorten(said[0], 200)}" if said else type(error).__name__


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
