"""Watching: every few seconds the gauges of heartbeats, who was lost, and the alert rules.

What changed becomes an event on `alerts`, a line in the log and one in the timeline. An alert that Kafka did not take
is told with the next change; the timeline, the API and `/metrics` have it all the same.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from typing import TYPE_CHECKING, Any, Final

import orjson
from aiokafka.errors import KafkaError

from services.monitor import findings, queries
from services.monitor.findings import RULES
from services.monitor.span import WINDOW_S, Span
from services.monitor.state import UP_INTERVALS
from shared import logs, topics
from shared.alert_events import AlertCleared, AlertRaised
from shared.codec import cloud_event_headers, encode_event
from shared.errors import Unfinished

if TYPE_CHECKING:
    from collections.abc import Iterable

    from aiokafka import AIOKafkaProducer

    from services.monitor.alerts import Change, Finding
    from services.monitor.queries import Of
    from services.monitor.settings import MonitorSettings
    from services.monitor.state import Instance, State
    from services.monitor.tally import Tally

_ANOMALY_EVERY: Final = 6
"""Rounds between two looks at the last hour."""
_MINUTE_S, _HOUR_S = 60, 3600
_STOOD_STILL_S: Final = 10
"""A round that comes so late is the first, or this process stood still (a suspended machine): signs of life are then
still on their way, and nobody counts as lost before they had time to arrive."""


class Watching:
    """Judges the rules for one monitor."""

    def __init__(self, settings: MonitorSettings, state: State, producer: AIOKafkaProducer) -> None:
        self._settings = settings
        self._state = state
        self._producer = producer
        self._topic = settings.topics.name(topics.ALERTS)
        self._rounds = 0
        self._looked_s = 0.0
        self._settled_s = 0.0

    async def run(self) -> None:
        """Look each interval until cancelled."""
        while True:
            await asyncio.sleep(self._settings.monitor_watch_interval_s)
            await self.look(time.time())

    async def look(self, now_s: float) -> None:
        """One round."""
        if now_s - self._looked_s > self._settings.monitor_watch_interval_s + _STOOD_STILL_S:
            self._settled_s = now_s + _STOOD_STILL_S + UP_INTERVALS * self._settings.metrics_interval_s
        self._looked_s = now_s
        instances = self._state.instances(int(now_s * 1e9))
        self._sample(instances, now_s)
        if now_s >= self._settled_s:
            self._note_lost(instances)
        try:
            tallies, minutes = await self._counted(now_s)
        except (Unfinished, OSError) as err:
            logs.get().warning("alerts not judged", error=str(err))
            return
        await self._tell(self._judge(instances, tallies, minutes, now_s), now_s)

    def _sample(self, instances: Iterable[Instance], now_s: float) -> None:
        """Gauges of heartbeats, and the monitor's own lag."""
        recorder = self._state.recorder
        for instance in instances:
            beat, name, service = instance.beat, instance.name, instance.service
            if beat is None:
                continue
            for gauge, by_model in (("lag", beat.lag), ("queued", beat.queued)):
                for model, value in by_model.items():
                    recorder.sample(now_s, gauge, value, model=model, instance=name, service=service)
            for model, value in Counter(loaded.model for loaded in beat.loaded).items():
                recorder.sample(now_s, "loaded", value, model=model, instance=name, service=service)
        recorder.sample(now_s, "outcomes_lag", self._state.lag(), instance=self._settings.instance, service="monitor")

    def _note_lost(self, instances: Iterable[Instance]) -> None:
        for instance in instances:
            run = instance.run
            if run is not None and not instance.up and not run.lost:
                run.lost = True
                text = f"{instance.name} ({instance.service}) is not heard of any more"
                self._state.recorder.event(run.at_ns / 1e9, "lost", text, instance=instance.name)

    async def _counted(self, now_s: float) -> tuple[dict[Of, Tally], dict[str, list[Tally]] | None]:
        """The last minute by version, and now and then the last hour by model and minute."""
        until_s = int(now_s // WINDOW_S + 1) * WINDOW_S
        self._rounds += 1
        hour = self._rounds % _ANOMALY_EVERY == 0
        with self._state.view() as view:
            tallies = await asyncio.to_thread(queries.by_version, view, (until_s - findings.WINDOW_S, until_s))
            if not hour:
                return tallies, None
            last_s = until_s // _MINUTE_S * _MINUTE_S
            span = Span(last_s - _HOUR_S, last_s, _MINUTE_S)
            names = {model for model, _ in tallies if model}
            found = await asyncio.to_thread(
                lambda: {name: list(queries.by_window(view, span, name).values()) for name in names}
            )
        return tallies, found

    def _judge(
        self,
        instances: list[Instance],
        tallies: dict[Of, Tally],
        minutes: dict[str, list[Tally]] | None,
        now_s: float,
    ) -> list[Change]:
        slos = {model: self._settings.slo(model) for model, _ in tallies}
        nowhere = tallies.get(("", None))
        found: dict[str, list[Finding]] = {
            "errors": list(findings.errors(tallies)),
            "latency_slo": list(findings.latency_slo(tallies, slos)),
            "rejections": list(findings.rejections(nowhere)) if nowhere else [],
            "lag": list(findings.lag(instances)),
            "drift": list(findings.drift(self._state.drift.watched)),
            "host_memory": [],
            "disk": [],
            "event_loop": [],
            "gpu_temperature": [],
        }
        if now_s >= self._settled_s:
            found["instance_lost"] = list(findings.instance_lost(instances))
        if minutes is not None:
            found["latency_anomaly"] = list(findings.latency_anomaly(minutes))
        for rule, finding in findings.host(instances):
            found[rule].append(finding)
        judge = self._state.alerts.judge
        return [change for rule, these in found.items() for change in judge(RULES[rule], these, now_s)]

    async def _tell(self, changes: Iterable[Change], now_s: float) -> None:
        for change in changes:
            finding, rule = change.finding, change.rule
            word = "raised" if change.raised else "cleared"
            about: dict[str, Any] = {"model": finding.model, "version": finding.version, "instance": finding.instance}
            told: dict[str, Any] = {
                "alert": change.alert,
                "rule": rule.name,
                "severity": rule.severity,
                "value": finding.value,
            }
            threshold = rule.raises_above if change.raised else rule.clears_below
            logs.get().warning(f"alert {word}", **told, **about, threshold=threshold, message=finding.message)
            detail = orjson.dumps({**told, "change": word, "threshold": threshold}).decode()
            self._state.recorder.event(now_s, "alert", f"{word}: {finding.message}", **about, detail=detail)
            event = (AlertRaised if change.raised else AlertCleared)(
                **told, **about, threshold=threshold, message=finding.message, at_ns=int(now_s * 1e9)
            )
            try:
                await self._producer.send_and_wait(
                    self._topic,
                    encode_event(event),
                    key=change.alert.encode(),
                    headers=cloud_event_headers(event_type=type(event).__name__, source=self._settings.instance),
                )
            except KafkaError as err:
                logs.get().warning("alert not sent", alert=change.alert, error=repr(err))
