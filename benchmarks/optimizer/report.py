"""The optimizer's events as Markdown tables."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from shared.events import ModelReady, VariantReady, VariantRejected

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from shared.events import AttemptEvent, Measurements

_BEGIN: Final = "<!-- tables: python -m benchmarks.optimizer -->"
_END: Final = "<!-- end of tables -->"
_SHOWN: Final = ("accuracy", "rmse", "agreement", "cosine")


def table(name: str, events: Sequence[AttemptEvent], took_s: float) -> str:
    """All candidates of a model, what was measured, and why they serve or not."""
    last = events[-1]
    if not isinstance(last, ModelReady):
        return f"### {name}\n\nNot ready: {last}"
    lines = [
        f"### {name}",
        "",
        f"Chosen: **{last.variant}**, after {took_s:.0f} s.",
        "",
        "| candidate | verdict | size | speed at 1 / 8 / 32 rows | rows/s | quality | why |",
        "|---|---|---|---|---|---|---|",
    ]
    fp32 = next((event.measurements for event in events if isinstance(event, VariantReady)), None)
    for event in events:
        if isinstance(event, VariantReady | VariantRejected):
            verdict = "rejected" if isinstance(event, VariantRejected) else "kept"
            verdict = "**chosen**" if event.variant == last.variant else verdict
            cells = _cells(event.measurements, fp32)
            lines.append(f"| {event.variant} | {verdict} | {cells} | {event.reason.replace('|', '/')} |")
    return "\n".join(lines)


def outcome(events: Sequence[AttemptEvent]) -> bool:
    """Whether what was chosen is no slower than fp32."""
    last = events[-1]
    chosen = next(e for e in events if isinstance(e, VariantReady) and e.variant == getattr(last, "variant", None))
    return (chosen.measurements.speedup or 0.0) >= 1.0


def _cells(found: Measurements | None, fp32: Measurements | None) -> str:
    if found is None:
        return " | | | "
    size = f"{found.byte_size / 1024:.0f} KiB"
    if fp32 is not None and found.byte_size:
        size += f" ({fp32.byte_size / found.byte_size:.1f}x)"
    ratios = [f"{each.reference_s / each.p50_s:.2f}" for each in found.latencies if each.reference_s]
    rows = "" if found.throughput_rows_s is None else f"{found.throughput_rows_s:,.0f}"
    quality = [
        f"{name} {each.value:.4f} [{each.low:.4f}, {each.high:.4f}]"
        for name, each in found.quality.items()
        if name.rpartition(": ")[2] in _SHOWN
    ]
    return f"{size} | {' / '.join(ratios)} | {rows} | {'; '.join(quality)}"


def put(path: Path, text: str) -> None:
    """The tables into a document, between its marks."""
    before, _, rest = path.read_text().partition(_BEGIN)
    _, _, after = rest.partition(_END)
    path.write_text(f"{before}{_BEGIN}\n\n{text}\n\n{_END}{after}")
