"""Ten thousand things that somebody may send, by a seed: right ones, nearly right ones, and nonsense.

`Fuzz` makes inference requests in the three forms of the contract and spoils most of them: the document, the bytes, the
headers. `expected` says what must be answered where a request is right; of the others only an honest answer is asked.
What is particular to a way in stands in `fuzz_http` and `fuzz_kafka`.
"""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import msgpack
import numpy as np

if TYPE_CHECKING:
    import random
    from collections.abc import Callable

    from shared.tensors import Array

_MOSTLY = 0.6
JSON, BINARY, MSGPACK = "application/json", "application/octet-stream", "application/msgpack"
CHAR = "\U0001d54f"
"""Four bytes of UTF-8, and two of UTF-16."""
HOSTILE: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 3, 2**31, 2**63 - 1, -(2**63), 2**64 - 1, 1e308, -1e-320, 0.1, 1e39),
    *(
        "",
        "x",
        "\x00",
        "é",
        "\u202e",
        CHAR * 50,
        "A" * 5000,
        "../../etc/passwd",
        "file:///etc/passwd",
        "FP32",
        "nan",
    ),
    *([], {}, [[]], [None], {"": ""}, [[[[[[]]]]]], [0] * 300, {"a": {"b": {"c": []}}}),
)
DATATYPES = ("BOOL", "UINT8", "INT64", "UINT64", "FP16", "FP32", "FP64", "BF16", "BYTES", "FP8", "fp32", "", "INT4")
SHAPES: tuple[Any, ...] = (
    *([], [0], [4], [0, 4], [1, 0], [1, 4, 1], [4, 1], [2, 4], [-1, 4], [1, -4], [1.0, 4], ["1", 4], [True, 4]),
    *([2**31, 4], [2**62, 4], [2**63, 2**63], [1] * 33, [1] * 3000, None, "1,4", 4, {"0": 1}),
)


@dataclass(frozen=True, slots=True)
class Ask:
    """One request. `expected` is its right answer; None if any honest answer will do."""

    model: str
    content: bytes | None
    content_type: str | None
    header_length: str | None = None
    expected: Array | None = None


@dataclass(frozen=True)
class Numbers:
    """A model of FP32 rows: its name, and what it does."""

    name: str
    run: Callable[[Array], Array]
    columns: int = 4

    def document(self, rng: random.Random) -> tuple[dict[str, Any], Array]:
        """A right request, its tensor as numpy has it, and the answer."""
        rows = rng.choice((1, 1, 1, 2, 5, 32, 33))
        x = np.random.default_rng(rng.getrandbits(32)).standard_normal((rows, self.columns)).astype(np.float32)
        return {"inputs": [{"name": "x", "datatype": "FP32", "shape": list(x.shape), "data": x}]}, self.run(x)


@dataclass(frozen=True)
class Texts:
    """A model that gives back the texts that it takes."""

    name: str
    columns: int = 3

    def document(self, rng: random.Random) -> tuple[dict[str, Any], Array]:
        """As for numbers."""
        rows = rng.choice((1, 1, 2, 7))
        texts = [rng.choice(("", "a", "é", "\x00", CHAR, "long " * 40)) + str(i) for i in range(rows * self.columns)]
        x = np.array([text.encode() for text in texts], object).reshape(rows, self.columns)
        return {"inputs": [{"name": "x", "datatype": "BYTES", "shape": list(x.shape), "data": x}]}, x


class Fuzz:
    """Requests for some models, the same for the same seed."""

    def __init__(self, rng: random.Random, models: tuple[Numbers | Texts, ...]) -> None:
        self._rng = rng
        self._models = models

    def ask(self) -> Ask:
        """The next one: one in four is right, or right but for what is particular to its way in."""
        rng = self._rng
        ask = self.right()
        match rng.randrange(8):
            case 0 | 1:
                return ask
            case 2 | 3 | 4:
                return self._of_spoilt_document()
            case 5:
                return self._mislabelled(ask)
            case _:
                return replace(ask, content=self.spoilt(ask.content or b""), expected=None)

    def right(self) -> Ask:
        """A right one, in any form."""
        model = self._rng.choice(self._models)
        document, expected = model.document(self._rng)
        return self._encoded(model.name, document, expected)

    def spoilt(self, content: bytes) -> bytes:
        """Bytes cut, changed, doubled, moved or replaced."""
        rng = self._rng
        at = rng.randrange(len(content) + 1)
        match rng.randrange(8):
            case 0:
                return content[:at]
            case 1:
                return content[at:]
            case 2:
                return content[:at] + rng.randbytes(rng.randrange(1, 9)) + content[at:]
            case 3:
                return content[:at] + bytes([rng.randrange(256)]) + content[at + 1 :]
            case 4:
                return rng.randbytes(rng.choice((0, 1, 7, 200, 3000)))
            case 5:
                return content + content
            case 6:
                return rng.choice((b"[", b'{"a":', b"[{", b'{"inputs":[')) * rng.choice((3, 700, 20_000))
            case _:
                return bytes(byte ^ (rng.random() < 0.01) * rng.randrange(256) for byte in content)

    # ------------------------------------------------------------------ forms

    def _encoded(self, model: str, document: dict[str, Any], expected: Array | None = None) -> Ask:
        """A document in one of the forms; tensors that are still arrays become what the form has for them."""
        how = self._rng.randrange(3)
        if how == 0:
            document = _with_data(document, lambda x: [_text(each) for each in x.ravel().tolist()])
            return Ask(model, _json(document), self._rng.choice((JSON, JSON, None)), None, expected)
        if how == 1:
            document = _with_data(document, _raw)
            return Ask(model, _msgpack(document), MSGPACK, None, expected)
        tail: list[bytes] = []
        header = _json(_in_tail(document, tail))
        return Ask(model, header + b"".join(tail), BINARY, str(len(header)), expected)

    def _of_spoilt_document(self) -> Ask:
        model = self._rng.choice(self._models)
        document, _ = model.document(self._rng)
        for _ in range(self._rng.choice((1, 1, 2, 4))):
            self._spoil(document)
        return self._encoded(model.name, document)

    def _mislabelled(self, ask: Ask) -> Ask:
        """The content of one form under the name, or with the lengths, of another."""
        rng = self._rng
        size = len(ask.content or b"")
        lengths = ("0", "1", "-1", "x", "", "٣", "9" * 17, "9" * 5000, "1e3", str(size), str(size + 1), " 7 ", None)
        types = (JSON, BINARY, MSGPACK, "text/plain", "", "é", "application/json; charset=utf-16", ";" * 500, None)
        return replace(ask, content_type=rng.choice(types), header_length=rng.choice(lengths), expected=None)

    # ------------------------------------------------------------------ documents

    def _spoil(self, document: dict[str, Any]) -> None:
        """Change one thing."""
        tensors = document.get("inputs")
        if isinstance(tensors, list) and tensors and isinstance(tensors[0], dict) and self._rng.random() < _MOSTLY:
            self._spoil_tensor(tensors[0])
        else:
            self._spoil_around(document)

    def _spoil_tensor(self, tensor: dict[str, Any]) -> None:
        rng = self._rng
        match rng.randrange(7):
            case 0:
                tensor["shape"] = rng.choice(SHAPES)
            case 1:
                tensor["datatype"] = rng.choice(DATATYPES)
            case 2:
                tensor["name"] = rng.choice((*HOSTILE, "y", "X"))
            case 3:
                tensor["data"] = rng.choice((*HOSTILE, self._elements(), self._claim()))
            case 4:
                tensor["parameters"] = self._parameters()
            case 5:
                tensor.pop(rng.choice(("name", "datatype", "shape", "data")), None)
            case _:
                tensor[rng.choice(("data", "shape", "name", "datatype", "extra"))] = rng.choice(HOSTILE)

    def _spoil_around(self, document: dict[str, Any]) -> None:
        rng = self._rng
        tensors = document.get("inputs")
        match rng.randrange(5):
            case 0:
                document["parameters"] = self._parameters()
            case 1:
                document["id"] = rng.choice(HOSTILE)
            case 2:
                document["outputs"] = self._outputs()
            case 3 if isinstance(tensors, list):
                document["inputs"] = tensors[:1] * rng.choice((0, 2, 300))
            case _:
                document[rng.choice(("inputs", "outputs", "parameters", "extra"))] = rng.choice(HOSTILE)

    def _elements(self) -> list[Any]:
        return [self._rng.choice(HOSTILE) for _ in range(self._rng.choice((1, 3, 4, 8)))]

    def _claim(self) -> dict[str, Any]:
        rng = self._rng
        uris = (
            "file:///etc/passwd",
            "s3://elsewhere/x",
            "",
            "../x",
            "http://127.0.0.1:1/",
            "\x00",
            "file:///" + "a" * 900,
        )
        sizes = (0, 16, -1, 2**40, 2**63, "16", None)
        claim = {
            "uri": rng.choice(uris),
            "sha256": rng.choice(("ab" * 32, "", "zz", None)),
            "byte_size": rng.choice(sizes),
        }
        if rng.random() < 0.3:
            claim.pop(rng.choice(tuple(claim)))
        return claim

    def _parameters(self) -> Any:
        rng = self._rng
        names = (
            "timeout",
            "priority",
            "binary_data_size",
            "binary_data_output",
            "sequence_id",
            "classification",
            "é",
            "",
        )
        count = rng.choice((1, 2, 3, 70))
        return {rng.choice(names) + "x" * (i if count > 3 else 0): rng.choice(HOSTILE) for i in range(count)}

    def _outputs(self) -> Any:
        rng = self._rng
        names = ("y", "z", "", "y" * 2000, None, 3)
        return [
            {"name": rng.choice(names), "parameters": rng.choice(({}, {"binary_data": True}, {"classification": 3}, 7))}
            for _ in range(rng.choice((0, 1, 1, 2, 300)))
        ]


def _with_data(document: dict[str, Any], written: Callable[[Array], Any]) -> dict[str, Any]:
    tensors = document.get("inputs")
    if not isinstance(tensors, list):
        return document
    return document | {"inputs": [_tensor(each, written) for each in tensors]}


def _tensor(entry: Any, written: Callable[[Array], Any]) -> Any:
    if isinstance(entry, dict) and isinstance(entry.get("data"), np.ndarray):
        return entry | {"data": written(entry["data"])}
    return entry


def _in_tail(document: dict[str, Any], tail: list[bytes]) -> dict[str, Any]:
    """The document with its arrays behind it."""
    tensors = document.get("inputs")
    if not isinstance(tensors, list):
        return document
    moved = []
    for entry in tensors:
        if isinstance(entry, dict) and isinstance(entry.get("data"), np.ndarray):
            raw = _raw(entry["data"])
            rest = {key: value for key, value in entry.items() if key != "data"}
            given = rest.get("parameters")
            rest["parameters"] = {"binary_data_size": len(raw)} | (given if isinstance(given, dict) else {})
            tail.append(raw)
            moved.append(rest)
        else:
            moved.append(entry)
    return document | {"inputs": moved}


def _raw(array: Array) -> bytes:
    if array.dtype == object:
        return b"".join(struct.pack("<I", len(each)) + each for each in array.ravel())
    return array.tobytes()


def _text(element: Any) -> Any:
    return element.decode() if isinstance(element, bytes) else element


def _json(document: Any) -> bytes:
    return json.dumps(document, default=str).encode()


def _msgpack(document: Any) -> bytes:
    packed: bytes = msgpack.packb(document, default=str)
    return packed
