"""What is made when it is first asked for: names of a package (PEP 562), and other values."""

import sys
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from threading import Lock
from typing import Any, Generic, TypeVar

T = TypeVar("T")


def attributes(package: str, places: Mapping[str, str]) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """The `__getattr__` and `__dir__` of `package`.

    places: where each name is: `"a.module:name"`, or `"a.module"` for a module itself. A name that was asked for once
        is an attribute of the package from then on.
    """

    def get(name: str) -> Any:
        if name not in places:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        module, _, attribute = places[name].partition(":")
        value = import_module(module)
        if attribute:
            value = getattr(value, attribute)
        setattr(sys.modules[package], name, value)
        return value

    def names() -> list[str]:
        return sorted({*vars(sys.modules[package]), *places})

    return get, names


class Later(Generic[T]):
    """The value of `make`, which is called once, in a thread of its own.

    Who asks first may be in the middle of anything: a trace, a transform, autocast, a mode without gradients, another
    default device. All of these are a thread's own, so that none of them gets into the value.
    """

    def __init__(self, make: Callable[[], T]) -> None:
        self._make: Callable[[], T] | None = make
        self._value: Any = None
        self._lock = Lock()

    @property
    def is_made(self) -> bool:
        """Whether somebody has asked."""
        return self._make is None

    def get(self) -> T:
        """The value. What `make` raises, as often as it is asked for."""
        with self._lock:
            if self._make is not None:
                with ThreadPoolExecutor(1) as thread:
                    self._value = thread.submit(self._make).result()
                self._make = None
            value: T = self._value
            return value
