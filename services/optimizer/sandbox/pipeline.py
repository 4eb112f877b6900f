"""The order of a job in the child: the steps that are left of a plan, one after the other, each reported when done."""

from __future__ import annotations

import socket
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Final, TextIO

import msgspec
import numpy as np
import onnxruntime as ort

from services.optimizer.actions import REFERENCE, UPLOAD, Compare, Convert, Refer, Sample, Train
from services.optimizer.conversion.convert import convert
from services.optimizer.conversion.recognise import recognise
from services.optimizer.formats import ONNX
from services.optimizer.messages import UPLOAD_FILE, Found, Message, Probed, Progress, Recognised, Rejected, step_file
from services.optimizer.recipes.errors import NotBuilt
from services.optimizer.rejections import Rejection
from services.optimizer.sandbox import measure
from services.optimizer.sandbox.building import build
from services.optimizer.sandbox.engine import PROVIDERS
from services.optimizer.sandbox.lessons import Lessons
from services.optimizer.sandbox.reference import Reference, examined, kept, resumed, to_train
from shared.machine import isa
from shared.quality.estimates import NotComparable
from shared.runtime_config import TORCH

if TYPE_CHECKING:
    from collections.abc import Mapping

    from services.optimizer.actions import EngineName, Spec
    from services.optimizer.messages import Job
    from services.optimizer.sandbox.building import Built
    from shared.tensors import Array

_MAX_REASON_CHARS: Final = 1000
_TOOLS: Final = ("numpy", "onnx", "onnxruntime", "onnxscript", "torch", "tensorflow", "tf2onnx")
_ALSO_CALLED: Final = {"tensorflow": ("tensorflow-cpu",)}


def report(out: TextIO, message: Message) -> None:
    """One line to the parent, at once."""
    out.write(msgspec.json.encode(message).decode() + "\n")
    out.flush()


def probe(out: TextIO, landlock: int) -> None:
    """Say what this child is and can reach."""
    networks = tuple(name for _, name in socket.if_nameindex())
    tools = {name: version for name in _TOOLS if (version := _version(name))}
    found = Probed(
        onnxruntime=ort.__version__,
        isa=isa(),
        providers=PROVIDERS,
        networks=networks,
        tools=tools,
        landlock=landlock,
    )
    report(out, found)


def _version(library: str) -> str | None:
    """Of the first of its distributions that is installed."""
    for distribution in (library, *_ALSO_CALLED.get(library, ())):
        try:
            return metadata.version(distribution)
        except metadata.PackageNotFoundError:
            continue
    return None


class Pipeline:
    """One job."""

    def __init__(self, job: Job, out: TextIO) -> None:
        self._job = job
        self._out = out
        self._known: Reference | None = None

    def run(self) -> None:
        """Do it; whatever the file makes go wrong is reported as a rejection."""
        try:
            if self._job.kind == "export":
                from services.optimizer.sandbox.exports import export  # noqa: PLC0415 - only for exports

                report(self._out, export(self._job))
            for spec in self._job.steps:
                if (
                    isinstance(spec.action, Refer)
                    and spec.base == UPLOAD
                    and (name := self._other_format()) is not None
                ):
                    report(self._out, Recognised(format=name))
                    return
                found = self._step(spec)
                if found.conversion is not None and found.conversion.engine == TORCH:
                    return  # it is not ONNX: another plan comes next
        except Rejection as rejection:
            report(self._out, Rejected(code=rejection.code, found=rejection.found[:_MAX_REASON_CHARS]))
        except MemoryError:
            report(self._out, Rejected(code="out_of_memory", found="Examining the model took more memory than it may"))

    def _step(self, spec: Spec) -> Found:
        self._say(spec, "", 0.0)
        match spec.action:
            case Refer(engine=engine):
                found = self._refer(spec, engine)
            case Convert(format=name):
                found = self._convert(spec, name)
            case Train():
                found = self._train(spec, spec.action)
            case Compare():
                found = self._compare(spec)
            case Sample():
                found = self._sample(spec)
            case _:
                found = self._candidate(spec)
        report(self._out, found)
        return found

    def _other_format(self) -> str | None:
        """The upload's format if a plan with a conversion is needed."""
        found = recognise(Path(UPLOAD_FILE).read_bytes(), self._job.limits.file_bytes // 2)
        return None if found.format == ONNX else found.format

    def _convert(self, spec: Spec, name: str) -> Found:
        """One ONNX file of an upload of another format, or the program itself.

        Raises:
            Rejection: it can't be, or answers differently.
        """
        content = Path(UPLOAD_FILE).read_bytes()
        made = convert(content, name, self._job, lambda what, share: self._say(spec, what, share))
        Path(step_file(spec.name)).write_bytes(made.content)
        how = msgspec.json.encode({"how": made.conversion.how[:8000]}).decode()
        return Found(step=spec.name, parameters=how, file=True, conversion=made.conversion)

    def _say(
        self, spec: Spec, what: str, fraction: float, points: Mapping[str, tuple[int, float]] | None = None
    ) -> None:
        report(self._out, Progress(step=spec.name, what=what, fraction=fraction, points=dict(points or {})))

    def _lessons(self, spec: Spec) -> Lessons:
        return Lessons(
            self._job,
            spec.name,
            lambda what, share, points: self._say(spec, what, share, points),
            lambda found: report(self._out, found),
        )

    def _train(self, spec: Spec, action: Train) -> Found:
        """The model of an update.

        Raises:
            Rejection: it can't be trained.
        """
        from services.optimizer.sandbox import learning  # noqa: PLC0415 - it loads torch
        from services.optimizer.training.errors import TrainingError  # noqa: PLC0415 - as above

        try:
            model, sets = to_train(self._job)
            made, parameters = learning.updated(action, model, sets, self._lessons(spec))
        except (TrainingError, NotBuilt) as err:
            raise Rejection("not_trained", f"Training failed: {err}") from err
        Path(step_file(spec.name)).write_bytes(made.SerializeToString(deterministic=True))
        text = msgspec.json.encode(parameters).decode()
        return Found(step=spec.name, parameters=text, rows={"data": len(sets)}, file=True)

    def _compare(self, spec: Spec) -> Found:
        """The update beside its parent."""
        try:
            return Found(step=spec.name, comparisons=measure.beside_parent(self._reference))
        except (Rejection, NotComparable) as err:
            return Found(step=spec.name, failed=f"it could not be compared with its parent: {err}"[:_MAX_REASON_CHARS])

    def _sample(self, spec: Spec) -> Found:
        """What workers of other classes are to measure with: the inputs of the measurements here."""
        arrays: dict[str, Array] = {}
        for size, feeds in measure.feeds(self._reference).items():
            for place, each in enumerate(self._reference.signature.inputs):
                array = feeds[each.name]
                arrays[f"{size}.{place}"] = array.astype(np.str_) if array.dtype.kind == "O" else array
        with Path(step_file(spec.name)).open("wb") as file:
            np.savez(file, allow_pickle=False, **arrays)
        return Found(step=spec.name, file=True)

    @property
    def _reference(self) -> Reference:
        if self._known is None:
            self._known = resumed(self._job)
        return self._known

    def _refer(self, spec: Spec, engine: EngineName) -> Found:
        """The reference: what it is, and how fast.

        Raises:
            Rejection: it can't be served.
        """
        if self._job.tokenizers:
            from services.optimizer.sandbox import tokenizer  # noqa: PLC0415 - most models bring none

            self._say(spec, "tokenizer", 0.02)
            tokenizer.vet(self._job.tokenizers)
        examine = kept if engine == TORCH else examined
        known = examine(self._job, spec.base, lambda what, fraction: self._say(spec, what, fraction))
        self._known = known
        self._say(spec, "measure", 0.8)
        measured = measure.of_reference(known)
        Path(step_file(REFERENCE)).write_bytes(known.content)
        return Found(
            step=spec.name,
            signature=known.batching.annotate(known.signature),
            batch_cap=known.batching.cap,
            measurements=measured,
            batched=known.batched,
            rows=measure.rows_used(known),
            engine=engine,
        )

    def _candidate(self, spec: Spec) -> Found:
        """Build and measure one candidate; whatever goes wrong rejects it and nothing else."""
        reference = self._reference
        try:
            built = build(spec, reference, self._lessons(spec))
            self._say(spec, "measure", 0.5)
            return self._measured(spec, reference, built)
        except Rejection as rejection:
            why = f"{rejection.code}: {rejection.found}"
        except (NotBuilt, NotComparable) as err:
            why = str(err)
        except Exception as err:  # noqa: BLE001 - odd models break builders in odd ways: that costs the candidate alone
            why = f"it did not build: {err!r}"
        return Found(step=spec.name, failed=why[:_MAX_REASON_CHARS])

    def _measured(self, spec: Spec, reference: Reference, built: Built) -> Found:
        content = built.model.SerializeToString(deterministic=True)
        measured, compared = measure.of_candidate(reference, content, may_batch=built.may_batch)
        Path(step_file(spec.name)).write_bytes(content)
        independent = bool(measured.row_independent)
        annotated = reference.batching.annotate(reference.signature) if independent else reference.signature
        return Found(
            step=spec.name,
            signature=annotated,
            batch_cap=reference.batching.cap if independent else 1,
            measurements=measured,
            comparisons=compared,
            parameters=msgspec.json.encode(built.parameters).decode(),
            rows={**built.rows, **measure.rows_used(reference)},
        )
