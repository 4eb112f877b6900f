"""A single Apache Kafka node in KRaft mode: its directory, its command line, and the archive for quick starts."""

from __future__ import annotations

import asyncio
import base64
import shutil
import signal
import uuid
from dataclasses import dataclass
from string import Template
from typing import TYPE_CHECKING

from services.cli.local import probes
from services.cli.local.errors import LocalStackError
from services.cli.local.events import StackEvent
from services.cli.local.kafka_runtime import DATA, locked
from services.cli.local.ports import LOOPBACK

if TYPE_CHECKING:
    from pathlib import Path

    from services.cli.local.events import OnEvent
    from services.cli.local.kafka_runtime import KafkaRuntime
    from services.cli.local.ports import Ports
    from services.cli.local.processes import Processes
    from services.cli.local.settings import LocalStackSettings

USUAL_PORT = 9092
_USUAL_CONTROLLER_PORT = 9093
_FORMAT_TIMEOUT_S = 60.0
_ARCHIVE_TIMEOUT_S = 120.0


@dataclass(frozen=True, slots=True)
class ApacheNode:
    """One node: `directory` holds its settings, its log and the log of the tool that formatted it."""

    runtime: KafkaRuntime
    directory: Path
    port: int
    controller_port: int

    @property
    def address(self) -> str:
        """Where clients find it, `host:port`."""
        return f"{LOOPBACK}:{self.port}"

    def argv(self, *jvm_options: str) -> tuple[str, ...]:
        """The command that runs it."""
        scratch = f"-Djava.io.tmpdir={self.directory / 'tmp'}"  # native libraries are unpacked there
        return self.runtime.argv("kafka.Kafka", str(self._properties), jvm_options=(scratch, *jvm_options))

    async def prepare(self, processes: Processes) -> None:
        """Write the settings, and format the log directory if nobody did yet.

        Raises:
            CommandFailedError: the storage tool failed.
        """
        log_dir = self.directory / "log"
        (self.directory / "tmp").mkdir(parents=True, exist_ok=True)
        template = Template((DATA / "server.properties").read_text())
        values = {"host": LOOPBACK, "port": self.port, "controller_port": self.controller_port, "log_dir": log_dir}
        self._properties.write_text(template.substitute(values))
        if not (log_dir / "meta.properties").exists():
            tool = ("kafka.tools.StorageTool", "format", "--ignore-formatted", "-t", _cluster_id())
            argv = self.runtime.argv(*tool, "-c", str(self._properties))
            await processes.run(argv, self.directory / "format.log", _FORMAT_TIMEOUT_S)

    @property
    def _properties(self) -> Path:
        return self.directory / "server.properties"


def claim_node(runtime: KafkaRuntime, directory: Path, ports: Ports) -> ApacheNode:
    """A node on the usual ports, or the next free ones."""
    port = ports.claim(USUAL_PORT)
    return ApacheNode(runtime, directory, port, ports.claim(max(port + 1, _USUAL_CONTROLLER_PORT)))


async def archive_classes(
    node: ApacheNode, settings: LocalStackSettings, processes: Processes, on_event: OnEvent
) -> None:
    """Run the node once in a directory of its own and have the JVM write down the classes it used, unless it has.

    It is a gain of seconds and no more, so a failure is told and forgiven.
    """
    archive = node.runtime.archive
    async with locked(archive.parent):
        if archive.exists():
            return
        on_event(StackEvent("kafka", "preparing", "recording its classes for quick starts (once, some seconds)"))
        trial = ApacheNode(node.runtime, archive.with_suffix(".part"), node.port, node.controller_port)
        shutil.rmtree(trial.directory, ignore_errors=True)
        try:
            async with asyncio.timeout(_ARCHIVE_TIMEOUT_S):
                await trial.prepare(processes)
                await _run_once(trial, trial.directory / archive.name, settings, processes)
            (trial.directory / archive.name).rename(archive)
        except (LocalStackError, TimeoutError, OSError) as err:
            on_event(StackEvent("kafka", "warning", f"starts without a class archive, some seconds later: {err}"))
        finally:
            shutil.rmtree(trial.directory, ignore_errors=True)


async def _run_once(node: ApacheNode, archive: Path, settings: LocalStackSettings, processes: Processes) -> None:
    probe = probes.kafka(settings.model_copy(update={"kafka_bootstrap_servers": node.address}))
    log_path = node.directory / "kafka.log"
    async with processes.started(node.argv(f"-XX:ArchiveClassesAtExit={archive}"), log_path) as broker:
        while broker.returncode is None and await probe() is not None:  # noqa: ASYNC110 - another process: it has to be asked
            await asyncio.sleep(0.1)
        broker.send_signal(signal.SIGTERM)
        await broker.wait()


def _cluster_id() -> str:
    """A random id in Kafka's form: 16 bytes as unpadded URL-safe base64, not beginning with a dash."""
    while (text := base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")).startswith("-"):
        pass
    return text
