"""What the worker and its measuring child say to each other: a task on stdin, then lines of JSON on stdout.

Before each handful of runs the child says `Wants` and waits for a line on stdin; when they are over it says `Ran`.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal

from msgspec import Meta, Struct, json

from shared.confine import Limits
from shared.events import Latency
from shared.runtime_config import RuntimeConfig
from shared.signature import Signature

INPUTS_FILE: Final = "inputs.npz"
GO: Final = b"go\n"
MAX_LINE_BYTES: Final = 1024 * 1024
_Text = Annotated[str, Meta(max_length=1000)]


def file_of(name: str) -> str:
    """The name of a candidate's file in the task's directory; names of candidates are no paths."""
    return f"{name.encode().hex()}.onnx"


class Task(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the child is to measure, in its working directory."""

    parent_pid: int
    limits: Limits
    threads: int
    device: Literal["auto", "cpu", "cuda"]
    reference: str
    candidates: tuple[str, ...]
    signature: Signature
    runtime: RuntimeConfig | None = None


class _Message(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="kind"):
    """What the child says."""


class Ready(_Message, frozen=True, kw_only=True, tag="ready"):
    """fp32 and the inputs are loaded: from here on, whatever ends the child is a candidate's doing."""


class Wants(_Message, frozen=True, kw_only=True, tag="wants"):
    """It wants the device."""


class Ran(_Message, frozen=True, kw_only=True, tag="ran"):
    """It needs the device no more, for now."""


class Took(_Message, frozen=True, kw_only=True, tag="took"):
    """A candidate is measured, or does not run here."""

    candidate: _Text
    latencies: Annotated[tuple[Latency, ...], Meta(max_length=32)] = ()
    problem: _Text = ""


class Failed(_Message, frozen=True, kw_only=True, tag="failed"):
    """fp32 itself does not run here, or the inputs are none: nothing can be measured."""

    problem: _Text


Message = Ready | Wants | Ran | Took | Failed
MESSAGE: Final[json.Decoder[Message]] = json.Decoder(Message)
