"""Series over time as JSON: of models, and of hosts. Shapes: docs/monitor.md."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any

from services.monitor import queries
from services.monitor.counting import PHASES
from services.monitor.metering import COUNTERS, GAUGES, GPU_GAUGES
from services.monitor.tally import QUANTILES, STATUSES, Tally

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from services.monitor.history import View
    from services.monitor.queries import Sample
    from services.monitor.span import Span


def of_model(view: View, span: Span, model: str, version: int | None) -> dict[str, Any]:
    """Requests, latencies, batches and lag of a model, or of one of its versions."""
    windows = queries.by_window(view, span, model, version)
    tallies = [windows[at] for at in span.windows]
    whole = Tally()
    for tally in tallies:
        whole.merge(tally)
    gauges = queries.samples(view, span, model=model)
    return {
        "model": model,
        "version": version,
        "from": span.start_s,
        "to": span.end_s,
        "step_s": span.step_s,
        "at": list(span.windows),
        "offsets": {str(partition): offset for partition, offset in sorted(view.offsets.items())},
        "requests": {status: [tally.outcomes[status] for tally in tallies] for status in STATUSES},
        "errors": {code: [tally.sum("error/" + code) for tally in tallies] for code in whole.error_codes},
        "throughput_per_s": [tally.requests / span.step_s for tally in tallies],
        "rows_per_s": [tally.sum("rows") / span.step_s for tally in tallies],
        "executions": [tally.sum("run") for tally in tallies],
        "reexecuted": [tally.sum("reexecuted") for tally in tallies],
        "duplicates": [tally.sum("duplicates") for tally in tallies],
        "latency_s": _latencies(tallies),
        "batch_size": {
            "mean": [tally.mean_batch_size for tally in tallies],
            "histogram": {str(size): n for size, n in sorted(whole.of("batch").items())},
        },
        **{gauge: _summed(gauges, gauge, span) for gauge in ("lag", "queued", "loaded")},
        "totals": whole.summary(),
    }


def _latencies(tallies: Sequence[Tally]) -> dict[str, dict[str, list[float | None]]]:
    found = {phase: [tally.latency(phase) for tally in tallies] for phase in PHASES}
    return {
        phase: {name: [each[name] for each in latencies] for name in (*QUANTILES, "mean")}
        for phase, latencies in found.items()
    }


def _summed(samples: Iterable[Sample], gauge: str, span: Span) -> list[float | None]:
    """The means of a gauge, over all instances that told one, added up."""
    found: dict[int, float] = defaultdict(float)
    for sample in samples:
        if sample.gauge == gauge:
            found[sample.at] += sample.mean
    return [found.get(at) for at in span.windows]


def of_hosts(view: View, span: Span, instance: str | None) -> dict[str, Any]:
    """Samples of instances and their hosts."""
    by_instance: dict[str, list[Sample]] = defaultdict(list)
    for sample in queries.samples(view, span, instance=instance):
        if not sample.model:
            by_instance[sample.instance].append(sample)
    return {
        "from": span.start_s,
        "to": span.end_s,
        "step_s": span.step_s,
        "hosts": [_host(name, samples, span) for name, samples in sorted(by_instance.items()) if name],
    }


def _host(name: str, samples: Sequence[Sample], span: Span) -> dict[str, Any]:
    by_gauge: dict[tuple[str, int], dict[int, Sample]] = defaultdict(dict)
    for sample in samples:
        by_gauge[sample.gauge, sample.gpu][sample.at] = sample
    gpus = sorted({gpu for _, gpu in by_gauge if gpu >= 0})
    return {
        "instance": name,
        "service": samples[0].service,
        "at": list(span.windows),
        **{gauge: _both(by_gauge[gauge, -1], span) for gauge in GAUGES},
        **{f"{gauge}_per_s": _rates(by_gauge[gauge, -1], span) for gauge in COUNTERS},
        "gpus": [
            {"index": gpu, **{gauge: _both(by_gauge[f"gpu_{gauge}", gpu], span) for gauge in GPU_GAUGES}}
            for gpu in gpus
        ],
    }


def _both(held: Mapping[int, Sample], span: Span) -> dict[str, list[float | None]]:
    return {
        "mean": [held[at].mean if at in held else None for at in span.windows],
        "max": [held[at].most if at in held else None for at in span.windows],
    }


def _rates(held: Mapping[int, Sample], span: Span) -> list[float | None]:
    """What a number that only grows grew by in a second, since the last window that has it; it starts anew at 0."""
    rates: list[float | None] = []
    before: tuple[int, float] | None = None
    for at in span.windows:
        now = held.get(at)
        rates.append(None if now is None or before is None else max(now.most - before[1], 0) / (at - before[0]))
        before = before if now is None else (at, now.most)
    return rates
