"""One attempt: from a version's file in the store to the events that say what became of it.

Nothing is published here and nothing is decided twice: the child's reports are collected, the gate decides, the files
of the variants that pass go to the store, and the events come back to `reactor`. A child that dies after fp32 was
measured does not cost the upload: what it had not finished is rejected, and fp32 serves.

Errors that are not the model's fault (`Unavailable`, `OSError`, `SandboxUnusable`) pass through.
"""

from __future__ import annotations

import asyncio
import os
import stat
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from shutil import rmtree
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, BinaryIO

from msgspec.structs import replace

from services.optimizer import gate
from services.optimizer.messages import (
    CANDIDATES,
    REFERENCE,
    UPLOAD_FILE,
    Candidate,
    CandidateRejected,
    Message,
    Progress,
    Rejected,
    tokenizer_file,
    variant_file,
)
from services.optimizer.rejections import Rejection, reason
from shared import processed_signature
from shared.artifacts import PART_BYTES, Artifact
from shared.errors import ArtifactNotFound, CallerError, DigestMismatch, InvalidInput
from shared.events import ModelReady, ModelRejected, VariantReady, VariantRejected
from shared.processing import MAX_TOKENIZER_BYTES, Labels, Tokenize, parse_labels

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

    from services.optimizer.confined import Ending, Sandbox
    from services.optimizer.settings import OptimizerSettings
    from shared.artifacts import ArtifactStore
    from shared.events import AttemptEvent
    from shared.processing import Processing
    from shared.registry import Version
    from shared.signature import Signature


@dataclass
class Reports:
    """What the child has said so far."""

    rejected: Rejected | None = None
    candidates: dict[str, Candidate] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    step: str = "start"

    def add(self, message: Message) -> None:
        """Take in one report; of two about the same thing the first counts."""
        match message:
            case Progress(step=step):
                self.step = step
            case Rejected():
                self.rejected = self.rejected or message
            case Candidate(variant=variant):
                self.candidates.setdefault(variant, message)
            case CandidateRejected(variant=variant, reason=why):
                self.failed.setdefault(variant, why)
            case _:
                pass  # an answer to a probe says nothing about a model

    def conclude(self, ending: Ending) -> Candidate:
        """The reference, once the child has ended.

        Raises:
            Rejection: the model can't be served.
        """
        if self.rejected is not None:
            raise Rejection(self.rejected.code, self.rejected.found)
        reference = self.candidates.pop(REFERENCE, None)
        if reference is None:
            raise Rejection(ending.code or "vet_crashed", f"{ending.found or 'No result'} (in step {self.step!r})")
        if ending.code is not None:
            for variant in set(CANDIDATES) - self.candidates.keys() - self.failed.keys():
                self.failed[variant] = f"{ending.code}: {ending.found} (in step {self.step!r})"
        return reference


class Jobs:
    """Does attempts, with the collaborators that all of them share."""

    def __init__(self, settings: OptimizerSettings, store: ArtifactStore, sandbox: Sandbox) -> None:
        self._settings = settings
        self._store = store
        self._sandbox = sandbox
        self._policy = gate.Policy(settings.min_cosine, settings.min_top1_agreement, settings.min_speedup)

    async def run(
        self, version: Version, on_progress: Callable[[str, float], Awaitable[None]]
    ) -> tuple[AttemptEvent, ...]:
        """The events that end attempt `version.attempt`; the last one is `ModelReady` or `ModelRejected`.

        Raises:
            Unavailable, OSError, SandboxUnusable: not the model's fault; the attempt may be tried again.
        """
        try:
            with TemporaryDirectory(dir=self._settings.jobs_dir, prefix=_prefix(self._settings)) as directory:
                return await self._run(version, Path(directory), on_progress)
        except Rejection as rejection:
            return (rejected(version, self._settings.owner, rejection),)

    async def _run(
        self, version: Version, directory: Path, on_progress: Callable[[str, float], Awaitable[None]]
    ) -> tuple[AttemptEvent, ...]:
        await on_progress("fetch", 0.0)
        await self._fetch(version.artifact, directory / UPLOAD_FILE)
        tokenizers = await self._fetch_tokenizers(version.processing, directory)
        reports = Reports()

        async def report(message: Message) -> None:
            reports.add(message)
            if isinstance(message, Progress):
                await on_progress(message.step, message.fraction)

        job = self._sandbox.job(seed=int(version.artifact.sha256[:8], 16), tokenizers=tokenizers)
        ending = await self._sandbox.run(job, directory, report, self._settings.job_timeout_s)
        reference = reports.conclude(ending)
        if version.processing is not None:
            await self._check_processing(version.processing, reference.signature)
        decision = gate.decide(reference, list(reports.candidates.values()), reports.failed, self._policy)
        await on_progress("store", 0.95)
        measured = {**reports.candidates, reference.variant: reference}
        ready = [
            await self._ready(version, candidate, directory)
            for variant, candidate in measured.items()
            if variant not in decision.rejected
        ]
        common: dict[str, Any] = {
            "model": version.model,
            "version": version.number,
            "attempt": version.attempt,
            "owner": self._settings.owner,
        }
        return (
            *ready,
            *(
                VariantRejected(
                    **common,
                    variant=variant,
                    reason=why,
                    measurements=measured[variant].measurements if variant in measured else None,
                )
                for variant, why in decision.rejected.items()
            ),
            ModelReady(**common, variant=decision.chosen, reason=decision.reason),
        )

    async def _check_processing(self, processing: Processing, signature: Signature) -> None:
        """Look whether the declared steps fit the model, and whether files of labels are such files.

        Raises:
            Rejection: they don't, or aren't.
        """
        try:
            processed_signature.check(processing, signature)
            for step in processing.postprocessing:
                if isinstance(step, Labels) and isinstance(step.labels, Artifact):
                    parse_labels(await self._store.get_bytes(step.labels))
        except CallerError as err:
            raise Rejection("processing_mismatch", err.message) from err

    async def _fetch_tokenizers(self, processing: Processing | None, directory: Path) -> int:
        """The files of tokenize steps, beside the upload; how many.

        Raises:
            Rejection: one is too large, or not there.
        """
        steps = processing.preprocessing if processing is not None else ()
        held = [step.tokenizer for step in steps if isinstance(step, Tokenize)]
        for index, artifact in enumerate(held):
            if artifact.byte_size > MAX_TOKENIZER_BYTES:
                raise Rejection("tokenizer_unusable", f"The tokenizer has {artifact.byte_size} bytes")
            await self._fetch(artifact, directory / tokenizer_file(index))
        return len(held)

    async def _fetch(self, artifact: Artifact, path: Path) -> None:
        """The upload as a file.

        Raises:
            Rejection: it is too large, or not there.
        """
        limit_bytes = self._settings.max_model_bytes
        if artifact.byte_size > limit_bytes:
            found = f"The file has {artifact.byte_size} bytes, more than the {limit_bytes} that are allowed"
            raise Rejection("model_too_large", found)
        try:
            with path.open("xb") as file:
                async for chunk in self._store.stream(artifact):
                    await asyncio.to_thread(file.write, chunk)
        except (ArtifactNotFound, DigestMismatch) as err:
            raise Rejection(err.code, err.message) from err
        except InvalidInput as err:
            raise Rejection("invalid_artifact", err.message) from err

    async def _ready(self, version: Version, candidate: Candidate, directory: Path) -> VariantReady:
        with _opened(directory / variant_file(candidate.variant)) as file:
            artifact = await self._store.put_stream(_chunks(file), limit_bytes=2 * self._settings.max_model_bytes)
        return VariantReady(
            model=version.model,
            version=version.number,
            attempt=version.attempt,
            owner=self._settings.owner,
            variant=candidate.variant,
            artifact=artifact,
            signature=candidate.signature,
            batch_cap=candidate.batch_cap,
            measurements=replace(candidate.measurements, byte_size=artifact.byte_size),
        )


def sweep(settings: OptimizerSettings) -> None:
    """Make the jobs' directory, and remove what an earlier run of this instance left there when it was killed."""
    settings.jobs_dir.mkdir(parents=True, exist_ok=True)
    for path in settings.jobs_dir.glob(f"{_prefix(settings)}*"):
        rmtree(path, ignore_errors=True)  # what can't be removed is in nobody's way


def _prefix(settings: OptimizerSettings) -> str:
    """The names of this instance's job directories. `~` is in no instance's name, so none is another's beginning."""
    return f"aiaas-job-{settings.instance}~"


def rejected(version: Version, owner: str, rejection: Rejection) -> ModelRejected:
    """The event that ends `version.attempt` with a rejection."""
    return ModelRejected(
        model=version.model,
        version=version.number,
        attempt=version.attempt,
        owner=owner,
        code=rejection.code,
        reason=reason(rejection.code, rejection.found),
    )


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    """A file that the child wrote: a plain one of its own, not a link or a device that leads elsewhere."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as err:
        raise Rejection("vet_crashed", f"The file of {path.stem} is missing") from err
    with open(descriptor, "rb") as file:  # noqa: PTH123 - a descriptor, not a path
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode) or found.st_nlink != 1:
            raise Rejection("vet_crashed", f"The file of {path.stem} is not a plain file")
        yield file


async def _chunks(file: BinaryIO) -> AsyncIterator[bytes]:
    while chunk := await asyncio.to_thread(file.read, PART_BYTES):
        yield chunk
