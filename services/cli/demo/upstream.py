"""An upstream system that uses a model straight from Kafka, with `confluent-kafka` and the documented contract alone.

It produces Open Inference Protocol bodies to the model's request topic, with an id in `ce_id`; it sees on the outcomes
topic that each has its outcome; it asks for the results by HTTP. Nothing of the platform's own code is imported here.
"""

from __future__ import annotations

import json
import time
import uuid
from typing import TYPE_CHECKING, Any

from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, KafkaException, Message, Producer, TopicPartition

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    import httpx

_POLL_S = 0.2


class Failed(Exception):
    """Kafka or the platform did not do its part."""


def produce(bootstrap_servers: str, topic: str, bodies: Iterable[dict[str, Any]], timeout_s: float) -> list[str]:
    """Produce a request a body; returns their ids when Kafka has acknowledged all.

    Raises:
        Failed: some were not acknowledged within `timeout_s`.
    """
    refused: list[KafkaError] = []

    def delivered(error: KafkaError | None, _message: Message) -> None:
        if error is not None:
            refused.append(error)

    producer = Producer({"bootstrap.servers": bootstrap_servers, "acks": "all", "linger.ms": 5})
    ids = []
    for body in bodies:
        ids.append(str(uuid.uuid4()))
        headers: list[tuple[str, str | bytes | None]] = [("ce_id", ids[-1]), ("content-type", "application/json")]
        producer.produce(topic, json.dumps(body), headers=headers, on_delivery=delivered)
        producer.poll(0)
    left = producer.flush(timeout_s)
    if refused or left:
        why = refused[0].str() if refused else f"no word from Kafka in {timeout_s:g} s"
        raise Failed(f"{len(refused) + left} of {len(ids)} requests were not acknowledged: {why}")
    return ids


def await_outcomes(
    bootstrap_servers: str, topic: str, ids: Sequence[str], timeout_s: float, seen: Callable[[int], None]
) -> int:
    """Read the outcomes topic until each id has an outcome or time is up; returns how many have.

    A repeat can stand in the log (the first counts), hence a set and not a sum.

    Raises:
        Failed: Kafka does not say what partitions the topic has.
    """
    options = {"bootstrap.servers": bootstrap_servers, "group.id": f"demo-{uuid.uuid4()}", "enable.auto.commit": False}
    consumer = Consumer(options)
    missing = set(ids)
    deadline_s = time.monotonic() + timeout_s
    try:
        partitions = consumer.list_topics(topic, timeout_s).topics[topic].partitions
        consumer.assign([TopicPartition(topic, number, OFFSET_BEGINNING) for number in partitions])
        while missing and time.monotonic() < deadline_s:
            for message in consumer.consume(500, _POLL_S):
                if message.error() is None:
                    missing.discard(_id_of(message))
            seen(len(ids) - len(missing))
    except KafkaException as err:
        raise Failed(f"the outcomes can't be read: {err}") from err
    finally:
        consumer.close()
    return len(ids) - len(missing)


def result(http: httpx.Client, model: str, request_id: str) -> list[float]:
    """The first output of a request that succeeded, flat.

    Raises:
        Failed: it did not succeed.
    """
    state = http.get(f"/v2/models/{model}/requests/{request_id}").raise_for_status().json()
    if state["state"] != "succeeded":
        raise Failed(f"request {request_id} is {state['state']}: {state['error']}")
    data: list[float] = state["result"]["outputs"][0]["data"]
    return data


def _id_of(message: Message) -> str:
    """`ce_id` of an outcome, which is the id of its request."""
    value = dict(message.headers() or []).get("ce_id")
    return value.decode() if isinstance(value, bytes) else ""
