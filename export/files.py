"""Files that are whole or not there."""

from __future__ import annotations

import tempfile
from pathlib import Path

from fastgraph.files import write

__all__ = ["check_target", "write"]


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
