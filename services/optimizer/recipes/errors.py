"""The one way a recipe fails: `NotBuilt`. It costs the candidate, never the model or the process."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

_MAX_CAUSE_CHARS: Final = 500


class NotBuilt(Exception):
    """The candidate can't be built from this model; the message says why."""


@contextmanager
def not_built(step: str) -> Iterator[None]:
    """Whatever a step of a recipe raises, as `NotBuilt` with the step and the cause.

    Builders meet graphs that their authors never saw, and answer with anything from `KeyError` to `RecursionError`.
    """
    try:
        yield
    except NotBuilt:
        raise
    except Exception as err:
        # `repr`, as a bare KeyError would otherwise be a single quoted word.
        raise NotBuilt(f"{step} failed: {repr(err)[:_MAX_CAUSE_CHARS]}") from err
