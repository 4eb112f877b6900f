"""The child's entry: confine itself, read the task, do it."""

from __future__ import annotations

import sys

import msgspec

from services.worker.measuring.messages import Message, Task
from shared.confine import confine, private_stdout


def main() -> None:
    """Do the one task on the first line of stdin."""
    out = private_stdout()
    task = msgspec.json.decode(sys.stdin.buffer.readline(), type=Task)
    confine(task.limits, task.parent_pid)
    from services.worker.measuring.child import measure  # noqa: PLC0415 - only once confined

    def say(message: Message) -> None:
        out.write(msgspec.json.encode(message).decode() + "\n")
        out.flush()

    def wait() -> None:
        if not sys.stdin.buffer.readline():
            raise SystemExit("the worker is gone")

    measure(task, say, wait)


if __name__ == "__main__":
    main()
