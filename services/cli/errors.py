"""Why a command ends with an exit code other than 0. Every message is one sentence that says what to do.

CommandError            exit code
├── NotTried            2   wrong usage, or the platform can't be reached
└── Refused             1   the gateway answered with an error; `status` is its HTTP status
"""

from __future__ import annotations

from typing import ClassVar

from shared.errors import AiaasError


class CommandError(AiaasError):
    """What was asked for failed."""

    code = "command_failed"
    exit_code: ClassVar[int] = 1


class NotTried(CommandError):
    """It could not even be tried."""

    code = "not_tried"
    exit_code = 2


class Refused(CommandError):
    """The gateway's own words, and its HTTP status."""

    code = "refused"

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status
