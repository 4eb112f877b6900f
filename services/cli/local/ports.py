"""Free ports on the loopback interface, the usual one if it can be had.

A port is ours when nothing listens on it and no other stack on this machine has claimed it. Claims are advisory locks
on small files, held until the stack ends and freed by the kernel if it crashes, so two stacks that start at the same
moment never pick the same port, and a restarted child gets its old one back. Programs that know nothing of the claims
can still take a port between the look and the child's own bind; the child then says so and is started again.

Ports are searched upwards from the usual one, below the range from which Linux draws ports of outgoing connections.
"""

from __future__ import annotations

import fcntl
import os
import socket
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from services.cli.local.errors import PortsTakenError

if TYPE_CHECKING:
    from typing import Self

LOOPBACK = "127.0.0.1"
_TRIES = 200


class Ports:
    """The ports that one stack has claimed; entered for as long as the stack lives."""

    def __init__(self) -> None:
        self._claims = ExitStack()
        self._directory = Path(tempfile.gettempdir()) / f"aiaas-ports-{os.getuid()}"

    def __enter__(self) -> Self:
        self._directory.mkdir(mode=0o700, exist_ok=True)
        return self

    def __exit__(self, *exc: object) -> None:
        self._claims.close()

    def claim(self, usual_port: int) -> int:
        """The usual port, or the next free one above it."""
        for port in range(usual_port, usual_port + _TRIES):
            if self._lock(port):
                return port
        raise PortsTakenError(
            f"All ports from {usual_port} to {usual_port + _TRIES - 1} on {LOOPBACK} are taken: "
            "stop what listens there (`ss -ltnp` shows it), then start the stack again."
        )

    def _lock(self, port: int) -> bool:
        with ExitStack() as undo:
            claim = undo.enter_context((self._directory / str(port)).open("w"))
            try:
                fcntl.flock(claim, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            if not is_free(port):
                return False
            self._claims.push(undo.pop_all())
            return True


def is_free(port: int) -> bool:
    """Whether nothing listens on this port. What a closed connection left behind does not count."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
            probe.listen(1)
        except OSError:
            return False
        return True
