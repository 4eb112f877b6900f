"""A graph as a TensorFlow SavedModel."""

from __future__ import annotations

from typing import TYPE_CHECKING

from services.optimizer.rejections import Rejection

if TYPE_CHECKING:
    from collections.abc import Callable

    from onnx import ModelProto

    from services.optimizer.sandbox.engine import Feeds
    from shared.signature import Signature
    from shared.tensors import Array


def built(model: ModelProto, found: Signature) -> tuple[bytes, Callable[[Feeds], list[Array]]]:
    """Not there yet."""
    raise Rejection("not_exportable", f"{len(model.graph.node)} nodes, {len(found.inputs)} inputs")
