"""A recorded batch as a request to replay it: small values in the record, large ones in the artifact store."""

from __future__ import annotations

from typing import TYPE_CHECKING

from shared import claims
from shared.errors import InvalidInput
from shared.replay_events import INLINE_BYTES, ReplayMember, ReplayRequested
from shared.requests import from_kafka

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from services.audit.records import RecordedOutcome
    from services.audit.replay.batches import Batch
    from services.audit.replay.configurations import Configurations
    from services.audit.replay.contenders import Contender
    from shared.artifacts import Artifact, ArtifactStore


async def again(
    batch: Batch, replay_id: str, configurations: Configurations, store: ArtifactStore, *, digest_check: bool
) -> ReplayRequested:
    """The batch as it ran. It has no `problem`.

    Raises:
        InvalidInput: its receipts do not say what ran.
        StoreUnavailable: the store did not take large values.
    """
    first = batch.members[0].receipt
    if first.model_version is None or first.variant is None or first.artifact_sha256 is None or first.batch is None:
        raise InvalidInput("the receipt does not say which artefact ran")
    return ReplayRequested(
        replay_id=replay_id,
        batch_id=batch.id,
        model=first.model_name,
        version=first.model_version,
        variant=first.variant,
        artifact_sha256=first.artifact_sha256,
        processing_sha256=first.processing_sha256,
        members=await _members(batch.members, store, recorded=True),
        members_sha256=first.batch.members_sha256,
        runtime_config=configurations.at(first.model_name, first.model_version, first.registry_offset),
        digest_check=digest_check,
    )


async def on_another(
    members: Sequence[RecordedOutcome],
    batch_id: str,
    replay_id: str,
    contender: Contender,
    store: ArtifactStore,
) -> ReplayRequested:
    """Recorded requests on a variant that need not be the one that answered them; all outputs come back.

    Raises:
        InvalidInput: a record's headers can't be read.
        StoreUnavailable: the store did not take large values.
    """
    return ReplayRequested(
        replay_id=replay_id,
        batch_id=batch_id,
        model=contender.model,
        version=contender.version,
        variant=contender.variant.name,
        artifact_sha256=contender.variant.artifact.sha256,
        processing_sha256=contender.variant.processing_sha256,
        runtime_config=contender.variant.runtime,
        members=await _members(members, store, recorded=False),
    )


async def _members(
    members: Sequence[RecordedOutcome], store: ArtifactStore, *, recorded: bool
) -> tuple[ReplayMember, ...]:
    values = [b"" if isinstance(each.request, str) else each.request.value or b"" for each in members]
    large = claims.to_store({str(index): len(value) for index, value in enumerate(values)}, INLINE_BYTES)
    made = []
    for index, (member, value) in enumerate(zip(members, values, strict=True)):
        headers = from_kafka(() if isinstance(member.request, str) else member.request.headers)
        artifact = await _stored(value, store) if str(index) in large else None
        receipt = member.receipt
        made.append(
            ReplayMember(
                request=receipt.request,
                input_sha256=receipt.input_sha256,
                content_type=headers.content_type,
                header_length=headers.header_length,
                rows=receipt.batch.rows if receipt.batch is not None and recorded else None,
                value=b"" if artifact else value,
                artifact=artifact,
                recorded_sha256=receipt.output_sha256 if recorded else None,
            )
        )
    return tuple(made)


async def _stored(value: bytes, store: ArtifactStore) -> Artifact:
    async def content() -> AsyncIterator[bytes]:
        yield value

    return await store.put_stream(content(), limit_bytes=len(value), area="replays")
