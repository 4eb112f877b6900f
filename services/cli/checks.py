"""Whether a platform's servers and machine are set up as the platform needs them: pure, over facts gathered elsewhere.

Each check yields findings: what was looked at, the verdict, what was seen, and what to change. `fail` means that a
promise breaks (an answer, an outcome or a version can be lost); `warn` that it may, or that it could not be seen.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from shared.settings import is_loopback
from shared.topics import FIXED, MAX_RECORD_BYTES, MODELS, REQUESTS, Topic, Topics

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

Verdict = Literal["ok", "warn", "fail"]

_MINUTE_MS = 60 * 1000
_WORKER_SESSION_MS = 6000
_OLDEST_REDIS = (7, 0)  # the first whose SET takes NX and GET together, on which the arbiter of answers stands
_LEAST_OPEN_FILES = 4096
_GIB = 1024**3
_LEAST_FREE_DISK_BYTES, _LITTLE_FREE_DISK_BYTES = 1 * _GIB, 5 * _GIB


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at. `advice` is empty if it is ok."""

    verdict: Verdict
    what: str
    seen: str
    advice: str = ""


@dataclass(frozen=True, slots=True)
class TopicFacts:
    """A topic as the broker describes it; `config` holds the effective values, overrides and defaults alike."""

    partitions: int
    config: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Link:
    """How we reach something; `hosts` without ports. `advice` says how to encrypt it."""

    what: str
    hosts: tuple[str, ...]
    encrypted: bool
    advice: str

    @property
    def far(self) -> tuple[str, ...]:
        """The hosts that are other machines."""
        return tuple(host for host in self.hosts if not is_loopback(host))


@dataclass(frozen=True, slots=True)
class Facts:
    """What was gathered. `kafka` and `redis` are None where the server did not answer, then the error says why."""

    kafka: Mapping[str, str] | None
    """The broker's effective configuration; empty if it tells none (the embedded broker)."""
    topics: Mapping[str, TopicFacts]
    redis: Mapping[str, str] | None
    open_files: int
    free_disk_bytes: int
    kafka_error: str = ""
    redis_error: str = ""
    links: tuple[Link, ...] = ()


def examine(facts: Facts, names: Topics) -> list[Finding]:
    """All findings: Kafka, its topics, Redis, who can listen in, the machine."""
    return [*_kafka(facts, names), *_redis(facts), *_access(facts), *_machine(facts)]


def worst(findings: list[Finding]) -> Verdict:
    """The verdict over all."""
    return max((finding.verdict for finding in findings), key=("ok", "warn", "fail").index, default="ok")


def _kafka(facts: Facts, names: Topics) -> Iterator[Finding]:
    if facts.kafka is None:
        yield Finding(
            "fail", "Kafka", facts.kafka_error, "start it (`aiaas up`), or correct AIAAS_KAFKA_BOOTSTRAP_SERVERS"
        )
        return
    yield Finding("ok", "Kafka", f"answers, {len(facts.topics)} topics")
    if facts.kafka:
        yield from _broker(facts.kafka)
        yield _offsets_outlive_requests(facts.kafka, facts.topics, names)
    else:
        yield Finding(
            "warn", "broker settings", "the broker does not tell them", "use Apache Kafka for anything that counts"
        )
    for topic in FIXED:
        yield from _topic(names.name(topic), topic, facts.topics)


def _broker(config: Mapping[str, str]) -> Iterator[Finding]:
    yield _expect(
        config.get("auto.create.topics.enable") == "false",
        "auto.create.topics.enable",
        config,
        "set it to false: a misspelt topic would appear, with settings that nobody chose",
    )
    yield _expect(
        _number(config, "message.max.bytes") >= MAX_RECORD_BYTES,
        "message.max.bytes",
        config,
        f"raise it to {MAX_RECORD_BYTES} at least: a request of that size is accepted",
    )
    yield _expect(
        _number(config, "group.min.session.timeout.ms") <= _WORKER_SESSION_MS,
        "group.min.session.timeout.ms",
        config,
        f"lower it to {_WORKER_SESSION_MS}: workers join with that session timeout",
    )


def _offsets_outlive_requests(config: Mapping[str, str], topics: Mapping[str, TopicFacts], names: Topics) -> Finding:
    """A worker whose committed offsets have expired starts at the earliest request that is kept, and runs it again."""
    offsets_ms = _number(config, "offsets.retention.minutes") * _MINUTE_MS
    kept_ms = {
        name: _number(topic.config, "retention.ms", -1)
        for name, topic in topics.items()
        if name.startswith(names.requests(""))
    }
    longest = max(kept_ms, key=lambda name: _for_ever_is_longest(kept_ms[name]), default=None)
    requests_ms = kept_ms[longest] if longest else int(REQUESTS.config["retention.ms"])
    seen = f"offsets are kept for {_days(offsets_ms)}, requests for {_days(requests_ms)} ({longest or 'by default'})"
    if _for_ever_is_longest(requests_ms) < offsets_ms:
        return Finding("ok", "offsets.retention.minutes", seen)
    advice = "keep offsets longer than requests: raise offsets.retention.minutes, or lower the topic's retention.ms"
    return Finding("fail", "offsets.retention.minutes", seen, advice)


def _topic(name: str, topic: Topic, topics: Mapping[str, TopicFacts]) -> Iterator[Finding]:
    found = topics.get(name)
    if found is None:
        yield Finding("warn", name, "is not there", "start a service: each creates the fixed topics")
        return
    if topic is MODELS and found.partitions != 1:
        yield Finding(
            "fail",
            name,
            f"has {found.partitions} partitions",
            "it must have one, which orders the registry: partitions never go away, so take a new AIAAS_TOPIC_PREFIX",
        )
    wrong = {
        key: (found.config[key], value)
        for key, value in topic.kafka_config.items()
        if found.config.get(key, value) != value
    }
    for key, (seen, wanted) in wrong.items():
        verdict: Verdict = "fail" if topic is MODELS or key == "cleanup.policy" else "warn"
        yield Finding(verdict, name, f"{key}={seen}", f"set {key}={wanted}, as the platform creates it")
    if not wrong:
        yield Finding("ok", name, f"{found.partitions} partition{'s' if found.partitions > 1 else ''}")


def _redis(facts: Facts) -> Iterator[Finding]:
    if facts.redis is None:
        yield Finding("fail", "Redis", facts.redis_error, "start it (`aiaas up`), or correct AIAAS_REDIS_URL")
        return
    version = facts.redis.get("redis_version", "")
    yield _expect(
        tuple(int(part) for part in version.split(".")[:2] if part.isdecimal()) >= _OLDEST_REDIS,
        "redis_version",
        facts.redis,
        "use Redis 7 or Valkey: SET with NX and GET together decides which answer counts",
    )
    yield _expect(
        facts.redis.get("appendonly") == "yes",
        "appendonly",
        facts.redis,
        "`CONFIG SET appendonly yes`, and in its configuration file: a restart would forget every answer",
    )
    yield _expect(
        facts.redis.get("maxmemory-policy") == "noeviction",
        "maxmemory-policy",
        facts.redis,
        "`CONFIG SET maxmemory-policy noeviction`, and in its configuration file: answers would vanish while awaited",
    )
    yield _expect(
        facts.redis.get("appendfsync") != "no",
        "appendfsync",
        facts.redis,
        "set it to everysec: a crash of the machine loses more than a second otherwise",
        otherwise="warn",
    )
    yield _expect(
        facts.redis.get("maxmemory", "0") != "0",
        "maxmemory",
        facts.redis,
        "set a bound below the machine's memory: full is an honest 503, killed is not",
        otherwise="warn",
    )


def _access(facts: Facts) -> Iterator[Finding]:
    for link in facts.links:
        yield _link(link)
        if link.what == "Kafka" and link.far and facts.kafka:
            yield _expect(
                facts.kafka.get("authorizer.class.name", "") != "",
                "authorizer.class.name",
                facts.kafka,
                "set an authorizer and ACLs: whoever reaches Kafka can write outcomes and models (docs/security.md)",
                otherwise="warn",
            )


def _link(link: Link) -> Finding:
    what, where = f"{link.what} link", ", ".join(link.far or link.hosts)
    if link.encrypted:
        return Finding("ok", what, f"encrypted to {where}")
    if not link.far:
        return Finding("ok", what, "in the clear, and does not leave this machine")
    return Finding("warn", what, f"in the clear to {where}", link.advice)


def _machine(facts: Facts) -> Iterator[Finding]:
    files = f"{facts.open_files} open files per process"
    if facts.open_files >= _LEAST_OPEN_FILES:
        yield Finding("ok", "file limit", files)
    else:
        yield Finding(
            "fail", "file limit", files, f"raise it to {_LEAST_OPEN_FILES} at least (`ulimit -n`, LimitNOFILE)"
        )
    free = f"{facts.free_disk_bytes / _GIB:.1f} GiB free in the data directory"
    if facts.free_disk_bytes >= _LITTLE_FREE_DISK_BYTES:
        yield Finding("ok", "disk", free)
    else:
        verdict: Verdict = "warn" if facts.free_disk_bytes >= _LEAST_FREE_DISK_BYTES else "fail"
        yield Finding(verdict, "disk", free, "free some, or move AIAAS_DATA_DIR: a full disk stops the log")


def _expect(
    holds: bool, setting: str, config: Mapping[str, str], advice: str, *, otherwise: Verdict = "fail"
) -> Finding:
    seen = f"{setting}={config.get(setting, '(not told)')}"
    return Finding("ok", setting, seen) if holds else Finding(otherwise, setting, seen, advice)


def _number(config: Mapping[str, str], key: str, default: int = 0) -> int:
    return int(config.get(key, default))


def _for_ever_is_longest(retention_ms: int) -> float:
    return float("inf") if retention_ms < 0 else retention_ms


def _days(duration_ms: int) -> str:
    return "ever" if duration_ms < 0 else f"{duration_ms / (24 * 60 * _MINUTE_MS):g} days"
