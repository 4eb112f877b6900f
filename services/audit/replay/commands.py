"""`aiaas audit replay` and `aiaas audit backtest`. Light to import: what does the work is imported where it is done.

Exit codes: 0 clean, 1 differences (back-test: refused), 2 something could not run.
"""

from __future__ import annotations

import asyncio
import re
import sys
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from datetime import UTC, datetime
from pathlib import Path  # noqa: TC003 - typer reads annotations at run time
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

import orjson
import typer

from shared.errors import AiaasError, InvalidInput

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from contextlib import AbstractAsyncContextManager

    from services.audit.records import Offsets, Selection
    from services.audit.replay.backtest import Outcome
    from services.audit.replay.runs import Runs
    from services.audit.replay.summary import Summary
    from services.audit.source import Source
    from shared.registry import Registry
    from shared.settings import PlatformSettings
    from shared.topics import Topics

    Tell = Callable[[str, float | None], None]

COULD_NOT_RUN: Final = 2
_REACH_S: Final = 20.0
_OFFSETS: Final = re.compile(
    r"((?P<topic>[^/]+)/)?(?P<partition>[0-9]{1,9}):(?P<first>[0-9]{1,18})(-(?P<last>[0-9]{1,18}))?"
)

From = Annotated[str | None, typer.Option("--from", help="RFC 3339: outcomes appended from this moment on.")]
To = Annotated[str | None, typer.Option("--to", help="RFC 3339: outcomes appended before this moment.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]
Where = Annotated[
    Literal["kafka", "archive"],
    typer.Option("--source", help="Where records are read: Kafka and Redis, or the archive."),
]
Rate = Annotated[
    float | None, typer.Option(min=0.001, help="At most so many rows a second; else as workers have time.")
]


def replay(
    *,
    model: Annotated[str | None, typer.Option("--model", "-m", help="Requests of this model.")] = None,
    from_: From = None,
    to: To = None,
    request: Annotated[list[str] | None, typer.Option(help="A request's id; may be given several times.")] = None,
    offsets: Annotated[
        list[str] | None,
        typer.Option(help="[TOPIC/]PARTITION:FIRST[-LAST] of requests; without a topic, --model's. Several times."),
    ] = None,
    tenant: Annotated[str | None, typer.Option(help="Requests of this tenant.")] = None,
    tolerance: Annotated[
        float, typer.Option(min=0, help="Numbers may differ by this times (1 + |recorded|); 0: not at all.")
    ] = 0.0,
    digest_check: Annotated[
        bool, typer.Option("--digest-check/--no-digest-check", help="Refuse artefacts with another digest.")
    ] = True,
    rate: Rate = None,
    source: Where = "kafka",
    out: Annotated[
        Path | None, typer.Option(file_okay=False, help="Write report.html, rows.parquet and summary.json here.")
    ] = None,
    json: Json = False,
) -> None:
    """Run recorded batches again, on the recorded bytes, and compare every answer. It touches nothing live."""
    with _ending():
        if not (model or from_ or request or offsets):
            raise InvalidInput("say what to replay: --model, --from and --to, --request or --offsets")
        summary = asyncio.run(
            _replay(
                selected(model=model, from_=from_, to=to, requests=request, offsets=offsets, tenant=tenant),
                {"tolerance": tolerance, "digest_check": digest_check, "out": out},
                rate,
                source,
            )
        )
        _show_replay(summary, out, json=json)
    raise typer.Exit(summary.exit_code)


def backtest(
    *,
    candidate: Annotated[str, typer.Option(help="MODEL:VERSION[/VARIANT] that is to be judged.")],
    against: Annotated[str, typer.Option(help="MODEL:VERSION[/VARIANT] that it is judged by.")],
    from_: From = None,
    to: To = None,
    max_loss: Annotated[
        float | None, typer.Option(min=0, max=1, help="How much worse it may be; else by the model's policy.")
    ] = None,
    max_requests: Annotated[int, typer.Option(min=1, max=1_000_000, help="Take so many requests at most.")] = 20_000,
    rate: Rate = None,
    source: Where = "kafka",
    json: Json = False,
) -> None:
    """Run recorded requests on two versions, and judge one by the other: agreement, loss, latency."""
    with _ending():
        outcome = judged(
            candidate, against, from_, to, max_loss=max_loss, max_requests=max_requests, rate=rate, source=source
        )
        if json:
            _print_json(outcome.as_map())
        else:
            sys.stdout.write("\n".join(in_lines(outcome)) + "\n")
    raise typer.Exit(1 if outcome.problem else 0)


def judged(
    candidate: str,
    against: str,
    from_: str | None = None,
    to: str | None = None,
    *,
    max_loss: float | None = None,
    max_requests: int = 20_000,
    rate: float | None = None,
    source: str = "kafka",
) -> Outcome:
    """What a back-test finds; `aiaas models promote --gate backtest` asks, too.

    Raises:
        AiaasError: it could not be done.
    """
    span = _span(from_, to)
    return asyncio.run(_backtest(candidate, against, span, max_loss, max_requests, rate, source))


def add_to(app: typer.Typer) -> None:
    """Add both to the group `aiaas audit`."""
    app.command("replay")(replay)
    app.command("backtest")(backtest)


# --------------------------------------------------------------------------- what is selected


def selected(
    *,
    model: str | None = None,
    from_: str | None = None,
    to: str | None = None,
    requests: list[str] | None = None,
    offsets: list[str] | None = None,
    tenant: str | None = None,
) -> Selection:
    """What the options select.

    Raises:
        InvalidInput: a time or a range is none.
    """
    from services.audit.records import Selection  # noqa: PLC0415 - see above

    names = _settings().topics
    since_ms, until_ms = _span(from_, to)
    return Selection(
        model=model,
        since_ms=since_ms,
        until_ms=until_ms,
        request_ids=frozenset(requests) if requests else None,
        offsets=tuple(_offsets(text, model, names) for text in offsets) if offsets else None,
        tenant=tenant,
    )


def _span(from_: str | None, to: str | None) -> tuple[int | None, int | None]:
    since_ms, until_ms = (None if text is None else milliseconds(text) for text in (from_, to))
    if since_ms is not None and until_ms is not None and since_ms >= until_ms:
        raise InvalidInput(f"--from {from_} is not before --to {to}")
    return since_ms, until_ms


def milliseconds(text: str) -> int:
    """An RFC 3339 time in ms since the epoch; without an offset it is UTC.

    Raises:
        InvalidInput: it is none.
    """
    try:
        at = datetime.fromisoformat(text)
    except ValueError as err:
        raise InvalidInput(f"{text!r} is not an RFC 3339 time, such as 2026-11-23T21:00:00Z") from err
    return int((at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp() * 1000)


def _offsets(text: str, model: str | None, names: Topics) -> Offsets:
    from services.audit.records import Offsets  # noqa: PLC0415 - see above

    parts = _OFFSETS.fullmatch(text)
    if parts is None:
        raise InvalidInput(f"{text!r} is not [TOPIC/]PARTITION:FIRST[-LAST], such as 0:100-199")
    if parts["topic"] is None and model is None:
        raise InvalidInput(f"{text!r} names no topic: add it, or --model")
    topic = parts["topic"] or names.requests(model or "")
    first = int(parts["first"])
    last = first if parts["last"] is None else int(parts["last"])
    if last < first:
        raise InvalidInput(f"{text!r} ends before it begins")
    return Offsets(topic, int(parts["partition"]), first, last + 1)


# --------------------------------------------------------------------------- doing it


async def _replay(selection: Selection, how: dict[str, Any], rate: float | None, where: str) -> Summary:
    from services.audit.replay.replaying import Asked, replay  # noqa: PLC0415 - see above
    from shared.artifacts import ArtifactStore  # noqa: PLC0415 - see above

    settings = _settings()
    async with _reached(settings, where, rate) as (source, runs):
        store = ArtifactStore(settings.artifact_store_url)
        with _progress() as tell:
            return await replay(source, runs, store, Asked(selection, **how), tell)


async def _backtest(
    candidate: str,
    against: str,
    span: tuple[int | None, int | None],
    max_loss: float | None,
    most_requests: int,
    rate: float | None,
    where: str,
) -> Outcome:
    from services.audit.records import Selection  # noqa: PLC0415 - see above
    from services.audit.replay import backtest as testing  # noqa: PLC0415 - see above
    from services.audit.replay.contenders import contender  # noqa: PLC0415 - see above
    from services.audit.replay.feedback import feedback  # noqa: PLC0415 - see above
    from shared.artifacts import ArtifactStore  # noqa: PLC0415 - see above
    from shared.optimization import Policy  # noqa: PLC0415 - see above

    settings = _settings()
    async with _reached(settings, where, rate) as (source, runs):
        registry = await _registry(source)
        one, other = contender(candidate, registry), contender(against, registry)
        policy = (registry.model(one.model).policy or Policy()).over(testing.DEFAULT)
        policy = Policy(max_loss=max_loss).over(policy)
        selection = Selection(model=other.model, since_ms=span[0], until_ms=span[1])
        match = testing.Match(one, other, selection, policy, most_requests)
        store = ArtifactStore(settings.artifact_store_url)
        with _progress() as tell:
            return await testing.backtest(
                source, runs, store, match, lambda ids: feedback(settings, other.model, ids), tell
            )


async def _registry(source: Source) -> Registry:
    from shared.registry import Registry, fold  # noqa: PLC0415 - see above

    registry = Registry()
    async for entry in source.registry():
        registry = fold(registry, entry)
    return registry


@asynccontextmanager
async def _reached(settings: PlatformSettings, where: str, rate: float | None) -> AsyncIterator[tuple[Source, Runs]]:
    """The source and the way to the workers; not for ever, if a server is not there."""
    from services.audit.replay import runs  # noqa: PLC0415 - see above
    from shared.errors import LogUnavailable  # noqa: PLC0415 - see above

    async with AsyncExitStack() as stack:
        try:
            async with asyncio.timeout(_REACH_S):
                source = await stack.enter_async_context(_source(settings, where))
                to_workers = await stack.enter_async_context(runs.connected(settings, rate))
        except TimeoutError as err:
            raise LogUnavailable(
                f"Kafka at {settings.kafka_bootstrap_servers} was not reached within {_REACH_S:g} s"
            ) from err
        yield source, to_workers


def _source(settings: PlatformSettings, where: str) -> AbstractAsyncContextManager[Source]:
    from services.audit import archive_source, kafka_source  # noqa: PLC0415 - see above

    return archive_source.open_source(settings) if where == "archive" else kafka_source.open_source(settings)


def _settings() -> PlatformSettings:
    from services.audit.settings import AuditSettings  # noqa: PLC0415 - see above
    from shared.settings import read  # noqa: PLC0415 - see above

    return read(AuditSettings)


# --------------------------------------------------------------------------- telling of it


@contextmanager
def _ending() -> Iterator[None]:
    """What could not be done is a sentence and exit code 2."""
    try:
        yield
    except AiaasError as err:
        sys.stderr.write(f"aiaas: {err.code}: {err.message}\n")
        raise typer.Exit(COULD_NOT_RUN) from err
    except OSError as err:
        sys.stderr.write(f"aiaas: {err}\n")
        raise typer.Exit(COULD_NOT_RUN) from err


@contextmanager
def _progress() -> Iterator[Tell]:
    """A bar on a terminal; nothing in a pipe, where the result says it all."""
    from rich.console import Console  # noqa: PLC0415 - see above
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn  # noqa: PLC0415 - see above

    console = Console(stderr=True)
    columns = (SpinnerColumn(), BarColumn(), TextColumn("{task.description}", markup=False))
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("reading the log", total=None)

        def tell(words: str, part: float | None) -> None:
            progress.update(task, description=words, total=None if part is None else 1.0, completed=part or 0.0)

        yield tell


def _show_replay(summary: Summary, out: Path | None, *, json: bool) -> None:
    from services.audit.replay.page import sentence_of  # noqa: PLC0415 - see above
    from services.audit.replay.verdicts import CLASSES  # noqa: PLC0415 - see above

    if json:
        _print_json(summary.as_map())
        return
    _, sentence = sentence_of(summary)
    lines = [sentence, *(f"  {name:<18}{summary.counts[name]:>9}" for name in CLASSES)]
    lines += [f"    {why}: {count}" for why, count in summary.reasons.items()]
    if summary.not_run:
        lines.append(f"  {'(never ran)':<18}{summary.not_run:>9}")
    lines += [f"  {each['request_id']}  {each['class']}: {each['reason']}" for each in summary.diffs[:_SHOWN]]
    if len(summary.diffs) > _SHOWN:
        lines.append(f"  … and {len(summary.diffs) - _SHOWN} more: --out DIR or --json has them all")
    lines.append(f"  in {summary.seconds:.1f} s{f', report in {out}' if out else ''}")
    sys.stdout.write("\n".join(lines) + "\n")


_SHOWN: Final = 10


def in_lines(outcome: Outcome) -> list[str]:
    """A back-test for people."""
    told = outcome.as_map()
    verdict = "passes" if told["passed"] else "is refused"
    lines = [f"{told['candidate']} {verdict}: {told['reason']}"]
    lines.append(f"  {told['requests']} requests, {told['rows']} rows, {told['feedback_rows']} of them with feedback")
    for each in told["metrics"]:
        base = "" if each["against"] is None else f", {told['against']} {_interval(each['against'])}"
        mark = "*" if each["gates"] else " "
        lines.append(f" {mark} {each['output']}: {each['metric']} {_interval(each['candidate'])}{base}")
    for output, agreement in told["agreement"].items():
        for name, share in list(agreement.get("by_class", {}).items())[:_SHOWN]:
            lines.append(f"    {output} = {name}: agreement {_interval(share)}")
    for side in ("against", "candidate"):
        latency = told["latency"][side]
        if latency["p50_s"] is not None:
            p50, p99 = latency["p50_s"] * 1000, latency["p99_s"] * 1000
            lines.append(f"  {told[side]}: a run takes {p50:.3f} ms, p99 {p99:.3f} ms")
    lines.append(f"  in {told['seconds']:.1f} s; * decides, with a loss of {told['allowed_loss']:g} allowed")
    return lines


def _interval(share: dict[str, float]) -> str:
    return f"{share['value']:.4f} [{share['low']:.4f}, {share['high']:.4f}]"


def _print_json(value: Any) -> None:
    sys.stdout.write(orjson.dumps(value, option=orjson.OPT_INDENT_2, default=str).decode() + "\n")
