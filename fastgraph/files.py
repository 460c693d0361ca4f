"""Files that are whole or not there."""

import os
import secrets
from pathlib import Path


def write(path: Path, data: bytes | str) -> None:
    """Writes a file that appears under its name only when it is whole; text as UTF-8."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        with open(temporary, "xb") as file:  # unlike a file of `tempfile`, with the permissions that the umask leaves
            file.write(data.encode() if isinstance(data, str) else data)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
