"""Alerts with hysteresis, pure.

A rule is raised when its value has been high for a while, and cleared when it has been low for a while; between the two
thresholds nothing changes, so that a value that trembles does not.
What there is to find is the business of `findings`; who is told is that of `watching`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Literal

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

Severity = Literal["warning", "critical"]
MAX_STANDING: Final = 2000
"""Alerts that are watched at a time; others have to wait."""


@dataclass(frozen=True)
class Rule:
    """Raised above one threshold for `for_s` seconds, cleared below another for as long."""

    name: str
    severity: Severity
    raises_above: float
    clears_below: float
    for_s: float
    text: str


@dataclass(frozen=True)
class Finding:
    """The value of a rule for something. What is not found has the value 0."""

    value: float
    message: str
    model: str | None = None
    version: int | None = None
    instance: str | None = None
    part: str | None = None
    """Of the instance, as `gpu 0`."""

    @property
    def key(self) -> str:
        """What it is about."""
        named = (self.model, self.version, self.instance, self.part)
        return "/".join(str(each) for each in named if each is not None)


@dataclass(slots=True)
class Standing:
    """How an alert stands: since when its value is high or low, and since when it is raised."""

    rule: str
    finding: Finding
    high_since_s: float | None = None
    low_since_s: float | None = None
    raised_s: float | None = None


@dataclass(frozen=True)
class Change:
    """An alert was raised or cleared."""

    alert: str
    raised: bool
    rule: Rule
    finding: Finding


@dataclass(slots=True)
class Alerts:
    """All that may become, or is, an alert."""

    standing: dict[str, Standing] = field(default_factory=dict)

    def judge(self, rule: Rule, findings: Iterable[Finding], now_s: float) -> list[Change]:
        """What changed about a rule, with everything that it was found for now."""
        found: Mapping[str, Finding] = {f"{rule.name}/{each.key}".rstrip("/"): each for each in findings}
        for alert, finding in found.items():
            held = self.standing.get(alert)
            if held is not None:
                held.finding = finding
            elif finding.value > rule.raises_above and len(self.standing) < MAX_STANDING:
                self.standing[alert] = Standing(rule.name, finding)
        changes = []
        for alert, held in list(self.standing.items()):
            if held.rule == rule.name:
                value = found[alert].value if alert in found else 0.0
                change = self._judge(alert, held, rule, value, now_s)
                changes += [change] if change else []
        return changes

    def _judge(self, alert: str, held: Standing, rule: Rule, value: float, now_s: float) -> Change | None:
        high, low = value > rule.raises_above, value < rule.clears_below
        held.high_since_s = (held.high_since_s or now_s) if high else None
        held.low_since_s = (held.low_since_s or now_s) if low else None
        if held.raised_s is None:
            if held.high_since_s is not None and now_s - held.high_since_s >= rule.for_s:
                held.raised_s = now_s
                return Change(alert, True, rule, held.finding)
            if low:
                del self.standing[alert]
        elif held.low_since_s is not None and now_s - held.low_since_s >= rule.for_s:
            del self.standing[alert]
            return Change(alert, False, rule, held.finding)
        return None

    @property
    def active(self) -> dict[str, Standing]:
        """Those that are raised."""
        return {alert: held for alert, held in sorted(self.standing.items()) if held.raised_s is not None}
