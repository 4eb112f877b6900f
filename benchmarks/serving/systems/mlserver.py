"""MLServer, by REST and by Kafka: one runtime, two doors. The Kafka is our stack's, the services stopped."""

from __future__ import annotations

import json
import time
import uuid
from typing import TYPE_CHECKING

from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from benchmarks.serving.processes import free_port
from benchmarks.serving.servers.onnx_model import MAX_BATCH, MAX_WAIT_MS
from benchmarks.serving.systems import HttpTarget, KafkaTarget, environments
from benchmarks.serving.systems.single import Single

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from benchmarks.serving.models import Model
    from benchmarks.serving.processes import Tree
    from benchmarks.serving.systems.platform import Platform

_PARTITIONS = 4
_TOPIC_TIMEOUT_S = 30.0
_RUNTIME = "benchmarks.serving.servers.mlserver_runtime.OnnxRuntime"


class MlServer(Single):
    """By REST. One process: with `parallel_workers` rows would only travel further."""

    name = "mlserver"

    def python(self) -> Path:
        """One environment for both doors."""
        return environments.python_of("mlserver", self.directory / "peers")

    def aim(self, model: Model, port: int) -> HttpTarget:
        """The Open Inference Protocol's own path."""
        return HttpTarget("127.0.0.1", port, "/v2/models/model/infer", model.bodies)

    def command(self, model: Model, port: int) -> tuple[Sequence[str], Mapping[str, str]]:
        """`mlserver start` on a directory with its two settings files."""
        home = self.directory / self.name
        home.mkdir(parents=True, exist_ok=True)
        (home / "settings.json").write_text(json.dumps(self.settings(port)))
        (home / "model-settings.json").write_text(json.dumps(self._model_settings(model)))
        return (str(self.python().parent / "mlserver"), "start", str(home)), {}

    def settings(self, port: int) -> dict[str, object]:
        """Of the server."""
        return {
            "debug": False,
            "host": "127.0.0.1",
            "http_port": port,
            "grpc_port": free_port(),
            "metrics_port": free_port(),
            "parallel_workers": 0,
        }

    def _model_settings(self, model: Model) -> dict[str, object]:
        return {
            "name": "model",
            "implementation": _RUNTIME,
            "max_batch_size": MAX_BATCH,
            "max_batch_time": MAX_WAIT_MS / 1000,
            "parameters": {"uri": str(model.path), "threads": self.threads},
        }


class MlServerKafka(MlServer):
    """By Kafka. Its consumer is in no group, begins at the end and commits nothing."""

    name = "mlserver-kafka"

    def __init__(self, threads: int, directory: Path, platform: Platform) -> None:
        super().__init__(threads, directory)
        self._platform = platform
        self._model: Model | None = None
        self._topics = ("", "")

    def start(self, model: Model) -> None:
        """Create its topics, then start it."""
        self._platform.resume_kafka()
        run = uuid.uuid4().hex[:8]
        self._topics = (f"mlserver-in-{run}", f"mlserver-out-{run}")
        admin = AdminClient({"bootstrap.servers": self._servers})
        for created in admin.create_topics([NewTopic(each, _PARTITIONS, 1) for each in self._topics]).values():
            created.result(_TOPIC_TIMEOUT_S)
        self._model = model
        super().start(model)

    def settings(self, port: int) -> dict[str, object]:
        """With its Kafka server on."""
        return {
            **super().settings(port),
            "kafka_enabled": True,
            "kafka_servers": self._servers,
            "kafka_topic_input": self._topics[0],
            "kafka_topic_output": self._topics[1],
        }

    def pause(self) -> None:
        """Stop it and the Kafka."""
        super().pause()
        self._platform.pause()

    def resume(self) -> None:
        """Continue the Kafka, then it."""
        self._platform.resume_kafka()
        super().resume()
        time.sleep(1.0)  # nothing tells when its consumer has found the broker again; the warm-up follows

    def target(self) -> KafkaTarget:  # type: ignore[override]  # the other door of the same server
        """Its two topics; the key of a record is the id, there and back."""
        return KafkaTarget(
            bootstrap_servers=self._servers,
            requests=self._topics[0],
            answers=self._topics[1],
            bodies=self._model.bodies if self._model else (),
            headers={"mlserver-model": "model"},
            success_mark='"outputs"',
            takers=[self.running().tree],
        )

    def trees(self) -> dict[str, Tree]:
        """It and the Kafka."""
        return {**super().trees(), "kafka": self._platform.trees["kafka"]}

    @property
    def _servers(self) -> str:
        return self._platform.environment["AIAAS_KAFKA_BOOTSTRAP_SERVERS"]
