"""The requests of `fuzz` as records: with every header that the contract knows, right and wrong."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import random

    from .fuzz import Ask, Fuzz

_MOST_BYTES = 900_000
"""Nothing longer gets onto a request topic."""
_NUMBERS = (b"0", b"1", b"-1", b"", b"x", b"1.5", b"1e9", b"9" * 17, b"9" * 19, b" 1", b"\xd9\xa3", b"\xff", None)
_IDS = (
    b"",
    b"the same",
    b"same",
    b"same",
    b"\xff\xfe",
    b"x" * 200,
    b"x" * 201,
    b"a b",
    b"\x00",
    b"*",
    b"{}:\r\n",
    None,
)
_TEXTS = (b"", b"acme", b"\xff", b"a" * 1001, b"*", b"../x", b"aiaas.outcomes", b"x" * 249, b"\x00", None)
_ODD: tuple[tuple[str, bytes | None], ...] = (
    ("", b""),
    ("x-trace", b"\xff" * 300),
    ("X-ÜBER", b"x"),
    ("x" * 3000, b"x"),
    ("ce_type", b"Receipt"),
    ("ce_specversion", None),
    ("traceparent", b"\xff"),
    ("Content-Type", b"application/msgpack"),
    ("DEADLINE", b"1"),
)


@dataclass(frozen=True, slots=True)
class Record:
    """A record for one of a model's topics; `id` is known if it is right."""

    ask: Ask
    id: str | None
    key: bytes | None
    high: bool
    headers: list[tuple[str, bytes | None]]


def record(fuzz: Fuzz, rng: random.Random, number: int) -> Record:
    """The next record."""
    ask = fuzz.ask()
    headers: list[tuple[str, bytes | None]] = []
    if ask.content_type is not None:
        headers.append(("content-type", ask.content_type.encode()))
    if ask.header_length is not None:
        headers.append(("inference-header-content-length", ask.header_length.encode()))
    odd = [_odd(rng) for _ in range(rng.choice((1, 1, 2, 5)))] if rng.random() < 0.4 else []
    right = ask.expected is not None and not odd
    request_id = f"fuzz-{number}" if right or rng.random() < 0.5 else None
    if request_id is not None:
        headers.append(("ce_id", request_id.encode()))
    key = rng.choice((None, b"", b"k", b"\xff" * 40, str(number).encode()))
    return Record(ask, request_id if right else None, key, rng.random() < 0.25, headers + odd)


def value_of(made: Record, rng: random.Random) -> bytes | None:
    """What is in the record: now and then nothing at all, which is Kafka's tombstone."""
    if made.id is None and rng.random() < 0.02:
        return None
    return (made.ask.content or b"")[:_MOST_BYTES]


def _odd(rng: random.Random) -> tuple[str, bytes | None]:
    now_ms = int(time.time() * 1000)
    match rng.randrange(8):
        case 0:
            return "ce_id", rng.choice(_IDS)
        case 1:
            soon = (str(now_ms - 1000).encode(), str(now_ms + 50).encode(), str(now_ms + 100_000).encode())
            return "deadline", rng.choice((*_NUMBERS, *soon))
        case 2:
            return "model-version", rng.choice(_NUMBERS)
        case 3:
            return rng.choice((("reply-topic", rng.choice(_TEXTS)), ("tenant", rng.choice(_TEXTS))))
        case 4:
            return "reply-channel", rng.choice(_TEXTS)
        case 5:
            return "registry-offset", rng.choice(_NUMBERS)
        case 6:
            return "inference-header-content-length", rng.choice(_NUMBERS)
        case _:
            return rng.choice(_ODD)
