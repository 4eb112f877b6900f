"""One batch of a replay: from record values to digests of outputs, by the same code and in the same order as live.

A recorded batch (`members_sha256`) runs as one, whatever the variant's cap says today. A batch that was not recorded,
for a back-test, runs together as far as the variant lets it.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final

from msgspec.structs import replace

from services.worker.batching import answer, concatenate, rows_alone, shape_key, take_apart
from services.worker.claims import resolve
from shared import claims
from shared.errors import AiaasError, DigestMismatch, TooLarge
from shared.oip import decode_request
from shared.processed_signature import validate
from shared.replay_events import INLINE_BYTES, ReplayedOutput, ReplayedRow
from shared.tensors import output_digest

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Sequence

    from services.worker.replay.pinned import PinnedVariant
    from services.worker.settings import WorkerSettings
    from shared.artifacts import ArtifactStore
    from shared.oip import InferenceRequest
    from shared.replay_events import ReplayMember, ReplayRequested
    from shared.tensors import Array, Tensor

    RunModel = Callable[[PinnedVariant, dict[str, Array]], Awaitable[list[Array]]]
    """All outputs of the variant's own, then of its steps, for feeds by name."""

_ERROR_CHARS: Final = 200
"""Of what is told to each member of a batch: a record holds all of them."""
_HASH_HERE_BYTES: Final = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Member:
    """A member that is ready to run."""

    asked: ReplayMember
    request: InferenceRequest
    rows: int | None


async def prepare(
    asked: ReplayRequested, pinned: PinnedVariant, store: ArtifactStore, settings: WorkerSettings
) -> list[Member]:
    """The members with all their tensors here, as the model takes them.

    Raises:
        DigestMismatch: values or membership are not those that were recorded.
        ArtifactNotFound: what a member refers to is gone.
        TooLarge: the tensors are more than may be held.
        StoreUnavailable, InvalidInput, ExecutionFailed, RunTimeout: as in the live path.
    """
    _check_size(sum(each.artifact.byte_size for each in asked.members if each.artifact is not None), settings)
    values = []
    for member in asked.members:
        values.append(await _value(member, store, settings))
        await asyncio.sleep(0)  # live requests are taken meanwhile, here and below
    if asked.members_sha256 not in {None, members_digest(asked.members)}:
        raise DigestMismatch("the members are not those of the recorded batch")
    members: list[Member] = []
    claimed_bytes = 0
    for member, value in zip(asked.members, values, strict=True):
        request = decode_request(member.content_type, value, member.header_length)
        validate(request, pinned.variant.signature, pinned.variant.processing)
        if any(tensor.claimed for tensor in request.inputs):
            claimed_bytes += sum(tensor.size_bytes for tensor in request.inputs if tensor.claimed)
            _check_size(claimed_bytes, settings)
            request = await resolve(request, store, settings.store_wait_s)
        processor = pinned.processor
        if processor is not None and processor.is_due(request):
            processor.validate(request)
            request = await asyncio.to_thread(processor.prepare, request, settings.max_preprocessing_s)
        rows = member.rows if asked.members_sha256 is not None else rows_alone(request, pinned.variant)
        members.append(Member(member, request, rows))
        await asyncio.sleep(0)
    return members


def _check_size(size_bytes: int, settings: WorkerSettings) -> None:
    if size_bytes > settings.max_fetched_bytes:
        raise TooLarge(f"the batch has {size_bytes} bytes in the store, more than {settings.max_fetched_bytes}")


def members_digest(members: Sequence[ReplayMember]) -> str:
    """The digest of a batch's membership and order, as receipts have it."""
    lines = (
        f"{at.topic}-{at.partition}-{at.offset} {member.input_sha256}\n"
        for member in members
        for at in (member.request,)
    )
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def runs_of(asked: ReplayRequested, members: Sequence[Member], pinned: PinnedVariant) -> Iterator[list[Member]]:
    """Which members run together."""
    if asked.members_sha256 is not None:
        yield list(members)
        return
    signature, cap = pinned.variant.signature, pinned.variant.row_cap
    together: list[Member] = []
    for member in members:
        joins = (
            together
            and member.rows is not None
            and together[0].rows is not None
            and sum(each.rows or 0 for each in together) + member.rows <= cap
            and shape_key(member.request, signature) == shape_key(together[0].request, signature)
        )
        if together and not joins:
            yield together
            together = []
        together.append(member)
    if together:
        yield together


async def run(
    members: Sequence[Member], pinned: PinnedVariant, run_model: RunModel
) -> list[tuple[ReplayedRow, tuple[Tensor, ...]]]:
    """Run members as one: for each its row, and its outputs unless they are the recorded ones."""
    feeds = concatenate([member.request for member in members], pinned.variant.signature)
    begun_ns = time.perf_counter_ns()
    try:
        outputs = await run_model(pinned, feeds)
    except AiaasError as err:
        return [(ReplayedRow(error_code=err.code, error=err.message[:_ERROR_CHARS]), ())] * len(members)
    infer_ns = time.perf_counter_ns() - begun_ns
    signature = pinned.variant.signature if pinned.processor is None else pinned.processor.signature
    defaults = () if pinned.processor is None else pinned.processor.defaults
    found = []
    pieces = take_apart(outputs, [member.rows or 0 for member in members], signature)
    for member, piece in zip(members, pieces, strict=True):
        answered = answer(member.request, piece, defaults)
        sha256 = await _digest(answered)
        row = ReplayedRow(output_sha256=sha256, infer_ns=infer_ns)
        found.append((row, () if sha256 == member.asked.recorded_sha256 else answered))
        await asyncio.sleep(0)
    return found


async def with_outputs(
    rows: Sequence[tuple[ReplayedRow, tuple[Tensor, ...]]], store: ArtifactStore, wait_s: float
) -> tuple[ReplayedRow, ...]:
    """The rows with their outputs: in the record as long as there is room, the rest in the store.

    Raises:
        StoreUnavailable: the store did not take them.
    """
    used_bytes = 0
    done = []
    for row, outputs in rows:
        sent = []
        for tensor in outputs:
            size_bytes = len(tensor.data)
            fits = used_bytes + size_bytes <= INLINE_BYTES
            used_bytes += size_bytes if fits else 0
            stored = None if fits else await claims.patiently(partial(claims.put, store, tensor, "replays"), wait_s)
            sent.append(
                ReplayedOutput(
                    name=tensor.name,
                    datatype=tensor.datatype,
                    shape=tensor.shape,
                    data=bytes(tensor.data) if stored is None else b"",
                    artifact=None if stored is None else stored.artifact,
                )
            )
        done.append(replace(row, outputs=tuple(sent)) if sent else row)
    return tuple(done)


async def _value(member: ReplayMember, store: ArtifactStore, settings: WorkerSettings) -> bytes:
    """The member's record value, which is the recorded one."""
    value = member.value
    if (artifact := member.artifact) is not None:
        value = await claims.patiently(lambda: store.get_bytes(artifact), settings.store_wait_s)
    if hashlib.sha256(value).hexdigest() != member.input_sha256:
        at = member.request
        raise DigestMismatch(f"the value of {at.topic}/{at.partition} offset {at.offset} is not the recorded one")
    return value


async def _digest(outputs: tuple[Tensor, ...]) -> str:
    if sum(len(tensor.data) for tensor in outputs) <= _HASH_HERE_BYTES:
        return output_digest(outputs)
    return await asyncio.to_thread(output_digest, outputs)
