"""One request, from when it was enqueued to when it was answered. Pure; shape: docs/monitor.md."""

from __future__ import annotations

from typing import Any, Final

_PHASES: Final = ("queue", "compute_input", "compute_infer", "compute_output")
_SAID: Final = {
    "queue": ("enqueued", "in {topic}/{partition} at offset {offset}; it waits for its turn"),
    "compute_input": ("taken", "by {worker}, into {batch}; its inputs are laid side by side"),
    "compute_infer": ("run", "version {version} as {variant}"),
    "compute_output": ("computed", "its outputs are taken apart"),
}


def tell(row: dict[str, Any]) -> dict[str, Any]:
    """A row of the table `requests` as a story: its moments, and what happened at each."""
    spent_ns = {phase: row[f"{phase}_ns"] for phase in _PHASES}
    total_ns = sum(spent or 0 for spent in spent_ns.values())
    done_s = row["completed_ms"] / 1000
    return {
        "model": row["model"],
        "version": row["version"],
        "variant": row["variant"],
        "status": row["status"],
        "error_code": row["error_code"],
        "request": {"topic": row["topic"], "partition": row["partition"], "offset": row["offset"]},
        "outcome": {"partition": row["log_partition"], "offset": row["log_offset"]},
        "completed_at": done_s,
        **{name: row[name] for name in ("worker", "tenant", "duplicate_of", "reexecuted", "registry_offset")},
        **{name: row[name] for name in ("artifact_sha256", "input_sha256", "output_sha256")},
        "batch": None
        if row["batch_id"] is None
        else {"id": row["batch_id"], "index": row["batch_index"], "size": row["batch_size"]},
        "timings_s": {
            **{phase: None if spent is None else spent / 1e9 for phase, spent in spent_ns.items()},
            "total": total_ns / 1e9,
        },
        "story": _story(row, spent_ns, done_s - total_ns / 1e9),
    }


def _story(row: dict[str, Any], spent_ns: dict[str, int | None], began_s: float) -> list[dict[str, Any]]:
    size = row["batch_size"]
    batch = "no batch" if size is None else f"a batch of {size}, at place {row['batch_index']}"
    story, at_s = [], began_s
    for phase in _PHASES:
        spent = spent_ns[phase]
        if spent is not None:
            what, text = _SAID[phase]
            story.append({"at": at_s, "what": what, "text": text.format(**row, batch=batch), "took_s": spent / 1e9})
            at_s += spent / 1e9
    ended = row["status"] if row["error_code"] is None else f"{row['status']}: {row['error_code']}"
    if row["duplicate_of"] is not None:
        ended += f", as the answer to {row['duplicate_of']}"
    told = {"at": row["completed_ms"] / 1000, "what": "answered", "text": ended, "took_s": None}
    log = f"in the log of outcomes, {row['log_partition']} offset {row['log_offset']}"
    return [*story, told, {"at": row["appended_ms"] / 1000, "what": "recorded", "text": log, "took_s": None}]
