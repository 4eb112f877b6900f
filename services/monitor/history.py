"""The history on disk: Parquet files that DuckDB reads, exactly as far as the snapshot that names them.

**Exactly once.** Rows are written in new files; a snapshot lists the files that belong to it beside the offsets it was
folded up to (`services.monitor.snapshot`). What a killed monitor wrote after its last snapshot is in no list and is
deleted at the start, and the log gives those rows again. Files are never changed: written beside, flushed, renamed.

**Bounded.** A file has rows of one period: an hour of 10 s windows, a day of minutes, thirty days of hours. Files of a
period are merged when there are many, or when it is over; periods that are old enough are rolled up into the next
width, and at last dropped. Merging adds integers (`recorder`), so nothing but the width of windows is lost. Replaced
files stay until a snapshot without them is stored.

DuckDB has a memory limit, one thread, and installs nothing. Not here: what questions are asked (`queries`).
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from services.monitor.span import WINDOW_S
from services.monitor.tables import SCHEMAS
from shared import logs

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

_HOUR, _DAY = 3600, 86_400
_MANY: Final = 12
"""Files of one period that are merged although it is not over."""
_SETTLED_S: Final = 900
"""After its end a period is over: what comes later is merged when it does."""
_MERGED: Final = {
    "counts": "SELECT window_s // {step} * {step} AS window_s, model, version, what, bucket,"
    " CAST(sum(n) AS BIGINT) AS n FROM rows GROUP BY ALL ORDER BY model, version, what, window_s, bucket",
    "samples": "SELECT window_s // {step} * {step} AS window_s, instance, service, model, gauge, gpu,"
    " CAST(sum(n) AS BIGINT) AS n, sum(total) AS total, max(most) AS most"
    " FROM rows GROUP BY ALL ORDER BY instance, gauge, model, gpu, window_s",
    "requests": "SELECT * FROM rows ORDER BY request_id",
    "events": "SELECT * FROM rows ORDER BY at_s",
}


@dataclass(frozen=True)
class Level:
    """Windows of a width lie in files by period, until they are so old that they are rolled up or dropped."""

    step_s: int
    period_s: int
    keep_s: int


@dataclass(frozen=True)
class Retention:
    """How long what is kept: 10 s windows, minutes, hours; single requests."""

    fine_s: int = 6 * _HOUR
    minutes_s: int = 7 * _DAY
    hours_s: int = 400 * _DAY
    requests_s: int = 7 * _DAY

    def levels(self, table: str) -> tuple[Level, ...]:
        """Of a table, the finest first."""
        if table == "requests":
            return (Level(WINDOW_S, _HOUR, self.requests_s),)
        if table == "events":
            return (Level(WINDOW_S, 30 * _DAY, self.hours_s),)
        return (
            Level(WINDOW_S, _HOUR, self.fine_s),
            Level(60, _DAY, self.minutes_s),
            Level(_HOUR, 30 * _DAY, self.hours_s),
        )


@dataclass(frozen=True)
class File:
    """A file of the history: of which table and width, and of which period."""

    number: int
    table: str
    step_s: int
    begin_s: int
    end_s: int

    @property
    def name(self) -> str:
        """Its name in the directory."""
        return f"{self.table}-{self.number:010}.parquet"


@dataclass(frozen=True)
class Manifest:
    """The files that a snapshot is about, and the number of the next one."""

    files: tuple[File, ...] = ()
    next_number: int = 1


@dataclass(frozen=True)
class Writing:
    """Rows on their way to disk, and the manifest that holds once they are there."""

    tables: dict[str, pa.Table]
    parts: tuple[tuple[File, pa.Table], ...]
    manifest: Manifest


@dataclass
class History:
    """The files of one monitor. Only `write`, `compacted` and queries take time; they may run in a thread."""

    directory: Path
    retention: Retention = field(default_factory=Retention)
    manifest: Manifest = field(default_factory=Manifest)
    _writing: Writing | None = None
    _garbage: list[File] = field(default_factory=list)
    _readers: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _database: duckdb.DuckDBPyConnection = field(init=False)

    def __post_init__(self) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        self._database = duckdb.connect(
            ":memory:",
            config={
                "threads": 1,
                "memory_limit": "256MB",
                "temp_directory": str(self.directory / "spilled"),
                "max_temp_directory_size": "1GB",
                "autoinstall_known_extensions": "false",
                "autoload_known_extensions": "false",
            },
        )

    def open(self, manifest: Manifest) -> None:
        """Continue from a snapshot: what it does not know is deleted, and what is missing is said."""
        there = {path.name for path in self.directory.glob("*.parquet*")}
        lost = [file for file in manifest.files if file.name not in there]
        for file in lost:
            logs.get().error("history is missing", file=file.name, since_s=file.begin_s, until_s=file.end_s)
        self.manifest = replace(manifest, files=tuple(file for file in manifest.files if file not in lost))
        for name in there - {file.name for file in self.manifest.files}:
            (self.directory / name).unlink()

    # ------------------------------------------------------------------ storing

    def begin(self, tables: dict[str, pa.Table]) -> Writing:
        """Give rows their files. The manifest of it belongs into the snapshot of this very moment."""
        number, parts = self.manifest.next_number, []
        for table, rows in tables.items():
            [level, *_] = self.retention.levels(table)
            for begin_s, part in _by_period(rows, level.period_s):
                parts.append((File(number, table, level.step_s, begin_s, begin_s + level.period_s), part))
                number += 1
        files = self.manifest.files + tuple(file for file, _ in parts)
        self._writing = Writing(tables, tuple(parts), Manifest(files, number))
        return self._writing

    def write(self, writing: Writing) -> None:
        """Write the files.

        Raises:
            OSError: the disk did not take them.
        """
        for file, rows in writing.parts:
            with self._replacing(file) as beside:
                pq.write_table(rows, beside, compression="zstd")

    def done(self, writing: Writing | None) -> list[File]:
        """The rows are stored, or (None) they are not: what to delete once the snapshot is stored, too."""
        if writing is not None:
            self.manifest = writing.manifest
        elif self._writing is not None:  # numbers are not used again: a part may lie there
            self.manifest = replace(self.manifest, next_number=self._writing.manifest.next_number)
        self._writing = None
        return list(self._garbage)

    def delete(self, garbage: Iterable[File]) -> None:
        """Delete files that no snapshot knows any more, unless someone may be reading them."""
        with self._lock:
            if self._readers:
                return
            for file in garbage:
                (self.directory / file.name).unlink(missing_ok=True)
                self._garbage.remove(file)

    # ------------------------------------------------------------------ merging

    def due(self, now_s: float) -> tuple[Level | None, list[File]] | None:
        """The next files to be merged to a level, or (None) dropped."""
        grouped: dict[tuple[str, int, int], list[File]] = {}
        for file in self.manifest.files:
            grouped.setdefault((file.table, file.step_s, file.begin_s), []).append(file)
        for (table, step_s, _), files in sorted(grouped.items()):
            levels = self.retention.levels(table)
            place = next((index for index, level in enumerate(levels) if level.step_s == step_s), len(levels) - 1)
            end_s = files[0].end_s
            if end_s + levels[place].keep_s < now_s:
                return (levels[place + 1] if place + 1 < len(levels) else None), files
            over = end_s + _SETTLED_S < now_s
            if len(files) >= _MANY or (over and len(files) > 1):
                return levels[place], files
        return None

    def compacted(self, level: Level | None, files: list[File]) -> Manifest:
        """The manifest after merging `files` (of one table and period) into one of `level`, which is written.

        Raises:
            OSError: the disk did not take it.
        """
        kept = tuple(file for file in self.manifest.files if file not in files)
        if level is None:
            return replace(self.manifest, files=kept)
        first = files[0]
        begin_s = first.begin_s // level.period_s * level.period_s
        made = File(self.manifest.next_number, first.table, level.step_s, begin_s, begin_s + level.period_s)
        sql = _MERGED[first.table].format(step=level.step_s)
        with self._replacing(made) as beside, self.cursor() as cursor:
            cursor.execute(f"CREATE TEMP VIEW rows AS SELECT * FROM read_parquet({self.paths(files)})")  # noqa: S608 - names are ours
            cursor.execute(f"COPY ({sql}) TO '{_quoted(beside)}' (FORMAT parquet, COMPRESSION zstd)")
            cursor.execute("DROP VIEW rows")
        return Manifest((*kept, made), made.number + 1)

    def replaced(self, manifest: Manifest) -> None:
        """Go on with a manifest that `compacted` gave."""
        self._garbage += [file for file in self.manifest.files if file not in manifest.files]
        self.manifest = manifest

    # ------------------------------------------------------------------ reading

    @contextlib.contextmanager
    def view(self, new: dict[str, pa.Table], offsets: dict[int, int] | None = None) -> Iterator[View]:
        """All rows as they are now: stored, on their way, and `new`. It may be read in a thread."""
        with self._lock:
            self._readers += 1
        memory = {table: [rows] for table, rows in new.items()}
        for table, rows in (self._writing.tables if self._writing else {}).items():
            memory.setdefault(table, []).append(rows)
        try:
            yield View(self, self.manifest.files, memory, offsets or {})
        finally:
            with self._lock:
                self._readers -= 1

    def paths(self, files: Iterable[File]) -> str:
        """Files as a list in SQL."""
        return "[" + ", ".join(f"'{_quoted(self.directory / file.name)}'" for file in files) + "]"

    @contextlib.contextmanager
    def cursor(self) -> Iterator[duckdb.DuckDBPyConnection]:
        """A connection of its own to the one database, since threads must not share one."""
        cursor = self._database.cursor()
        try:
            yield cursor
        except (duckdb.IOException, duckdb.OutOfMemoryException) as err:
            raise OSError(str(err)) from err
        finally:
            cursor.close()

    @contextlib.contextmanager
    def _replacing(self, file: File) -> Iterator[Path]:
        """A path to write to; afterwards it is on disk under the file's own name."""
        path = self.directory / file.name
        beside = path.with_suffix(".parquet.writing")
        yield beside
        for written in (beside, self.directory):
            if written == self.directory:
                beside.replace(path)
            descriptor = os.open(written, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)


@dataclass(frozen=True)
class View:
    """The rows of one moment."""

    history: History
    files: tuple[File, ...]
    memory: dict[str, list[pa.Table]]
    offsets: dict[int, int]
    """Of the outcome log, by partition: up to where its rows are these."""

    def rows(self, table: str, sql: str, span_s: tuple[int, int], **values: Any) -> list[tuple[Any, ...]]:
        """What a query gives over `rows`: those of the table with windows in a span. `$name` are `values`."""
        start_s, end_s = span_s
        files = [file for file in self.files if file.table == table and file.begin_s < end_s and file.end_s > start_s]
        with self.history.cursor() as cursor:
            cursor.register("memory", pa.concat_tables([SCHEMAS[table].empty_table(), *self.memory.get(table, ())]))
            sources = ["SELECT * FROM memory"]
            if files:
                sources.append(f"SELECT * FROM read_parquet({self.history.paths(files)})")  # noqa: S608 - names are ours
            within = f"SELECT * FROM ({' UNION ALL BY NAME '.join(sources)})"  # noqa: S608 - as above
            limits = f"WHERE window_s >= {int(start_s)} AND window_s < {int(end_s)}"
            return cursor.execute(f"WITH rows AS ({within} {limits}) {sql}", values).fetchall()


def set_aside(directory: Path) -> None:
    """Keep a history whose snapshot can't be used for people to look at."""
    if directory.exists() and any(directory.glob("*.parquet")):
        aside = directory.with_name(f"{directory.name}.{time.time_ns()}.unusable")
        logs.get().error("history set aside", kept_as=str(aside))
        directory.rename(aside)


def _by_period(rows: pa.Table, period_s: int) -> Iterator[tuple[int, pa.Table]]:
    """The rows of each period, by its beginning."""
    begins = pc.multiply(pc.divide(rows["window_s"], period_s), period_s)
    for begin_s in pc.unique(begins).to_pylist():
        yield begin_s, rows.filter(pc.equal(begins, begin_s))


def _quoted(path: Path) -> str:
    """As it stands within an SQL string."""
    return str(path).replace("'", "''")
