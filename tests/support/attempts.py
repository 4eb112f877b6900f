"""An attempt at an upload in the real, confined child, without Kafka."""

from __future__ import annotations

from services.optimizer.confined import Sandbox
from services.optimizer.job import Jobs
from services.optimizer.plan import Means
from services.optimizer.task import Hooks, Task
from shared.artifacts import ArtifactStore
from shared.optimization import Optimization
from shared.registry import Version

TOOLS = dict.fromkeys(("numpy", "onnx", "onnxruntime", "onnxscript", "torch"), "1")
NOTHING = Optimization(candidates=())


class Attempt:
    """One attempt at one upload, with the facts that it told."""

    def __init__(self, settings, tools=TOOLS, store=None):
        self.store = store or ArtifactStore("memory://")
        self.told = []
        self.jobs = Jobs(settings, self.store, Sandbox(settings), lambda: Means(tools=tools))

    async def run(self, content, tenant="acme", **about):
        async def chunks():
            yield content

        async def record(event):
            self.told.append(event)

        async def on_progress(_):
            pass

        artifact = await self.store.put_stream(chunks(), limit_bytes=10**9)
        about = {"state": "optimizing", "attempt": 1, "owner": "o/1", "optimization": NOTHING, **about}
        version = Version("m", 1, "u", artifact, "onnx", tenant, 0, **about)
        return await self.jobs.run(Task(version), Hooks(on_progress, record))

    async def model(self, variant):
        return await self.store.get_bytes(variant.artifact)
