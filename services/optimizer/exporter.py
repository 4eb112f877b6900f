"""Exports: watch the log for those that nobody builds, claim one, build it, publish what became of it.

As with versions (`claims`, `reactor`): a claim is an event, the first one of an attempt wins, the next may be made once
the owner is gone, and what is not the file's fault is tried again. It runs beside the job of a version, one export at a
time and nicely, so that nobody waits for a training to end; what is measured meanwhile is measured by turns with its
reference, so both feel it.

`onnx` and `bundle` need nothing but the bytes; for the other formats the sandbox has a child build the file from the
ONNX graph, and hold the answers of what it wrote against ONNX Runtime (`sandbox.exports`).
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any, Final

import msgspec

from services.optimizer import bundle, documents
from services.optimizer.actions import REFERENCE
from services.optimizer.confined import SandboxUnusable
from services.optimizer.messages import EXPORT_FILE, UPLOAD_FILE, Exported, Rejected
from services.optimizer.rejections import Rejection, reason
from services.optimizer.workspace import workspace
from shared import export_events, logs
from shared.errors import ArtifactNotFound, DigestMismatch, InvalidInput, LogUnavailable, Unavailable
from shared.exports import FORMATS, MAX_ATTEMPTS
from shared.runtime_config import TORCH

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from services.optimizer.claims import Listening
    from services.optimizer.confined import Sandbox
    from services.optimizer.messages import Batched, Message
    from services.optimizer.settings import OptimizerSettings
    from services.optimizer.workspace import Workspace
    from shared.artifacts import Artifact, ArtifactStore
    from shared.exports import Export
    from shared.registry import Model, Registry, Variant, Version
    from shared.registry_log import RegistryLog

_LOOK_AGAIN_S: Final = 1.0
_TRIES: Final = 5
_MAX_WAIT_S: Final = 30.0
_NICENESS: Final = 10
_COPIED: Final = frozenset({"onnx", "bundle"})


class Exporter:
    """One optimizer's exports."""

    def __init__(
        self,
        settings: OptimizerSettings,
        log: RegistryLog,
        listening: Listening,
        store: ArtifactStore,
        sandbox: Sandbox,
        tools: Mapping[str, str],
    ) -> None:
        self._settings = settings
        self._log = log
        self._listening = listening
        self._store = store
        self._sandbox = sandbox
        self._tools = tools

    async def run(self) -> None:
        """Build what is asked for until cancelled."""
        while True:
            seen = self._log.registry
            work = next_export(seen, self._settings.owner, self._tools, self._listening.is_dead)
            if work is None:
                await self._news(seen)
                continue
            try:
                if (export := await self._claimed(*work)) is not None:
                    await self._persist(work[0], export)
            except LogUnavailable as err:
                logs.get().warning("waiting for kafka", what="export", error=err.message)
                await asyncio.sleep(_LOOK_AGAIN_S)

    async def _news(self, seen: Registry) -> None:
        """Return when the log has gone on, or it is time to look at the heartbeats again."""
        try:
            async with asyncio.timeout(_LOOK_AGAIN_S):
                await self._log.reached(seen.offset + 1)
        except TimeoutError:
            return

    async def _claimed(self, model: str, export: Export) -> Export | None:
        """The export with our attempt on it; None if another claim came first."""
        owner, registry = self._settings.owner, self._log.registry
        attempt = export.attempt
        if export.owner != owner:
            attempt += 1
            claim = export_events.ExportClaimed(model=model, export_id=export.id, attempt=attempt, owner=owner)
            registry = await self._log.publish(claim)
        held = registry.model(model).exports.get(export.id)
        ours = held is not None and held.is_open and (held.attempt, held.owner) == (attempt, owner)
        return held if ours else None

    async def _persist(self, model: str, export: Export) -> None:
        """Build and publish, again and again while that fails through no fault of the file."""
        about: dict[str, Any] = {
            "model": model,
            "export_id": export.id,
            "attempt": export.attempt,
            "owner": self._settings.owner,
        }
        began_s, wait_s = time.monotonic(), 1.0
        event: export_events.ExportReady | export_events.ExportRejected
        for _ in range(_TRIES):
            try:
                artifact, parity = await self._built(self._log.registry.model(model), export)
                event = export_events.ExportReady(**about, artifact=artifact, parity=parity, tools=dict(self._tools))
            except Rejection as rejection:
                event = export_events.ExportRejected(
                    **about, code=rejection.code, reason=reason(rejection.code, rejection.found)
                )
            except (Unavailable, OSError, SandboxUnusable) as err:
                logs.get().warning("export failed", model=model, export=export.id, error=str(err), retry_in_s=wait_s)
                await asyncio.sleep(wait_s)
                wait_s = min(2 * wait_s, _MAX_WAIT_S)
                continue
            await self._log.publish(event)
            _canonical(model, export, event, time.monotonic() - began_s)
            return
        told = "Kafka or the artifact store was away for too long: ask for it again"
        await self._log.publish(export_events.ExportRejected(**about, code="unavailable", reason=told))

    async def _built(self, model: Model, export: Export) -> tuple[Artifact, tuple[export_events.Parity, ...]]:
        """The file in the store.

        Raises:
            Rejection: it can't be had in this format.
            Unavailable, OSError, SandboxUnusable: not the file's fault.
        """
        if export.attempt > MAX_ATTEMPTS:
            raise Rejection("optimizer_crashed", "Optimizers died whenever they built it")
        version = model.versions[export.version]
        variant = version.variants.get(export.variant)
        if variant is None or variant.artifact.sha256 != export.source.sha256:
            raise Rejection("not_exportable", f"Variant {export.variant!r} is not there any more")
        try:
            if variant.engine == TORCH and export.format not in (version.program_format, "bundle"):
                raise Rejection("not_exportable", "It did not become ONNX, and is served as it was uploaded")
            if export.format == "onnx" or (variant.engine == TORCH and export.format != "bundle"):
                async for _ in self._store.stream(export.source):
                    pass  # its digest is right, or this raises
                return export.source, ()
            with workspace(self._settings, self._store) as space:
                if export.format == "bundle":
                    return await bundle.made(space, model, version, variant), ()
                return await self._from_child(space, version, variant, export)
        except (ArtifactNotFound, DigestMismatch) as err:
            raise Rejection(err.code, err.message) from err
        except InvalidInput as err:
            raise Rejection("invalid_artifact", err.message) from err

    async def _from_child(
        self, space: Workspace, version: Version, variant: Variant, export: Export
    ) -> tuple[Artifact, tuple[export_events.Parity, ...]]:
        await space.fetch(export.source, UPLOAD_FILE, 2 * self._settings.max_model_bytes)
        budget_s = self._settings.job_timeout_s
        job = self._sandbox.export_job(
            budget_s, export=export.format, about=_about(version, variant), batched=await self._batched(version)
        )
        job = msgspec.structs.replace(job, limits=msgspec.structs.replace(job.limits, niceness=_NICENESS))
        said: list[Message] = []

        async def keep(message: Message) -> None:
            said.append(message)

        ending = await self._sandbox.run(job, space.directory, keep, lambda: budget_s)
        match said:
            case [Exported() as exported] if ending.code is None:
                return await space.keep(EXPORT_FILE), exported.parity
            case [Rejected() as rejected, *_]:
                raise Rejection(rejected.code, rejected.found)
            case _:
                raise Rejection(ending.code or "vet_crashed", ending.found or "No result")

    async def _batched(self, version: Version) -> Batched | None:
        """What the gate found out about running the model, if that is still there."""
        step = version.steps.get(REFERENCE)
        if step is None or step.result.byte_size > documents.MAX_BYTES:
            return None
        try:
            document = documents.decode(await self._store.get_bytes(step.result))
        except (ArtifactNotFound, DigestMismatch, InvalidInput):
            return None
        return None if document is None else document.found.batched


def next_export(
    registry: Registry, owner: str, tools: Mapping[str, str], is_dead: Callable[[str], bool]
) -> tuple[str, Export] | None:
    """The oldest export that `owner` may build now and has the means for, and its model. Pure."""
    for model, export in sorted(_open(registry), key=lambda each: (each[1].requested_ms, each[1].id)):
        needs = FORMATS[export.format].needs
        if needs is not None and needs not in tools and not _is_copied(registry, model, export):
            continue
        earlier_self = (export.owner or "").partition("/")[0] == owner.partition("/")[0]
        if export.owner is None or earlier_self or is_dead(export.owner):
            return model, export
    return None


def _is_copied(registry: Registry, model: str, export: Export) -> bool:
    variant = registry.model(model).versions[export.version].variants.get(export.variant)
    return export.format in _COPIED or (variant is not None and variant.engine == TORCH)


def _open(registry: Registry) -> Iterator[tuple[str, Export]]:
    for name, model in registry.models.items():
        yield from ((name, export) for export in model.exports.values() if export.is_open)


def _about(version: Version, variant: Variant) -> str:
    """What lies in the export: the names that belong to its positions, and where it comes from."""
    about = {
        "model": version.model,
        "version": version.number,
        "variant": variant.name,
        "sha256": variant.artifact.sha256,
        "inputs": msgspec.to_builtins(variant.signature.inputs),
        "outputs": msgspec.to_builtins(variant.signature.outputs),
    }
    return msgspec.json.encode(about).decode()


def _canonical(
    model: str, export: Export, event: export_events.ExportReady | export_events.ExportRejected, duration_s: float
) -> None:
    """The one line that says what became of an export."""
    logs.get().info(
        "export",
        model=model,
        version=export.version,
        format=export.format,
        variant=export.variant,
        outcome="rejected" if isinstance(event, export_events.ExportRejected) else "ready",
        code=getattr(event, "code", None),
        reason=getattr(event, "reason", None),
        duration_s=round(duration_s, 3),
    )
