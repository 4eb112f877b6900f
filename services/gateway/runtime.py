"""How workers run a model: what a caller may configure, and what the workers say of themselves.

A configuration is held against what is known before it is written to the log: an option that would do nothing is
refused by its name. Whether a session can be built with it, workers find out; until then the old one answers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from msgspec import to_builtins

from shared import events as ev
from shared.errors import Conflict, InvalidInput
from shared.runtime_config import MAX_CONFIG_BYTES, ONNXRUNTIME, RuntimeConfig, parse, shown

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from shared.artifacts import ArtifactStore
    from shared.heartbeat_events import Heartbeat
    from shared.heartbeats import Heartbeats
    from shared.registry import Model, Variant, Version
    from shared.registry_log import RegistryLog

GPU_PROVIDERS = frozenset({"CUDAExecutionProvider", "TensorrtExecutionProvider", "ROCMExecutionProvider", "cuda"})
"""What heartbeats call it when something runs on a GPU."""


async def config_of(store: ArtifactStore, sha256: str, file_format: str, alive: Iterable[Heartbeat]) -> RuntimeConfig:
    """The configuration that lies in the store under a digest, for a file that is about to be uploaded.

    Raises:
        InvalidInput: it is none, or has an option that is not there or would do nothing.
        Conflict: it insists on a device that no live worker has.
        ArtifactNotFound, DigestMismatch, StoreUnavailable: as the store says.
    """
    artifact = await store.named(sha256)
    if artifact.byte_size > MAX_CONFIG_BYTES:
        raise InvalidInput(f"a runtime configuration has up to {MAX_CONFIG_BYTES} bytes")
    config = parse(await store.get_bytes(artifact))
    if file_format == "onnx" and (foreign := config.foreign_to(ONNXRUNTIME)):
        raise InvalidInput(f"{foreign[0]} means nothing to the engine {ONNXRUNTIME!r}")
    _check_device(config, alive)
    return config


async def configure(
    log: RegistryLog, beats: Heartbeats, name: str, number: int | None, config: RuntimeConfig | None
) -> Model:
    """Let workers run a version, or all of a model, like this; None: as they are set. Returns the model after it.

    Raises:
        UnknownModel, UnknownVersion: there is no such version.
        InvalidInput: an option would do nothing.
        Conflict: it insists on a device that no live worker has.
        LogUnavailable: Kafka did not take it.
    """
    model = log.registry.model(name)
    versions = [log.registry.version(name, number)] if number is not None else list(model.versions.values())
    if config is not None:
        _check_device(config, beats.alive())
        for version in versions:
            if version.state == "ready":
                check_effect(config, version)
    if all(version.runtime == config for version in versions) and (number is not None or model.runtime == config):
        return model
    return (await log.publish(ev.RuntimeConfigured(model=name, version=number, config=config))).model(name)


def check_effect(config: RuntimeConfig, version: Version) -> None:
    """Look whether every option does something to a ready version.

    Raises:
        InvalidInput: one does not; the sentence names it.
    """
    serving, what = version.serving, f"version {version.number} ({version.serving.name})"
    if foreign := config.foreign_to(serving.engine):
        raise InvalidInput(f"{foreign[0]} means nothing to the engine {serving.engine!r} of {what}")
    if config.max_batch_size is not None and config.max_batch_size > serving.batch_cap:
        cap = serving.batch_cap
        raise InvalidInput(f"max_batch_size {config.max_batch_size} is above the {cap} that the gate proved for {what}")
    if config.instances.count > 1 and not _is_batched(serving):
        raise InvalidInput(f"instance_group.count does nothing to {what}: its rows were not proved independent")


def _check_device(config: RuntimeConfig, alive: Iterable[Heartbeat]) -> None:
    providers = {name for beat in alive if beat.service == "worker" for name in beat.machine.providers}
    if config.instances.kind == "KIND_GPU" and not providers & GPU_PROVIDERS:
        raise Conflict("instance_group.kind KIND_GPU: no live worker has a GPU")


def _is_batched(variant: Variant) -> bool:
    return variant.batch_cap > 1 and all(spec.batch_axis is not None for spec in variant.signature.outputs)


def instances(version: Version) -> int:
    """The parts of a batch that run at once in one worker."""
    serving = version.serving
    return serving.runtime.instances.count if serving.runtime is not None and _is_batched(serving) else 1


def configuration(model: Model, number: int | None) -> dict[str, Any]:
    """What is configured."""
    config = model.runtime if number is None else model.versions[number].runtime
    return {"name": model.name, "version": number, "runtime": {} if config is None else shown(config)}


def holders(model: Model, version: Version, alive: Iterable[Heartbeat]) -> list[dict[str, Any]]:
    """The live workers that hold a version, and with what; `configured`: with the options that it has now."""
    serving = version.serving
    return [
        {
            "instance": beat.instance,
            "engine": held.engine,
            "provider": held.provider,
            "threads": held.threads,
            "configured": held.session_sha256 == serving.key[2],
        }
        for beat in sorted(alive, key=lambda beat: beat.instance)
        if beat.service == "worker"
        for held in beat.loaded
        if (held.model, held.version, held.artifact_sha256) == (model.name, version.number, serving.artifact.sha256)
    ]


def living(alive: Sequence[Heartbeat]) -> list[dict[str, Any]]:
    """Workers and optimizers that live, the machines that they run on, and what they hold."""
    return [
        {
            "instance": beat.instance,
            "service": beat.service,
            "machine": to_builtins(beat.machine),
            "loaded": to_builtins(beat.loaded),
            "registry_offset": beat.registry_offset,
        }
        for beat in sorted(alive, key=lambda beat: (beat.service, beat.instance))
    ]
