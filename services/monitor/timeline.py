"""What happened when: deploys from the log, what the monitor noted, and overload from the counts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from services.monitor import queries
from services.monitor.queries import Happening

if TYPE_CHECKING:
    from collections.abc import Mapping

    from services.monitor.deploys import Deploys
    from services.monitor.history import View
    from services.monitor.span import Span
    from services.monitor.tally import Tally

_QUIET_WINDOWS: Final = 3
"""So many windows without a refusal end an overload."""


def timeline(view: View, span: Span, deploys: list[Happening]) -> list[Happening]:
    """All events of a span, oldest first."""
    noted = queries.happenings(view, (span.start_s, span.end_s))
    refused = overloads(queries.by_window(view, span, ""), span.step_s)
    return sorted([*deploys, *noted, *refused], key=lambda each: each.at_s)


def of_deploys(deploys: Deploys, span: Span) -> list[Happening]:
    """To be taken before the history is read in a thread."""
    return deploys.between(span.start_s, span.end_s)


def overloads(windows: Mapping[int, Tally], step_s: int) -> list[Happening]:
    """Stretches of time in which gateways refused requests."""
    stretches: list[list[int]] = []
    for at, tally in sorted(windows.items()):
        refused = tally.rejected
        if not refused:
            continue
        if stretches and at - stretches[-1][1] <= _QUIET_WINDOWS * step_s:
            stretches[-1][1:] = [at + step_s, stretches[-1][2] + refused]
        else:
            stretches.append([at, at + step_s, refused])
    return [
        Happening(begin, "overload", f"overload: {refused} requests were refused within {end - begin} s")
        for begin, end, refused in stretches
    ]


def shown(each: Happening) -> dict[str, Any]:
    """As JSON."""
    return {
        "at": each.at_s,
        "kind": each.kind,
        "text": each.text,
        "model": each.model,
        "version": each.version,
        "instance": each.instance,
    }
