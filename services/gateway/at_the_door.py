"""What the `turnstile` asks: whether a model has a place, and what to say if not, at next to no cost.

The sentence has no number in it, so that a model's refusals differ by their `Retry-After` alone and are made once.
"""

from __future__ import annotations

import math
from collections import Counter
from functools import lru_cache
from typing import TYPE_CHECKING, Final

from services.gateway import answers
from shared import logs
from shared.errors import MOST_RETRY_AFTER_S, Overloaded

if TYPE_CHECKING:
    from services.gateway.admission import Admission

_MODELS: Final = b"/v2/models/"
_KNOWN_PATHS: Final = 512
_NAME_AT: Final = 3
"""Where a model's name is among the parts of such a path."""


class AtTheDoor:
    """Refusals of one gateway."""

    def __init__(self, admission: Admission, answered: Counter[int]) -> None:
        self._admission = admission
        self._answered = answered
        self._turned_away: Counter[str] = Counter()
        self._responses: dict[tuple[str, int], bytes] = {}

    def refusal(self, path: bytes) -> bytes | None:
        """As `Door` has it; None also for models that were never asked for, which is the registry's to judge."""
        name = _model_of(path)
        refused = self._admission.refused_for_s(name)
        if refused is None:
            return None
        key = name, math.ceil(min(refused, MOST_RETRY_AFTER_S))
        if key not in self._responses:
            error = Overloaded(f"model {name!r} has as many requests as it can answer soon", refused)
            self._responses[key] = answers.raw(answers.of_error(error))
        return self._responses[key]

    def turned_away(self, path: bytes) -> None:
        """As `Door` has it."""
        self._answered[answers.UNAVAILABLE] += 1
        self._turned_away[_model_of(path)] += 1

    def tell(self) -> None:
        """Log how many were turned away since the last time."""
        for model, count in self._turned_away.items():
            logs.get().warning("turned away", model=model, count=count, status=answers.UNAVAILABLE)
        self._turned_away.clear()


@lru_cache(maxsize=_KNOWN_PATHS)
def _model_of(path: bytes) -> str:
    return path.split(b"/", _NAME_AT + 1)[_NAME_AT].decode("ascii", "replace") if path.startswith(_MODELS) else ""
