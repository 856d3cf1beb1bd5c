"""Text files are written beside their place and renamed: a reader never sees half of one."""

from __future__ import annotations

import os
import secrets
from pathlib import Path


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all; OSError leaves an old one as it was.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "note"
    >>> write_text(path, "hello")
    >>> path.read_text()
    'hello'
    """
    beside = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        beside.write_text(text, encoding="utf-8")
        os.replace(beside, path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
