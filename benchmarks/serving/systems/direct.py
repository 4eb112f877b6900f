"""ONNX Runtime without a server, at each batch size: what MiniLM's figures are held against."""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmarks.serving.systems import DirectTarget, NotHere

if TYPE_CHECKING:
    from benchmarks.serving.models import Model
    from benchmarks.serving.processes import Tree


class Direct:
    """No process of its own: the generator runs the model."""

    name = "onnxruntime"

    def __init__(self, threads: int) -> None:
        self._threads = threads
        self._model: Model | None = None

    def start(self, model: Model) -> None:
        """Remember the model."""
        self._model = model

    def stop(self) -> None:
        """Nothing runs."""

    def pause(self) -> None:
        """Nothing runs."""

    def resume(self) -> None:
        """Nothing was stopped."""

    def target(self) -> DirectTarget:
        """The file.

        Raises:
            NotHere: no model was given.
        """
        if self._model is None:
            raise NotHere("no model was given")
        return DirectTarget(self._model.path, self._threads, self._model.bodies)

    def trees(self) -> dict[str, Tree]:
        """None but the generator."""
        return {}

    def runs(self) -> tuple[float, float] | None:
        """Known without counting."""
        return None
