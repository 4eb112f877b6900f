"""The fold: exports from asked for to ready or rejected, and runtime configurations of versions; and their edges."""

from __future__ import annotations

import pytest

from services.optimizer.exporter import next_export
from shared import events as ev
from shared import export_events, exports
from shared.errors import InvalidInput
from shared.runtime_config import MAX_CONFIG_BYTES, Parameters, RuntimeConfig, parse, shown
from support.facts import OWNER, artifact, folded, made_ready, uploaded

READY = (uploaded(), *made_ready())
TOOLS = {"onnxruntime": "1", "torch": "2"}


def asked(export_id="e1", file_format="pt2", **fields):
    return export_events.ExportRequested(model="m", export_id=export_id, version=1, format=file_format, **fields)


def claimed(attempt=1, owner=OWNER, export_id="e1"):
    return export_events.ExportClaimed(model="m", export_id=export_id, attempt=attempt, owner=owner)


def made(attempt=1, owner=OWNER, export_id="e1"):
    return export_events.ExportReady(
        model="m", export_id=export_id, attempt=attempt, owner=owner, artifact=artifact("export")
    )


def of(*events, export_id="e1"):
    return folded(*READY, *events).model("m").exports.get(export_id)


def test_an_export_goes_from_asked_for_to_ready():
    assert of(asked()).state == "queued"
    building = of(asked(), claimed())
    assert (building.state, building.attempt, building.owner) == ("building", 1, OWNER)
    done = of(asked(), claimed(), made())
    assert (done.state, done.artifact, done.source) == ("ready", artifact("export"), building.source)
    rejected = export_events.ExportRejected(model="m", export_id="e1", attempt=1, owner=OWNER, code="c", reason="r")
    assert (of(asked(), claimed(), rejected).state, of(asked(), claimed(), rejected).reason) == ("rejected", "r")


def test_the_first_claim_wins_and_what_is_superseded_changes_nothing():
    second = claimed(owner="optimizer-2/x")
    assert of(asked(), claimed(), second).owner == OWNER
    again = (asked(), claimed(), claimed(2, "optimizer-2/x"))
    assert of(*again, made()).state == "building"
    assert of(*again, made(2, "optimizer-2/x")).state == "ready"
    assert of(asked(), made()).state == "queued"
    assert of(asked(), claimed(), made(), claimed(2)).state == "ready"


@pytest.mark.parametrize(
    "event",
    [
        export_events.ExportRequested(model="m", export_id="e1", version=2, format="pt2"),
        asked(file_format="tflite"),
        asked(variant="int4"),
    ],
)
def test_what_can_not_be_exported_is_not_there(event):
    assert of(event) is None


def test_an_id_is_one_export():
    assert of(asked(), asked(file_format="onnx")).format == "pt2"


def test_a_model_keeps_its_newest_exports():
    many = [asked(f"e{index}") for index in range(exports.KEPT + 5)]
    held = folded(*READY, *many).model("m").exports
    assert list(held) == [f"e{index}" for index in range(5, exports.KEPT + 5)]


def test_the_same_bytes_in_the_same_format_are_one_export():
    held = folded(*READY, asked("e1"), asked("e2", "onnx")).model("m").exports
    source = held["e1"].source
    assert exports.same(held, 1, "pt2", source).id == "e1"
    assert exports.same(held, 1, "bundle", source) is None
    rejected = export_events.ExportRejected(model="m", export_id="e1", attempt=1, owner=OWNER, code="c", reason="r")
    held = folded(*READY, asked(), claimed(), rejected).model("m").exports
    assert exports.same(held, 1, "pt2", source) is None


def test_who_builds_what():
    def turn(registry, tools=TOOLS, owner="optimizer-9/z", dead=()):
        work = next_export(registry, owner, tools, lambda other: other in dead)
        return None if work is None else work[1].id

    registry = folded(*READY, asked("e1"), asked("e2", "onnx"))
    assert turn(registry) == "e1"
    assert turn(registry, {"onnxruntime": "1"}) == "e2"
    assert turn(folded(*READY, asked(), claimed())) is None
    assert turn(folded(*READY, asked(), claimed()), dead=[OWNER]) == "e1"
    assert turn(folded(*READY, asked(), claimed()), owner="optimizer-1/later") == "e1"
    assert turn(folded(*READY, asked(), claimed(), made())) is None
    assert turn(folded(*READY, asked(file_format="savedmodel"))) is None


# --------------------------------------------------------------------------- runtime configurations

TWO, FOUR = (RuntimeConfig(max_batch_size=rows) for rows in (2, 4))


def configured(config, version=None):
    return ev.RuntimeConfigured(model="m", version=version, config=config)


def test_a_configuration_holds_for_versions_that_are_there_and_those_to_come():
    model = folded(*READY, configured(TWO), uploaded(upload_id="u2")).model("m")
    assert model.versions[1].runtime == model.versions[1].serving.runtime == TWO
    assert model.versions[1].serving.row_cap == 2
    assert model.versions[2].runtime == TWO


def test_one_that_came_with_an_upload_is_the_versions_own_until_it_is_set_anew():
    own = uploaded(upload_id="u2", runtime=FOUR)
    assert folded(*READY, configured(TWO), own).version("m", 2).runtime == FOUR
    assert folded(*READY, own).version("m", 1).runtime is None
    assert folded(*READY, own, configured(TWO)).version("m", 2).runtime == TWO


def test_one_of_a_version_is_its_alone():
    model = folded(*READY, uploaded(upload_id="u2"), configured(TWO, 2), uploaded(upload_id="u3")).model("m")
    assert [model.versions[number].runtime for number in (1, 2, 3)] == [None, TWO, None]
    assert folded(*READY, configured(TWO, 9)).model("m").versions[1].runtime is None
    assert folded(*READY, configured(TWO), configured(None)).version("m", 1).serving.runtime is None


def test_what_is_shown_is_read_again():
    config = parse(
        b'{"max_batch_size": 4, "instance_group": [{"kind": "KIND_CPU", "count": 2}], "parameters": '
        b'{"intra_op_thread_count": "2", "enable_mem_arena": {"string_value": "false"}}, '
        b'"optimization": {"graph": {"level": -1}}}'
    )
    assert config.parameters == Parameters(intra_op_thread_count=2, enable_mem_arena=False)
    from msgspec import json  # noqa: PLC0415 - of this test alone

    assert parse(json.encode(shown(config))) == config


@pytest.mark.parametrize(
    ("text", "named"),
    [
        (b'{"sequence_batching": {}}', "sequence_batching"),
        (b'{"parameters": {"cudnn_conv_algo_search": "1"}}', "cudnn_conv_algo_search"),
        (b'{"parameters": {"inter_op_thread_count": 2}}', "inter_op_thread_count"),
        (b'{"parameters": {"gpu_mem_limit": 4294967296}, "instance_group": [{"kind": "KIND_CPU"}]}', "gpu_mem_limit"),
        (b'{"instance_group": [{"count": 0}]}', "count"),
        (b'{"instance_group": [{"gpus": [0]}]}', "gpus"),
        (b'{"instance_group": [{}, {}]}', "instance_group"),
        (b'{"max_batch_size": -1}', "max_batch_size"),
        (b'{"optimization": {"graph": {"level": 3}}}', "level"),
        (b"[]", "runtime configuration"),
        (b"{", "runtime configuration"),
        (b" " * (MAX_CONFIG_BYTES + 1), "bytes"),
        (b"[" * 4000, "runtime configuration"),
    ],
)
def test_what_is_no_configuration_is_named(text, named):
    with pytest.raises(InvalidInput, match=named):
        parse(text)
