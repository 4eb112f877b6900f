"""Records that upstream systems may put on a request topic by mistake, each wrong in its own way."""

from __future__ import annotations

_Record = tuple[bytes, dict[str, str | bytes]]


def garbage(good: bytes, misshapen: bytes, our_topic: str) -> list[_Record]:
    """Values and headers; `good` is a right request in JSON with one FP32 input `x`, `misshapen` has too many columns.

    `our_topic` is one of the platform's own.
    """
    return [
        (b"", {}),
        (b"not json", {}),
        (b"[]", {}),
        (b"{}", {}),
        (b'{"inputs": 3}', {}),
        (good[:-5], {}),
        (good, {"content_type": "text/plain"}),
        (good, {"content_type": "application/msgpack"}),
        (b"\xc1\xff", {"content_type": "application/msgpack"}),
        (good, {"content_type": "application/octet-stream", "inference_header_content_length": "99999999"}),
        (good, {"deadline": "soon"}),
        (good, {"deadline": "-1"}),
        (good, {"model_version": "77"}),
        (good, {"model_version": "one"}),
        (good, {"ce_id": b"\xff\xfe"}),
        (good, {"ce_id": b"x" * 201}),
        (good, {"reply_topic": "somewhere"}),
        (good, {"reply_topic": our_topic}),
        (misshapen, {}),
        (good.replace(b'"x"', b'"z"'), {}),
        (good.replace(b"FP32", b"INT8"), {}),
    ]
