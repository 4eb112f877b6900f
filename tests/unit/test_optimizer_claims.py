"""Who works on what: the decision, held against the registry's own fold."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from services.optimizer.claims import LISTEN_S, Listening, is_held, next_work
from shared import events as ev
from shared.artifacts import Artifact
from shared.optimization import Optimization
from shared.registry import MAX_ATTEMPTS, Entry, Registry, fold

ARTIFACT = Artifact(uri="memory://sha256/00/00", sha256="0" * 64, byte_size=1)
ME, OTHER, EARLIER_ME = "a/2", "b/1", "a/1"


def registry_of(*told):
    registry = Registry()
    for offset, event in enumerate(told):
        registry = fold(registry, Entry(offset, offset, event))
    return registry


def uploaded(model="m", upload="u", artifact=ARTIFACT):
    return ev.ModelUploaded(model=model, upload_id=upload, artifact=artifact)


def file(digit):
    return Artifact(uri=f"memory://sha256/{digit}", sha256=digit * 64, byte_size=1)


def claimed(attempt, owner, model="m", version=1):
    return ev.OptimizationClaimed(model=model, version=version, attempt=attempt, owner=owner)


def ended(attempt, owner):
    return ev.ModelRejected(model="m", version=1, attempt=attempt, owner=owner, code="load_failed", reason="r")


def nobody(_):
    return False


def everybody(_):
    return True


def work_in(*told, is_dead=nobody, parked=()):
    return next_work(registry_of(*told), ME, is_dead, parked)


def test_an_upload_is_claimed():
    work = work_in(uploaded())
    assert (work.version.number, work.attempt, work.held) == (1, 1, False)


def test_nothing_to_do():
    assert work_in() is None
    assert work_in(uploaded(), claimed(1, OTHER), ended(1, OTHER)) is None
    assert work_in(uploaded(), ev.ModelRetired(model="m", version=1)) is None


def test_oldest_first_and_parked_ones_not_at_all():
    told = [uploaded(name, "u", file(digit)) for name, digit in (("young", "1"), ("old", "2"), ("older", "3"))]
    assert work_in(*told).version.model == "young"  # the first in the log is the oldest, whatever it is called
    assert work_in(*told, parked=[("young", 1)]).version.model == "old"
    assert work_in(*told, parked=[("young", 1), ("old", 1), ("older", 1)]) is None


def test_a_live_owner_keeps_its_claim_and_a_dead_one_loses_it():
    told = uploaded(), claimed(1, OTHER)
    assert work_in(*told) is None
    assert work_in(*told, is_dead=everybody).attempt == 2


def test_an_earlier_run_of_this_instance_is_dead():
    assert work_in(uploaded(), claimed(1, EARLIER_ME)).attempt == 2


def test_an_attempt_of_our_own_is_taken_up_again():
    work = work_in(uploaded(), claimed(1, ME))
    assert (work.attempt, work.held) == (1, True)


def finished(step, attempt=1, owner=OTHER):
    return ev.StepFinished(
        model="m", version=1, attempt=attempt, owner=owner, step=step, key="ab" * 32, result=ARTIFACT
    )


def test_claims_count_until_a_step_is_finished():
    told = [uploaded(), *(claimed(attempt, OTHER) for attempt in range(1, MAX_ATTEMPTS + 1))]
    assert registry_of(*told).version("m", 1).stalled == MAX_ATTEMPTS
    assert work_in(*told, is_dead=everybody).attempt == MAX_ATTEMPTS + 1
    after = registry_of(*told, finished("fp32", MAX_ATTEMPTS), claimed(MAX_ATTEMPTS + 1, ME)).version("m", 1)
    assert (after.stalled, list(after.steps), after.owner) == (1, ["fp32"], ME)


def test_of_two_versions_that_ask_for_the_same_the_younger_waits():
    told = uploaded("m", "first"), uploaded("m", "second"), uploaded("n")
    assert work_in(*told).version.number == 1
    assert work_in(*told, claimed(1, OTHER)) is None
    done = registry_of(*told, claimed(1, OTHER), ended(1, OTHER))
    assert {next_work(done, ME, nobody).version.model} == {"m"}
    assert next_work(done, ME, nobody).version.number == 2


def test_what_asks_for_something_else_does_not_wait():
    other = ev.ModelUploaded(
        model="n", upload_id="u", artifact=ARTIFACT, optimization=Optimization(candidates=("int8-static",))
    )
    assert work_in(uploaded(), claimed(1, OTHER), other).version.model == "n"


def test_what_it_can_not_do_is_left_to_others():
    registry = registry_of(uploaded())
    assert next_work(registry, ME, nobody, can_do=lambda version: version.training is not None) is None


def test_of_two_claims_the_first_wins():
    work = work_in(uploaded())
    won = registry_of(uploaded(), claimed(1, ME), claimed(1, OTHER))
    lost = registry_of(uploaded(), claimed(1, OTHER), claimed(1, ME))
    assert is_held(won, work, ME)
    assert not is_held(lost, work, ME)


def test_a_claim_ends_with_its_version():
    work = work_in(uploaded())
    told = uploaded(), claimed(1, ME)
    assert not is_held(registry_of(*told, claimed(2, OTHER)), work, ME)
    assert not is_held(registry_of(*told, ended(1, ME)), work, ME)
    assert not is_held(registry_of(*told, ev.ModelRetired(model="m")), work, ME)
    assert not is_held(Registry(), work, ME)


@given(st.lists(st.tuples(st.sampled_from([ME, OTHER, "c/1"]), st.integers(1, 5)), max_size=20))
def test_at_most_one_owner_holds_an_attempt(claims):
    registry = registry_of(uploaded(), *(claimed(attempt, owner) for owner, attempt in claims))
    version = registry.version("m", 1)
    holders = [
        owner
        for owner in (ME, OTHER, "c/1")
        if (work := next_work(registry, owner, nobody)) and work.held and is_held(registry, work, owner)
    ]
    assert holders == ([version.owner] if version.owner else [])


class TestListening:
    def setup_method(self):
        self.now_s = 100.0
        self.alive = {ME}
        self.listening = Listening(ME, lambda owner: owner in self.alive, lambda: self.now_s)

    def passes(self, seconds):
        for _ in range(round(seconds)):
            self.listening.update()
            self.now_s += 1

    def test_who_has_just_started_knows_of_no_death(self):
        assert not self.listening.is_dead(OTHER)
        self.passes(LISTEN_S - 1)
        assert not self.listening.is_dead(OTHER)
        self.passes(1)
        assert self.listening.is_dead(OTHER)
        assert not self.listening.is_dead(ME)

    def test_who_does_not_hear_itself_has_heard_nobody(self):
        self.passes(60)
        self.alive.clear()  # Kafka is away
        self.passes(10)
        assert not self.listening.is_dead(OTHER)
        self.alive.add(ME)
        self.passes(LISTEN_S - 1)
        assert not self.listening.is_dead(OTHER)
        self.passes(2)
        assert self.listening.is_dead(OTHER)
