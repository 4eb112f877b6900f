"""Every series of the report as a TensorBoard file: `tensorboard --logdir` of the directory that it lies in."""

from __future__ import annotations

from typing import TYPE_CHECKING

from shared import tensorboard

if TYPE_CHECKING:
    from services.monitor.report.content import Report


def render(report: Report) -> bytes:
    """The file: a scalar for each window and series, at the time of the window."""
    records = [tensorboard.record(tensorboard.version(report.span.start_s))]
    for line in report.lines:
        tag = f"{line.section}/{line.subject}/{line.name}"
        for step, (at, value) in enumerate(zip(report.at, line.values, strict=True)):
            if value is not None:
                records.append(tensorboard.record(tensorboard.scalar(tag, step, value, at)))
    return b"".join(records)
