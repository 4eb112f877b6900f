"""A Java broker as it is after its first minutes: warm.

Its virtual machine interprets at first, then compiles what is called often, in two steps, with threads of its own.
Until these find little more to do the same request takes up to three times the CPU time, and they take theirs on top.
What serves runs for longer than that; what has no such machine among its processes is warm at once.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from benchmarks.serving.processes import Tree

_COMPILED = 0.05
"""Of a core, over a turn: what compilers that have little to do may use."""
_TIMEOUT_S = 180.0


def warm(trees: Iterable[Tree], turn: Callable[[], object]) -> str | None:
    """Do turns of load until these processes' compilers are quiet; says how it went, None if there are none."""
    trees = list(trees)
    if not _compiling_s(trees):
        return None
    began_s, share = time.monotonic(), 1.0
    while share > _COMPILED and time.monotonic() - began_s < _TIMEOUT_S:
        turn_s, before_s = time.monotonic(), _compiling_s(trees)
        turn()
        share = (_compiling_s(trees) - before_s) / (time.monotonic() - turn_s)
    return f"warm after {time.monotonic() - began_s:.0f} s, its broker's compilers at {share:.1%} of a core"


def _compiling_s(trees: list[Tree]) -> float:
    return sum(tree.compiling_s() for tree in trees)
