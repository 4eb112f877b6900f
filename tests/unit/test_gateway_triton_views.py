"""The registry and the monitor's numbers in Triton's words: configuration, repository index, statistics."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from services.gateway import statistics as shown
from services.gateway.model_config import model_config
from services.gateway.repository_index import index
from shared import events as ev
from shared import heartbeat_events, outcome_events
from shared.errors import UnknownModel, UnknownVersion
from shared.signature import Signature, TensorSpec
from shared.statistics import Statistics
from support.facts import SIGNATURE, folded, made_ready, uploaded


def config_of(signature=SIGNATURE, *, batch_cap=32, alive=()):
    claimed, variant, ready = made_ready()
    variant = replace(variant, signature=signature, batch_cap=batch_cap)
    model = folded(uploaded(), claimed, variant, ready).models["m"]
    return model_config(model, model.versions[1], signature, alive)


def tensor(name="x", shape=("n", 4), datatype="FP32", axis=0):
    return TensorSpec(name=name, datatype=datatype, shape=shape, batch_axis=axis)


def beat(model, *versions, instance="w", providers=("CPUExecutionProvider",), service="worker"):
    held = (model.versions[number].serving for number in versions)
    return heartbeat_events.Heartbeat(
        instance=instance,
        incarnation="i",
        service=service,
        machine=ev.MachineClass(isa="avx2", providers=providers),
        loaded=tuple(
            heartbeat_events.LoadedModel(
                model=model.name,
                version=number,
                variant=variant.name,
                artifact_sha256=variant.artifact.sha256,
                byte_size=1,
            )
            for number, variant in zip(versions, held, strict=True)
        ),
        registry_offset=0,
        interval_s=2.0,
    )


# ------------------------------------------------------------------ configuration


def test_a_batched_model_tells_dims_without_the_batch():
    config = config_of()
    assert config["name"] == "m"
    assert config["backend"] == "onnxruntime"
    assert config["max_batch_size"] == 32
    assert config["input"][0] == {
        "name": "x",
        "data_type": "TYPE_FP32",
        "dims": [4],
        "format": "FORMAT_NONE",
        "is_shape_tensor": False,
        "optional": False,
    }
    assert config["output"][0]["dims"] == [2]
    assert config["dynamic_batching"]["priority_levels"] == 2
    assert config["version_policy"] == {"specific": {"versions": [1]}}


@pytest.mark.parametrize(
    ("signature", "batch_cap"),
    [
        (SIGNATURE, 1),  # rows were not proved independent
        (Signature(inputs=(tensor(shape=(2, "n"), axis=1),), outputs=(tensor("y"),)), 8),
        (Signature(inputs=(tensor(), tensor("rate", (1,), "INT64", None)), outputs=(tensor("y"),)), 8),
        (Signature(inputs=(tensor(),), outputs=(tensor("y", axis=None),)), 8),
    ],
)
def test_what_is_not_batched_in_tritons_sense_tells_whole_shapes(signature, batch_cap):
    config = config_of(signature, batch_cap=batch_cap)
    assert config["max_batch_size"] == 0
    assert "dynamic_batching" not in config
    for told, spec in zip(config["input"], signature.inputs, strict=True):
        assert told["dims"] == [dim if isinstance(dim, int) else -1 for dim in spec.shape]


@pytest.mark.parametrize(
    ("dims", "layout"),
    [
        ((3, 224, 224), "FORMAT_NCHW"),
        ((1, 28, 28), "FORMAT_NCHW"),
        (("h", "w", 3), "FORMAT_NHWC"),
        ((3, 224, 3), "FORMAT_NONE"),
        ((224, 224, 4), "FORMAT_NONE"),
        ((3, 224), "FORMAT_NONE"),
    ],
)
def test_how_a_picture_lies_is_told_where_it_can_lie_in_one_way_only(dims, layout):
    picture = Signature(inputs=(tensor(shape=("n", *dims)),), outputs=(tensor("y"),))
    assert config_of(picture)["input"][0]["format"] == layout
    assert config_of(replace(picture, inputs=(tensor(shape=dims, axis=None),)))["input"][0]["format"] == layout


def test_texts_are_strings():
    texts = Signature(inputs=(tensor(datatype="BYTES"),), outputs=(tensor("y", datatype="BF16"),))
    config = config_of(texts)
    assert (config["input"][0]["data_type"], config["output"][0]["data_type"]) == ("TYPE_STRING", "TYPE_BF16")


def test_instances_are_the_live_workers_that_hold_it():
    model = folded(uploaded(), *made_ready()).models["m"]
    gpu = ("CUDAExecutionProvider", "CPUExecutionProvider")
    alive = [
        beat(model, 1, instance="a"),
        beat(model, 1, instance="b"),
        beat(model, 1, instance="c", providers=gpu),
        beat(model, instance="d"),
        beat(model, 1, instance="o", service="optimizer"),
    ]
    assert config_of(alive=alive)["instance_group"] == [
        {"name": "m_gpu", "kind": "KIND_GPU", "count": 1},
        {"name": "m_cpu", "kind": "KIND_CPU", "count": 2},
    ]
    assert config_of()["instance_group"] == []


# ------------------------------------------------------------------ the index


def states(registry, alive=(), **options):
    return {(e["name"], e["version"]): (e["state"], e["reason"]) for e in index(registry, list(alive), **options)}


def test_the_index_tells_every_version_and_why_it_does_not_answer():
    attempt = {"version": 4, "attempt": 1, "owner": "o"}
    registry = folded(
        *[event for n in (1, 2, 3) for event in (uploaded("m", f"u{n}"), *made_ready("m", n))],
        ev.ModelPromoted(model="m", version=2),
        ev.ModelRetired(model="m", version=3),
        uploaded("m", "u4"),
        ev.OptimizationClaimed(model="m", **attempt),
        ev.ModelRejected(model="m", **attempt, code="invalid", reason="no graph"),
        uploaded("m", "u5"),
        uploaded("n", "u6"),
        *made_ready("n", 1),
    )
    alive = [beat(registry.models["m"], 2)]
    told = states(registry, alive)
    assert {key: state for key, (state, _) in told.items()} == {
        ("m", "1"): "UNAVAILABLE",  # ready, neither held nor routed to
        ("m", "2"): "READY",
        ("m", "3"): "UNAVAILABLE",
        ("m", "4"): "UNAVAILABLE",
        ("m", "5"): "LOADING",
        ("n", "1"): "LOADING",
    }
    assert told["m", "2"][1] == ""
    assert "no graph" in told["m", "4"][1]
    assert all(reason for (_, version), (state, reason) in told.items() if state != "READY")
    assert list(states(registry, alive, only_ready=True)) == [("m", "2")]


def test_an_unloaded_model_is_unloading_for_as_long_as_someone_holds_it():
    registry = folded(uploaded(), *made_ready(), ev.ModelUnloaded(model="m"))
    model = registry.models["m"]
    assert states(registry, [beat(model, 1)])["m", "1"][0] == "UNLOADING"
    state, reason = states(registry)["m", "1"]
    assert state == "UNAVAILABLE"
    assert "unloaded" in reason


# ------------------------------------------------------------------ statistics


def spent(count, ns):
    return outcome_events.Duration(count=count, ns=ns)


COUNTED = outcome_events.ModelStatistics(
    model="m",
    version=1,
    last_inference_ms=1_700_000_000_123,
    inferences=5,
    success=spent(6, 600),
    fail=spent(2, 20),
    queue=spent(6, 60),
    compute_input=spent(5, 1),
    compute_infer=spent(5, 500),
    compute_output=spent(5, 2),
    runs=(
        outcome_events.RunStatistics(
            batch_size=1, compute_input=spent(2, 1), compute_infer=spent(2, 20), compute_output=spent(2, 2)
        ),
        outcome_events.RunStatistics(
            batch_size=3, compute_input=spent(1, 4), compute_infer=spent(1, 30), compute_output=spent(1, 5)
        ),
    ),
    offsets={1: 9, 0: 3},
)


def test_statistics_have_tritons_shape():
    registry, numbers = folded(uploaded(), *made_ready()), Statistics()
    numbers.heard(COUNTED)
    [row] = shown.all_models(registry, numbers)["model_stats"]
    assert row == {
        "name": "m",
        "version": "1",
        "last_inference": 1_700_000_000_123,
        "inference_count": 5,
        "execution_count": 3,
        "inference_stats": {
            "success": {"count": 6, "ns": 600},
            "fail": {"count": 2, "ns": 20},
            "queue": {"count": 6, "ns": 60},
            "compute_input": {"count": 5, "ns": 1},
            "compute_infer": {"count": 5, "ns": 500},
            "compute_output": {"count": 5, "ns": 2},
            "cache_hit": {"count": 0, "ns": 0},
            "cache_miss": {"count": 0, "ns": 0},
        },
        "batch_stats": [
            {
                "batch_size": 1,
                "compute_input": {"count": 2, "ns": 1},
                "compute_infer": {"count": 2, "ns": 20},
                "compute_output": {"count": 2, "ns": 2},
            },
            {
                "batch_size": 3,
                "compute_input": {"count": 1, "ns": 4},
                "compute_infer": {"count": 1, "ns": 30},
                "compute_output": {"count": 1, "ns": 5},
            },
        ],
        "exact_at": {"0": 3, "1": 9},
    }


def test_statistics_of_versions_that_no_request_met_and_that_answer_no_more():
    registry = folded(
        *[event for n in (1, 2) for event in (uploaded("m", f"u{n}"), *made_ready("m", n))],
        uploaded("m", "u3"),
        ev.ModelRetired(model="m", version=1),
    )
    numbers = Statistics()
    numbers.heard(COUNTED)
    rows = shown.one_model(registry, numbers, "m", None)["model_stats"]
    assert [(row["version"], row["inference_count"]) for row in rows] == [("1", 5), ("2", 0)]
    assert rows[1]["batch_stats"] == []
    assert shown.one_model(registry, numbers, "m", 2)["model_stats"] == [rows[1]]
    with pytest.raises(UnknownVersion):
        shown.one_model(registry, numbers, "m", 9)
    with pytest.raises(UnknownModel):
        shown.one_model(registry, numbers, "nobody", None)


def test_the_later_statistics_count_and_versions_are_bounded(monkeypatch):
    monkeypatch.setattr("shared.statistics.MAX_VERSIONS", 1)
    numbers = Statistics()
    numbers.heard(COUNTED)
    numbers.heard(replace(COUNTED, inferences=6))
    numbers.heard(replace(COUNTED, version=2))
    assert numbers.of("m", 1).inferences == 6
    assert numbers.of("m", 2) is None
