"""Curves as TensorBoard files: `{directory}/{model}/{version}/{attempt}`, for `tensorboard --logdir {directory}`.

Written with tensorboardX, which knows the format and brings neither TensorBoard nor TensorFlow. It would load torch,
if that is here, to see tensors in what it is given: seconds and 200 MB for a service that gives it numbers; so it is
loaded as where torch is not. A disk that is full costs the curves, not the job: what matters is in the log.
"""

from __future__ import annotations

import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

from shared import logs

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from shared.registry import Version


@contextmanager
def _not_here(name: str) -> Iterator[None]:
    """A module that can't be imported meanwhile, unless it was before."""
    hidden = name not in sys.modules
    if hidden:
        sys.modules[name] = None  # type: ignore[assignment]  # how the import system spells it
    try:
        yield
    finally:
        if hidden:
            del sys.modules[name]


with _not_here("torch"):
    from tensorboardX import SummaryWriter

Key = tuple[str, int, int]


class Curves:
    """The files of one optimizer. It works on one version at a time, so one is open."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._open: tuple[Key, SummaryWriter] | None = None

    def add(self, version: Version, points: Mapping[str, tuple[int, float]]) -> None:
        """Write the newest points of a version's curves."""
        if not points:
            return
        try:
            writer = self._writer(version)
            for name, (step, value) in points.items():
                writer.add_scalar(name, value, step)
            writer.flush()
        except OSError as err:
            logs.get().warning("curves not written", model=version.model, error=str(err))

    def close(self) -> None:
        """Close the file that is open."""
        if self._open is not None:
            self._open[1].close()
            self._open = None

    def _writer(self, version: Version) -> SummaryWriter:
        key = (version.model, version.number, version.attempt)
        if self._open is not None and self._open[0] == key:
            return self._open[1]
        self.close()
        place = self._directory / version.model / str(version.number) / str(version.attempt)
        writer = SummaryWriter(logdir=str(place), flush_secs=5)
        self._open = (key, writer)
        return writer
