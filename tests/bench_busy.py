"""An object for a worker process that imports nothing heavy."""

import os
import sys
import threading


class Busy:
    """Burns processor time in a thread, as a library that spins for work does."""

    def spin(self) -> None:
        threading.Thread(target=self._burn, daemon=True).start()

    def _burn(self) -> None:
        while True:
            pass

    def pid(self) -> int:
        return os.getpid()

    def imported(self) -> set[str]:
        return set(sys.modules)
