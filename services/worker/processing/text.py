"""Texts to token ids, by a `tokenizer.json`; the only import of `tokenizers`.

The file comes from whoever uploaded the model, the texts from whoever asks. Both are bounded in bytes, tokenization is
linear in them but for regular expressions of the file, and those Oniguruma ends after ten million steps at one place
(the library panics then: an error here). Time is looked at between texts; one text can't be interrupted.

Whatever the file says of padding and cutting is replaced by what the step says: the library cuts, so that special
tokens stay, and rows are laid out here, in numpy.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from tokenizers import Tokenizer

from shared.errors import ExecutionFailed, InvalidInput, ModelNotReady
from shared.tensors import DTYPES, bytes_elements, from_numpy

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from tokenizers import Encoding

    from shared.processing import Tokenize
    from shared.tensors import Array, Tensor

MAX_TEXT_BYTES: Final = 128 * 1024
"""One text. A hundred thousand tokens at most, of which `max_length` are kept."""
MAX_TOKENS: Final = 1024 * 1024
"""Of one request, padding included: 8 MiB an input."""


class TextEncoder:
    """One `Tokenize` step. `datatypes` are those of the inputs that it fills."""

    def __init__(self, step: Tokenize, content: bytes, datatypes: Mapping[str, str]) -> None:
        """Build the tokenizer; slow for large ones: not on the event loop.

        Raises:
            ModelNotReady: the file is no tokenizer.
        """
        self._step = step
        self._datatypes = datatypes
        with _panics_too():
            try:
                self._tokenizer = Tokenizer.from_str(content.decode())
                self._tokenizer.no_padding()
                self._tokenizer.no_truncation()
                if step.truncate:
                    self._tokenizer.enable_truncation(step.max_length)
            except Exception as err:  # the library raises plain Exceptions
                raise ModelNotReady(f"the tokenizer does not load: {err}") from err

    def encode(self, texts: Tensor, check_time: Callable[[], None]) -> list[Tensor]:
        """[rows] of text to [rows, tokens] of each input that the step fills; `check_time` raises when time is up.

        Raises:
            InvalidInput: a text that is not UTF-8, or too long; too many tokens together.
            ExecutionFailed: the tokenizer failed.
        """
        encodings: list[Encoding] = []
        for index, element in enumerate(bytes_elements(texts)):
            check_time()
            encodings.append(self._encode(element, f"element {index} of {texts.name!r}"))
        step = self._step
        width = self._width(encodings)
        if len(encodings) * width > MAX_TOKENS:
            raise InvalidInput(f"input {texts.name!r} makes {len(encodings)} x {width} tokens, above {MAX_TOKENS}")
        columns = {
            step.ids: ([encoding.ids for encoding in encodings], step.pad_id),
            step.mask: ([encoding.attention_mask for encoding in encodings], 0),
            step.type_ids: ([encoding.type_ids for encoding in encodings], 0),
        }
        return [
            from_numpy(name, _padded(rows, width, pad, DTYPES[self._datatypes[name]]))
            for name, (rows, pad) in columns.items()
            if name is not None
        ]

    def _encode(self, element: bytes, what: str) -> Encoding:
        if len(element) > MAX_TEXT_BYTES:
            raise InvalidInput(f"{what} has {len(element)} bytes of text, above {MAX_TEXT_BYTES}")
        try:
            text = element.decode()
        except UnicodeDecodeError as err:
            raise InvalidInput(f"{what} is not UTF-8 text") from err
        with _panics_too():
            try:
                encoding = self._tokenizer.encode(text, add_special_tokens=self._step.add_special_tokens)
            except Exception as err:
                raise ExecutionFailed(f"the tokenizer failed on {what}: {err}") from err
        if (count := len(encoding.ids)) > self._step.max_length:
            raise InvalidInput(f"{what} has {count} tokens, above {self._step.max_length}")
        return encoding

    def _width(self, encodings: Sequence[Encoding]) -> int:
        """Tokens of every row: at least one, since a tensor without any runs in few models."""
        step = self._step
        if step.padding == "max_length":
            return step.max_length
        longest = max((len(encoding.ids) for encoding in encodings), default=0)
        multiple = step.pad_to_multiple_of
        return min(-(-max(longest, 1) // multiple) * multiple, step.max_length)


def _padded(rows: Sequence[Sequence[int]], width: int, pad: int, dtype: np.dtype[Any]) -> Array:
    padded = np.full((len(rows), width), pad, dtype)
    for into, row in zip(padded, rows, strict=True):
        into[: len(row)] = row
    return padded


@contextmanager
def _panics_too() -> Iterator[None]:
    """A panic of the library, which is no `Exception` to Python, as the error of whatever was going on."""
    try:
        yield
    except Exception:
        raise
    except BaseException as err:
        if type(err).__name__ != "PanicException":  # pyo3 does not export it
            raise
        raise ExecutionFailed(f"the tokenizer panicked: {str(err)[:500]}") from err
