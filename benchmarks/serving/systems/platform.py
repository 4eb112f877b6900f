"""This platform: a local stack of its own as `aiaas up` starts it, or one that runs; models through the gateway.

One `Platform` is started once and serves all models; `OverHttp` and `OverKafka` are two ways to ask it. What serves is
fp32 (the gate is told to want an impossible gain), since the others serve the uploaded file as it is.
"""

from __future__ import annotations

import os
import signal
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import httpx

from benchmarks.serving.processes import Tree, refusal
from benchmarks.serving.systems import HttpTarget, KafkaTarget, NotHere
from services.cli.client import Gateway
from services.cli.follow import follow
from services.cli.local import LocalStackError, RunningStack, standard_services
from shared.topics import OUTCOMES, Topics
from tests.support.local import local_stack

if TYPE_CHECKING:
    from pathlib import Path

    from benchmarks.serving.models import Model

SERVICES_FIRST = ("gateway", "worker-1", "worker-2", "optimizer", "monitor", "archiver", "kafka", "redis")
_GATE_TIMEOUT_S = 600.0
_ANSWER_TIMEOUT_S = 90.0
_SETTLE_TIMEOUT_S = 60.0
_SETTLE_S = 1.5
_QUIET = 0.1
"""Of a core: what monitor and archiver may use when they have caught up."""
_GIVE_WAY = ("monitor", "archiver")
_POLL_S = 0.1
_ANSWERS_IN_A_ROW = 20
"""After a pause: so many answers one after the other, and the consumers have their partitions back."""


class Platform:
    """One stack. `start` and `stop` may be called by each way that uses it: the first starts, the last stops."""

    def __init__(
        self, directory: Path, *, workers: int = 1, gateways: int = 1, threads: int = 1, patient: bool = False
    ) -> None:
        """`patient` gateways let in as many callers as come, however long that makes the queue."""
        self.workers = workers
        self._gateways = gateways
        self._patient = patient
        self._directory = directory
        self._threads = threads
        self._users = 0
        self._models: set[str] = set()
        self._undo = ExitStack()
        self.environment: dict[str, str] = {}
        self.trees: dict[str, Tree] = {}
        self._owned = True

    @classmethod
    def running(cls, root: Path) -> Platform:
        """The stack that `aiaas up` runs on a data directory.

        Raises:
            NotHere: none runs there.
        """
        stack = RunningStack.find(root)
        if stack is None:
            raise NotHere(f"no stack runs on {root}")
        workers, gateways = (sum(name.startswith(kind) for name in stack.children) for kind in ("worker", "gateway"))
        platform = cls(root, workers=workers, gateways=gateways, threads=0)
        platform.environment, platform._owned = dict(stack.environment), False
        platform.trees = {name: Tree(child.pid) for name, child in stack.children.items() if child.pid}
        return platform

    def enter(self) -> None:
        """One more user; the first starts the stack.

        Raises:
            NotHere: it did not start.
        """
        self._users += 1
        if self._users > 1 or not self._owned:
            return
        given = {
            "AIAAS_MIN_GAIN": "1000",  # fp32 serves
            "AIAAS_TIME_BUDGET_S": "1",
            "AIAAS_THREADS": str(self._threads),
        }
        if self._patient:
            given["AIAAS_MAX_QUEUE_S"] = "10"
        os.environ.setdefault("AIAAS_LOCAL_KAFKA", "apache")
        context = local_stack(self._directory, standard_services(self.workers, self._gateways), service_env=given)
        try:
            stack = self._undo.enter_context(context)
        except LocalStackError as err:
            raise NotHere(f"the local stack did not start: {err}") from err
        self.environment = stack.environment
        children = [name for name in SERVICES_FIRST if not name.startswith("worker")]
        children += [f"worker-{number + 1}" for number in range(self.workers)]
        children += [f"gateway-{number + 1}" for number in range(1, self._gateways)]
        for name in children:
            pid = stack.child(name).pid
            if pid is not None:
                self.trees[name] = Tree(pid)

    def leave(self) -> None:
        """One user less; with the last the stack stops."""
        self._users -= 1
        if not self._users:
            self._signal(signal.SIGCONT)  # or its services would drain towards a Kafka that does not answer
            self._undo.close()
            self._models.clear()

    def serve(self, model: Model) -> None:
        """Upload the model, unless it was, and wait until it answers.

        Raises:
            NotHere: it was rejected, or does not answer.
        """
        self._signal(signal.SIGCONT)
        if model.name not in self._models:
            self.upload(name_of(model), model.path.read_bytes())
            self._models.add(model.name)
        self.await_answers(name_of(model), model, 1)

    def pause(self) -> None:
        """Stop all its processes: those that ask first, those that answer last."""
        self._signal(signal.SIGSTOP)

    def resume(self, model: Model) -> None:
        """Continue them; returns when the consumers have found their places again.

        Raises:
            NotHere: a process has died: its successor is another, whose CPU time nobody reads.
        """
        if dead := [name for name, tree in self.trees.items() if not tree.is_alive()]:
            raise NotHere(f"died while it was measured: {', '.join(dead)}")
        self._signal(signal.SIGCONT)
        self.await_answers(name_of(model), model, _ANSWERS_IN_A_ROW)

    def resume_kafka(self) -> None:
        """Continue the broker alone, for another system that needs one."""
        self.trees["kafka"].signal(signal.SIGCONT)

    def http(self, name: str, model: Model) -> HttpTarget:
        """The infer path on the gateway of a model that takes what `model` takes."""
        url = urlsplit(self.environment["AIAAS_GATEWAY_URL"])
        return HttpTarget(url.hostname or "", url.port or 80, f"/v2/models/{name}/infer", model.bodies)

    def kafka(self, model: Model) -> KafkaTarget:
        """The model's request topic, the outcomes, and where Redis has the result."""
        topics = Topics(self.environment.get("AIAAS_TOPIC_PREFIX", "aiaas."))
        return KafkaTarget(
            bootstrap_servers=self.environment["AIAAS_KAFKA_BOOTSTRAP_SERVERS"],
            requests=topics.requests(name_of(model)),
            answers=topics.name(OUTCOMES),
            bodies=model.bodies,
            headers={"content-type": "application/json"},
            success_mark="succeeded",
            takers=[tree for name, tree in self.trees.items() if name.startswith("worker")] if self._owned else (),
            id_header="ce_id",
            redis_url=self.environment["AIAAS_REDIS_URL"],
            result_key=f"aiaas:result:{name_of(model)}:{{id}}",
        )

    def runs(self, model: Model) -> tuple[float, float] | None:
        """Requests with an outcome and runs of the model, as the monitor has counted when it has caught up.

        It and the archiver give way to who answers; what they have not done yet they would do in the next slice.
        """
        behind = [self.trees[name] for name in _GIVE_WAY if name in self.trees]
        deadline_s = time.monotonic() + _SETTLE_TIMEOUT_S
        used_s, before_s = _SETTLE_S, sum(tree.cpu_s() for tree in behind)
        while used_s > _QUIET * _SETTLE_S and time.monotonic() < deadline_s:
            time.sleep(_SETTLE_S)
            now_s = sum(tree.cpu_s() for tree in behind)
            used_s, before_s = now_s - before_s, now_s
        return self._counted(model)

    def _counted(self, model: Model) -> tuple[float, float] | None:
        with httpx.Client(base_url=self.environment["AIAAS_MONITOR_URL"], timeout=10.0) as monitor:
            series: list[dict[str, Any]] = monitor.get("/v1/stats").raise_for_status().json()["models"]
        mine = [each for each in series if each["model"] == name_of(model)]
        executed = sum(count for each in mine for count in each["requests_by_batch_size"].values())
        return float(executed), sum(each["executions"] for each in mine)

    def upload(self, name: str, content: bytes) -> None:
        """Upload a model and wait for the gate, unless there is one of that name.

        Raises:
            NotHere: it was rejected.
        """
        with Gateway(self.environment["AIAAS_GATEWAY_URL"]) as gateway:
            if any(each["name"] == name for each in gateway.models()):
                return
            number = gateway.upload(name, [content], len(content), None)["version"]
            version = follow(gateway, name, number, lambda _words, _fraction: None, timeout_s=_GATE_TIMEOUT_S)
        if version["state"] != "ready":
            raise NotHere(f"{name} was {version['state']}: {version['reason']}")

    def await_answers(self, name: str, model: Model, in_a_row: int) -> None:
        """Wait until a model that takes what `model` takes has answered so many times, one after the other.

        Raises:
            NotHere: it does not.
        """
        deadline_s, left, target = time.monotonic() + _ANSWER_TIMEOUT_S, in_a_row, self.http(name, model)
        while left:
            why_not = refusal(target)
            left = in_a_row if why_not else left - 1
            if why_not and time.monotonic() > deadline_s:
                raise NotHere(f"{name} does not answer: {why_not}")
            if why_not:
                time.sleep(_POLL_S)

    def _signal(self, signum: signal.Signals) -> None:
        """To all processes of a stack that is ours; continuing begins with the servers."""
        if self._owned:
            trees = [self.trees[name] for name in SERVICES_FIRST if name in self.trees]
            for tree in trees if signum == signal.SIGSTOP else reversed(trees):
                tree.signal(signum)


class Way:
    """What both ways to ask a platform share."""

    def __init__(self, platform: Platform, way: str) -> None:
        self.name = way if platform.workers == 1 else f"{way}-{platform.workers}"
        self.platform = platform
        self._model: Model | None = None

    @property
    def model(self) -> Model:
        """What is served.

        Raises:
            NotHere: nothing yet.
        """
        if self._model is None:
            raise NotHere("nothing is served")
        return self._model

    def start(self, model: Model) -> None:
        """Start the stack if it does not run, and serve the model."""
        self.platform.enter()
        self.platform.serve(model)
        self._model = model

    def stop(self) -> None:
        """Let go of the stack."""
        self.platform.leave()

    def pause(self) -> None:
        """Stop the stack's processes."""
        self.platform.pause()

    def resume(self) -> None:
        """Continue them."""
        self.platform.resume(self.model)

    def trees(self) -> dict[str, Tree]:
        """All of the stack."""
        return self.platform.trees

    def runs(self) -> tuple[float, float] | None:
        """As the monitor counts."""
        return self.platform.runs(self.model)


class OverHttp(Way):
    """`POST …/infer`, and the answer."""

    def target(self) -> HttpTarget:
        """The gateway."""
        return self.platform.http(name_of(self.model), self.model)


class OverKafka(Way):
    """A record on the request topic, and the outcome on `outcomes`."""

    def target(self) -> KafkaTarget:
        """The topics."""
        return self.platform.kafka(self.model)


def name_of(model: Model) -> str:
    """The model's name on the platform."""
    return f"bench-{model.name}"
