"""The report of a replay as one page of HTML that needs nothing else: what was asked, the counts, what differs."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING, Final

from services.audit.replay.verdicts import CLASSES

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from services.audit.replay.differences import Difference
    from services.audit.replay.summary import Summary
    from services.audit.replay.verdicts import Verdict

MOST_SHOWN: Final = 500
_STYLE: Final = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem;
       color: #1b1f24; background: #fff; }
table { border-collapse: collapse; margin: 1rem 0; width: 100%; }
th, td { text-align: left; padding: .35rem .6rem; border-bottom: 1px solid #d8dee4; vertical-align: top; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; }
code { font: 13px ui-monospace, monospace; overflow-wrap: anywhere; }
.verdict { padding: .8rem 1rem; border-radius: 6px; font-weight: 600; }
.clean { background: #dafbe1; } .different { background: #ffebe9; } .partly { background: #fff8c5; }
@media (prefers-color-scheme: dark) {
  body { color: #e6edf3; background: #0d1117; } th, td { border-color: #30363d; }
  .clean { background: #12361f; } .different { background: #4c1517; } .partly { background: #3b2f06; }
}
"""
_KINDS: Final = ("clean", "different", "partly")
"""By exit code."""
_WORDS: Final = {
    "identical": "the same bytes",
    "within_tolerance": "no number further away than allowed",
    "changed": "another answer",
    "not_reproducible": "could not run as it did",
}


def page(asked: Mapping[str, str], summary: Summary, shown: Sequence[Verdict]) -> str:
    """The page. `shown` are verdicts that are not identical, of which the first `MOST_SHOWN` are shown."""
    kind = _KINDS[summary.exit_code]
    counts = _table(
        ("class", "rows", "meaning"),
        [(f"<code>{name}</code>", str(summary.counts[name]), _WORDS[name]) for name in CLASSES],
    )
    reasons = _table(("why not reproducible", "rows"), [(escape(why), str(n)) for why, n in summary.reasons.items()])
    return "".join(
        [
            '<!doctype html><html lang="en"><meta charset="utf-8"><title>Replay</title>',
            f'<meta name="viewport" content="width=device-width"><style>{_STYLE}</style>',
            f'<h1>Replay</h1><p class="verdict {kind}">{escape(summary.sentence)}</p>',
            _table(("", ""), [(escape(key), f"<code>{escape(value)}</code>") for key, value in asked.items()]),
            f"<h2>Rows</h2>{counts}",
            f"<p>{summary.not_run} more requests were selected of which nothing ran when they were answered.</p>",
            reasons if summary.reasons else "",
            _differences(shown, sum(summary.counts.values()) - summary.counts["identical"]),
            "</html>\n",
        ]
    )


def _differences(shown: Sequence[Verdict], total: int) -> str:
    if not shown:
        return ""
    rows = [
        (
            f"<code>{escape(each.receipt.request_id)}</code>",
            f"<code>{each.verdict}</code>",
            escape(each.reason) + "".join(_elements(difference) for difference in each.differences),
        )
        for each in shown[:MOST_SHOWN]
    ]
    left = f"<p>{total - len(rows)} more are in rows.parquet.</p>" if total > len(rows) else ""
    return f"<h2>What differs</h2>{_table(('request', 'class', 'why'), rows)}{left}"


def _elements(difference: Difference) -> str:
    if not difference.shown:
        return ""
    rows = [(str(at), escape(str(old)), escape(str(new))) for at, old, new in difference.shown]
    return _table((f"{escape(difference.output)} at", "recorded", "replayed"), rows)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    top = "".join(f"<th>{cell}</th>" for cell in head)
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><tr>{top}</tr>{body}</table>"
