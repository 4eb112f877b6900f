"""Ports for servers that a test starts, and ports where nothing listens.

They lie below the range from which Linux draws ports of outgoing connections, and above those that `aiaas up` looks at.
Each process that asks has a block of them, which no other asks in: it holds the lock of the block's file until it ends.
"""

from __future__ import annotations

import fcntl
import os
import socket
import tempfile
from functools import cache
from itertools import cycle, islice
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_BLOCK = 256
_BLOCKS = range(25_600, 32_768, _BLOCK)


def free_port() -> int:
    """A port on the loopback interface that was free a moment ago, and that nobody else is given."""
    for port in islice(_ours(), _BLOCK):
        if _is_free(port):
            return port
    raise RuntimeError("something listens on every port that this process may give")


@cache
def _ours() -> Iterator[int]:
    """The ports of this process, round and round: one that was given comes again as late as can be."""
    directory = Path(tempfile.gettempdir()) / f"aiaas-test-ports-{os.getuid()}"
    directory.mkdir(mode=0o700, exist_ok=True)
    for first in _BLOCKS:
        lock = os.open(directory / str(first), os.O_RDWR | os.O_CREAT, 0o600)  # closed with the process
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
        else:
            return cycle(range(first, first + _BLOCK))
    raise RuntimeError(f"{len(_BLOCKS)} processes that live have all ports for tests")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # what a closed connection left behind is nothing
        try:
            probe.bind(("127.0.0.1", port))
            probe.listen(1)
        except OSError:
            return False
        return True
