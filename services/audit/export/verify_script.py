#!/usr/bin/env python3
"""Verify an exported bundle with nothing but the Python standard library (3.9 or newer).

    python3 verify.py [DIRECTORY] [--public-key HEX] [--checkpoint FILE]... [--json]

Checks, in this order: every file against `files.json`; signatures of checkpoints (Ed25519, RFC 8032); the chain of
each outcome log and of the registry's log, so that a record that was changed, deleted, inserted or reordered is named;
whether each request in the bundle has the bytes of its receipt; whether each result has; that no request of the model
was passed over. Without --public-key the key in the bundle is trusted, and that is said. A checkpoint that you kept
from elsewhere shows a tail that was cut off together with its own checkpoints.

Exit codes: 0 everything holds, 1 something does not, 2 it could not be looked at. README.md explains the encoding.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import struct
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

# --------------------------------------------------------------------------- Ed25519, verification (RFC 8032, 5.1.7)

P = 2**255 - 19
ORDER = 2**252 + 27742317777372353535851937790883648493
D = -121665 * pow(121666, P - 2, P) % P
ROOT = pow(2, (P - 1) // 4, P)
Point = tuple[int, int, int, int]  # extended coordinates X, Y, Z, T with x = X/Z, y = Y/Z, x*y = T/Z


def add(one: Point, two: Point) -> Point:
    """The sum of two points of the curve."""
    a = (one[1] - one[0]) * (two[1] - two[0]) % P
    b = (one[1] + one[0]) * (two[1] + two[0]) % P
    c, d = 2 * one[3] * two[3] * D % P, 2 * one[2] * two[2] % P
    e, f, g, h = b - a, d - c, d + c, b + a
    return e * f % P, g * h % P, f * g % P, e * h % P


def multiply(factor: int, point: Point) -> Point:
    """A point so many times."""
    product: Point = (0, 1, 1, 0)
    while factor:
        if factor & 1:
            product = add(product, point)
        point, factor = add(point, point), factor >> 1
    return product


def decompress(data: bytes) -> Point | None:
    """The point that 32 bytes stand for; None if they stand for none."""
    y = int.from_bytes(data, "little")
    sign, y = y >> 255, y & (2**255 - 1)
    if y >= P:
        return None
    square = (y * y - 1) * pow(D * y * y + 1, P - 2, P) % P
    x = pow(square, (P + 3) // 8, P)
    if (x * x - square) % P:
        x = x * ROOT % P
    if (x * x - square) % P or (x == 0 and sign):
        return None
    if x & 1 != sign:
        x = P - x
    return x, y, 1, x * y % P


def signed(public_key: bytes, message: bytes, signature: bytes) -> bool:
    """Whether the signature is that of the key's owner over the message."""
    if len(public_key) != 32 or len(signature) != 64:
        return False
    base = decompress((4 * pow(5, P - 2, P) % P).to_bytes(32, "little"))
    owner, r = decompress(public_key), decompress(signature[:32])
    s = int.from_bytes(signature[32:], "little")
    if base is None or owner is None or r is None or s >= ORDER:
        return False
    h = int.from_bytes(hashlib.sha512(signature[:32] + public_key + message).digest(), "little") % ORDER
    left, right = multiply(s, base), add(r, multiply(h, owner))
    return not (left[0] * right[2] - right[0] * left[2]) % P and not (left[1] * right[2] - right[1] * left[2]) % P


# --------------------------------------------------------------------------- msgpack, as far as receipts need it


class Unreadable(Exception):
    """Bytes that are not what they should be."""


def unpack(data: bytes) -> Any:
    """The one msgpack document in these bytes (https://github.com/msgpack/msgpack/blob/master/spec.md)."""
    try:
        value, end = _value(data, 0, 0)
    except (struct.error, IndexError, UnicodeDecodeError, TypeError) as err:
        raise Unreadable(f"not msgpack: {err}") from err
    if end != len(data):
        raise Unreadable(f"{len(data) - end} bytes behind a msgpack document")
    return value


NUMBERS = {0xCA: ">f", 0xCB: ">d", 0xCC: ">B", 0xCD: ">H", 0xCE: ">I", 0xCF: ">Q"}
NUMBERS.update({0xD0: ">b", 0xD1: ">h", 0xD2: ">i", 0xD3: ">q"})
LENGTHS = {0xC4: ">B", 0xC5: ">H", 0xC6: ">I", 0xD9: ">B", 0xDA: ">H", 0xDB: ">I"}
LENGTHS.update({0xDC: ">H", 0xDD: ">I", 0xDE: ">H", 0xDF: ">I"})


def _value(data: bytes, at: int, depth: int) -> tuple[Any, int]:
    if depth > 100:
        raise Unreadable("msgpack nested too deeply")
    kind, at = data[at], at + 1
    if kind <= 0x7F:
        return kind, at
    if kind >= 0xE0:
        return kind - 256, at
    if kind in (0xC0, 0xC2, 0xC3):
        return {0xC0: None, 0xC2: False, 0xC3: True}[kind], at
    if kind in NUMBERS:
        size = struct.calcsize(NUMBERS[kind])
        return struct.unpack_from(NUMBERS[kind], data, at)[0], at + size
    if kind in LENGTHS:
        length = struct.unpack_from(LENGTHS[kind], data, at)[0]
        at += struct.calcsize(LENGTHS[kind])
    elif kind <= 0x8F or kind <= 0x9F:
        length = kind & 0x0F
    elif kind <= 0xBF:
        length = kind & 0x1F
    else:
        raise Unreadable(f"msgpack of kind {kind:#x}")
    return _sized(data, at, kind, length, depth)


def _sized(data: bytes, at: int, kind: int, length: int, depth: int) -> tuple[Any, int]:
    """What has a length: bytes, text, a list or a map."""
    if kind <= 0x8F or kind in (0xDE, 0xDF):
        pairs = {}
        for _ in range(length):
            key, at = _value(data, at, depth + 1)
            pairs[key], at = _value(data, at, depth + 1)
        return pairs, at
    if kind <= 0x9F or kind in (0xDC, 0xDD):
        items = []
        for _ in range(length):
            item, at = _value(data, at, depth + 1)
            items.append(item)
        return items, at
    if at + length > len(data):
        raise Unreadable("msgpack that ends too soon")
    content = data[at : at + length]
    return (content if kind in (0xC4, 0xC5, 0xC6) else content.decode()), at + length


# --------------------------------------------------------------------------- the chain


def part(data: bytes | None) -> bytes:
    """A key or value as it goes into the hash: behind its length in 4 bytes, big-endian; null is ff ff ff ff."""
    return b"\xff\xff\xff\xff" if data is None else struct.pack(">I", len(data)) + data


def link(head: bytes, key: bytes | None, value: bytes | None) -> bytes:
    """The head after one more record."""
    return hashlib.sha256(head + part(key) + part(value)).digest()


def raw(text: str | None) -> bytes | None:
    """Bytes that stand in a line as base64."""
    return None if text is None else base64.b64decode(text, validate=True)


# --------------------------------------------------------------------------- the bundle

MOST_NAMED = 100


def follows(head: bytes, record: dict[str, Any]) -> bool:
    """Whether a line has the head that it gets behind `head`."""
    return bool(link(head, raw(record["key"]), raw(record["value"])).hex() == record["head"])


def genuine(records: list[dict[str, Any]], number: int) -> bool:
    """Whether this line follows some line: then it is one of the log's, and stands where it does not belong."""
    return any(follows(bytes.fromhex(each["head"]), records[number]) for each in records)


class Bundle:
    """A bundle under verification: `broken` gets a sentence for each thing that does not hold."""

    def __init__(self, root: Path, keys: set[str], kept: list[dict[str, Any]]) -> None:
        self.root = root
        self.broken: list[str] = []
        self.notes: list[str] = []
        self.counts: Counter[str] = Counter()
        self.about = json.loads((root / "bundle.json").read_text())
        self.keys = keys or {(root / "public-key.txt").read_text().strip()}
        if not keys:
            self.notes.append(
                f"the public key is the bundle's own, {min(self.keys)}: ask its owner whether it is theirs"
            )
        self.checkpoints = [json.loads(line) for line in self.lines("checkpoints.jsonl")]
        self.kept = kept
        self.receipts: dict[tuple[str, int, int], dict[str, Any]] = {}

    def lines(self, name: str) -> Iterator[str]:
        """The lines of a file, none if it is not there."""
        path = self.root / name
        if path.is_file():
            with path.open() as file:
                yield from file

    def expect(self, holds: bool, otherwise: str) -> bool:
        """Note what is broken unless it holds."""
        if not holds:
            self.broken.append(otherwise)
        return holds

    def verify(self) -> None:
        """Everything."""
        self.files()
        statements = self.statements()
        for log in self.about["logs"]:
            self.log(log, [each for each in statements if self.of(each, log)])
        self.completeness()
        self.exchanges()

    # ----------------------------------------------------------------- files and signatures

    def files(self) -> None:
        """Every file against its digest. Lines of logs are judged one by one below, whatever this says."""
        for name, wanted in sorted(json.loads((self.root / "files.json").read_text()).items()):
            path = self.root / name
            if not self.expect(path.is_file(), f"file {name}: it is missing"):
                continue
            digest = hashlib.sha256()
            with path.open("rb") as file:
                for piece in iter(lambda: file.read(1 << 20), b""):
                    digest.update(piece)
            self.expect(digest.hexdigest() == wanted, f"file {name}: it was changed after the export")
            self.counts["files"] += 1

    def statements(self) -> list[dict[str, Any]]:
        """What the checkpoints say whose signatures hold."""
        found = []
        for number, checkpoint in enumerate(self.checkpoints + self.kept):
            where = f"checkpoint {number}" if number < len(self.checkpoints) else "a checkpoint that you kept"
            key, text = checkpoint["public_key"], checkpoint["statement"]
            if not self.expect(key in self.keys, f"{where}: it is signed by another key, {key}"):
                continue
            good = signed(bytes.fromhex(key), text.encode(), bytes.fromhex(checkpoint["signature"]))
            if self.expect(good, f"{where}: its signature does not hold"):
                found.append(json.loads(text))
                self.counts["checkpoints"] += 1
        return sorted(found, key=lambda statement: statement["offset"])

    @staticmethod
    def of(statement: dict[str, Any], log: dict[str, Any]) -> bool:
        """Whether a statement is about a log."""
        return all(statement[name] == log[name] for name in ("cluster_id", "topic", "life", "partition"))

    # ----------------------------------------------------------------- the chain

    def log(self, log: dict[str, Any], statements: list[dict[str, Any]]) -> None:
        """One partition of a log: each line against the head before it, and heads against what was signed."""
        where = f"{log['topic']}/{log['partition']}"
        records = [json.loads(line) for line in self.lines(log["file"])]
        self.counts["records"] += len(records)
        self.read_receipts(log, records)
        head = bytes.fromhex(log["head_before"])
        begins = [statement for statement in statements if statement["first"] == log["first"]]
        if log["begins"]:
            self.expect(head == bytes(32), f"{where}: it begins with another head than that of an empty log")
        else:
            self.expect(bool(begins), f"{where}: no checkpoint says with which head it begins, at {log['first']}")
        for statement in begins:
            self.expect(statement["head_before"] == head.hex(), f"{where}: it begins with another head than was signed")
        self.judge(where, records, head, log)
        self.sealed(where, records, head, log, statements)

    def judge(self, where: str, records: list[dict[str, Any]], head: bytes, log: dict[str, Any]) -> None:
        """Name what was done to the lines, each of which says the head that it had when it was exported."""
        position, stated, before, number = log["first"] - 1, head, head, 0
        placed: set[int] = set()
        found = len(self.broken)
        while number < len(records):
            record = records[number]
            if number in placed:
                number += 1
                continue
            if follows(stated, record):
                position, before, stated, number = record["offset"], stated, bytes.fromhex(record["head"]), number + 1
                continue
            if len(self.broken) - found >= MOST_NAMED:
                self.notes.append(f"{where}: so much is broken that what comes after is not named")
                return
            moved = next((n for n in range(number + 1, len(records)) if follows(stated, records[n])), None)
            name, offset = f"outcome {where} offset", record["offset"]
            if position >= log["first"] and follows(before, record):
                self.broken.append(f"{name} {position} was inserted: the log goes on without it")
            elif offset <= position:
                twice = any(each["offset"] == offset for each in records[:number])
                self.broken.append(f"{name} {offset} was {'inserted: it is there twice' if twice else 'reordered'}")
                number += 1
                continue
            elif moved is not None and genuine(records, number):
                self.broken.append(f"{name} {records[moved]['offset']} was reordered: it stands behind {offset}")
                placed.add(moved)
                position, before = records[moved]["offset"], stated
                stated = bytes.fromhex(records[moved]["head"])
                continue
            elif moved is not None:
                self.broken.append(f"{name} {offset} was inserted: the log goes on without it")
                number += 1
                continue
            elif offset > position + 1:
                self.broken.append(f"{name} {position + 1} was deleted (up to {offset - 1})")
            else:
                self.broken.append(f"{name} {offset} was modified")
            position, before, stated, number = offset, stated, bytes.fromhex(record["head"]), number + 1

    def sealed(
        self,
        where: str,
        records: list[dict[str, Any]],
        head: bytes,
        log: dict[str, Any],
        statements: list[dict[str, Any]],
    ) -> None:
        """What the checkpoints sealed, computed anew from keys and values alone."""
        end = records[-1]["offset"] + 1 if records else log["first"]
        number = 0
        for statement in statements:
            if statement["offset"] <= log["first"]:
                continue
            while number < len(records) and records[number]["offset"] < statement["offset"]:
                head, number = link(head, raw(records[number]["key"]), raw(records[number]["value"])), number + 1
            sealed = f"from {statement['first']} to {statement['offset'] - 1}"
            why = f"the outcomes {sealed} are not those that were sealed"
            if statement["offset"] > end:
                why = f"the tail is cut off: it ends before offset {end}, and a checkpoint sealed outcomes {sealed}"
            self.counts["sealed"] += self.expect(head.hex() == statement["head"], f"{where}: {why}")
            head = bytes.fromhex(statement["head"])  # so that the next is judged by itself
        if number < len(records):
            self.notes.append(f"{where}: from offset {records[number]['offset']} on no checkpoint has sealed it yet")

    # ----------------------------------------------------------------- outcomes, requests, results

    def read_receipts(self, log: dict[str, Any], records: list[dict[str, Any]]) -> None:
        """The outcomes that count: the first of each request, by the highest offset of its partition so far."""
        if log["kind"] != "outcomes":
            return
        marks = {tuple(key.rsplit("/", 1)): highest for key, highest in log["marks_before"].items()}
        for record in records:
            if record["verdict"] not in ("accepted", "repeat"):
                continue
            try:
                receipt = unpack(raw(record["value"]) or b"")
                at = receipt["request"]
                topic, partition, offset = at["topic"], at["partition"], at["offset"]
            except (Unreadable, KeyError, TypeError) as err:
                self.broken.append(f"outcome {log['topic']}/{log['partition']} offset {record['offset']}: {err}")
                continue
            mark = marks.get((topic, str(partition)))
            if mark is not None and offset <= mark:
                continue
            marks[topic, str(partition)] = offset
            self.receipts[topic, partition, offset] = receipt
        self.counts["outcomes"] = len(self.receipts)

    def completeness(self) -> None:
        """No request between two that have an outcome is without one."""
        excused = {(gap["topic"], gap["partition"], n) for gap in self.about["gaps"] if not gap["records"]
                   for n in range(gap["first"], gap["next"])}  # fmt: skip
        last: dict[tuple[str, int], int] = {}
        for topic, partition, offset in sorted(self.receipts):
            previous = last.get((topic, partition))
            last[topic, partition] = offset
            for missing in range((offset if previous is None else previous + 1), offset):
                if (topic, partition, missing) not in excused:
                    self.broken.append(f"request {topic}/{partition} offset {missing} has no outcome")

    def exchanges(self) -> None:
        """Requests, results and the artefacts that answered, against the receipts."""
        seen, model = set(), self.about["model"]
        for line in self.lines("exchanges.jsonl"):
            row = json.loads(line)
            at = (row["topic"], row["partition"], row["offset"])
            where = f"{at[0]}/{at[1]} offset {at[2]}"
            receipt = self.receipts.get(at)
            new = receipt is not None and at not in seen
            if not self.expect(new, f"request {where}: no outcome, or there twice") or receipt is None:
                continue
            seen.add(at)
            self.request(row, receipt, where)
            self.result(row, receipt, where)
        for topic, partition, offset in self.about["selected"]:
            if (topic, partition, offset) not in seen:
                self.broken.append(f"request {topic}/{partition} offset {offset}: it is not in the bundle any more")
        self.counts["selected"] = len(self.about["selected"])
        for receipt in (self.receipts[at] for at in seen):
            self.expect(receipt["model_name"] == model, f"request {receipt['request_id']} is another model's")

    def request(self, row: dict[str, Any], receipt: dict[str, Any], where: str) -> None:
        """A request's bytes."""
        self.counts[f"requests {row['request_state']}"] += 1
        if row["request_state"] == "present":
            digest = hashlib.sha256(raw(row["value"]) or b"").hexdigest()
            self.expect(digest == receipt["input_sha256"], f"request {where}: its bytes are not those of its receipt")

    def result(self, row: dict[str, Any], receipt: dict[str, Any], where: str) -> None:
        """A result's outputs: their raw bytes in order have the digest of the receipt."""
        self.counts[f"results {row['result_state']}"] += 1
        if row["result_state"] != "present" or receipt["output_sha256"] is None:
            return
        digest = hashlib.sha256()
        for output in row["outputs"]:
            if output["file"] is not None:
                path = self.root / "objects" / Path(output["file"]).name
                if not self.expect(path.is_file(), f"result {where}: {path.name} is not in the bundle"):
                    return
                digest.update(path.read_bytes())
            else:
                digest.update(raw(output["data"]) or b"")
        self.expect(digest.hexdigest() == receipt["output_sha256"], f"result {where}: it is not that of its receipt")


def arguments() -> argparse.Namespace:
    """What was asked for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("directory", nargs="?", type=Path, default=Path(__file__).resolve().parent)
    parser.add_argument("--public-key", action="append", default=[], help="hex; whom you trust to have signed")
    parser.add_argument(
        "--checkpoint", action="append", type=Path, default=[], help="a file of checkpoints that you kept, one a line"
    )
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


def main() -> int:
    """Verify, tell, and say by the exit code."""
    asked = arguments()
    try:
        kept = [json.loads(line) for path in asked.checkpoint for line in path.read_text().splitlines() if line]
        bundle = Bundle(asked.directory, set(asked.public_key), kept)
        bundle.verify()
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as err:
        print(f"could not be verified: {type(err).__name__}: {err}", file=sys.stderr)
        return 2
    if asked.json:
        found = {"ok": not bundle.broken, "broken": bundle.broken, "notes": bundle.notes, "counts": dict(bundle.counts)}
        print(json.dumps(found, indent=1))
        return 1 if bundle.broken else 0
    for name, count in sorted(bundle.counts.items()):
        print(f"{name}: {count}")
    for note in bundle.notes:
        print(f"note: {note}")
    for each in bundle.broken:
        print(f"BROKEN: {each}")
    print("it does not hold" if bundle.broken else "everything holds")
    return 1 if bundle.broken else 0


if __name__ == "__main__":
    sys.exit(main())
