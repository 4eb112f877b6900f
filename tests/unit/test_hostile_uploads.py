"""The hostile corpus in the real, confined child: none executes, none reads outside, each is rejected with a reason."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from services.optimizer import confined
from services.optimizer.confined import Sandbox
from services.optimizer.rejections import ADVICE
from services.optimizer.settings import OptimizerSettings
from support import hostile

SOURCES = str(Path(confined.__file__).parents[2])
NO_LANDLOCK = 77
_PER_CHILD = 50
"""Files that one confined process looks at, one after the other: who hurts it hurts all behind it."""

# What an attempt does with a file, in one confined process for many: recognise it, then convert or examine it.
EXAMINE = """
import json, os, sys, time
from pathlib import Path
import msgspec
from services.optimizer.messages import Job
from services.optimizer.sandbox import landlock
from shared.confine import confine
job = msgspec.json.decode(os.environ["JOB"].replace("PARENT", str(os.getppid())), type=Job)
confine(job.limits, job.parent_pid)
landlock.restrict()
from services.optimizer.actions import Convert, Refer, Spec
from services.optimizer.sandbox.pipeline import Pipeline
refer = Spec(name="fp32", action=Refer())
work = os.getcwd()
for name in sorted(filter(str.isdigit, os.listdir(work))):
    os.chdir(os.path.join(work, name))
    said, begun = [], time.monotonic()
    class Out:
        def write(self, text): said.append(json.loads(text))
        def flush(self): pass
    Pipeline(msgspec.structs.replace(job, steps=(refer,)), Out()).run()
    if said[-1]["kind"] == "recognised":
        convert = Spec(name="canonical", action=Convert(format=said[-1]["format"]))
        again = msgspec.structs.replace(refer, base="canonical")
        Pipeline(msgspec.structs.replace(job, steps=(convert, again)), Out()).run()
        if (said[-1].get("conversion") or {}).get("engine") == "torch":
            again = msgspec.structs.replace(again, action=Refer(engine="torch"))
            Pipeline(msgspec.structs.replace(job, steps=(again,)), Out()).run()
            assert said[-1]["kind"] == "rejected" or said[-1]["engine"] == "torch"
    last = said[-1]
    told = {"name": name, "kind": last["kind"], "code": last.get("code"), "found": last.get("found")}
    told["seconds"] = round(time.monotonic() - begun, 2)
    print(json.dumps(told), flush=True)
"""

ESCAPES = """
import os, socket, sys, json, subprocess, ctypes
import msgspec
from services.optimizer.messages import Job
from services.optimizer.sandbox import landlock
from shared.confine import confine
job = msgspec.json.decode(os.environ["JOB"].replace("PARENT", str(os.getppid())), type=Job)
confine(job.limits, job.parent_pid)
if landlock.restrict() < 6:
    sys.exit(77)
def tried(what, do):
    try:
        do()
    except OSError as err:
        return
    print("ESCAPED: " + what)
outside = os.environ["OUTSIDE"]
tried("read /etc/passwd", lambda: open("/etc/passwd").read())
tried("read a file beside", lambda: open(outside + "/secret").read())
tried("read it by a link", lambda: (os.symlink(outside + "/secret", "link"), open("link").read()))
tried("take in a file beside", lambda: os.link(outside + "/secret", "hard"))
tried("move a file beside", lambda: os.rename(outside + "/secret", "moved"))
tried("list /", lambda: os.listdir("/"))
tried("list /tmp", lambda: os.listdir("/tmp"))
tried("read the parent's environment", lambda: open(f"/proc/{os.getppid()}/environ").read())
tried("write outside", lambda: open(outside + "/MARKER", "w"))
tried("write to /tmp", lambda: open("/tmp/MARKER-of-a-payload", "w"))
tried("change our sources", lambda: open(sys.modules["services.optimizer.messages"].__file__, "a"))
tried("run a program", lambda: subprocess.run(["/bin/true"], check=True))
tried("signal the parent", lambda: os.kill(os.getppid(), 0))
tried("connect", lambda: socket.create_connection(("127.0.0.1", int(os.environ["PORT"])), 2))
tried("listen", lambda: socket.create_server(("127.0.0.1", 0)))
os.mkdir("before"), os.mkdir("after")
open("before/own", "w").write("x")
os.rename("before/own", "after/own")
print("own file: " + open("after/own").read())
"""


def job(settings):
    text = msgspec.json.encode(Sandbox(settings).job(120.0)).decode()
    return text.replace(f'"parent_pid":{os.getpid()}', '"parent_pid":PARENT')


@pytest.fixture
def settings(tmp_path):
    return OptimizerSettings(instance="o", scratch_dir=tmp_path, run_timeout_s=5, max_model_bytes=200_000_000)


def child(script, settings, work, **environment):
    """A confined process of the script, started as the service starts its children."""
    return subprocess.run(
        [*confined._NO_NETWORK, sys.executable, "-P", "-c", script],
        cwd=work,
        env={**confined._environment(work, 1), "JOB": job(settings), **environment},
        capture_output=True,
        text=True,
        timeout=250,
        check=False,
    )


@pytest.mark.parametrize("part", range(-(-len(hostile.CORPUS) // _PER_CHILD)))
def test_no_payload_runs_and_every_file_gets_a_reason(settings, tmp_path, part, capsys):
    names = list(hostile.CORPUS)[part * _PER_CHILD : (part + 1) * _PER_CHILD]
    work = tmp_path / "work"
    for number, name in enumerate(names):
        (work / f"{number:03}").mkdir(parents=True)
        (work / f"{number:03}" / "upload").write_bytes(hostile.content(name))
    done = child(EXAMINE, settings, work)
    said = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert len(said) == len(names), (names[len(said)], done.stderr[-2000:])
    wrong = {}
    for name, verdict in zip(names, said, strict=True):
        expected = hostile.CORPUS[name][1]
        codes = expected if isinstance(expected, tuple) else (expected,)
        if verdict["code"] not in codes or (verdict["kind"] == "rejected") != (verdict["code"] is not None):
            wrong[name] = verdict
    assert not wrong
    assert all(verdict["code"] in ADVICE and verdict["found"] for verdict in said if verdict["kind"] == "rejected")
    assert not list(tmp_path.rglob("MARKER*"))
    assert not Path("/tmp", hostile.MARKER).exists()
    with capsys.disabled():
        sys.stdout.write(f"\n{len(said)} of {len(hostile.CORPUS)} hostile uploads examined: no payload ran\n")


def test_payloads_would_leave_a_marker(tmp_path):
    """Run on purpose, where nothing of ours is in between."""
    scripts = []
    for number, (make, script) in enumerate(hostile.LIVE.values()):
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / "file").write_bytes(make())
        where = str(tmp_path / str(number))
        scripts.append(f"os.chdir({where!r})\ntry:\n  {script}\nexcept Exception as err: print(repr(err))\n")
    done = subprocess.run(
        [sys.executable, "-c", "import os\n" + "".join(scripts)], capture_output=True, text=True, check=True
    )
    for number, name in enumerate(hostile.LIVE):
        assert (tmp_path / str(number) / hostile.MARKER).exists(), (name, done.stdout[-500:])


def test_what_the_child_can_not_do(settings, tmp_path, free_listener):
    (tmp_path / "secret").write_text("s")
    work = tmp_path / "work"
    work.mkdir()
    done = child(ESCAPES, settings, work, OUTSIDE=str(tmp_path), PORT=str(free_listener))
    if done.returncode == NO_LANDLOCK:
        pytest.skip("this kernel has no Landlock, or one before version 6, which does not keep signals from others")
    assert done.stdout == "own file: x\n", (done.stdout, done.stderr[-1500:])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["secret", "work"]


@pytest.fixture
def free_listener():
    """A port on which somebody would answer."""
    import socket  # noqa: PLC0415 - only here

    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]
