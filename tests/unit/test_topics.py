"""The map of the log."""

from __future__ import annotations

from shared import topics
from shared.topics import EVENT_TYPES, FIXED, Topics, outcome_key


def test_every_event_has_one_topic_and_its_own_name():
    listed = [event for topic in FIXED for event in topic.events]
    assert len(listed) == len(set(listed)) == len(EVENT_TYPES)
    assert all(EVENT_TYPES[event.__name__] is event for event in listed)


def test_names_lie_under_the_prefix_and_lead_back():
    names = Topics("prod.")
    assert names.name(topics.OUTCOMES) == "prod.outcomes"
    assert names.requests("my-model") == "prod.requests.my-model"
    assert names.model_of("prod.requests.my-model") == "my-model"
    assert names.worker_group("my-model") == "prod.worker.my-model"


def test_the_longest_names_are_names_that_kafka_takes():
    longest = Topics("p" * 50).requests("m" * 100)
    assert len(longest) <= 249


def test_no_model_name_can_reach_a_fixed_topic():
    names = Topics("aiaas.")
    assert not {names.name(topic) for topic in FIXED} & {names.requests(topic.name) for topic in FIXED}


def test_a_reply_copy_may_not_go_to_our_own_topics():
    names = Topics("aiaas.")
    assert names.is_ours("aiaas.outcomes")
    assert names.is_ours("aiaas.anything-later")
    assert not names.is_ours("orders.replies")


def test_the_log_that_is_the_truth_is_in_one_partition_and_kept_for_ever():
    assert topics.MODELS.partitions == 1
    assert topics.MODELS.config["retention.ms"] == "-1"
    assert topics.MODELS.config["retention.bytes"] == "-1"


def test_outcomes_are_keyed_by_request_partition():
    assert outcome_key("aiaas.requests.m", 3) == b"aiaas.requests.m/3"
