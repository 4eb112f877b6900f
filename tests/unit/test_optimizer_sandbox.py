"""The child process and what the service makes of it: every ending, without Kafka."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from itertools import groupby
from pathlib import Path

import msgspec
import psutil
import pytest
from onnx import helper

from services.optimizer import confined
from services.optimizer.confined import Sandbox, SandboxUnusable
from services.optimizer.job import Jobs
from services.optimizer.plan import Means, plan
from services.optimizer.rejections import ADVICE
from services.optimizer.settings import OptimizerSettings
from services.optimizer.task import Hooks, Task
from services.optimizer.workspace import sweep
from shared import events as ev
from shared.artifacts import Artifact, ArtifactStore
from shared.errors import StoreUnavailable
from shared.optimization import Optimization, Policy
from shared.registry import MAX_ATTEMPTS, Step, Version
from support import uploads
from support.waiting import eventually

SOURCES = str(Path(confined.__file__).parents[2])


@pytest.fixture
def settings(tmp_path):
    return OptimizerSettings(
        instance="o", scratch_dir=tmp_path, max_model_bytes=50_000_000, run_timeout_s=2, job_timeout_s=60
    )


@pytest.fixture
def store():
    return ArtifactStore("memory://")


async def put(store, made):
    content = made if isinstance(made, bytes) else made.SerializeToString()

    async def chunks():
        yield content

    return await store.put_stream(chunks(), limit_bytes=10**9)


ONE = Optimization(candidates=("int8-weight-only",))


def version_of(artifact, options=ONE):
    about = {"state": "optimizing", "attempt": 2, "owner": "o/1", "optimization": options}
    return Version("m", 1, "u", artifact, "onnx", None, 0, **about)


class Told:
    """What an attempt told while it went on."""

    def __init__(self):
        self.steps = []
        self.progress = []

    async def record(self, event):
        self.steps.append(event)

    async def on_progress(self, progressed):
        self.progress.append((progressed.step, progressed.fraction))


async def optimize(settings, store, artifact, sandbox=None, options=ONE):
    told = Told()
    jobs = Jobs(settings, store, sandbox or Sandbox(settings), Means)
    events = await jobs.run(Task(version_of(artifact, options)), Hooks(told.on_progress, told.record))
    return events, told


async def test_an_mlp_becomes_ready(settings, store, tmp_path):
    artifact = await put(store, uploads.mlp())
    events, told = await optimize(settings, store, artifact)
    fp32, int8, ready = events
    assert isinstance(fp32, ev.VariantReady)
    assert fp32.artifact == artifact  # the same bytes, so the same object in the store
    assert (fp32.attempt, fp32.owner, fp32.batch_cap) == (2, settings.owner, 256)
    assert [spec.batch_axis for spec in (*fp32.signature.inputs, *fp32.signature.outputs)] == [0, 0]
    assert [latency.batch_size for latency in fp32.measurements.latencies] == [1, 8, 32]
    assert isinstance(ready, ev.ModelReady)
    assert int8.variant == "int8-weight-only"
    assert int8.measurements.top1_agreement > 0.95
    assert int8.measurements.quality["agreement"].rows == 256
    assert ready.reason.startswith(f"{ready.variant}: ")
    # What takes long is told again.
    assert [step for step, _ in groupby(step for step, _ in told.progress)] == [
        "fp32",
        "fp32: vet",
        "fp32: load",
        "fp32: batching",
        "fp32: measure",
        "fp32: done",
        "int8-weight-only",
        "int8-weight-only: measure",
        "int8-weight-only: done",
        "store",
    ]
    fractions = [fraction for _, fraction in told.progress]
    assert fractions == sorted(fractions)
    assert [event.step for event in told.steps] == ["fp32", "int8-weight-only"]
    assert told.steps[0].file == artifact
    assert not list(tmp_path.iterdir())


async def test_a_candidate_that_does_not_build_costs_itself_alone(settings, store):
    events, _ = await optimize(settings, store, await put(store, uploads.conv()))
    assert [type(event) for event in events] == [ev.VariantReady, ev.VariantRejected, ev.ModelReady]
    assert events[1].reason == "the model has no MatMul or Gemm with a constant FP32 matrix"
    assert events[2].variant == "fp32"


HOSTILE = {
    "truncated": (lambda: uploads.mlp().SerializeToString()[:-7], "invalid_model"),
    "pickle": (uploads.pickled, "unsupported_format"),
    "endless": (uploads.endless, "run_timeout"),
    "bomb": (uploads.bomb, "out_of_memory"),
    "outside": (uploads.with_outside_initializer, "external_data"),
    "custom": (uploads.custom_operator, "operator_domain"),
    "kernel": (lambda: uploads.elementwise("BitwiseNot"), "load_failed"),
}


@pytest.mark.parametrize("name", HOSTILE)
async def test_hostile_files_are_rejected(settings, store, name):
    make, code = HOSTILE[name]
    (event,), _ = await optimize(settings, store, await put(store, make()))
    assert isinstance(event, ev.ModelRejected)
    assert (event.code, event.attempt, event.owner) == (code, 2, settings.owner)
    assert event.reason.endswith(f"{ADVICE[code]}.")


async def test_a_model_that_takes_gigabytes_is_stopped_by_the_limit(settings, store):
    made = uploads.model(
        [
            helper.make_node("Shape", ["x"], ["n"]),
            helper.make_node("Mul", ["n", "k"], ["s"]),
            helper.make_node("ConstantOfShape", ["s"], ["y"]),
        ],
        {"x": (uploads.FP32, (2,))},
        {"y": (uploads.FP32, (None,))},
        {"k": uploads.np.array([10**9])},
    )
    (event,), _ = await optimize(settings, store, await put(store, made))
    assert event.code == "out_of_memory"


async def test_what_is_too_large_is_not_fetched(settings, store):
    artifact = Artifact(uri="memory:///sha256/00/00", sha256="0" * 64, byte_size=50_000_001)
    (event,), _ = await optimize(settings, store, artifact)
    assert event.code == "model_too_large"


async def test_what_is_not_in_the_store(settings, store):
    artifact = await put(store, b"x" * 10)
    for changed, code in (
        ({"uri": artifact.uri.replace("sha256/", "sha257/")}, "artifact_not_found"),
        ({"uri": "file:///etc/passwd"}, "invalid_artifact"),
        ({"sha256": "0" * 64}, "digest_mismatch"),
        ({"byte_size": 11}, "digest_mismatch"),
    ):
        (event,), _ = await optimize(settings, store, msgspec.structs.replace(artifact, **changed))
        assert event.code == code


async def test_a_store_that_is_away_is_not_the_models_fault(settings, store, monkeypatch):
    artifact = await put(store, uploads.mlp())

    async def stream(_):
        raise StoreUnavailable("away")
        yield b""

    monkeypatch.setattr(store, "stream", stream)
    with pytest.raises(StoreUnavailable):
        await optimize(settings, store, artifact)


# --------------------------------------------------------------------------- a child that does what it likes


def child(monkeypatch, script):
    """From here on the child is this script."""
    prelude = "import os, sys, time; sys.stdin.buffer.read()\n"
    monkeypatch.setattr(confined, "_CHILD", ("-c", prelude + script))


def say(**message):
    return f"print({json.dumps(message)!r}, flush=True)\n"


FP32_LINE = {
    "kind": "found",
    "step": "fp32",
    "signature": {"inputs": [], "outputs": []},
    "batch_cap": 1,
    "measurements": {"row_independent": False},
    "batched": {"sizes": {}, "inputs": {}},
}
REJECTED_LINE = {"kind": "rejected", "code": "load_failed", "found": "x"}


@pytest.mark.parametrize(
    ("script", "code", "says"),
    [
        ("", "vet_crashed", "No result"),
        ("os.kill(os.getpid(), 11)", "vet_crashed", "SIGSEGV"),
        ("print('std::bad_alloc', file=sys.stderr); os.abort()", "out_of_memory", "bad_alloc"),
        ("os.kill(os.getpid(), 24)", "vet_timeout", "CPU time"),
        ("sys.exit('a word at the end')", "vet_crashed", "a word at the end"),
        ("print('nonsense')", "vet_crashed", "reported nonsense"),
        (say(kind="rejected", code="<script>", found=""), "vet_crashed", "reported nonsense"),
        (say(**FP32_LINE | {"batch_cap": 10**9}), "vet_crashed", "reported nonsense"),
        (say(**FP32_LINE | {"step": "../../etc/passwd"}), "vet_crashed", "reported nonsense"),
        (say(**FP32_LINE | {"measurements": {"speedup": float("nan")}}), "vet_crashed", "reported nonsense"),
        (
            say(**FP32_LINE | {"measurements": {"speedup": 1.5}}).replace("1.5", "1e400"),
            "vet_crashed",
            "reported nonsense",
        ),
        ("print('x' * 2_000_000)", "vet_crashed", "too long a line"),
        ("while True: " + say(kind="progress", step="s", fraction=0), "vet_crashed", "more than 20000 lines"),
        (say(kind="found", step="fp32", failed="x"), "vet_crashed", "without a result"),
        (say(**FP32_LINE | {"step": "train"}), "vet_crashed", "No result"),
        ("print('x' * 50_000_000, file=sys.stderr)\n" + say(**REJECTED_LINE), "load_failed", "x. "),
        (say(**FP32_LINE), "vet_crashed", "is missing"),
        ("os.symlink('/etc/passwd', 'fp32.onnx')\n" + say(**FP32_LINE), "vet_crashed", "is missing"),
        ("os.mkfifo('fp32.onnx')\n" + say(**FP32_LINE), "vet_crashed", "not a plain file"),
        ("os.link('upload', 'fp32.onnx')\n" + say(**FP32_LINE), "vet_crashed", "not a plain file"),
        (say(**REJECTED_LINE) + "os.kill(os.getpid(), 11)", "load_failed", "x. "),
    ],
)
async def test_nothing_that_a_child_says_is_trusted(settings, store, monkeypatch, script, code, says):
    child(monkeypatch, script)
    (event,), _ = await optimize(settings, store, await put(store, b"file"))
    assert event.code == code
    assert says in event.reason


async def test_a_child_that_does_not_end_is_ended(settings, store, monkeypatch):
    child(monkeypatch, "time.sleep(600)")
    settings = settings.model_copy(update={"job_timeout_s": 2.0})
    (event,), _ = await optimize(settings, store, await put(store, b"file"))
    assert event.code == "vet_timeout"
    assert "longer than 2 s" in event.reason


async def test_a_child_that_dies_after_fp32_does_not_cost_the_upload(settings, store, monkeypatch):
    child(monkeypatch, f"open('fp32.onnx', 'wb').write(b'model')\n{say(**FP32_LINE)}os.kill(os.getpid(), 11)")
    events, _ = await optimize(settings, store, await put(store, b"file"))
    assert [type(event) for event in events] == [ev.VariantReady, ev.VariantRejected, ev.ModelReady]
    assert "SIGSEGV" in events[1].reason


async def test_an_installation_without_libraries_condemns_no_model(settings, store, monkeypatch):
    child(monkeypatch, "print('no onnxruntime', file=sys.stderr); sys.exit(78)")
    with pytest.raises(SandboxUnusable, match="no onnxruntime"):
        await optimize(settings, store, await put(store, b"file"))
    with pytest.raises(SandboxUnusable, match="no onnxruntime"):
        await confined.open_sandbox(settings)
    with pytest.raises(SandboxUnusable, match="can't start"):
        await optimize(settings, store, await put(store, b"file"), Sandbox(settings, ("/no/such/program",)))


async def test_without_user_namespaces_it_goes_on_with_the_network(settings, monkeypatch):
    monkeypatch.setattr(confined, "_NO_NETWORK", ("false",))
    sandbox, probed = await confined.open_sandbox(settings)
    assert sandbox._prefix == ()
    assert probed.providers == ("CPUExecutionProvider",)


async def test_cancelling_kills_the_child_and_its_children(settings, store, monkeypatch, tmp_path):
    pids = tmp_path / "pids"
    child(monkeypatch, f"pid = os.fork(); open({str(pids)!r}, 'a').write(f'{{os.getpid()}}\\n'); time.sleep(600)")
    running = asyncio.create_task(optimize(settings, store, await put(store, b"file")))

    def both():
        found = pids.read_text().split() if pids.exists() else []
        return found if len(found) == 2 else None

    found = await eventually(both, within_s=60)
    running.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await running
    await eventually(lambda: not any(_runs(int(pid)) for pid in found), within_s=60)
    assert [path.name for path in tmp_path.iterdir()] == ["pids"]


def _runs(pid):
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


async def test_the_child_has_little(settings, store, monkeypatch, tmp_path):
    monkeypatch.setenv("AIAAS_KAFKA_SASL_PASSWORD", "secret")
    told = tmp_path / "told"
    child(monkeypatch, f"import json; open({str(told)!r}, 'w').write(json.dumps([os.getcwd(), dict(os.environ)]))")
    await optimize(settings, store, await put(store, b"file"))
    directory, environment = json.loads(told.read_text())
    assert Path(directory).parent == tmp_path
    assert environment["HOME"] == directory
    assert not any(name.startswith("AIAAS_") for name in environment)


def test_the_child_limits_itself_and_dies_with_its_parent(settings, tmp_path):
    """A process starts a real child on an endless model and is killed: the child goes too."""
    description = msgspec.json.encode(Sandbox(settings).job(60.0, steps=plan(version_of(None), Means()).steps)).decode()
    (tmp_path / "upload").write_bytes(uploads.endless().SerializeToString())
    parent = f"""
import os, subprocess, sys, time
job = {description!r}.replace('"parent_pid":{os.getpid()}', f'"parent_pid":{{os.getpid()}}')
child = subprocess.Popen([sys.executable, *{confined._CHILD!r}], stdin=-1, stdout=-1, start_new_session=True)
child.stdin.write(job.encode()); child.stdin.close()
child.stdout.readline()
print(child.pid, flush=True)
time.sleep(600)
"""
    environment = {**os.environ, "PYTHONPATH": SOURCES}
    process = subprocess.Popen([sys.executable, "-c", parent], stdout=-1, cwd=tmp_path, env=environment)
    try:
        child = psutil.Process(pid := int(process.stdout.readline()))
        limits = Path(f"/proc/{pid}/limits").read_text()
        assert str(settings.sandbox_memory_bytes) in limits
        assert child.nice() > 0
        assert "NoNewPrivs:\t1" in Path(f"/proc/{pid}/status").read_text()
        process.send_signal(signal.SIGKILL)
        psutil.wait_procs([child], timeout=60)
        assert not _runs(pid)
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def test_what_a_killed_run_left_behind_is_swept(settings, tmp_path):
    left, others = tmp_path / "aiaas-job-o~x1", tmp_path / "aiaas-job-o2~x1"
    for directory in (left, others):
        directory.mkdir()
        (directory / "upload").touch()
    sweep(settings)
    assert list(tmp_path.iterdir()) == [others]


def test_the_service_itself_loads_nothing_that_parses_models():
    script = "import services.optimizer.app, sys; print(sorted({'onnx', 'onnxruntime', 'torch'} & set(sys.modules)))"
    command = [sys.executable, "-c", script]
    assert subprocess.run(command, cwd=SOURCES, check=True, capture_output=True, text=True).stdout == "[]\n"


def test_every_code_has_advice():
    assert all(text and not text.endswith(".") for text in ADVICE.values())


# --------------------------------------------------------------------------- steps that are done already

TWO = Optimization(candidates=("int8-weight-only", "int8-dynamic"))


def step_of(event):
    return Step(event.step, event.key, event.result, event.file, event.seconds, event.reused_from)


def with_steps(version, events, **fields):
    return replace(version, steps={event.step: step_of(event) for event in events}, **fields)


async def attempt(settings, store, version, **about):
    told = Told()
    hooks = Hooks(told.on_progress, told.record)
    events = await Jobs(settings, store, Sandbox(settings), about.pop("means", Means)).run(
        Task(version, **about), hooks
    )
    return events, told


def conclusions(events):
    return {event.variant: event.measurements for event in events if not isinstance(event, ev.ModelReady)}


async def test_an_attempt_goes_on_behind_the_last_finished_step(settings, store, monkeypatch):
    version = version_of(await put(store, uploads.mlp()), TWO)
    whole, first = await attempt(settings, store, version)
    for done in range(len(first.steps) + 1):
        events, again = await attempt(settings, store, with_steps(version, first.steps[:done]))
        assert [event.step for event in again.steps] == [event.step for event in first.steps[done:]]
        assert conclusions(events).keys() == conclusions(whole).keys()
    assert conclusions(events) == conclusions(whole)  # nothing was measured again
    child(monkeypatch, "sys.exit('no child is needed where nothing is left to do')")
    assert (await attempt(settings, store, with_steps(version, first.steps)))[0] == whole


async def test_the_same_work_of_another_version_is_taken_over(settings, store):
    artifact = await put(store, uploads.mlp())
    _, first = await attempt(settings, store, version_of(artifact, ONE))
    there = {
        event.key: (ev.StepPlace(model="other", version=7, step=event.step), step_of(event)) for event in first.steps
    }
    _, second = await attempt(settings, store, version_of(artifact, TWO), elsewhere=there)
    assert {event.step: event.reused_from and event.reused_from.model for event in second.steps} == {
        "fp32": "other",
        "int8-weight-only": "other",
        "int8-dynamic": None,
    }
    assert [event.result for event in second.steps[:2]] == [event.result for event in first.steps]
    _, elsewhere = await attempt(
        settings, store, version_of(artifact), elsewhere=there, means=lambda: Means(machine="another class")
    )
    assert [event.reused_from for event in elsewhere.steps] == [None, None]


async def test_a_result_that_is_gone_from_the_store_is_made_again(settings, store):
    version = version_of(await put(store, uploads.mlp()))
    _, first = await attempt(settings, store, version)
    gone = Artifact(uri=first.steps[0].result.uri[:-4] + "0000", sha256="0" * 64, byte_size=3)
    steps = [msgspec.structs.replace(first.steps[0], result=gone), *first.steps[1:]]
    _, again = await attempt(settings, store, with_steps(version, steps))
    assert [event.step for event in again.steps] == ["fp32"]


async def test_a_step_that_kills_optimizers_costs_itself_alone(settings, store):
    version = version_of(await put(store, uploads.mlp()), TWO)
    _, first = await attempt(settings, store, version)
    events, _ = await attempt(settings, store, with_steps(version, first.steps[:1], stalled=MAX_ATTEMPTS + 1))
    blamed = next(event for event in events if event.variant == "int8-weight-only")
    assert blamed.reason.startswith("optimizer_crashed: ")
    assert conclusions(events)["int8-dynamic"] is not None
    (event,), told = await attempt(settings, store, replace(version, stalled=MAX_ATTEMPTS + 1))
    assert (event.code, told.steps) == ("optimizer_crashed", [])


async def test_a_child_that_dies_of_a_step_goes_on_behind_it(settings, store, monkeypatch):
    version = version_of(await put(store, uploads.mlp()), TWO)
    _, first = await attempt(settings, store, version)
    version = with_steps(version, first.steps[:1])
    child(monkeypatch, "os.kill(os.getpid(), 11)")
    events, told = await attempt(settings, store, version)
    assert [event.step for event in told.steps] == ["int8-weight-only", "int8-dynamic"]
    assert all("SIGSEGV" in event.reason for event in events if isinstance(event, ev.VariantRejected))
    assert events[-1].variant == "fp32"


async def test_when_the_time_is_over_the_rest_is_not_tried(settings, store):
    options = Optimization(candidates=TWO.candidates, policy=Policy(time_budget_s=0.001))
    events, told = await attempt(settings, store, version_of(await put(store, uploads.mlp()), options))
    assert [event.step for event in told.steps] == ["fp32"]
    rejected = [event for event in events if isinstance(event, ev.VariantRejected)]
    assert {event.reason for event in rejected} == {"not tried: the time for candidates, 0.001 s, was over"}


async def test_what_was_made_says_of_what_and_how(settings, store):
    artifact = await put(store, uploads.mlp())
    tools = {"onnx": "1"}
    events, _ = await attempt(settings, store, version_of(artifact), means=lambda: Means(tools=tools))
    fp32, int8 = (event.provenance for event in events[:2])
    assert (fp32.parent_sha256, fp32.recipe) == (artifact.sha256, "fp32")
    assert (int8.parent_sha256, int8.recipe, int8.same_bytes) == (artifact.sha256, "int8-weight-only", True)
    assert json.loads(int8.parameters)["action"]["bits"] == 8
    assert int8.tools == tools
    assert int8.seed == int(artifact.sha256[:8], 16)
