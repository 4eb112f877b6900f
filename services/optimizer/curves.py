"""Curves as TensorBoard files: `{directory}/{model}/{version}/{attempt}`, for `tensorboard --logdir {directory}`.

The format: `shared.tensorboard`.

A disk that is full costs the curves, not the job: what matters is in the log.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, BinaryIO

from shared import logs, tensorboard

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from shared.registry import Version

Key = tuple[str, int, int]


class Curves:
    """The files of one optimizer. It works on one version at a time, so one is open."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._open: tuple[Key, BinaryIO] | None = None

    def add(self, version: Version, points: Mapping[str, tuple[int, float]]) -> None:
        """Write the newest points of a version's curves."""
        if not points:
            return
        try:
            file = self._file(version)
            for name, (step, value) in points.items():
                file.write(tensorboard.record(tensorboard.scalar(name, step, value, time.time())))
            file.flush()
        except OSError as err:
            logs.get().warning("curves not written", model=version.model, error=str(err))

    def close(self) -> None:
        """Close the file that is open."""
        if self._open is not None:
            self._open[1].close()
            self._open = None

    def _file(self, version: Version) -> BinaryIO:
        key = (version.model, version.number, version.attempt)
        if self._open is not None and self._open[0] == key:
            return self._open[1]
        self.close()
        place = self._directory / version.model / str(version.number) / str(version.attempt)
        place.mkdir(parents=True, exist_ok=True)
        file = (place / f"events.out.tfevents.{time.time():.0f}").open("ab")
        file.write(tensorboard.record(tensorboard.version(time.time())))
        self._open = (key, file)
        return file
