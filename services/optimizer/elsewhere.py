"""How fast candidates are on other classes of worker: asked over Kafka, answered by one worker of each class.

Which classes those are, the heartbeats say. Of a class the least busy worker is asked, by its name and incarnation. If
it dies over the question, or does not answer in time, a second one is asked, if there is one; then it is on record that
nobody answered, and the gate judges by what it has. So every wait is bounded, and an optimizer that is killed while it
waits asks anew: measuring changes nothing anywhere.
"""

from __future__ import annotations

import asyncio
import uuid
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final

from aiokafka.errors import KafkaError

from services.optimizer.actions import INPUTS, REFERENCE
from services.optimizer.messages import OnClass, Served
from shared import logs, measurements
from shared.codec import encode_event
from shared.errors import LogUnavailable
from shared.events import MachineClass
from shared.measurement_events import MAX_MEASURED, MeasurementRequested, MeasurementTaken
from shared.topics import MAX_RECORD_BYTES

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping, Sequence

    from aiokafka import AIOKafkaProducer

    from services.optimizer.actions import Elsewhere
    from services.optimizer.settings import OptimizerSettings
    from shared.artifacts import Artifact
    from shared.heartbeat_events import Heartbeat
    from shared.heartbeats import Heartbeats
    from shared.registry import Version
    from shared.signature import Signature

MAX_CLASSES: Final = 4
_ASKED_OF_A_CLASS: Final = 2
_NOBODY = "no worker of this class is up any more"


def classes(alive: list[Heartbeat], own: MachineClass) -> tuple[tuple[MachineClass, ...], bool]:
    """The classes of the live workers other than `own`, those of most workers first; and whether one is `own`.

    A class is what changes a speed: instruction set, best provider, threads.
    """
    found = [class_of(beat.machine) for beat in alive if _runs_onnx(beat)]
    names = [str(each) for each in found]
    others = {str(each): each for each in found if str(each) != str(own)}
    most = sorted(others, key=lambda name: (-names.count(name), name))[:MAX_CLASSES]
    return tuple(others[name] for name in most), str(own) in names


def class_of(machine: MachineClass) -> MachineClass:
    """Without what does not change a speed."""
    return MachineClass(isa=machine.isa, providers=machine.providers, threads=machine.threads)


def _runs_onnx(beat: Heartbeat) -> bool:
    return beat.service == "worker" and bool(beat.machine.providers)


class Workers:
    """Asks workers. Build it with `open_workers`."""

    def __init__(self, settings: OptimizerSettings, producer: AIOKafkaProducer, heard: Heartbeats) -> None:
        self._settings = settings
        self._producer = producer
        self._heard = heard
        self._waiting: dict[str, asyncio.Future[MeasurementTaken]] = {}

    def take(self, answer: MeasurementTaken) -> None:
        """An answer came."""
        waiting = self._waiting.get(answer.id)
        if waiting is not None and not waiting.done():
            waiting.set_result(answer)

    async def measure(
        self,
        version: Version,
        machine: MachineClass,
        signature: Signature,
        files: tuple[Artifact, Artifact],
        candidates: Mapping[str, Artifact],
    ) -> OnClass:
        """What a worker of a class says of the candidates; `files` are the reference and the inputs.

        Raises:
            LogUnavailable: Kafka took no question.
        """
        asked: list[str] = []
        why = _NOBODY
        while len(asked) < _ASKED_OF_A_CLASS:
            worker = self._least_busy(machine, asked)
            if worker is None:
                break
            asked.append(worker)
            reference, inputs = files
            question = MeasurementRequested(
                id=uuid.uuid4().hex,
                model=version.model,
                version=version.number,
                asked_by=self._settings.owner,
                worker=worker,
                reference=reference,
                candidates=dict(list(candidates.items())[:MAX_MEASURED]),
                signature=signature,
                inputs=inputs,
                runtime=version.runtime,
                timeout_s=self._settings.measure_timeout_s,
            )
            if len(encode_event(question)) > MAX_RECORD_BYTES:
                return OnClass(machine=machine, failed="the question is too large for a record")
            answer = await self._ask(question)
            if isinstance(answer, MeasurementTaken):
                return _found(machine, answer)
            why = f"{worker}: {answer}"
            logs.get().warning("not measured", model=version.model, machine=str(machine), worker=worker, why=answer)
        return OnClass(machine=machine, failed=why)

    async def _ask(self, question: MeasurementRequested) -> MeasurementTaken | str:
        """The answer, or why there is none."""
        waiting = self._waiting[question.id] = asyncio.get_running_loop().create_future()
        dying = asyncio.create_task(self._death(question.worker), name="death of who was asked")
        try:
            await measurements.publish(self._settings, self._producer, question.model, question)
            async with asyncio.timeout(question.timeout_s):
                await asyncio.wait({waiting, dying}, return_when=asyncio.FIRST_COMPLETED)
        except KafkaError as err:
            raise LogUnavailable(f"Kafka did not acknowledge a question: {err!r}") from err
        except TimeoutError:
            return f"no answer within {question.timeout_s:g} s"
        else:
            return waiting.result() if waiting.done() else "it died before it answered"
        finally:
            dying.cancel()
            del self._waiting[question.id]

    def _least_busy(self, machine: MachineClass, asked: list[str]) -> str | None:
        """A live worker of the class that was not asked yet."""
        found = [
            (sum(beat.lag.values()) + sum(beat.queued.values()), f"{beat.instance}/{beat.incarnation}")
            for beat in self._heard.alive()
            if _runs_onnx(beat) and str(beat.machine) == str(machine)
        ]
        return min(((load, owner) for load, owner in found if owner not in asked), default=(0, None))[1]

    async def _death(self, owner: str) -> None:
        await self._heard.until(lambda alive: owner not in {f"{beat.instance}/{beat.incarnation}" for beat in alive})


async def asked(
    workers: Workers | None,
    version: Version,
    action: Elsewhere,
    signature: Signature | None,
    files: Mapping[str, Artifact],
    names: Sequence[str],
) -> Served:
    """What workers say of the candidates `names`; `files` are those that steps made, by step."""
    candidates = {name: files[name] for name in names if name in files}
    answers: list[OnClass] = []
    for machine in action.machines if candidates else ():
        if workers is None or signature is None or not {REFERENCE, INPUTS} <= files.keys():
            answers.append(OnClass(machine=machine, failed="there was nothing to measure with"))
            continue
        beside = (files[REFERENCE], files[INPUTS])
        answers.append(await workers.measure(version, machine, signature, beside, candidates))
    return Served(here=action.here, classes=tuple(answers))


def _found(machine: MachineClass, answer: MeasurementTaken) -> OnClass:
    return OnClass(
        machine=machine,
        worker=answer.worker,
        latencies=answer.latencies,
        problems=answer.problems,
        failed=f"{answer.worker}: {answer.failed}" if answer.failed else "",
    )


@asynccontextmanager
async def open_workers(
    settings: OptimizerSettings, producer: AIOKafkaProducer, heard: Heartbeats
) -> AsyncIterator[Workers]:
    """Workers to ask, with their answers being listened for."""
    workers = Workers(settings, producer, heard)
    async with measurements.followed(settings, MeasurementTaken, workers.take):
        yield workers
