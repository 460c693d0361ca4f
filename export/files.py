"""Files that are whole or not there."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path


def check_target(path: str | Path, overwrite: bool) -> Path:
    """``path``, where a file can be written to it.

    Raises:
        FileExistsError: there is one already and ``overwrite`` is false.
        OSError: its folder does not exist or cannot be written to.
    """
    target = Path(path)
    if target.is_dir():
        raise IsADirectoryError(f"path: needs a file to write, got the folder {str(target)!r}")
    if target.exists() and not overwrite:
        raise FileExistsError(f"path: {str(target)!r} exists; overwrite=True replaces it")
    try:
        with tempfile.NamedTemporaryFile(dir=target.parent, prefix=f".{target.name}."):
            pass
    except OSError as error:
        raise type(error)(f"path: cannot write to the folder {str(target.parent)!r}: {error.strerror}") from error
    return target


def write(path: Path, data: bytes | str) -> None:
    """Writes a file that appears under its name only when it is whole; text as UTF-8."""
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
        try:
            file.write(data.encode() if isinstance(data, str) else data)
            file.flush()
            os.chmod(file.name, 0o666 & ~_umask())  # a temporary file is its owner's alone
            os.replace(file.name, path)
        except BaseException:
            os.unlink(file.name)
            raise


def _umask() -> int:
    """The permissions that new files do not get."""
    mask = os.umask(0)
    os.umask(mask)
    return mask
