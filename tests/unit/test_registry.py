"""The registry: whatever is in the log, every reader at an offset holds the same, and it makes sense."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs

from shared import events as ev
from shared.errors import ModelNotLoaded, ModelNotReady, ModelRejected, ModelRetired, UnknownModel, UnknownVersion
from shared.optimization import Optimization, Training
from shared.registry import Entry, Registry, as_of, fold, only_unloaded
from support.facts import OWNER, SIGNATURE, artifact, folded, log_of, made_ready, uploaded

MODELS = st.sampled_from(["a", "b"])
VERSIONS = st.integers(1, 4)
ATTEMPT = {
    "model": MODELS,
    "version": VERSIONS,
    "attempt": st.integers(1, 2),
    "owner": st.sampled_from(["one/1", "two/1"]),
}
VARIANT = st.sampled_from(["fp32", "int8"])


def upload(model, upload_id, requested_version):
    return uploaded(model, upload_id, requested_version=requested_version)


UPLOADS = st.builds(
    upload,
    MODELS,
    st.sampled_from([f"u{number}" for number in range(6)]),
    st.none() | VERSIONS | st.just(2**31 - 1),
)
EVENTS = st.one_of(
    UPLOADS,
    st.builds(ev.OptimizationClaimed, **ATTEMPT),
    st.builds(
        ev.VariantReady,
        **ATTEMPT,
        variant=VARIANT,
        artifact=st.just(artifact()),
        signature=st.just(SIGNATURE),
        batch_cap=st.just(8),
        measurements=st.just(ev.Measurements()),
    ),
    st.builds(ev.VariantRejected, **ATTEMPT, variant=VARIANT, reason=st.just("slow")),
    st.builds(ev.ModelReady, **ATTEMPT, variant=VARIANT, reason=st.just("fast")),
    st.builds(ev.ModelRejected, **ATTEMPT, code=st.just("invalid"), reason=st.just("not a model")),
    st.builds(
        ev.FormatRecognised, **ATTEMPT, format=st.just("pt2"), needs=st.just(("torch",)), handed_on=st.booleans()
    ),
    st.builds(ev.ModelPromoted, model=MODELS, version=VERSIONS),
    st.builds(ev.TrafficSplit, model=MODELS, weights=st.dictionaries(VERSIONS, st.integers(0, 3), max_size=3)),
    st.builds(ev.ModelRolledBack, model=MODELS),
    st.builds(ev.ModelRetired, model=MODELS, version=st.none() | VERSIONS),
    st.builds(ev.ModelUnloaded, model=MODELS),
    st.builds(ev.ModelLoaded, model=MODELS),
    st.none(),  # a record that could not be read
)
# Random order rarely gets a version as far as ready; these runs do.
READY = st.builds(made_ready, *ATTEMPT.values())
LIVED_IN = [event for number in range(1, 5) for event in (uploaded("a", f"u{number}"), *made_ready("a", number))]
AT_WORK = [uploaded("a", "u1"), *made_ready("a", owner="one/1")[:2]]
HISTORIES = st.builds(
    lambda before, runs: [*before, *(event for run in runs for event in run)],
    st.sampled_from([[], LIVED_IN, AT_WORK]),
    st.lists(EVENTS.map(lambda event: [event]) | READY, max_size=25),
)


def states(history):
    """The registry after each record, the empty one first."""
    found = [Registry()]
    for entry in log_of(*history):
        found.append(fold(found[-1], entry))
    return found


@given(history=HISTORIES)
def test_any_history_folds_to_a_registry_that_makes_sense(history):
    for offset, registry in enumerate(states(history), start=-1):
        assert registry.offset == offset
        for model in registry.models.values():
            ready = {number for number, version in model.versions.items() if version.state == "ready"}
            assert model.active is None or model.active in ready
            assert {number for number, weight in model.weights.items() if weight} <= ready
            for number, version in model.versions.items():
                assert number == version.number
                assert 1 <= number < 2**31
                if number in ready:
                    assert version.serving.name == version.chosen


@given(history=HISTORIES)
def test_versions_are_numbered_in_log_order(history):
    """Against a model of its own: the number asked for if it is free, else above all there are."""
    numbers: dict[str, dict[str, int | None]] = {}
    for event in history:
        if isinstance(event, ev.ModelUploaded):
            of_model = numbers.setdefault(event.model, {})
            taken = {number for number in of_model.values() if number}
            number = event.requested_version or max(taken, default=0) + 1
            of_model.setdefault(event.upload_id, None if number in taken or number >= 2**31 else number)
    registry = folded(*history)
    assert {name: dict(model.uploads) for name, model in registry.models.items()} == numbers
    for model in registry.models.values():
        given = [number for number in model.uploads.values() if number is not None]
        assert sorted(given) == sorted(model.versions)


@given(history=HISTORIES, data=st.data())
def test_an_upload_told_twice_changes_nothing(history, data):
    registry = folded(*history)
    told = [event for event in history if isinstance(event, ev.ModelUploaded)]
    if told:
        again = fold(registry, Entry(registry.offset + 1, 0, data.draw(st.sampled_from(told))))
        assert again == replace(registry, offset=registry.offset + 1)


@given(history=HISTORIES)
def test_a_result_of_a_superseded_attempt_changes_nothing(history):
    before = states(history)
    for event, registry, after in zip(history, before[:-1], before[1:], strict=True):
        if not isinstance(event, ev.AttemptEvent) or isinstance(event, ev.OptimizationClaimed):
            continue
        model = registry.models.get(event.model)
        version = model.versions.get(event.version) if model else None
        current = version is not None and (version.attempt, version.owner) == (event.attempt, event.owner)
        if not current or version.state != "optimizing":
            assert after.models == registry.models


@given(history=HISTORIES, moment=st.integers(-1, 30))
def test_as_of_a_moment_is_the_fold_of_what_was_there(history, moment):
    entries = log_of(*history)
    assert as_of(entries, moment * 1000) == folded(*history[: moment + 1])


@given(history=HISTORIES)
def test_a_roll_back_goes_elsewhere_or_changes_nothing(history):
    registry = folded(*history)
    for name, model in registry.models.items():
        after = fold(registry, Entry(registry.offset + 1, 0, ev.ModelRolledBack(model=name))).models[name]
        assert after == model or after.active != model.active or (model.weights and not after.weights)


@given(history=HISTORIES, model=MODELS, version=VERSIONS)
def test_a_promotion_rolled_back_answers_as_before(history, model, version):
    registry = folded(*history)
    promoted = fold(registry, Entry(registry.offset + 1, 0, ev.ModelPromoted(model=model, version=version)))
    before, after = registry.models.get(model), promoted.models.get(model)
    if before is not None and before.active not in (None, after.active):
        back = fold(promoted, Entry(registry.offset + 2, 0, ev.ModelRolledBack(model=model)))
        assert back.models[model].active == before.active


@given(history=HISTORIES, version=VERSIONS)
def test_retiring_a_version_leaves_the_split_among_the_others(history, version):
    registry = folded(*history)
    for name, model in registry.models.items():
        retired = fold(registry, Entry(registry.offset + 1, 0, ev.ModelRetired(model=name, version=version)))
        known = version in model.versions  # what was never there can't be retired
        left = {number: weight for number, weight in model.weights.items() if not known or number != version}
        assert retired.models[name].weights == left


@given(history=HISTORIES, request_id=st.text(max_size=8), number=st.none() | VERSIONS)
def test_a_route_is_a_ready_version_or_an_error_that_says_why(history, request_id, number):
    registry = folded(*history)
    for name in ("a", "b"):
        found = [routed(registry, name, request_id, number) for _ in range(2)]
        assert found[0] == found[1]


def routed(registry, name, request_id, number):
    try:
        version = registry.route(name, request_id, number)
    except (UnknownModel, UnknownVersion, ModelRetired, ModelRejected, ModelNotReady, ModelNotLoaded) as err:
        return err.code
    assert version.state == "ready"
    assert number in (None, version.number)
    return version.number


@settings(max_examples=20)
@given(weights=st.dictionaries(VERSIONS, st.integers(0, 100), min_size=1, max_size=4).filter(lambda w: sum(w.values())))
def test_traffic_is_split_by_weight(weights):
    registry = folded(*four_ready(), ev.TrafficSplit(model="m", weights=weights))
    ids = [f"request-{number}" for number in range(4000)]
    answered = [registry.route("m", request_id).number for request_id in ids]
    for version in range(1, 5):
        expected = weights.get(version, 0) / sum(weights.values())
        assert answered.count(version) / len(ids) == pytest.approx(expected, abs=0.04)
        assert (version in answered) <= (weights.get(version, 0) > 0)


def four_ready():
    return [event for number in range(1, 5) for event in (uploaded("m", f"u{number}"), *made_ready("m", number))]


def test_the_first_ready_version_is_promoted_by_itself_and_later_ones_are_not():
    registry = folded(uploaded("m", "u1"), *made_ready("m", 1), uploaded("m", "u2"), *made_ready("m", 2))
    assert registry.model("m").active == 1
    assert registry.route("m", "any").number == 1
    assert registry.route("m", "any", 2).number == 2


def test_a_number_that_is_taken_is_a_conflict_that_stays_one():
    registry = folded(uploaded("m", "u1"), uploaded("m", "u2", requested_version=1))
    assert registry.model("m").uploads == {"u1": 1, "u2": None}
    assert registry.version("m", 1).upload_id == "u1"


def test_the_highest_number_there_is_makes_no_number_that_no_event_can_name():
    registry = folded(uploaded("m", "u1", requested_version=2**31 - 1), uploaded("m", "u2"))
    assert registry.model("m").uploads == {"u1": 2**31 - 1, "u2": None}


def test_the_first_claim_of_an_attempt_wins_and_the_next_attempt_starts_afresh():
    about = {"model": "m", "version": 1}
    first, second = made_ready(owner="one/1"), made_ready(attempt=2, owner="two/1")
    stolen = ev.OptimizationClaimed(**about, attempt=1, owner="two/1")
    registry = folded(uploaded(), first[0], stolen, first[1], second[0])
    version = registry.version("m", 1)
    assert (version.state, version.attempt, version.owner, dict(version.variants)) == ("optimizing", 2, "two/1", {})
    late = folded(uploaded(), first[0], first[1], second[0], *first[1:])
    assert late.version("m", 1).state == "optimizing"
    assert folded(uploaded(), first[0], *second).version("m", 1).state == "ready"


def test_an_upload_that_is_handed_on_waits_for_one_who_has_what_it_needs():
    claimed, *results = made_ready(owner="one/1")
    about = {"model": "m", "version": 1, "attempt": 1, "owner": "one/1"}
    recognised = ev.FormatRecognised(**about, format="keras", needs=("tensorflow",))
    handed_on = structs.replace(recognised, handed_on=True)
    version = folded(uploaded(), claimed, handed_on).version("m", 1)
    assert (version.state, version.owner, version.attempt, version.stalled) == ("uploaded", None, 1, 0)
    assert (version.recognised, version.needs) == ("keras", ("tensorflow",))
    assert folded(uploaded(), claimed, handed_on, *results).version("m", 1).state == "uploaded"
    assert folded(uploaded(), claimed, handed_on, *made_ready(attempt=2)).version("m", 1).state == "ready"
    forged = structs.replace(handed_on, owner="two/1")
    assert folded(uploaded(), claimed, forged).version("m", 1).needs == ()
    assert folded(uploaded(), claimed, recognised).version("m", 1).state == "optimizing"


def test_what_is_trained_from_a_converted_version_begins_with_its_onnx():
    claimed, variant, ready = made_ready(owner="one/1")
    about = {"model": "m", "version": 1, "attempt": 1, "owner": "one/1"}
    how = ev.Conversion(format="pt2", sha256="ab" * 32)
    made = ev.StepFinished(
        **about, step="canonical", key="ab" * 32, result=artifact("r"), file=artifact("onnx"), conversion=how
    )
    asked = ev.UpdateRequested(model="m", upload_id="u2", parent=1, training=Training(), optimization=Optimization())
    registry = folded(uploaded(), claimed, made, variant, ready, asked)
    assert registry.version("m", 1).artifact == artifact("u1")
    assert registry.version("m", 1).model_file == registry.version("m", 2).artifact == artifact("onnx")
    assert registry.version("m", 1).steps["canonical"].conversion == how


def test_only_the_owner_of_the_attempt_is_heard():
    claimed, *results = made_ready(owner="one/1")
    forged = [structs.replace(result, owner="two/1") for result in results]
    version = folded(uploaded(), claimed, *forged).version("m", 1)
    assert (version.state, dict(version.variants)) == ("optimizing", {})


def test_ready_with_a_variant_that_was_never_there_is_not_ready():
    claimed, variant, _ = made_ready()
    wrong = ev.ModelReady(model="m", version=1, attempt=1, owner=OWNER, variant="int8", reason="")
    assert folded(uploaded(), claimed, variant, wrong).version("m", 1).state == "optimizing"


def test_what_is_not_ready_is_not_promoted_and_gets_no_traffic():
    registry = folded(*four_ready()[:4], uploaded("m", "u2"), ev.ModelPromoted(model="m", version=2))
    assert registry.model("m").active == 1
    split = fold(registry, Entry(99, 0, ev.TrafficSplit(model="m", weights={1: 1, 2: 1})))
    assert split.model("m").weights == {}


def test_roll_back_takes_the_way_back_step_by_step_past_what_was_retired():
    promote = [ev.ModelPromoted(model="m", version=number) for number in (3, 1, 2, 1)]
    steps = folded(*four_ready(), *promote, ev.ModelRetired(model="m", version=2))
    seen = []
    for _ in range(3):
        steps = fold(steps, Entry(steps.offset + 1, 0, ev.ModelRolledBack(model="m")))
        seen.append(steps.model("m").active)
    assert seen == [3, 1, 1]


def test_roll_back_of_a_split_gives_all_traffic_to_the_active_version():
    registry = folded(*four_ready(), ev.TrafficSplit(model="m", weights={2: 1}), ev.ModelRolledBack(model="m"))
    assert registry.model("m").weights == {}
    assert registry.route("m", "any").number == 1


def test_a_retired_model_answers_no_more_until_someone_uploads_again():
    retired = [*four_ready(), ev.ModelRetired(model="m")]
    with pytest.raises(ModelRetired):
        folded(*retired).route("m", "any")
    again = [*retired, uploaded("m", "u5")]
    with pytest.raises(ModelNotReady):
        folded(*again).route("m", "any")
    with pytest.raises(ModelRetired):
        folded(*again).route("m", "any", 1)
    assert folded(*again, *made_ready("m", 5)).route("m", "any").number == 5


def test_a_retired_active_version_leaves_its_predecessor_active():
    promoted = ev.ModelPromoted(model="m", version=2)
    registry = folded(*four_ready(), promoted, ev.ModelRetired(model="m", version=2))
    assert registry.model("m").active == 1
    with pytest.raises(ModelRetired):
        registry.route("m", "any", 2)


def test_errors_say_what_became_of_the_upload():
    rejected = ev.ModelRejected(model="m", version=1, attempt=1, owner=OWNER, code="no", reason="opset 99")
    with pytest.raises(UnknownModel):
        Registry().route("m", "any")
    with pytest.raises(ModelNotReady, match="no version that serves yet"):
        folded(uploaded()).route("m", "any")
    with pytest.raises(ModelNotReady, match="version 1 of model 'm' is uploaded"):
        folded(uploaded()).route("m", "any", 1)
    with pytest.raises(UnknownVersion):
        folded(uploaded()).route("m", "any", 2)
    with pytest.raises(ModelRejected, match="opset 99"):
        folded(uploaded(), made_ready()[0], rejected).route("m", "any")
    with pytest.raises(ModelRetired, match="all versions"):
        folded(uploaded(), ev.ModelRetired(model="m", version=1)).route("m", "any")


def test_events_about_unknown_models_change_nothing_but_the_offset():
    assert folded(*made_ready(), ev.ModelRetired(model="m"), None) == Registry(offset=4)


def test_an_unloaded_model_answers_nothing_and_keeps_everything():
    promoted = [*four_ready(), ev.ModelPromoted(model="m", version=3)]
    unloaded = folded(*promoted, ev.ModelUnloaded(model="m"))
    before, after = folded(*promoted).models["m"], unloaded.models["m"]
    assert after == replace(before, unloaded=True)
    for number in (None, 3, 1):
        with pytest.raises(ModelNotLoaded, match="POST /v2/repository/models/m/load"):
            unloaded.route("m", "any", number)
    assert folded(*promoted, ev.ModelUnloaded(model="m"), ev.ModelLoaded(model="m")).models["m"] == before


def test_what_happens_to_an_unloaded_model_shows_when_it_is_loaded():
    """Uploads, promotions and roll-backs go on; none of them loads it."""
    away = [*four_ready(), ev.ModelUnloaded(model="m"), uploaded("m", "u5"), *made_ready("m", 5)]
    away.append(ev.ModelPromoted(model="m", version=5))
    with pytest.raises(ModelNotLoaded):
        folded(*away).route("m", "any")
    assert folded(*away, ev.ModelLoaded(model="m")).route("m", "any").number == 5


def test_only_unloaded_models_are_loaded_and_only_once():
    ready = folded(*four_ready())
    for event in (ev.ModelLoaded(model="m"), ev.ModelLoaded(model="nobody"), ev.ModelUnloaded(model="nobody")):
        assert fold(ready, Entry(99, 0, event)).models == ready.models
    once = folded(*four_ready(), ev.ModelUnloaded(model="m"))
    assert fold(once, Entry(99, 0, ev.ModelUnloaded(model="m"))).models is once.models


def test_a_variant_that_a_loaded_model_has_too_is_needed():
    both = [uploaded("m"), *made_ready("m"), uploaded("n"), *made_ready("n")]
    shared = folded(*both).models["m"].versions[1].serving.artifact.sha256
    assert only_unloaded(folded(*both)) == set()
    assert only_unloaded(folded(*both, ev.ModelUnloaded(model="m"))) == set()
    both_unloaded = [*both, ev.ModelUnloaded(model="m"), ev.ModelUnloaded(model="n")]
    assert only_unloaded(folded(*both_unloaded)) == {shared}
