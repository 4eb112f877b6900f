"""The reference of a plan: the version's own model in fp32, loaded, and all that was found out about running it.

Every candidate is built from it, or from what was, and measured beside it in the same process. Found once
(`examined`), it is put together again from its file and those findings by whichever child goes on (`resumed`).
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import onnx

from services.optimizer.actions import REFERENCE, UPLOAD
from services.optimizer.conversion.convert import program
from services.optimizer.conversion.recognise import recognise
from services.optimizer.messages import UPLOAD_FILE, Batched, data_file, step_file
from services.optimizer.recipes.errors import NotBuilt
from services.optimizer.rejections import Rejection
from services.optimizer.sandbox import batching, signature, vet
from services.optimizer.sandbox.batching import Batching, alike
from services.optimizer.sandbox.datasets import DataSet, Unusable, read
from services.optimizer.sandbox.engine import Engine
from services.optimizer.sandbox.probes import Rows, Setting, stack

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    from onnx import ModelProto

    from services.optimizer.messages import Job
    from services.optimizer.sandbox.engine import Feeds, Runner
    from services.optimizer.sandbox.probes import Axes
    from shared.signature import Signature

JUDGED_ROWS = 256
"""Made-up rows that a candidate is judged on where there are no data."""
CALIBRATION_ROWS = 128
_EVALUATION, _DATA = "evaluation", "data"


def source_file(base: str) -> Path:
    """Where the file that a step starts from lies."""
    return Path(UPLOAD_FILE if base == UPLOAD else step_file(base))


@dataclass(frozen=True)
class Sets:
    """The data: what is learnt from, and what is judged by. None where there are none."""

    learnt: DataSet | None = None
    judged: DataSet | None = None


@dataclass(frozen=True)
class Reference:
    """The reference and what it is judged by."""

    job: Job
    content: bytes
    graph: ModelProto | None
    """The model as ONNX; None if torch runs it as it is."""
    engine: Runner
    signature: Signature
    batching: Batching
    sets: Sets

    @property
    def model(self) -> ModelProto:
        """What candidates are built from.

        Raises:
            NotBuilt: it has no ONNX form.
        """
        if self.graph is None:
            raise NotBuilt("candidates are built from ONNX, which the upload did not become")
        return self.graph

    def engine_of(self, content: bytes) -> Engine:
        """Another form of the model, loaded.

        Raises:
            Rejection: ONNX Runtime does not load it.
        """
        return engine(self.job, content, self.signature)

    def judged(self) -> list[Feeds]:
        """The rows that a candidate's answers are compared on: neither a proof nor a calibration has seen them."""
        if self.sets.judged is not None:
            return self.sets.judged.feeds(self.batching.inputs)
        return Rows(self.signature, self.batching.setting, self.batching.inputs, self.job.seed + 1).plain(JUDGED_ROWS)

    def calibration(self) -> list[Feeds]:
        """Rows to take ranges of activations from, one a run."""
        if self.sets.learnt is not None:
            return self.sets.learnt.feeds(self.batching.inputs, CALIBRATION_ROWS)
        rows = Rows(self.signature, self.batching.setting, self.batching.inputs, self.job.seed + 2)
        return rows.plain(CALIBRATION_ROWS)

    @property
    def batched(self) -> Batched:
        """What was found, as it is kept."""
        found = self.batching
        return Batched(
            sizes=dict(found.setting.sizes),
            highs=dict(found.setting.highs),
            inputs=found.inputs,
            outputs=found.outputs,
            cap=found.cap,
        )


def engine(job: Job, content: bytes, found: Signature) -> Engine:
    """A session as the worker would have it."""
    return Engine(content, found, threads=job.threads, run_timeout_s=job.run_timeout_s)


def kept(job: Job, base: str, say: Callable[[str, float], None]) -> Reference:
    """Vet a program that did not become ONNX, once more and before it is loaded here, and find out how torch runs it.

    What it answers must not depend on what it answered before.

    Raises:
        Rejection: it can't be served.
    """
    from services.optimizer.sandbox.torch_engine import TorchEngine  # noqa: PLC0415 - it loads torch

    say("vet", 0.1)
    loaded = program(recognise(source_file(base).read_bytes(), job.limits.file_bytes), job.threads)
    found = loaded.signature()
    say("load", 0.2)
    runner = TorchEngine(loaded, found, threads=job.threads, run_timeout_s=job.run_timeout_s)
    say("batching", 0.4)
    batched = batching_of(job, runner, found)
    feeds = stack(Rows(found, batched.setting, batched.inputs, job.seed).plain(1), batched.inputs)
    fresh = TorchEngine(
        program(recognise(loaded.content, job.limits.file_bytes), job.threads),
        found,
        threads=job.threads,
        run_timeout_s=job.run_timeout_s,
    )
    if not all(map(alike, runner.run(feeds), fresh.run(feeds))):
        raise Rejection("not_equivalent", "Loaded anew, it answers otherwise: it draws numbers, or keeps a state")
    return Reference(job, loaded.content, None, runner, found, batched, _sets(job, found, batched.inputs))


def batching_of(job: Job, runner: Runner, found: Signature) -> Batching:
    """The batching that holds for the model, looked for within the job's bounds."""
    return batching.find(
        runner,
        found,
        cap=job.batch_cap,
        max_run_s=job.max_batch_run_s,
        seed=job.seed,
        until_s=time.monotonic() + job.search_budget_s,
    )


def examined(job: Job, base: str, say: Callable[[str, float], None]) -> Reference:
    """Vet the file that the plan starts from, and find out how it runs.

    Raises:
        Rejection: it can't be served.
    """
    say("vet", 0.1)
    content = source_file(base).read_bytes()
    model = vet.parse(content)
    found = signature.read(model)
    say("load", 0.2)
    inline = model.SerializeToString(deterministic=True)
    loaded = engine(job, inline, found)
    say("batching", 0.4)
    batched = batching_of(job, loaded, found)
    if inline != content:
        _compare(job, loaded, engine(job, content, found), found, batched)
    del content
    return Reference(job, inline, model, loaded, found, batched, _sets(job, found, batched.inputs))


def resumed(job: Job) -> Reference:
    """The reference as an earlier child found it.

    Raises:
        Rejection: it does not load here.
    """
    assert job.batched is not None  # noqa: S101 - the service sends no candidate without its reference
    content = Path(step_file(REFERENCE)).read_bytes()
    model = onnx.load_model_from_string(content)
    found = signature.read(model)
    known = job.batched
    batched = Batching(Setting(known.sizes, known.highs), dict(known.inputs), known.outputs, known.cap)
    return Reference(
        job, content, model, engine(job, content, found), found, batched, _sets(job, found, batched.inputs)
    )


def to_train(job: Job) -> tuple[ModelProto, DataSet]:
    """The model of an update's parent, and the rows to train on: those that nothing is judged by.

    Raises:
        Rejection: it is no model, or the data are unusable.
    """
    model = vet.parse(source_file(UPLOAD).read_bytes())
    found = signature.read(model)
    learnt = _sets(job, found, dict.fromkeys((spec.name for spec in found.inputs), 0)).learnt
    if learnt is None:
        raise Rejection("data_unusable", "There are no data to train on")
    return model, learnt


def _sets(job: Job, found: Signature, axes: Axes) -> Sets:
    """The data sets that lie beside the model.

    Raises:
        Rejection: one is unusable.
    """
    held: dict[str, DataSet] = {}
    for role in job.data:
        try:
            held[role] = read(Path(data_file(role)), found, axes)
        except Unusable as err:
            raise Rejection("data_unusable", f"The data set {role!r} can't be used: {err}") from err
    learnt, judged = held.get(_DATA), held.get(_EVALUATION)
    if learnt is None or judged is not None:
        return Sets(learnt, judged)
    if len(learnt) == 1:
        return Sets(learnt, learnt)
    judged, learnt = learnt.split(job.holdout, job.seed)
    return Sets(learnt, judged)


def _compare(job: Job, inline: Engine, original: Engine, found: Signature, batched: Batching) -> None:
    """Make sure that re-serializing changed no bit of an answer."""
    feeds = stack(Rows(found, batched.setting, batched.inputs, job.seed).plain(1), batched.inputs)
    pairs = zip(inline.run(feeds), original.run(feeds), strict=True)
    if not all(left.tobytes() == right.tobytes() or _equal_text(left, right) for left, right in pairs):
        raise Rejection("load_failed", "Written out again, the model gives other answers: it is not deterministic")


def _equal_text(left: np.ndarray, right: np.ndarray) -> bool:
    return left.dtype.kind == "O" and bool((left == right).all())
