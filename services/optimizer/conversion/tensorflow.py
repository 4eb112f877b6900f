"""TensorFlow's formats, through tf2onnx. Written next."""

from __future__ import annotations

from typing import TYPE_CHECKING

from services.optimizer.rejections import Rejection

if TYPE_CHECKING:
    from services.optimizer.conversion.recognise import Recognised
    from services.optimizer.conversion.source import Source


def convert(found: Recognised, content: bytes, threads: int) -> Source:
    """Placeholder of this hour."""
    raise Rejection("unsupported_format", f"{found.format} {len(content)} {threads}")
