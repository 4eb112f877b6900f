"""aiokafka clients as the platform uses them, and topics that are there before they are needed.

Start order does not matter: `started` retries for ever with a bounded back-off and a log line that says what for.
Producers are idempotent with acks=all. Consumers start at earliest, read committed, never commit by themselves, and
read whatever a broker takes from producers (`shared.tolerant_records`).
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.errors import KafkaConnectionError, KafkaError, TopicAlreadyExistsError, for_code

from shared import logs, quick_fetches, tls, tolerant_records
from shared.topics import FIXED, REQUESTS, Topic

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine, Iterator

    from shared.settings import PlatformSettings

Client = TypeVar("Client", AIOKafkaConsumer, AIOKafkaProducer, AIOKafkaAdminClient)
_LAST_MOMENT_S = 2.0
"""How long a start that is cancelled may go on."""
_MAX_WAIT_S = 5.0
MAX_REQUEST_BYTES = 2 * 1024 * 1024
"""The largest record a producer sends: a dead letter, which holds a whole request and why it failed."""


def client_options(settings: PlatformSettings) -> dict[str, Any]:
    """Options common to all clients: where Kafka is and how to get in."""
    options: dict[str, Any] = {
        "bootstrap_servers": settings.kafka_bootstrap_servers,
        "client_id": settings.instance,
        "security_protocol": settings.kafka_security_protocol,
    }
    if "SSL" in settings.kafka_security_protocol:
        options["ssl_context"] = tls.client_context(
            settings.kafka_ssl_cafile, settings.kafka_ssl_certfile, settings.kafka_ssl_keyfile
        )
    if "SASL" in settings.kafka_security_protocol:
        options["sasl_mechanism"] = settings.kafka_sasl_mechanism
        options["sasl_plain_username"] = settings.kafka_sasl_username
        options["sasl_plain_password"] = settings.kafka_sasl_password
    return options


def producer(settings: PlatformSettings, **options: Any) -> AIOKafkaProducer:
    """An idempotent producer."""
    return AIOKafkaProducer(
        **client_options(settings),
        **{
            "acks": "all",
            "enable_idempotence": settings.kafka_idempotence,
            "max_request_size": MAX_REQUEST_BYTES,
            "request_timeout_ms": 10_000,
            **options,
        },
    )


def consumer(settings: PlatformSettings, *topics: str, **options: Any) -> AIOKafkaConsumer:
    """A consumer that commits only when told to, from the earliest record where nothing is committed."""
    tolerant_records.install()
    quick_fetches.install()
    return AIOKafkaConsumer(
        *topics,
        **client_options(settings),
        **{
            "enable_auto_commit": False,
            "auto_offset_reset": "earliest",
            "isolation_level": "read_committed",
            "metadata_max_age_ms": 10_000,  # a group notices so soon that a topic has appeared; 5 minutes by default
            "fetch_max_wait_ms": settings.kafka_fetch_max_wait_ms,
            **options,
        },
    )


def set_fetch_wait(consumer: AIOKafkaConsumer, wait_ms: int) -> None:
    """How long the broker may hold the next fetches of a started consumer that find nothing.

    aiokafka has one fetch on its way to a broker at a time. If that asks for partitions in which nothing is, it waits
    for something, and those in which there is plenty wait with it: with a long wait, a backlog comes in jerks. With a
    short one, an idle consumer is never quiet. So who consumes says when; aiokafka itself knows only one wait for all.
    """
    consumer._fetcher._fetch_max_wait_ms = wait_ms  # noqa: SLF001 - tests/integration/test_kafka.py would tell


@asynccontextmanager
async def started(make: Callable[[], Client], what: str) -> AsyncIterator[Client]:
    """A client that reached Kafka, however long that took; stopped at the end.

    `make` builds a fresh client for each try, since one whose start failed can't be started again.
    """
    client = await start(make, what)
    try:
        yield client
    finally:
        await _close(client)


async def start(make: Callable[[], Client], what: str) -> Client:
    """A started client that the caller stops; see `started`."""
    wait_s = 0.2
    while True:
        client = make()
        try:
            with refusals_in_words():
                await begun(client.start())
        except (KafkaError, OSError) as err:
            logs.get().warning("waiting for kafka", what=what, error=repr(err), retry_in_s=wait_s)
            await _close(client)
            await asyncio.sleep(wait_s)
            wait_s = min(2 * wait_s, _MAX_WAIT_S)
        except BaseException:  # cancelled, most likely: a client that began to start has to be stopped
            await _close(client)
            raise
        else:
            return client


async def begun(start: Coroutine[object, object, None]) -> None:
    """Start it. aiokafka forgets a connection whose making is cancelled, so that goes on for a last moment."""
    starting = asyncio.create_task(start)
    try:
        await asyncio.shield(starting)
    except asyncio.CancelledError:
        await asyncio.wait({starting}, timeout=_LAST_MOMENT_S)
        starting.cancel()
        await asyncio.gather(starting, return_exceptions=True)
        raise


async def _close(client: AIOKafkaConsumer | AIOKafkaProducer | AIOKafkaAdminClient) -> None:
    await (client.close() if isinstance(client, AIOKafkaAdminClient) else client.stop())


@contextmanager
def refusals_in_words() -> Iterator[None]:
    """A start that fails says why: a wrong password, a certificate that is not trusted, nobody there.

    aiokafka logs what each server said, and raises no more than that none was left.
    """
    heard = _Heard(logging.ERROR)
    logger = logging.getLogger("aiokafka")
    logger.addHandler(heard)
    try:
        yield
    except KafkaConnectionError as err:
        raise KafkaConnectionError("; ".join(heard.said) or str(err)) from err
    finally:
        logger.removeHandler(heard)


class _Heard(logging.Handler):
    """Each message once, in their order."""

    def __init__(self, level: int) -> None:
        super().__init__(level)
        self.said: dict[str, None] = {}

    def emit(self, record: logging.LogRecord) -> None:
        self.said[record.getMessage()] = None


async def ensure_topics(settings: PlatformSettings, *models: str) -> None:
    """Create the fixed topics (no `models` given) or the request topics of models; returns once they are there."""
    wanted = (
        {
            settings.topics.requests(model, high=high): (REQUESTS, settings.request_partitions)
            for model in models
            for high in (False, True)
        }
        if models
        else {settings.topics.name(topic): (topic, topic.partitions) for topic in FIXED}
    )
    what = "creating topics"
    async with started(lambda: AIOKafkaAdminClient(**client_options(settings)), what) as admin:
        wait_s = 0.05
        while True:
            try:
                missing = set(wanted) - set(await admin.list_topics())
                if not missing:
                    return
                await _create(admin, {name: wanted[name] for name in missing}, settings.kafka_replication_factor)
            except KafkaError as err:
                logs.get().warning("waiting for kafka", what=what, error=repr(err), retry_in_s=wait_s)
            await asyncio.sleep(wait_s)  # brokers hear of a new topic a moment after it was created
            wait_s = min(2 * wait_s, _MAX_WAIT_S)


async def _create(admin: AIOKafkaAdminClient, wanted: dict[str, tuple[Topic, int]], replication_factor: int) -> None:
    if not wanted:
        return
    response = await admin.create_topics(
        [
            NewTopic(name, partitions, replication_factor, topic_configs=topic.kafka_config)
            for name, (topic, partitions) in wanted.items()
        ]
    )
    for _name, code, message in response.topic_errors:
        error = for_code(code)
        if code and error is not TopicAlreadyExistsError:
            raise error(message)


async def cluster_id(settings: PlatformSettings) -> str | None:
    """The id of the Kafka cluster, which tells its coordinates from another's."""
    make = lambda: AIOKafkaAdminClient(**client_options(settings))  # noqa: E731 - one expression, used here
    async with started(make, "cluster id") as admin:
        found: str | None = (await admin.describe_cluster()).get("cluster_id")
    return found
