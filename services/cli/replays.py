"""`aiaas audit replay` and `backtest`, and the gate of `aiaas models promote --gate backtest`.

Exit codes: 0 clean, 1 differences (back-test: refused), 2 something could not run.
"""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path  # noqa: TC003 - typer reads annotations at run time
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from services.cli import audit
from services.cli.audit import From, Model, To, Where  # noqa: TC001 - typer reads annotations at run time
from services.cli.errors import CommandError, NotTried
from services.cli.printing import Json, as_json, console, progress
from services.cli.where import platform_settings
from shared.errors import AiaasError

if TYPE_CHECKING:
    from collections.abc import Iterator

_SHOWN: Final = 10
Rate = Annotated[
    float | None, typer.Option(min=0.001, help="At most so many rows a second; else as workers have time.")
]


@audit.app.command("replay")
def replay(
    *,
    model: Model = None,
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
    source: Where = "auto",
    out: Annotated[
        Path | None, typer.Option(file_okay=False, help="Write report.html, rows.parquet and summary.json here.")
    ] = None,
    json: Json = False,
) -> None:
    """Run recorded batches again, on the recorded bytes, and compare every answer. It touches nothing live."""
    use, settings = audit.module("replay.use"), platform_settings()
    with _could_not_run():
        if not (model or from_ or request or offsets):
            raise NotTried("Say what to replay: --model, --from and --to, --request or --offsets.")
        selection = use.selected(
            settings.topics, model=model, from_=from_, to=to, requests=request, offsets=offsets, tenant=tenant
        )
        how = {"tolerance": tolerance, "digest_check": digest_check, "out": out}
        with progress() as tell:
            summary = audit.done(use.replay(settings, use.Where(source, rate), selection, tell, **how))
    if json:
        as_json(summary.as_map())
    else:
        console().print("\n".join(_replay_in_lines(summary, out)), markup=False, soft_wrap=True)
    raise typer.Exit(summary.exit_code)


@audit.app.command("backtest")
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
    source: Where = "auto",
    json: Json = False,
) -> None:
    """Run recorded requests on two versions, and judge one by the other: agreement, loss, latency."""
    outcome = _judged(
        candidate, against, from_, to, source=source, rate=rate, max_loss=max_loss, max_requests=max_requests
    )
    if json:
        as_json(outcome.as_map())
    else:
        console().print("\n".join(_backtest_in_lines(outcome)), markup=False, soft_wrap=True)
    raise typer.Exit(1 if outcome.problem else 0)


def pass_backtest(model: str, candidate: int, against: int, from_: str | None, to: str | None) -> None:
    """Return if a version is no worse than another on recorded requests; the figures go to standard error.

    Raises:
        CommandError: it is worse.
        NotTried: that could not be found out.
    """
    outcome = _judged(f"{model}:{candidate}", f"{model}:{against}", from_, to)
    console(stderr=True).print("\n".join(_backtest_in_lines(outcome)), markup=False, soft_wrap=True)
    if outcome.problem is not None:
        raise CommandError(f"Version {candidate} of {model} was not promoted: {outcome.problem}.")


def _judged(
    candidate: str,
    against: str,
    from_: str | None,
    to: str | None,
    *,
    source: str = "auto",
    rate: float | None = None,
    **how: Any,
) -> Any:
    use = audit.module("replay.use")
    with _could_not_run(), progress() as tell:
        times_ms = use.span(from_, to)
        where = use.Where(source, rate)
        return audit.done(use.backtest(platform_settings(), where, candidate, against, times_ms, tell, **how))


@contextmanager
def _could_not_run() -> Iterator[None]:
    """Whatever keeps it from being done is exit code 2.

    Raises:
        NotTried: says what.
    """
    try:
        yield
    except NotTried:
        raise
    except AiaasError as err:
        raise NotTried(f"{err.code}: {err.message}") from err
    except OSError as err:
        raise NotTried(str(err)) from err


def _replay_in_lines(summary: Any, out: Path | None) -> list[str]:
    lines = [summary.sentence, *(f"  {name:<18}{count:>9}" for name, count in summary.by_class.items())]
    lines += [f"    {why}: {count}" for why, count in summary.reasons.items()]
    if summary.not_run:
        lines.append(f"  {'(never ran)':<18}{summary.not_run:>9}")
    lines += [f"  {each['request_id']}  {each['class']}: {each['reason']}" for each in summary.diffs[:_SHOWN]]
    if len(summary.diffs) > _SHOWN:
        lines.append(f"  … and {len(summary.diffs) - _SHOWN} more: --out DIR or --json has them all")
    lines.append(f"  in {summary.seconds:.1f} s{f', report in {out}' if out else ''}")
    return lines


def _backtest_in_lines(outcome: Any) -> list[str]:
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
