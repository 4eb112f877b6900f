"""What the stack tells while it works: one event per change, to be rendered by whoever started it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

Phase = Literal["preparing", "starting", "ready", "died", "stopping", "stopped", "failed", "warning"]


@dataclass(frozen=True, slots=True)
class StackEvent:
    """`{subject}: {message}`, where the subject is a child's name or `stack`."""

    subject: str
    phase: Phase
    message: str

    def __str__(self) -> str:
        """One line for people."""
        return f"{self.subject}: {self.message}"


OnEvent = Callable[[StackEvent], None]
