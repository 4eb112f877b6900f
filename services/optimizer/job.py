"""One attempt: from a version and what is finished of it to the events that say what became of it.

The plan says what is to be done, the log what is done already, here or for another version. The rest goes to a child,
step by step; each result is stored, and told (`Hooks.record`), before the next one counts. A child that dies, or takes
too long, costs the step that it was in: a fresh one goes on behind it. When nothing is left to do, or the time is over,
`conclusion` makes the events of it all, and `reactor` publishes them.

Errors that are not the model's fault (`Unavailable`, `OSError`, `SandboxUnusable`) pass through.
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING

from services.optimizer import conclusion, declared, documents, elsewhere, formats, gate
from services.optimizer import plan as plans
from services.optimizer.actions import COMPARE, ELSEWHERE, INPUTS, REFERENCE, UPLOAD, Draw, Elsewhere, Refer, Train
from services.optimizer.confined import TIMED_OUT, Ending
from services.optimizer.documents import Document
from services.optimizer.messages import (
    PARENT_FILE,
    UPLOAD_FILE,
    WARM_START_FILE,
    Found,
    Progress,
    Recognised,
    Rejected,
    data_file,
    step_file,
)
from services.optimizer.progress import Meter
from services.optimizer.rejections import Rejection, reason
from services.optimizer.workspace import workspace
from shared.errors import ArtifactNotFound, CallerError, DigestMismatch
from shared.events import DataUsed, FormatRecognised, ModelRejected, StepFinished
from shared.optimization import DataFile, Optimization
from shared.registry import CANONICAL, TRAIN, Step
from shared.runtime_config import TORCH

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from services.optimizer.actions import Spec
    from services.optimizer.confined import Sandbox
    from services.optimizer.drawing import Drawer
    from services.optimizer.elsewhere import Workers
    from services.optimizer.messages import Message
    from services.optimizer.plan import Means, Plan
    from services.optimizer.settings import OptimizerSettings
    from services.optimizer.task import Hooks, Task
    from services.optimizer.workspace import Workspace
    from shared.artifacts import Artifact, ArtifactStore
    from shared.events import AttemptEvent, Conversion
    from shared.registry import Version

_ESSENTIAL = frozenset({REFERENCE, TRAIN, CANONICAL})
"""Steps without which there is nothing to serve."""
_TRAINING_SHARE = 0.5
"""Of the time that is left, for the training within one candidate."""
_UNBUDGETED = frozenset({REFERENCE, COMPARE, CANONICAL, INPUTS, ELSEWHERE})
"""What is done whatever the budget."""


class Jobs:
    """Does attempts, with the collaborators that all of them share."""

    def __init__(
        self,
        settings: OptimizerSettings,
        store: ArtifactStore,
        sandbox: Sandbox,
        means: Callable[[], Means],
        drawer: Drawer | None = None,
        workers: Workers | None = None,
    ) -> None:
        self.settings = settings
        self.store = store
        self.sandbox = sandbox
        self.means = means
        self.drawer = drawer
        self.workers = workers

    def can_do(self, version: Version) -> bool:
        """Whether this optimizer has what the version's plan cannot do without."""
        means = self.means()
        return not formats.lacking(version.needs, means.tools) and (version.training is None or means.training)

    async def run(self, task: Task, hooks: Hooks) -> tuple[AttemptEvent, ...]:
        """The events that end the version's attempt; the last one is `ModelReady` or `ModelRejected`.

        Raises:
            Unavailable, OSError, SandboxUnusable: not the model's fault; the attempt may be tried again.
        """
        try:
            with workspace(self.settings, self.store) as space:
                return await _Attempt(self, task, hooks, space).run()
        except Rejection as rejection:
            return (rejected(task.version, self.settings.owner, rejection),)
        except _HandedOn as handed_on:
            return (handed_on.event,)


class _HandedOn(Exception):
    """The attempt ends here: another optimizer has what the upload's format needs."""

    def __init__(self, event: FormatRecognised) -> None:
        super().__init__(event.format)
        self.event = event


class _Attempt:
    """One attempt at one version, in one directory."""

    def __init__(self, jobs: Jobs, task: Task, hooks: Hooks, space: Workspace) -> None:
        self._jobs = jobs
        self._task = task
        self._hooks = hooks
        self._space = space
        self._means = jobs.means()
        self._version = task.version
        self._options = task.version.optimization or Optimization()
        self._follow(plans.plan(task.version, self._means))
        self._policy = conclusion.policy_of(self._options.policy, task.policy, jobs.settings.policy)
        self._steps: dict[str, Step] = {}
        self._documents: dict[str, Document] = {}
        self._rejected: Rejected | None = None
        self._recognised: Recognised | None = None
        self._began_s = time.monotonic()
        self._spent_s = 0.0

    # ------------------------------------------------------------------ the order of things

    async def run(self) -> tuple[AttemptEvent, ...]:
        if self._version.recognised is not None:
            self._check_allowed(self._version.recognised)
        await self._recall()
        if self._task.blame and self._left():
            await self._blame(Ending("optimizer_crashed", "Optimizers died whenever they worked on it"))
        await self._draw()
        await self._reuse()
        while left := self._left():
            if self._budget_left_s() <= 0 and left[0].name not in _UNBUDGETED | _ESSENTIAL:
                break
            plan = self._plan
            ending = await self._child(left)
            if self._rejected is not None:
                raise Rejection(self._rejected.code, self._rejected.found)
            if self._recognised is not None and self._version.recognised is None:
                await self._plan_conversion(self._recognised.format)
                continue
            if self._plan is not plan:
                continue
            if self._left() and not await self._goes_on_after(ending):
                break
        await self._ask_workers()
        signature = self._documents[REFERENCE].found.signature
        await declared.check(self._jobs.store, self._version, signature)
        await self._meter.say("store", 0.0)
        return conclusion.events(
            self._version,
            self._jobs.settings.owner,
            self._plan,
            self._documents,
            {name: step.file for name, step in self._steps.items() if step.file is not None},
            self._policy,
        )

    async def _recall(self) -> None:
        """Take up what is finished of this version; a document that is gone has to be made again."""
        for step in self._version.steps.values():
            document = await self._document(step)
            if document is not None:
                self._keep(step, document)
                self._meter.recalled(step.name)

    async def _reuse(self) -> None:
        """Take over what is finished of other versions."""
        keys = self._keys()
        for spec in [spec for spec in self._plan.steps if spec.name not in self._documents]:
            place, step = self._task.elsewhere.get(keys[spec.name], (None, None))
            if place is None or step is None or (document := await self._document(step)) is None:
                continue
            taken = Step(spec.name, step.key, step.result, step.file, 0.0, place, step.conversion)
            await self._tell(taken, document)

    async def _plan_conversion(self, name: str) -> None:
        """Go on with a plan that converts the upload first, if that is allowed and can be done here.

        Raises:
            Rejection: this tenant's uploads may not have the format.
            _HandedOn: libraries are missing here.
        """
        self._check_allowed(name)
        needs = formats.FORMATS[name].needs
        event = FormatRecognised(
            model=self._version.model,
            version=self._version.number,
            attempt=self._version.attempt,
            owner=self._jobs.settings.owner,
            format=name,
            needs=needs,
            handed_on=bool(formats.lacking(needs, self._means.tools)),
        )
        if event.handed_on:
            raise _HandedOn(event)
        await self._hooks.record(event)
        self._version = replace(self._version, recognised=name, needs=needs)
        self._follow(plans.plan(self._version, self._means))
        await self._reuse()

    def _check_allowed(self, name: str) -> None:
        formats.check_allowed(name, self._version.tenant, self._jobs.settings.allowed_formats)

    def _check_runtime(self, conversion: Conversion) -> None:
        """Look whether torch can be run as the version is configured.

        Raises:
            Rejection: an option means nothing to it.
        """
        config = self._version.runtime
        if config is not None and (foreign := config.foreign_to(TORCH)):
            found = f"{conversion.problem}. torch would serve it as it is, but {foreign[0]} means nothing to torch"
            raise Rejection("not_convertible", found)

    async def _goes_on_after(self, ending: Ending) -> bool:
        """Blame the step that a child did not end; False if it was only the time that was over."""
        over = self._budget_left_s() - self._lap_s() <= 0
        if ending.code == TIMED_OUT and over and self._left()[0].name not in _UNBUDGETED | _ESSENTIAL:
            return False
        await self._blame(ending if ending.code is not None else Ending("vet_crashed", "No result"))
        return True

    async def _blame(self, ending: Ending) -> None:
        """Record the step that comes next as failed.

        Raises:
            Rejection: without it there is nothing to serve.
        """
        spec = self._left()[0]
        if spec.name in _ESSENTIAL:
            raise Rejection(ending.code or "vet_crashed", f"{ending.found} (in step {spec.name!r})")
        await self._finished(spec, Found(step=spec.name, failed=f"{ending.code}: {ending.found}"))

    # ------------------------------------------------------------------ data

    async def _draw(self) -> None:
        """Draw the data sets that come from the log.

        Raises:
            Rejection: there is nothing to draw, or nobody here who can.
        """
        for spec in self._left():
            if not isinstance(spec.action, Draw):
                continue
            if self._jobs.drawer is None:
                raise Rejection("data_unusable", "This optimizer draws no data from the log")
            await self._meter.say(spec.name, 0.0)
            drawn = await self._jobs.drawer.draw(spec.action.source, self._version.model, self._task.signatures)
            file = await self._put(drawn.content)
            used = DataUsed(sha256=file.sha256, rows=drawn.rows, offsets=dict(drawn.offsets))
            document = Document(found=Found(step=spec.name, file=True), data=used)
            result = await self._put(document.encode())
            await self._tell(Step(spec.name, self._keys()[spec.name], result, file, self._lap_s()), document)

    @property
    def _data(self) -> dict[str, Artifact]:
        """The data sets by role, as far as they are there."""
        found = {}
        for role, source in self._options.sources.items():
            drawn = self._steps.get(role)
            file = source.artifact if isinstance(source, DataFile) else drawn.file if drawn else None
            if file is not None:
                found[role] = file
        return found

    # ------------------------------------------------------------------ other classes of worker

    async def _ask_workers(self) -> None:
        """Have the classes of worker that are up, and are not this one's, measure what passed on quality."""
        spec = next((spec for spec in self._plan.steps if isinstance(spec.action, Elsewhere)), None)
        if spec is None or spec.name in self._documents or not isinstance(spec.action, Elsewhere):
            return
        self._lap_s()
        await self._meter.say(spec.name, 0.0)
        found = [self._documents[name].found for name in self._measured()]
        names = gate.worth_measuring(self._documents[REFERENCE].found, found, self._policy)
        files = {name: step.file for name, step in self._steps.items() if step.file is not None}
        signature = self._documents[REFERENCE].found.signature
        served = await elsewhere.asked(self._jobs.workers, self._version, spec.action, signature, files, names)
        document = Document(found=Found(step=spec.name, served=served))
        key = self._keys()[spec.name]
        if any(each.failed for each in served.classes):  # no result: who asks for the same again is to try again
            key = plans.part_of(key, f"{self._version.model}/{self._version.number}")
        result = await self._put(document.encode())
        await self._tell(Step(spec.name, key, result, None, self._lap_s()), document)

    def _measured(self) -> list[str]:
        """Candidates that were built and measured here."""
        found = {name: each.found for name, each in self._documents.items()}
        return [name for name, each in found.items() if each.measurements is not None and name != REFERENCE]

    # ------------------------------------------------------------------ the child

    async def _child(self, left: list[Spec]) -> Ending:
        """Have a fresh child do what is left, for as long as it goes well."""
        await self._fetch(left)
        refers = any(isinstance(spec.action, Refer) for spec in left)
        tokenizers = await declared.fetch_tokenizers(self._space, self._version) if refers else 0
        reference = self._documents.get(REFERENCE)
        job = self._jobs.sandbox.job(
            self._jobs.settings.job_timeout_s + max(0.0, self._budget_left_s()),
            seed=self._seed,
            tokenizers=tokenizers,
            steps=tuple(left),
            batched=None if reference is None else reference.found.batched,
            data=dict.fromkeys(self._data, 1),
            holdout=self._options.holdout,
            training_budget_s=max(1.0, self._budget_left_s() * _TRAINING_SHARE),
            checkpoint_s=self._jobs.settings.checkpoint_s,
            checkpoint=self._checkpoint(left[0]),
            trials=self._trials(left[0]),
        )
        self._lap_s()
        return await self._jobs.sandbox.run(job, self._space.directory, self._heard, self._allowed_s)

    async def _heard(self, message: Message) -> None:
        match message:
            case Progress(step=step):
                await self._meter.say(step, message.fraction, message.what, message.points)
            case Rejected():
                self._rejected = self._rejected or message
            case Recognised():
                self._recognised = message
            case Found(step=step):
                spec = next((spec for spec in self._left() if _belongs(step, spec.name)), None)
                if spec is not None:
                    await self._finished(spec, message)

    def _allowed_s(self) -> float:
        """How long the step that comes next may take."""
        left = self._left()
        settings = self._jobs.settings
        if not left or left[0].name in _UNBUDGETED:
            return settings.job_timeout_s
        if isinstance(left[0].action, Train):
            return max(settings.job_timeout_s, self._budget_left_s())
        return max(0.0, min(self._budget_left_s(), settings.step_timeout_s))

    async def _fetch(self, left: list[Spec]) -> None:
        """The files that steps start from."""
        bases = {spec.base for spec in left} | ({REFERENCE} if REFERENCE in self._documents else set())
        for base in bases:
            step = self._steps.get(base)
            if step is not None and step.file is not None:
                await self._space.fetch(step.file, step_file(base), 2 * self._jobs.settings.max_model_bytes)
        if UPLOAD in bases:
            await self._space.fetch(self._version.artifact, UPLOAD_FILE)
        if (checkpoint := self._steps.get(self._checkpoint(left[0]) or "")) is not None and checkpoint.file is not None:
            await self._space.fetch(
                checkpoint.file, step_file(checkpoint.name), 2 * self._jobs.settings.max_model_bytes
            )
        if self._task.parent is not None:
            await self._space.fetch(self._task.parent.model_file, PARENT_FILE, 2 * self._jobs.settings.max_model_bytes)
        training = self._version.training
        if training is not None and training.warm_start is not None and self._task.warm_start is None:
            raise Rejection("not_trained", "There is no such version to start from")
        if self._task.warm_start is not None:
            await self._space.fetch(self._task.warm_start, WARM_START_FILE)
        for role, artifact in self._data.items():
            await self._space.fetch(artifact, data_file(role), self._jobs.settings.max_data_bytes)

    # ------------------------------------------------------------------ what is finished

    async def _finished(self, spec: Spec, found: Found) -> None:
        """Store what a step found and made, and tell the log.

        Raises:
            Rejection: nothing was made, and without it there is nothing to serve.
        """
        if found.step in _ESSENTIAL and not (found.file or found.batched):
            raise Rejection("vet_crashed", f"Step {spec.name!r} ended without a result")
        makes = found.measurements is not None or found.file
        file = await self._space.keep(step_file(found.step)) if makes else None
        made_of = None
        if file is not None:
            digests = {name: step.file.sha256 for name, step in self._steps.items() if step.file is not None}
            digests[UPLOAD] = self._version.artifact.sha256
            made_of = documents.provenance(spec, found, digests, self._seed, self._means, self._used())
        document = Document(found=found, provenance=made_of)
        result = await self._put(document.encode())
        key = self._keys()[spec.name]
        key = key if found.step == spec.name else plans.part_of(key, found.step)
        await self._tell(Step(found.step, key, result, file, self._lap_s(), None, found.conversion), document)

    def _checkpoint(self, spec: Spec) -> str | None:
        """The step that holds the newest state of a training that was not ended."""
        kept = [name for name, step in self._steps.items() if _belongs(name, spec.name) and step.file is not None]
        return max(kept, key=lambda name: int(name.rpartition(".")[2]), default=None)

    def _trials(self, spec: Spec) -> tuple[str, ...]:
        """The trials of its search that are done, as JSON."""
        prefix = f"{spec.name}.trial."
        kept = sorted(
            (name for name in self._steps if name.startswith(prefix)), key=lambda name: int(name[len(prefix) :])
        )
        return tuple(self._documents[name].found.parameters for name in kept)

    def _used(self) -> dict[str, DataUsed]:
        drawn = {role: each.data for role, each in self._documents.items() if each.data is not None}
        return {role: drawn.get(role) or DataUsed(sha256=file.sha256, rows=0) for role, file in self._data.items()}

    async def _tell(self, step: Step, document: Document) -> None:
        await self._hooks.record(
            StepFinished(
                model=self._version.model,
                version=self._version.number,
                attempt=self._version.attempt,
                owner=self._jobs.settings.owner,
                step=step.name,
                key=step.key,
                result=step.result,
                file=step.file,
                reused_from=step.reused_from,
                seconds=round(step.seconds, 3),
                conversion=step.conversion,
            )
        )
        self._keep(step, document)
        if step.reused_from is not None:
            self._meter.recalled(step.name)
        await self._meter.done(step.name)

    def _keep(self, step: Step, document: Document) -> None:
        self._steps[step.name] = step
        self._documents[step.name] = document
        if step.conversion is not None and step.conversion.engine == TORCH:
            self._check_runtime(step.conversion)
            self._follow(plans.as_it_is(self._version, self._means))
        if step.name not in _UNBUDGETED:
            self._spent_s += step.seconds

    async def _document(self, step: Step) -> Document | None:
        """What is kept of a finished step; None if that can't be read, or its file is gone."""
        if step.result.byte_size > documents.MAX_BYTES:
            return None
        try:
            if step.file is not None:
                await self._jobs.store.check_there(step.file)
            return documents.decode(await self._jobs.store.get_bytes(step.result))
        except (ArtifactNotFound, DigestMismatch, CallerError):
            return None

    async def _put(self, content: bytes) -> Artifact:
        async def chunks() -> AsyncIterator[bytes]:
            yield content

        return await self._jobs.store.put_stream(chunks(), limit_bytes=len(content))

    # ------------------------------------------------------------------ small questions

    def _follow(self, plan: Plan) -> None:
        """From now on this is to be done, and progress is through it."""
        self._plan = plan
        self._meter = Meter([spec.name for spec in plan.steps], self._hooks.on_progress)

    def _left(self) -> list[Spec]:
        """What a child has to do, and what is drawn for it."""
        steps = (spec for spec in self._plan.steps if not isinstance(spec.action, Elsewhere))
        return [spec for spec in steps if spec.name not in self._documents]

    def _keys(self) -> dict[str, str]:
        finished = {name: step.key for name, step in self._steps.items()}
        data = {role: artifact.sha256 for role, artifact in self._data.items()}
        return plans.keys(self._plan, self._version, self._means, data, finished)

    @property
    def _seed(self) -> int:
        """All randomness of the plan: of the options, else of the file that it began with."""
        began = self._task.parent or self._version
        return self._options.seed or int(began.artifact.sha256[:8], 16)

    def _budget_left_s(self) -> float:
        most = self._jobs.settings.max_time_budget_s
        return min(self._policy.time_budget_s or most, most) - self._spent_s

    def _lap_s(self) -> float:
        """Seconds since this was last asked."""
        now_s = time.monotonic()
        took_s, self._began_s = now_s - self._began_s, now_s
        return took_s


def _belongs(name: str, step: str) -> bool:
    """Whether a result is of a step, or of a part of it: `train.3` is of `train`."""
    return name == step or name.startswith(f"{step}.")


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
