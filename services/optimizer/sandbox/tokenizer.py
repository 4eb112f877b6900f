"""Vetting of a tokenizer: it loads, it gives tokens for texts of many kinds, and it does so in time.

A worker loads the file in its own process, beside all other models: what would end that process ends this one first.
Regular expressions of the file may take exponential time on texts made for them; the texts here are such as often show
it. What they miss, the worker's own bounds still end.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Final

from tokenizers import Tokenizer

from services.optimizer.messages import tokenizer_file
from services.optimizer.rejections import Rejection
from shared.processing import MAX_TOKENIZER_BYTES

_CHARS: Final = 4000
_MAX_S: Final = 1.0
"""For one text of `_CHARS`: a hundred times what a slow tokenizer takes."""
_TEXTS: Final = (
    "",
    "Hello, world!",
    "a" * _CHARS + "!",
    " " * _CHARS + "x",
    "1" * _CHARS + "a",
    "ab " * (_CHARS // 3),
    "aA1-_.'\n\t" * (_CHARS // 9),
    "\u00e9\u4e2d\U0001f600\u0301\u200d" * (_CHARS // 5),
)


def vet(count: int) -> None:
    """Try the job's tokenizers, `count` of them.

    Raises:
        Rejection: one is none, fails, or is too slow.
    """
    for index in range(count):
        vet_content(Path(tokenizer_file(index)).read_bytes())


def vet_content(content: bytes) -> None:
    """Try a tokenizer.

    Raises:
        Rejection: it is none, too large, fails, or is too slow.
    """
    if len(content) > MAX_TOKENIZER_BYTES:
        raise Rejection("tokenizer_unusable", f"The tokenizer has {len(content)} bytes")
    try:
        _try(Tokenizer.from_str(content.decode()))
    except Rejection:
        raise
    except BaseException as err:
        if not isinstance(err, Exception) and type(err).__name__ != "PanicException":  # pyo3 does not export it
            raise
        raise Rejection("tokenizer_unusable", f"The tokenizer does not work: {str(err)[:500]}") from err


def _try(tokenizer: Tokenizer) -> None:
    for text in _TEXTS:
        begun_s = time.perf_counter()
        tokenizer.encode(text)
        if (took_s := time.perf_counter() - begun_s) > _MAX_S:
            found = f"The tokenizer took {took_s:.1f} s for {len(text)} characters such as {text[:12]!r}"
            raise Rejection("tokenizer_unusable", found)
