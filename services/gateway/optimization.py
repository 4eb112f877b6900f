"""What callers ask of the optimizer: an update, an end to work under way, a policy; and ground truth for its data.

Like uploads and promotions (`repository`): an event on a log, and refused where it would change nothing. Whether an
update succeeds is the optimizer's to say.
"""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Annotated

from aiokafka.errors import KafkaError
from msgspec import Meta, Struct
from msgspec.structs import asdict

from shared import events as ev
from shared import topics
from shared.codec import cloud_event_headers, decode_event, encode_event
from shared.errors import Conflict, InvalidInput, LogUnavailable, Unsupported
from shared.optimization import MAX_OPTIONS_BYTES, DataFile, Optimization, parse
from shared.runtime_config import ONNXRUNTIME

if TYPE_CHECKING:
    from services.gateway.gateway import Backbone
    from shared.artifacts import ArtifactStore
    from shared.optimization import Policy, Update
    from shared.registry import Model, Version
    from shared.registry_log import RegistryLog
    from shared.settings import PlatformSettings


class Feedback(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The right answer to an earlier request: a class for each row, or whole outputs, flat."""

    label: Annotated[tuple[int, ...], Meta(max_length=ev.MAX_FEEDBACK_ROWS)] | None = None
    outputs: dict[
        Annotated[str, Meta(min_length=1, max_length=200)],
        Annotated[tuple[float, ...], Meta(max_length=ev.MAX_FEEDBACK_NUMBERS)],
    ] = {}


async def options_of(store: ArtifactStore, sha256: str) -> Optimization:
    """The options that lie in the store under a digest, if all the data that they name are there.

    Raises:
        InvalidInput: they are none; the sentence says where.
        ArtifactNotFound, DigestMismatch, StoreUnavailable: as the store says.
    """
    artifact = await store.named(sha256)
    if artifact.byte_size > MAX_OPTIONS_BYTES:
        raise InvalidInput(f"options have up to {MAX_OPTIONS_BYTES} bytes")
    options: Optimization = parse(Optimization, await store.get_bytes(artifact))
    await check_data(store, options)
    return options


async def check_data(store: ArtifactStore, options: Optimization) -> None:
    """Look whether the files of data that options name are there.

    Raises:
        ArtifactNotFound, DigestMismatch, InvalidInput, StoreUnavailable: as the store says.
    """
    for source in options.sources.values():
        if isinstance(source, DataFile):
            await store.check_there(source.artifact)


async def update(backbone: Backbone, model: str, asked: Update, tenant: str | None) -> Version:
    """Ask for a version that is trained from another; returns what the fold made of it.

    Raises:
        UnknownModel, UnknownVersion: there is no such parent.
        Conflict: the parent is not ready, or none answers.
        InvalidInput: there are no data to train on.
        Unsupported: the parent is no ONNX model.
    """
    known = backbone.log.registry.model(model)
    parent = known.active if asked.parent is None else asked.parent
    if parent is None:
        raise Conflict(f"no version of model {model!r} answers: say which is to be updated")
    if (engine := _engine(backbone.log.registry.version(model, parent))) != ONNXRUNTIME:
        raise Unsupported(f"version {parent} of model {model!r} is served by {engine}, and only ONNX is trained")
    if asked.data is None:
        raise InvalidInput("data: an update is trained on data: name a file, or a range of the log")
    await check_data(backbone.store, asked)
    common = {name: value for name, value in asdict(asked).items() if name in Optimization.__struct_fields__}
    event = ev.UpdateRequested(
        model=model,
        upload_id=str(uuid.uuid4()),
        parent=parent,
        training=asked.training,
        optimization=Optimization(**common),
        tenant=tenant,
    )
    registry = await backbone.log.publish(event)
    number = registry.model(model).uploads[event.upload_id]
    if number is None:
        state = registry.version(model, parent).state
        raise Conflict(f"version {parent} of model {model!r} is {state}: only a ready version can be updated")
    return registry.version(model, number)


def _engine(version: Version) -> str:
    return version.serving.engine if version.state == "ready" else ONNXRUNTIME


async def cancel(log: RegistryLog, model: str, number: int, tenant: str | None) -> Version:
    """End the work on a version.

    Raises:
        UnknownModel, UnknownVersion: there is no such version.
        Conflict: it has come to its end already.
    """
    before = log.registry.version(model, number)
    if before.is_open:
        reason = f"cancelled by {tenant}"[:200] if tenant else "it was cancelled"
        event = ev.OptimizationCancelled(model=model, version=number, reason=reason)
        before = (await log.publish(event)).version(model, number)
    if before.code != "cancelled":
        raise Conflict(f"version {number} of model {model!r} can't be cancelled: it is {before.state}")
    return before


async def set_policy(log: RegistryLog, model: str, policy: Policy | None) -> Model:
    """Say what versions that say nothing themselves are judged by.

    Raises:
        UnknownModel: there is no such model.
    """
    known = log.registry.model(model)
    if known.policy == policy:
        return known
    return (await log.publish(ev.PolicySet(model=model, policy=policy))).model(model)


async def give_feedback(backbone: Backbone, settings: PlatformSettings, event: ev.FeedbackGiven) -> None:
    """Append what the right answer would have been.

    Raises:
        UnknownModel: there is no such model.
        InvalidInput: it says nothing, or breaks its rules.
        LogUnavailable: Kafka did not take it.
    """
    backbone.log.registry.model(event.model)
    if event.label is None and not event.outputs:
        raise InvalidInput('expected {"label": [3]} or {"outputs": {"scores": [0.1, 0.9]}}')
    value = encode_event(event)
    decode_event(ev.FeedbackGiven, value)
    try:
        await backbone.producer.send_and_wait(
            settings.topics.name(topics.FEEDBACK),
            value,
            key=event.request_id.encode(),
            headers=cloud_event_headers(event_type=ev.FeedbackGiven.__name__, source=settings.instance),
        )
    except KafkaError as err:
        raise LogUnavailable(f"Kafka did not acknowledge the feedback: {err!r}") from err
