"""The order of slices: for each model, each repeat, each system in turn, each concurrency; all other systems stopped.

The order of the systems turns by one with every repeat, so that none always comes first.
"""

from __future__ import annotations

import signal
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from benchmarks.serving import slices
from benchmarks.serving.closed_loop import Load
from benchmarks.serving.direct_load import DirectLoad
from benchmarks.serving.kafka_load import KafkaLoad
from benchmarks.serving.models import oip_output
from benchmarks.serving.rows import Row
from benchmarks.serving.systems import DirectTarget, HttpTarget, NotHere
from benchmarks.serving.warming import warm

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from benchmarks.serving.models import Model
    from benchmarks.serving.processes import Tree
    from benchmarks.serving.systems import KafkaTarget, System

_OK = "200"
_SLOW_CONCURRENCIES = frozenset({1, 64})
_SLOW_WINDOWS = 2.5
"""A window should hold many batches, or the one at its edge decides."""
_BATCHES = (1, 2, 4, 8, 16, 32)


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is measured."""

    concurrencies: tuple[int, ...]
    repeats: int
    warmup_s: float
    window_s: float
    kafka_outstanding: int
    """By Kafka alone also so many under way; 0 for none."""
    kafka_beforehand: int
    """And so many produced beforehand, to be drained; 0 for none."""

    def of(self, model: Model) -> Plan:
        """Fewer and longer slices for a slow model."""
        if not model.slow:
            return self
        return replace(
            self,
            concurrencies=tuple(each for each in self.concurrencies if each in _SLOW_CONCURRENCIES),
            window_s=self.window_s * _SLOW_WINDOWS,
            kafka_outstanding=0,
            kafka_beforehand=0,
        )


def measure(
    model: Model, systems: Sequence[System], plan: Plan, say: Callable[[str], None], missing: dict[str, str]
) -> Iterator[Row]:
    """All slices of one model. Who can't be measured is in `missing`, with the reason, and is left out."""
    with ExitStack() as undo:
        live = list(_started(model, systems, say, missing, undo))
        for system in live:
            system.pause()
        for system in live:
            _warm(model, system, plan, say)
        for repeat in range(plan.repeats):
            turn = repeat % max(1, len(live))
            for system in [*live[turn:], *live[:turn]]:
                try:
                    yield from _turn(model, system, plan, repeat, say)
                except (NotHere, slices.SliceFailed) as err:
                    missing[f"{system.name} ({model.name}, repeat {repeat})"] = str(err)
                    say(f"{system.name}: {err}")
                finally:
                    system.pause()


def _started(
    model: Model, systems: Iterable[System], say: Callable[[str], None], missing: dict[str, str], undo: ExitStack
) -> Iterator[System]:
    for system in systems:
        say(f"{model.name}: starting {system.name}")
        undo.callback(system.stop)
        try:
            system.start(model)
        except NotHere as err:
            missing[f"{system.name} ({model.name})"] = str(err)
            say(f"{system.name} is left out: {err}")
        else:
            yield system


def _warm(model: Model, system: System, plan: Plan, say: Callable[[str], None]) -> None:
    """See `warming`; with a slow model a broker has little to do, warm or not."""
    if model.slow:
        return

    def turn() -> None:
        for case in _cases(system, replace(plan, kafka_beforehand=0)):
            _load(system.target(), case, plan, system.trees())

    try:
        system.resume()
        if found := warm(system.trees().values(), turn):
            say(f"{model.name} {system.name}: {found}")
    except (NotHere, slices.SliceFailed) as err:
        say(f"{system.name} could not be warmed: {err}")
    finally:
        system.pause()


def _turn(model: Model, system: System, plan: Plan, repeat: int, say: Callable[[str], None]) -> Iterator[Row]:
    """One system's slices of one repeat."""
    system.resume()
    counted = system.runs()
    for case in _cases(system, plan):
        done = _load(system.target(), case, plan, system.trees())
        before, counted = counted, system.runs()
        row = _row(model, system, case, repeat, done, _mean_batch(before, counted))
        say(
            f"{model.name} {row.system} at {row.concurrency}, {repeat + 1} of {plan.repeats}: "
            f"{row.per_s:.0f}/s, p50 {row.p50_ms:.2f} ms, p99 {row.p99_ms:.2f} ms"
            + (f", {row.errors} errors: {row.faults}" if row.errors else "")
            + (f", WRONG: {row.wrong[0]}" if row.wrong else "")
        )
        yield row


@dataclass(frozen=True, slots=True)
class _Case:
    """So many requests under way, or (Kafka alone) so many produced beforehand."""

    callers: int
    beforehand: int = 0


def _cases(system: System, plan: Plan) -> list[_Case]:
    cases = [_Case(callers) for callers in plan.concurrencies]
    target = system.target()
    if isinstance(target, DirectTarget):
        return [_Case(batch) for batch in _BATCHES]
    if isinstance(target, HttpTarget):
        return cases
    deep = [_Case(plan.kafka_outstanding)] if plan.kafka_outstanding else []
    return cases + deep + ([_Case(0, plan.kafka_beforehand)] if plan.kafka_beforehand else [])


def _load(
    target: HttpTarget | KafkaTarget | DirectTarget, case: _Case, plan: Plan, trees: dict[str, Tree]
) -> slices.Slice:
    """Run the generator that fits."""
    if isinstance(target, HttpTarget):
        requests = [request.decode("latin-1") for request in target.requests()]
        load = Load(target.host, target.port, requests, case.callers, plan.warmup_s, plan.window_s)
        return slices.run("closed_loop", load, trees)
    if isinstance(target, DirectTarget):
        bodies = [body.decode() for body in target.bodies]
        direct = DirectLoad(
            str(target.path), target.threads, bodies, case.callers, plan.warmup_s / 2, plan.window_s / len(_BATCHES)
        )
        return slices.run("direct_load", direct, trees)
    kafka_load = KafkaLoad(
        bootstrap_servers=target.bootstrap_servers,
        requests=target.requests,
        answers=target.answers,
        headers=dict(target.headers),
        id_header=target.id_header,
        success_mark=target.success_mark,
        bodies=[body.decode() for body in target.bodies],
        outstanding=case.callers,
        beforehand=case.beforehand,
        warmup_s=plan.warmup_s,
        window_s=plan.window_s,
        redis_url=target.redis_url,
        result_key=target.result_key,
    )
    if not case.beforehand:
        return slices.run("kafka_load", kafka_load, trees)

    def signal_takers(signum: signal.Signals) -> None:
        for taker in target.takers:
            taker.signal(signum)

    signal_takers(signal.SIGSTOP)
    try:
        return slices.run("kafka_load", kafka_load, trees, lambda: signal_takers(signal.SIGCONT))
    finally:
        signal_takers(signal.SIGCONT)


def _row(model: Model, system: System, case: _Case, repeat: int, done: slices.Slice, mean_batch: float | None) -> Row:
    measured, target = done.measured, system.target()
    answered = measured["answered"]
    faults = {code: n for code, n in {**measured["statuses"], **measured["faults"]}.items() if n and code != _OK}
    read = target.read if isinstance(target, HttpTarget) else oip_output
    results = measured.get("results")
    cpu_s = done.cpu_s or {system.name: measured["generator_cpu_share"] * measured["window_s"]}
    return Row(
        model=model.name,
        system=f"{system.name} drained" if case.beforehand else system.name,
        concurrency=case.beforehand or case.callers,
        repeat=repeat,
        per_s=answered / measured["window_s"],
        p50_ms=measured["p50_ms"],
        p99_ms=measured["p99_ms"],
        cpu_s_per_1000={name: 1000 * each_s / max(1, answered) for name, each_s in cpu_s.items()},
        generator_cpu_share=measured["generator_cpu_share"],
        mean_batch=mean_batch,
        errors=sum(faults.values()),
        wrong=model.wrong({int(number): body for number, body in measured["samples"].items()}, read),
        faults=faults,
        results_per_s=None if results is None else results / measured["window_s"],
        result_p50_ms=measured.get("result_p50_ms"),
    )


def _mean_batch(before: tuple[float, float] | None, after: tuple[float, float] | None) -> float | None:
    """Rows a run, warm-up included; for a system that only knows the mean itself, its own."""
    if before is None or after is None or after[1] <= before[1]:
        return None
    return (after[0] - before[0]) / (after[1] - before[1])
