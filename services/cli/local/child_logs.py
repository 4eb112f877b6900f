"""What children print: one file each, bounded, with its last lines at hand for error messages.

Children append to the file themselves, so a parent that stalls or dies never blocks them. A file above the bound is
copied aside (one old copy is kept) and cut to nothing; opened for appending, it goes on from its start.
Lines written between the copy and the cut are lost: the price of asking nothing of the child.
"""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

_TAIL_BYTES = 16 * 1024


def open_for_child(path: Path) -> int:
    """A descriptor for a child's standard output and error; the caller closes it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)


def tail(path: Path, lines: int = 20) -> str:
    """The last lines of a log, indented for quoting; says so if there are none."""
    try:
        with path.open("rb") as log:
            log.seek(max(0, path.stat().st_size - _TAIL_BYTES))
            text = log.read().decode(errors="replace")
    except FileNotFoundError:
        text = ""
    last = text.splitlines()[-lines:]
    return "\n".join(f"    {line}" for line in last) if last else "    (it printed nothing)"


def trim(path: Path, limit_bytes: int = 16 * 1024 * 1024) -> None:
    """Move a log that has grown beyond the bound aside, over the previous one."""
    if path.exists() and path.stat().st_size > limit_bytes:
        shutil.copyfile(path, path.with_suffix(".log.1"))
        os.truncate(path, 0)
