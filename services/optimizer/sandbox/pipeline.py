"""The order of a job in the child: vet, read, load, find the batching, then the candidates, reporting as it goes."""

from __future__ import annotations

import socket
import time
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

import msgspec
import numpy as np
import onnxruntime as ort
from msgspec.structs import replace

from services.optimizer.messages import (
    CANDIDATES,
    REFERENCE,
    UPLOAD_FILE,
    Candidate,
    CandidateRejected,
    Message,
    Probed,
    Progress,
    Rejected,
    Variant,
    variant_file,
)
from services.optimizer.rejections import Rejection
from services.optimizer.sandbox import batching, measure, signature, vet
from services.optimizer.sandbox.candidates import NotBuilt, weight_only_int8
from services.optimizer.sandbox.engine import PROVIDERS, Engine
from services.optimizer.sandbox.probes import Rows, stack
from shared.events import Latency, Measurements
from shared.machine import isa

if TYPE_CHECKING:
    from onnx import ModelProto

    from services.optimizer.messages import Job
    from services.optimizer.sandbox.batching import Batching
    from shared.signature import Signature

_MAX_REASON_CHARS = 1000


def report(out: TextIO, message: Message) -> None:
    """One line to the parent, at once."""
    out.write(msgspec.json.encode(message).decode() + "\n")
    out.flush()


def probe(out: TextIO) -> None:
    """Say what this child is and can reach."""
    networks = tuple(name for _, name in socket.if_nameindex())
    report(out, Probed(onnxruntime=ort.__version__, isa=isa(), providers=PROVIDERS, networks=networks))


class Pipeline:
    """One job."""

    def __init__(self, job: Job, out: TextIO) -> None:
        self._job = job
        self._out = out

    def run(self) -> None:
        """Do it; whatever the file makes go wrong is reported as a rejection."""
        try:
            self._run()
        except Rejection as rejection:
            report(self._out, Rejected(code=rejection.code, found=rejection.found[:_MAX_REASON_CHARS]))
        except MemoryError:
            report(self._out, Rejected(code="out_of_memory", found="Examining the model took more memory than it may"))

    def _run(self) -> None:
        if self._job.tokenizers:
            self._vet_tokenizers()
        self._step("vet", 0.05)
        content = Path(UPLOAD_FILE).read_bytes()
        model = vet.parse(content)
        found = signature.read(model)
        self._step("load", 0.1)
        inline = model.SerializeToString(deterministic=True)
        reference = self._engine(inline, found)
        self._step("batching", 0.2)
        batched = batching.find(
            reference,
            found,
            cap=self._job.batch_cap,
            max_run_s=self._job.max_batch_run_s,
            seed=self._job.seed,
            until_s=time.monotonic() + self._job.search_budget_s,
        )
        if inline != content:
            self._compare(reference, self._engine(content, found), found, batched)
        del content
        self._step("measure fp32", 0.4)
        until_s = time.monotonic() + self._job.candidates_budget_s
        times = measure.latencies_s([reference], found, batched, self._job.seed)
        self._finish(REFERENCE, inline, found, batched, _of_reference(times, batched, len(inline)))
        self._step("quantize", 0.6)
        for variant in CANDIDATES:
            self._candidate(variant, model, reference, found, batched, until_s)

    def _vet_tokenizers(self) -> None:
        from services.optimizer.sandbox import tokenizer  # noqa: PLC0415 - most models bring none

        self._step("tokenizer", 0.02)
        tokenizer.vet(self._job.tokenizers)

    def _engine(self, content: bytes, found: Signature) -> Engine:
        return Engine(content, found, threads=self._job.threads, run_timeout_s=self._job.run_timeout_s)

    def _compare(self, inline: Engine, original: Engine, found: Signature, batched: Batching) -> None:
        """Make sure that re-serializing changed no bit of an answer."""
        feeds = stack(Rows(found, batched.setting, batched.inputs, self._job.seed).plain(1), batched.inputs)
        pairs = zip(inline.run(feeds), original.run(feeds), strict=True)
        if not all(left.tobytes() == right.tobytes() or _equal_text(left, right) for left, right in pairs):
            raise Rejection("load_failed", "Written out again, the model gives other answers: it is not deterministic")

    def _candidate(
        self,
        variant: Variant,
        model: ModelProto,
        reference: Engine,
        found: Signature,
        batched: Batching,
        until_s: float,
    ) -> None:
        """Build and measure one candidate; whatever goes wrong rejects it and nothing else."""
        try:
            content = weight_only_int8(model).SerializeToString(deterministic=True)
            engine = self._engine(content, found)
            self._step(f"measure {variant}", 0.7)
            measured = self._measured(reference, engine, found, batched, until_s)
        except Rejection as rejection:
            why = f"{rejection.code}: {rejection.found}"
        except NotBuilt as err:
            why = str(err)
        except measure.OutOfTime:
            why = f"it could not be measured within {self._job.candidates_budget_s:g} s"
        except Exception as err:  # noqa: BLE001 - odd models break builders in odd ways: that costs the candidate alone
            why = f"it did not build: {err!r}"
        else:
            self._finish(variant, content, found, batched, replace(measured, byte_size=len(content)))
            return
        report(self._out, CandidateRejected(variant=variant, reason=why[:_MAX_REASON_CHARS]))

    def _measured(
        self, reference: Engine, engine: Engine, found: Signature, batched: Batching, until_s: float
    ) -> Measurements:
        seed = self._job.seed
        times = measure.latencies_s([reference, engine], found, batched, seed)
        per_row = {size: medians[0] / size for size, medians in times.items()}
        size = min(per_row, key=lambda size: per_row[size])
        close = measure.closeness(reference, engine, found, batched, size, seed, until_s)
        reference_s, candidate_s = ([medians[index] for medians in times.values()] for index in (0, 1))
        return Measurements(
            max_abs_error=close.max_abs_error,
            cosine=close.cosine,
            top1_agreement=close.top1_agreement,
            row_independent=batching.holds(engine, found, batched, seed),
            latencies=_latencies(times, 1),
            speedup=measure.speedup(reference_s, candidate_s),
            machine=isa(),
        )

    def _finish(
        self, variant: Variant, content: bytes, found: Signature, batched: Batching, measured: Measurements
    ) -> None:
        Path(variant_file(variant)).write_bytes(content)
        cap = batched.cap if measured.row_independent else 1
        annotated = batched.annotate(found) if measured.row_independent else found
        report(self._out, Candidate(variant=variant, signature=annotated, batch_cap=cap, measurements=measured))

    def _step(self, name: str, fraction: float) -> None:
        report(self._out, Progress(step=name, fraction=fraction))


def _of_reference(times: dict[int, list[float]], batched: Batching, byte_size: int) -> Measurements:
    return Measurements(
        max_abs_error=0.0,
        cosine=1.0,
        row_independent=batched.outputs is not None,
        latencies=_latencies(times, 0),
        speedup=1.0,
        byte_size=byte_size,
        machine=isa(),
    )


def _latencies(times: dict[int, list[float]], index: int) -> tuple[Latency, ...]:
    return tuple(Latency(batch_size=size, p50_s=medians[index]) for size, medians in times.items())


def _equal_text(left: np.ndarray, right: np.ndarray) -> bool:
    return left.dtype.kind == "O" and np.array_equal(left, right)
