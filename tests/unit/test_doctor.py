"""What `aiaas doctor` makes of the facts: right settings pass, each wrong one is found and says what to change."""

from dataclasses import replace

import pytest

from services.cli.checks import ArchiveFacts, Facts, TopicFacts, examine, worst
from services.cli.doctor import links
from shared.settings import PlatformSettings
from shared.topics import FIXED, REQUESTS, Topics

NAMES = Topics()
DAY_MS = 24 * 3600 * 1000
KAFKA = {
    "auto.create.topics.enable": "false",
    "message.max.bytes": "1048588",
    "group.min.session.timeout.ms": "3000",
    "offsets.retention.minutes": str(30 * 24 * 60),
}
REDIS = {
    "redis_version": "7.2.4",
    "appendonly": "yes",
    "appendfsync": "everysec",
    "used_memory": "1048576",
    "maxmemory": "1073741824",
    "maxmemory-policy": "noeviction",
}
TOPICS = {
    NAMES.requests("digits"): TopicFacts(4, REQUESTS.config),
    **{NAMES.name(topic): TopicFacts(topic.partitions, topic.config) for topic in FIXED},
}
RIGHT = Facts(kafka=KAFKA, topics=TOPICS, redis=REDIS, open_files=65536, free_disk_bytes=100 * 1024**3)


def findings(facts):
    """Everything that is not ok, by what it is about."""
    return {finding.what: finding for finding in examine(facts, NAMES) if finding.verdict != "ok"}


def test_right_settings_are_right():
    assert findings(RIGHT) == {}
    assert worst(examine(RIGHT, NAMES)) == "ok"


@pytest.mark.parametrize(
    ("setting", "wrong"),
    [
        ("auto.create.topics.enable", "true"),
        ("message.max.bytes", "65536"),
        ("group.min.session.timeout.ms", "10000"),
        ("offsets.retention.minutes", str(7 * 24 * 60)),
    ],
)
def test_a_wrong_broker_setting_fails(setting, wrong):
    found = findings(replace(RIGHT, kafka={**KAFKA, setting: wrong}))
    assert found[setting].verdict == "fail"
    assert found[setting].advice


@pytest.mark.parametrize(
    ("setting", "wrong", "verdict"),
    [
        ("redis_version", "6.2.14", "fail"),
        ("appendonly", "no", "fail"),
        ("maxmemory-policy", "allkeys-lru", "fail"),
        ("appendfsync", "no", "warn"),
        ("maxmemory", "0", "warn"),
        ("used_memory", "536870912", "warn"),
    ],
)
def test_a_wrong_redis_setting_is_found(setting, wrong, verdict):
    found = findings(replace(RIGHT, redis={**REDIS, setting: wrong}))
    assert {what: finding.verdict for what, finding in found.items()} == {setting: verdict}


def test_requests_kept_longer_than_offsets_fail_and_the_longest_is_named():
    topics = {**TOPICS, NAMES.requests("slow"): TopicFacts(1, {"retention.ms": str(40 * DAY_MS)})}
    found = findings(replace(RIGHT, topics=topics))["offsets.retention.minutes"]
    assert found.seen == "offsets are kept for 30 days, requests for 40 days (aiaas.requests.slow)"


def test_requests_kept_for_ever_outlive_any_offset():
    topics = {NAMES.requests("m"): TopicFacts(1, {"retention.ms": "-1"})}
    assert "requests for ever" in findings(replace(RIGHT, topics=topics))["offsets.retention.minutes"].seen


def test_without_models_the_default_retention_counts():
    facts = replace(RIGHT, topics={}, kafka={**KAFKA, "offsets.retention.minutes": str(6 * 24 * 60)})
    assert "requests for 7 days" in findings(facts)["offsets.retention.minutes"].seen


@pytest.mark.parametrize(
    ("topic", "facts", "verdict"),
    [
        ("aiaas.models", TopicFacts(2, {"retention.ms": "-1", "retention.bytes": "-1"}), "fail"),
        ("aiaas.models", TopicFacts(1, {"retention.ms": "604800000", "retention.bytes": "-1"}), "fail"),
        ("aiaas.workers", TopicFacts(1, {"cleanup.policy": "delete"}), "fail"),
        ("aiaas.outcomes", TopicFacts(4, {"retention.ms": "1000"}), "warn"),
    ],
)
def test_a_topic_that_is_not_as_the_platform_made_it_is_found(topic, facts, verdict):
    found = findings(replace(RIGHT, topics={**TOPICS, topic: facts}))
    assert {what: finding.verdict for what, finding in found.items()} == {topic: verdict}


def test_missing_topics_are_a_warning_as_services_create_them():
    found = findings(replace(RIGHT, topics={}))
    assert {finding.verdict for finding in found.values()} == {"warn"}
    assert set(found) == {NAMES.name(topic) for topic in FIXED}


def test_servers_that_do_not_answer_fail_with_what_they_said():
    found = findings(replace(RIGHT, kafka=None, redis=None, kafka_error="refused", redis_error="timed out"))
    assert (found["Kafka"].seen, found["Redis"].seen) == ("refused", "timed out")


def test_a_broker_that_tells_nothing_is_a_warning():
    assert findings(replace(RIGHT, kafka={}))["broker settings"].verdict == "warn"


@pytest.mark.parametrize(
    ("change", "what", "verdict"),
    [
        ({"open_files": 1024}, "file limit", "fail"),
        ({"free_disk_bytes": 2 * 1024**3}, "disk", "warn"),
        ({"free_disk_bytes": 1024**2}, "disk", "fail"),
    ],
)
def test_a_small_machine_is_found(change, what, verdict):
    assert findings(replace(RIGHT, **change))[what].verdict == verdict


HERE = {"kafka": "127.0.0.1:9092", "redis": "redis://localhost:6379/0", "gateway": "http://[::1]:8080"}
FAR = {
    "kafka": "127.0.0.1:1,kafka.example.com:9092",
    "redis": "redis://:secret@10.0.0.2/0",
    "gateway": "http://10.0.0.3",
}


def linked(kafka, redis, gateway, **settings):
    return links(PlatformSettings(kafka_bootstrap_servers=kafka, redis_url=redis, **settings), gateway)


def test_links_within_this_machine_may_be_in_the_clear():
    assert findings(replace(RIGHT, links=linked(**HERE))) == {}
    assert findings(replace(RIGHT, links=linked(**{**HERE, "redis": "unix:///run/redis.sock"}))) == {}


@pytest.mark.parametrize(
    ("what", "seen"),
    [("Kafka", "kafka.example.com"), ("Redis", "10.0.0.2"), ("gateway", "10.0.0.3")],
)
def test_a_link_that_leaves_this_machine_in_the_clear_is_a_warning(what, seen):
    facts = replace(
        RIGHT, kafka={**KAFKA, "authorizer.class.name": "A"}, links=linked(**{**HERE, what.lower(): FAR[what.lower()]})
    )
    [(name, finding)] = findings(facts).items()
    assert (name, finding.verdict, finding.seen) == (f"{what} link", "warn", f"in the clear to {seen}")
    assert "secret" not in str(finding)


def test_encrypted_links_are_right_and_a_kafka_that_asks_nobody_is_a_warning():
    kafka = {"kafka_security_protocol": "SASL_SSL", "kafka_sasl_username": "u", "kafka_sasl_password": "p"}
    secure = linked(FAR["kafka"], "rediss://10.0.0.2/0", "https://10.0.0.3", **kafka)
    assert set(findings(replace(RIGHT, links=secure))) == {"authorizer.class.name"}
    assert findings(replace(RIGHT, links=secure, kafka={**KAFKA, "authorizer.class.name": "A"})) == {}


ARCHIVE = ArchiveFacts(
    archived=100, checkpoint_at="2026-01-01T00:00:00Z", checkpoint_key="ab" * 32, key="ab" * 32, key_path="/k.pem"
)


@pytest.mark.parametrize(
    ("change", "what", "verdict"),
    [
        ({"waiting": 5, "waiting_s": 30.0}, None, None),
        ({"waiting": 5, "waiting_s": 900.0}, "archive", "warn"),
        ({"waiting": 5, "waiting_s": 4000.0}, "archive", "fail"),  # its result has left Redis
        ({"lost": 7}, "archive's gaps", "warn"),
        ({"checkpoint_at": None, "checkpoint_key": None}, "archive's checkpoint", "warn"),
        ({"key_is_private": False}, "archive's key", "warn"),
        ({"key": "cd" * 32}, "archive's key", "warn"),
        ({"key": None}, None, None),  # it is kept on another machine
        ({"error": "the store is away"}, "archive", "warn"),
    ],
)
def test_an_archive_that_stays_behind_or_is_not_signed_as_it_should_be_is_found(change, what, verdict):
    found = findings(replace(RIGHT, archive=replace(ARCHIVE, **change)))
    assert {name: finding.verdict for name, finding in found.items()} == ({what: verdict} if what else {})
    assert all(finding.advice for finding in found.values())


def test_an_archive_that_keeps_up_and_one_that_has_not_begun_are_right():
    for archive in (ARCHIVE, ArchiveFacts(key_path="/k.pem")):
        assert findings(replace(RIGHT, archive=archive)) == {}
