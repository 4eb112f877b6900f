"""Whether a platform's servers and machine are set up as the platform needs them: pure, over facts gathered elsewhere.

Each check yields findings: what was looked at, the verdict, what was seen, and what to change. `fail` means that a
promise breaks (an answer, an outcome or a version can be lost); `warn` that it may, or that it could not be seen.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from shared.keeping import kept_s
from shared.settings import is_loopback
from shared.topics import FIXED, MAX_RECORD_BYTES, MODELS, REQUESTS, Topic, Topics

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

Verdict = Literal["ok", "warn", "fail"]

_MINUTE_MS = 60 * 1000
_WORKER_SESSION_MS = 6000
_OLDEST_REDIS = (7, 0)  # the first whose SET takes NX and GET together, on which the arbiter of answers stands
_LEAST_OPEN_FILES = 4096
_ARCHIVED_WITHIN_S = 300.0
"""The archiver writes every 30 s."""
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
class ArchiveFacts:
    """How the archive stands; the fields of `services.audit.state`. With an `error` it could not be looked at."""

    archived: int = 0
    waiting: int = 0
    waiting_s: float = 0.0
    lost: int = 0
    goes_on: bool = True
    checkpoint_at: str | None = None
    checkpoint_key: str | None = None
    key: str | None = None
    key_path: str = ""
    key_is_private: bool = True
    error: str = ""


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
    archive: ArchiveFacts | None = None
    """None if Kafka does not answer."""
    result_ttl_s: int = 3600
    result_ttl_least_s: int = 60

    @property
    def kept_s(self) -> int:
        """For so long Redis keeps what is written now, and the archiver can take it."""
        redis = self.redis or {}
        used, most = (int(redis.get(name) or 0) for name in ("used_memory", "maxmemory"))
        return kept_s(used, most, self.result_ttl_s, self.result_ttl_least_s)


def examine(facts: Facts, names: Topics) -> list[Finding]:
    """All findings: Kafka, its topics, Redis, who can listen in, the archive, the machine."""
    archive = [] if facts.archive is None else _archive(facts.archive, facts.kept_s)
    return [*_kafka(facts, names), *_redis(facts), *_access(facts), *archive, *_machine(facts)]


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
    kept = f"answers are kept for {facts.kept_s} s"
    if facts.kept_s == facts.result_ttl_s:
        yield Finding("ok", "used_memory", kept)
    else:
        seen = f"{kept}, not {facts.result_ttl_s}: Redis is filling up"
        yield Finding("warn", "used_memory", seen, "raise maxmemory, or lower AIAAS_RESULT_TTL_S to what you need")


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


def _archive(archive: ArchiveFacts, kept_s: int) -> Iterator[Finding]:
    if archive.error:
        yield Finding("warn", "archive", archive.error, "audits outlive Kafka by it alone: see docs/audit.md")
        return
    yield _archived(archive, kept_s)
    if archive.lost:
        seen = f"{archive.lost} outcomes left Kafka before they were archived"
        advice = "keep the archiver running, or raise the topic's retention.ms: `aiaas audit verify` names the gap"
        yield Finding("warn", "archive's gaps", seen, advice)
    if archive.checkpoint_at is not None:
        yield Finding(
            "ok", "archive's checkpoint", f"signed at {archive.checkpoint_at} by {(archive.checkpoint_key or '')[:16]}…"
        )
    elif archive.archived:
        yield Finding("warn", "archive's checkpoint", "there is none", "start an archiver: it signs what is archived")
    yield _signing_key(archive)


def _archived(archive: ArchiveFacts, kept_s: int) -> Finding:
    seen = f"{archive.archived} outcomes archived, {archive.waiting} wait"
    if archive.waiting:
        seen += f", the first for {archive.waiting_s:.0f} s"
    if not archive.goes_on:
        seen += "; Kafka's log is another than the archived one"
    if archive.waiting_s <= _ARCHIVED_WITHIN_S:
        return Finding("ok", "archive", seen)
    late = archive.waiting_s > kept_s
    lost = "results leave Redis unarchived, " if late else ""
    advice = f"{lost}is an archiver running (`aiaas archiver`), and what does its log say?"
    return Finding("fail" if late else "warn", "archive", seen, advice)


def _signing_key(archive: ArchiveFacts) -> Finding:
    what = "archive's key"
    if archive.key is None:
        if archive.checkpoint_key is None:
            return Finding("ok", what, f"none in {archive.key_path} yet: the archiver makes one")
        return Finding("ok", what, "the private key is not on this machine")
    if not archive.key_is_private:
        return Finding("warn", what, f"others can read {archive.key_path}", f"chmod 600 {archive.key_path}")
    if archive.checkpoint_key not in {None, archive.key}:
        seen = f"{archive.key_path} is of {archive.key[:16]}…, and signed nothing last"
        return Finding("warn", what, seen, "name the right one in AIAAS_AUDIT_KEY_FILE, and tell auditors of a new one")
    return Finding("ok", what, f"in {archive.key_path}")


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
