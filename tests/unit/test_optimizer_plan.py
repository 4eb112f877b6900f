"""Plans: which steps, in which order, under which keys; and the small pure parts around them."""

from __future__ import annotations

from dataclasses import replace

import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from services.optimizer import plan as plans
from services.optimizer.actions import UPLOAD, Draw, Train
from services.optimizer.curves import Curves
from services.optimizer.plan import Means, UnknownCandidate, candidate, keys, plan, work
from services.optimizer.progress import Meter
from shared.artifacts import Artifact
from shared.events import MachineClass
from shared.optimization import DataFile, LoggedRequests, Optimization, Policy, Training
from shared.registry import Version
from shared.tensorboard import crc32c, record

FILE = Artifact(uri="memory://sha256/00/00", sha256="0" * 64, byte_size=1)
OTHER_FILE = Artifact(uri="memory://sha256/11/11", sha256="1" * 64, byte_size=1)
LEARNS = Means(training=True, machine="a", tools={"onnx": "1"})
DATA = DataFile(artifact=OTHER_FILE)


def version(artifact=FILE, **fields):
    return Version("m", 1, "u", artifact, "onnx", None, 0, **fields)


def names(of, means=LEARNS):
    return [spec.name for spec in plan(of, means).steps]


def test_without_data_only_what_made_up_inputs_can_judge():
    assert names(version())[0] == "fp32"
    assert not [name for name in names(version()) if name.startswith(("pruned", "student", "fp16"))]
    assert "int8-static" in names(version())


def test_with_data_what_changes_a_model_more():
    found = names(version(optimization=Optimization(data=DATA)))
    assert found.index("pruned-50") < found.index("pruned-50-int8-static")
    assert "student" in found
    assert "pruned-50" not in names(version(optimization=Optimization(data=DATA)), Means())


def test_fp16_where_a_gpu_waits_for_it():
    assert "fp16" in names(version(), Means(gpu=True))


ELSEWHERE = replace(LEARNS, others=(MachineClass(isa="avx2", threads=8),))


def test_where_workers_of_other_classes_are_up_they_are_asked_last():
    asked = Optimization(candidates=("int8-static", "int8-dynamic"))
    assert names(version(optimization=asked), ELSEWHERE) == [
        "fp32",
        "inputs",
        "int8-static",
        "int8-dynamic",
        "elsewhere",
    ]  # fmt: skip - one line
    assert names(version(optimization=Optimization(candidates=())), ELSEWHERE) == ["fp32"]


def test_what_workers_found_is_known_by_their_classes_and_the_candidates():
    one, other = (Optimization(candidates=each) for each in (("int8-static",), ("int8-dynamic",)))
    found = [
        keys(plan(version(optimization=options), means), version(optimization=options), means, {}, {})["elsewhere"]
        for options in (one, other)
        for means in (ELSEWHERE, replace(ELSEWHERE, others=(MachineClass(isa="avx2", threads=4),)))
    ]
    assert len({*found}) == 4


def test_what_is_asked_for_and_nothing_else():
    asked = Optimization(candidates=("student-int8-dynamic", "nonsense"))
    found = plan(version(optimization=asked), LEARNS)
    assert [spec.name for spec in found.steps] == ["fp32", "student", "student-int8-dynamic"]
    assert found["student-int8-dynamic"].base == "student"
    assert found.refused == {"nonsense": "nothing is called that"}
    assert names(version(optimization=Optimization(candidates=()))) == ["fp32"]


@pytest.mark.parametrize("name", ["", "pruned", "pruned-0", "pruned-50-", "pruned-50-student", "fp32x", "student-x"])
def test_what_nothing_is_called(name):
    with pytest.raises(UnknownCandidate):
        candidate(name)


def test_an_update_is_trained_first_and_compared_before_its_candidates():
    asked = Optimization(data=LoggedRequests(), candidates=("int8-static",))
    found = plan(version(optimization=asked, training=Training(), parent=1), LEARNS)
    assert [spec.name for spec in found.steps] == ["data", "train", "fp32", "compare", "int8-static"]
    assert [type(found[name].action) for name in ("data", "train")] == [Draw, Train]
    assert [found[name].base for name in ("train", "fp32", "int8-static")] == [UPLOAD, "train", "fp32"]
    assert plans.needs_training(found.steps)
    assert not plans.needs_training(plan(version(), Means()).steps)


def all_keys(of, means=LEARNS, data=None, finished=None):
    return keys(plan(of, means), of, means, data or {}, finished or {})


def test_a_key_is_of_all_that_a_result_depends_on():
    plain = version(optimization=Optimization(candidates=("int8-static", "pruned-50-int8-static")))
    same = all_keys(replace(plain, number=2, upload_id="v"))
    assert same == all_keys(plain)
    assert len(set(same.values())) == len(same)
    for changed in (
        all_keys(replace(plain, artifact=OTHER_FILE)),
        all_keys(plain, replace(LEARNS, machine="b")),
        all_keys(plain, replace(LEARNS, tools={"onnx": "2"})),
        all_keys(plain, data={"data": "1" * 64}),
        all_keys(replace(plain, optimization=Optimization(candidates=plain.optimization.candidates, seed=3))),
    ):
        assert not set(changed.values()) & set(same.values())
    policy = Optimization(candidates=("int8-static",), policy=Policy(max_loss=0.5))
    assert set(all_keys(replace(plain, optimization=policy)).values()) < set(same.values())


def test_what_is_finished_keeps_its_key_and_what_starts_from_it_follows():
    one = version(optimization=Optimization(candidates=("pruned-50-int8-static",)))
    found = all_keys(one, finished={"pruned-50": "k"})
    assert found["pruned-50"] == "k"
    assert found["pruned-50-int8-static"] != all_keys(one)["pruned-50-int8-static"]


def test_requests_that_are_not_pinned_are_drawn_for_one_version():
    def drawn(number, **source):
        of = version(optimization=Optimization(data=LoggedRequests(**source)))
        return all_keys(replace(of, number=number))["data"]

    assert drawn(1) != drawn(2)
    pinned = {"from_offsets": {0: 1}, "until_offsets": {0: 9}}
    assert drawn(1, **pinned) == drawn(2, **pinned)


def test_the_same_work():
    assert work(version()) == work(replace(version(), number=2, model="n"))
    assert work(version()) != work(version(OTHER_FILE))
    assert work(version()) != work(version(optimization=Optimization(seed=1)))


class TestMeter:
    def setup_method(self):
        self.told, self.now_s = [], 0.0

    def meter(self):
        async def on_progress(progressed):
            self.told.append((progressed.step, round(progressed.fraction, 3), progressed.remaining_s))

        return Meter(["a", "b", "c", "d"], on_progress, lambda: self.now_s)

    async def test_the_rest_is_guessed_from_what_was_done_here(self):
        meter = self.meter()
        meter.recalled("a")
        await meter.say("b", 0.0)
        self.now_s = 10.0
        await meter.done("b")
        await meter.say("c", 0.5, "train")
        assert self.told == [("b", 0.25, None), ("b: done", 0.5, 20.0), ("c: train", 0.625, 10.0)]

    async def test_the_same_is_not_told_at_every_step(self):
        meter = self.meter()
        for step in range(100):
            self.now_s = step / 100
            await meter.say("a", step / 100, "train")
        assert len(self.told) == 2

    async def test_a_part_of_a_step_is_no_step(self):
        meter = self.meter()
        await meter.done("a.3")
        meter.recalled("a.4")
        await meter.say("a", 0.0)
        assert self.told == [("a", 0.0, None)]


def test_the_checksum_is_crc_32c():
    assert crc32c(b"123456789") == 0xE3069283


def test_curves_are_what_tensorboard_reads(tmp_path):
    """The records as onnx's protobuf library reads them, by the field numbers of TensorBoard's `event.proto`."""
    curves = Curves(tmp_path)
    curves.add(version(attempt=1), {"loss/train": (1, 0.5)})
    curves.add(version(attempt=1), {"loss/train": (300, 0.25), "metric": (2, 0.75)})
    curves.add(version(attempt=1), {})
    curves.close()
    [file] = (tmp_path / "m" / "1" / "1").iterdir()
    assert file.name.startswith("events.out.tfevents.")
    event = _event_type()
    first, *events = [event.FromString(content) for content in _records(file.read_bytes())]
    assert first.file_version == "brain.Event:2"
    scalars = [(value.tag, each.step, value.simple_value) for each in events for value in each.summary.value]
    assert scalars == [("loss/train", 1, 0.5), ("loss/train", 300, 0.25), ("metric", 2, 0.75)]


def _event_type():
    """The parts of `event.proto` and `summary.proto` that are written."""
    file = descriptor_pb2.FileDescriptorProto(name="event.proto", package="t", syntax="proto3")
    kinds = descriptor_pb2.FieldDescriptorProto
    fields = {
        "Value": [("tag", 1, kinds.TYPE_STRING, ""), ("simple_value", 2, kinds.TYPE_FLOAT, "")],
        "Summary": [("value", 1, kinds.TYPE_MESSAGE, ".t.Value")],
        "Event": [
            ("wall_time", 1, kinds.TYPE_DOUBLE, ""),
            ("step", 2, kinds.TYPE_INT64, ""),
            ("file_version", 3, kinds.TYPE_STRING, ""),
            ("summary", 5, kinds.TYPE_MESSAGE, ".t.Summary"),
        ],
    }
    for name, parts in fields.items():
        message = file.message_type.add(name=name)
        for field, number, kind, of in parts:
            label = kinds.LABEL_REPEATED if field == "value" else kinds.LABEL_OPTIONAL
            message.field.add(name=field, number=number, type=kind, type_name=of or None, label=label)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("t.Event"))


def _records(content):
    """The records of a TFRecord file; both checksums of each are right."""
    while content:
        length = int.from_bytes(content[:8], "little")
        end = 12 + length + 4
        assert record(content[12 : 12 + length]) == content[:end]
        yield content[12 : 12 + length]
        content = content[end:]
