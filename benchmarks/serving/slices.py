"""One slice: a generator in a process of its own, and the CPU time of everything it loads read around its window."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from benchmarks.serving.closed_loop import Load
    from benchmarks.serving.direct_load import DirectLoad
    from benchmarks.serving.kafka_load import KafkaLoad
    from benchmarks.serving.open_loop import OpenLoad
    from benchmarks.serving.processes import Tree

    AnyLoad = Load | KafkaLoad | DirectLoad | OpenLoad


class SliceFailed(Exception):
    """The generator did not come to its end; the message holds what it said."""


@dataclass(frozen=True, slots=True)
class Slice:
    """What the generator measured, and CPU seconds within its window by process."""

    measured: dict[str, Any]
    cpu_s: dict[str, float]


def run(
    generator: str,
    load: AnyLoad,
    trees: Mapping[str, Tree],
    began: Callable[[], None] | None = None,
) -> Slice:
    """Run `benchmarks.serving.{generator}` with a load, to its end; `began` is called when its window begins.

    Raises:
        SliceFailed: it failed, or took far longer than it should.
    """
    with tempfile.TemporaryFile("w+") as complaints:
        process = subprocess.Popen(
            [sys.executable, "-m", f"benchmarks.serving.{generator}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=complaints,
            text=True,
            # Unbuffered, Python drops what a pipe does not take at once, and on uvloop a pipe may take a part.
            env={**os.environ, "PYTHONUNBUFFERED": ""},
        )
        try:
            return _watch(process, load, trees, began)
        except SliceFailed as err:
            complaints.seek(0)
            raise SliceFailed(f"{generator}: {err}: {complaints.read()[-2000:]}") from err
        finally:
            process.kill()
            process.wait()


def _watch(
    process: subprocess.Popen[str], load: AnyLoad, trees: Mapping[str, Tree], began: Callable[[], None] | None
) -> Slice:
    if process.stdin is None or process.stdout is None:
        raise SliceFailed("was started without pipes")
    json.dump(asdict(load), process.stdin)
    process.stdin.close()
    _await(process.stdout, "measuring")
    before = {name: tree.cpu_s() for name, tree in trees.items()}
    if began is not None:
        began()
    _await(process.stdout, "measured")
    cpu_s = {name: tree.cpu_s() - before[name] for name, tree in trees.items()}
    line = process.stdout.readline()
    if not line:
        raise SliceFailed("ended without its figures")
    return Slice(json.loads(line), cpu_s)


def _await(output: IO[str], word: str) -> None:
    line = output.readline().strip()
    if line != word:
        raise SliceFailed(f"said {line!r} where {word!r} was due")
