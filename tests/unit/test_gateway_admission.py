"""Admission's decisions: limits on simulated queues, the workers' backlog, lanes, bytes, tenants' quotas."""

from __future__ import annotations

import asyncio
import math
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from services.gateway import admission as gateway_admission
from services.gateway import quotas as gateway_quotas
from services.gateway.admission import Admission
from services.gateway.backlog import Backlog, places
from services.gateway.limits import LEAST, PLACES, InFlightLimit
from services.gateway.quotas import Quotas
from services.gateway.settings import GatewaySettings, Quota
from shared.errors import MOST_RETRY_AFTER_S, Overloaded, QuotaExceeded, RepliesUnavailable
from shared.events import MachineClass
from shared.heartbeat_events import Heartbeat, LoadedModel
from support.facts import folded, made_ready, uploaded
from support.queueing import Fixed, Served, poisson, simulate, simulate_callers

FAST = Served("small network", fixed_s=0.004, each_s=0.000375)  # 2,000 a second
MINILM = Served("MiniLM", fixed_s=0.005, each_s=0.0198)  # 50 a second
JOB = Served("5 s job", fixed_s=5.0, each_s=0.0, cap=1)
FLEET = Served("16 slow wide workers", fixed_s=0.1, each_s=0.9 / 64, cap=64, workers=16)  # 1,024 a second
MODELS = [FAST, MINILM, JOB, FLEET]


def limit_for(served, most=1024):
    limit = InFlightLimit(most=most, queue_s=0.25)
    limit.workers_hold(served.places)
    return limit


def busy_for(served):
    """Long enough to be in a steady state, and its second half."""
    return max(20.0, 400 / served.capacity)


# ------------------------------------------------------------------ the limit, on a simulated queue


@pytest.mark.parametrize("served", [FAST, MINILM, FLEET], ids=lambda served: served.name)
def test_three_times_the_capacity_waits_no_longer_than_twice_what_capacity_does(served):
    end_s = busy_for(served)
    at_capacity = simulate_callers(served, limit_for(served), min(PLACES, 2 * served.places), end_s)
    over = simulate(served, limit_for(served), poisson(3 * served.capacity, 0, end_s))
    assert over.p99(end_s / 2) <= 2 * at_capacity.p99(end_s / 2)
    assert over.rate(end_s / 2, end_s) >= 0.95 * served.capacity


@pytest.mark.parametrize("served", MODELS, ids=lambda served: served.name)
def test_the_limit_takes_nothing_from_throughput(served):
    end_s = busy_for(served)
    load = list(poisson(3 * served.capacity, 0, end_s))
    unlimited = simulate(served, Fixed(4096), load)
    limited = simulate(served, limit_for(served), load)
    assert limited.rate(end_s / 2, end_s) >= 0.95 * unlimited.rate(end_s / 2, end_s)


def test_a_slow_model_is_learned_and_a_fast_one_stays_open():
    slow, fast = limit_for(MINILM), limit_for(FAST)
    simulate(MINILM, slow, poisson(150, 0, 20))
    simulate(FAST, fast, poisson(6000, 0, 20))
    assert slow.value == MINILM.places
    assert fast.value == PLACES


def test_what_the_benchmark_asks_for_at_once_is_let_in():
    assert not simulate_callers(FAST, limit_for(FAST), 256, 10).refused


@given(load=st.floats(min_value=0.01, max_value=0.6), seed=st.integers(min_value=0, max_value=5))
@settings(max_examples=20, deadline=None)
def test_light_load_and_idleness_never_shrink_the_limit(load, seed):
    limit = limit_for(MINILM)
    run = simulate(MINILM, limit, poisson(load * MINILM.capacity, 0, 60, seed))
    assert not run.refused
    assert limit.value >= MINILM.places
    burst = simulate(MINILM, limit, [1000.0] * limit.value)
    assert not burst.refused


def test_bursts_with_pauses_find_all_their_places_each_time():
    limit = limit_for(FAST)
    for number in range(20):
        assert len(simulate(FAST, limit, [number * 10.0] * 300).refused) == 300 - PLACES


def test_refusals_that_cost_the_model_its_speed_cost_those_let_in_no_time():
    """Three times the capacity leaves two thirds of it, as refusing takes the same CPU; with as many places the wait
    would be half as long again."""
    limit, refusing = limit_for(FAST), replace(FAST, fixed_s=FAST.fixed_s * 1.5, each_s=FAST.each_s * 1.5)
    before = simulate_callers(FAST, limit, PLACES, 20).p99(10)
    simulate(refusing, limit, poisson(3 * FAST.capacity, 100, 110))
    during = simulate(refusing, limit, poisson(3 * FAST.capacity, 110, 120))
    assert during.p99(115) <= 1.15 * before
    assert during.rate(115, 120) >= 0.95 * refusing.capacity
    simulate(FAST, limit, poisson(0.9 * FAST.capacity, 200, 205))
    assert limit.value == PLACES


def test_workers_that_were_away_are_given_work_again():
    limit = limit_for(FAST)
    for _ in range(PLACES):
        limit.began(0.0)
    limit.refused()
    for number in range(PLACES):  # nobody answered: callers left one after the other
        limit.ended(10.0 + number * 0.1, answered=False)
    assert limit.value == FAST.places
    simulate(FAST, limit, poisson(6000, 100, 105))
    assert limit.value == PLACES


def test_more_or_faster_workers_are_noticed():
    limit = limit_for(MINILM)
    simulate(MINILM, limit, poisson(150, 0, 20))
    assert limit.value == MINILM.places
    simulate(FAST, limit, poisson(6000, 100, 105))
    assert limit.value == PLACES


@given(
    events=st.lists(st.tuples(st.sampled_from(["ask", "answered", "gone"]), st.floats(0, 5)), max_size=300),
    most=st.integers(min_value=1, max_value=2000),
    held=st.integers(min_value=0, max_value=5000),
)
def test_whatever_happens_the_limit_keeps_its_bounds(events, most, held):
    limit, now_s = InFlightLimit(most=most, queue_s=0.25), 0.0
    limit.workers_hold(held)
    for kind, after_s in events:
        now_s += after_s
        if kind == "ask":
            limit.began(now_s) if limit.in_flight < limit.value else limit.refused()
        elif limit.in_flight:
            limit.ended(now_s, answered=kind == "answered")
        assert min(most, LEAST) <= limit.value <= most
        assert limit.rate >= 0


# ------------------------------------------------------------------ the backlog, as workers tell it


def beat(*, lag=0, queued=0, answered=0, worker="w1", loaded=()):
    return Heartbeat(
        instance=worker,
        incarnation="1",
        service="worker",
        machine=MachineClass(isa="x"),
        loaded=loaded,
        registry_offset=0,
        lag={"m": lag},
        queued={"m": queued},
        answered={"m": answered},
        interval_s=2,
    )


def heard(*beats):
    """A backlog that heard these, each a list of `(at_s, beat)`."""
    backlog = Backlog()
    for told in beats:
        backlog.heard(told)
    return backlog


def test_a_backlog_over_a_rate_is_a_wait():
    backlog = heard([(0.0, beat(lag=2000, answered=0))], [(2.0, beat(lag=1900, queued=100, answered=400))])
    assert backlog.wait_s("m", 2.0) == pytest.approx(10.0)
    assert backlog.wait_s("m", 7.0) == pytest.approx(5.0)  # it is worked off between heartbeats
    assert backlog.wait_s("m", 100.0) == 0
    assert backlog.wait_s("other", 2.0) == 0


def test_nothing_is_guessed():
    assert heard([(0.0, beat(lag=10**6))]).wait_s("m", 0.0) == 0  # no rate yet
    gone = heard([(0.0, beat(lag=10**6))], [(2.0, beat(lag=10**6, answered=400))], [])  # no worker is left
    assert gone.wait_s("m", 3.0) == 0
    few = heard([(0.0, beat(lag=LEAST - 1))], [(40.0, beat(lag=LEAST - 1, answered=2))])
    assert few.wait_s("m", 40.0) == 0  # a short queue, however slow


def test_workers_that_answer_nothing_for_long_make_the_wait_endless():
    backlog = heard([(0.0, beat(lag=100))], [(31.0, beat(lag=100))])
    assert backlog.wait_s("m", 31.0) == math.inf


def test_several_workers_add_up_and_a_new_one_counts_as_the_others():
    first = [(0.0, beat()), (0.0, beat(worker="w2"))]
    second = [(2.0, beat(lag=500, answered=200)), (2.0, beat(lag=500, answered=200, worker="w2"))]
    assert heard(first, second).wait_s("m", 2.0) == pytest.approx(5.0)
    assert heard(first, [*second, (2.0, beat(worker="w3"))]).wait_s("m", 2.0) == pytest.approx(1000 / 300)


def test_callers_that_are_slow_do_not_make_a_worker_slow():
    backlog = heard(
        [(0.0, beat(lag=50))],
        [(2.0, beat(lag=50, answered=2000))],  # 1,000 a second, with something left
        [(4.0, beat(answered=2040))],  # nothing to do
        [(6.0, beat(lag=1000, answered=2080))],
    )
    assert backlog.wait_s("m", 6.0) == pytest.approx(1.0)


def test_places_are_what_workers_hold_in_batches():
    registry = folded(uploaded(), *made_ready())
    variant = registry.model("m").versions[1].serving
    loaded = LoadedModel(
        model="m", version=1, variant=variant.name, artifact_sha256=variant.artifact.sha256, byte_size=1
    )
    beats = [(0.0, beat(loaded=(loaded,))), (0.0, beat(loaded=(loaded,), worker="w2")), (0.0, beat(worker="w3"))]
    assert places(registry, beats) == {"m": 4 * variant.batch_cap}
    assert places(folded(), beats) == {"m": 4}  # it has not read of the model yet


# ------------------------------------------------------------------ places and lanes


def admission(**overrides):
    return Admission(GatewaySettings(**overrides))


class Beats:
    """What `Heartbeats.heard_lately` gives: heard at `at_s`, or now."""

    def __init__(self, *beats, at_s=None):
        self._beats = [(time.monotonic() if at_s is None else at_s, told) for told in beats]

    def heard_lately(self):
        return self._beats


def refused(place):
    with pytest.raises(Overloaded) as caught, place:
        pass
    assert 1 <= caught.value.retry_after_s <= MOST_RETRY_AFTER_S
    return caught.value


def test_places_are_bounded_by_model_and_given_back():
    gate = admission(max_in_flight_per_model=1)
    with gate.request("a"), gate.request("b"):
        refused(gate.request("a"))
    with pytest.raises(KeyError), gate.request("a"):
        raise KeyError
    with gate.request("a"):
        pass


def test_a_flood_of_one_lane_leaves_the_other_its_places():
    for flood in (False, True):
        gate = admission(max_in_flight_per_model=8)
        held = [gate.request("m", high=flood).__enter__() for _ in range(8)]
        refused(gate.request("m", high=flood))
        held += [gate.request("m", high=not flood).__enter__() for _ in range(2)]
        refused(gate.request("m", high=not flood))
        for place in held:
            place.__exit__(None, None, None)
        with gate.request("m", high=flood):
            pass


def test_a_priority_that_only_the_body_tells_finds_the_kept_places():
    gate = admission(max_in_flight_per_model=4)
    held = [gate.request("m").__enter__() for _ in range(4)]
    with gate.request("m", high=None) as place:
        place.has_read(b'{"parameters": {"priority": 1}}')
        place.confirm(high=True, timeout_s=1)
        refused(gate.request("m", high=None))  # the one place that was kept is taken
    with gate.request("m", high=None) as place:
        with pytest.raises(Overloaded):  # before anybody parses it
            place.has_read(b"{}")
        place.has_read(b'"priority"')
        with pytest.raises(Overloaded):
            place.confirm(high=False, timeout_s=1)
    held.pop().__exit__(None, None, None)
    with gate.request("m", high=None) as place:  # there is room: the body need not name one
        place.has_read(b"{}")
        place.confirm(high=False, timeout_s=1)


def test_what_can_not_be_answered_in_time_is_refused(monkeypatch):
    now_s = 2.0
    monkeypatch.setattr(gateway_admission, "time", SimpleNamespace(monotonic=lambda: now_s))
    gate = admission(max_request_timeout_s=60)
    gate.look(folded(), Beats(beat(lag=5000, answered=0), at_s=0.0))
    gate.look(folded(), Beats(beat(lag=5000, answered=200), at_s=now_s))  # 100 a second: 50 s
    with gate.request("m") as place:
        place.confirm(high=False, timeout_s=55)
        place.confirm(high=True, timeout_s=1)  # high priority does not queue behind them
        with pytest.raises(Overloaded, match=r"takes 50\.0 s") as caught:
            place.confirm(high=False, timeout_s=30)
    assert caught.value.retry_after_s == 20
    gate.look(folded(), Beats(beat(lag=100_000, answered=200), at_s=now_s))  # beyond any deadline: before the body
    assert refused(gate.request("m")).retry_after_s == MOST_RETRY_AFTER_S
    with gate.request("m", high=True):
        pass


def test_body_bytes_are_bounded_over_all_and_given_back():
    gate = admission(max_bodies_bytes=10)
    with gate.body() as one:
        one.take(6)
        with gate.body() as two:
            two.take(4)
            with pytest.raises(Overloaded):
                two.take(1)
        one.take(4)
    assert gate._body_bytes == 0


# ------------------------------------------------------------------ quotas


class Bucket:
    """`Replies.lease` of a bucket that is never filled again."""

    def __init__(self, tokens, *, fails=False):
        self.tokens = tokens
        self.asked = []
        self.fails = fails

    async def lease(self, _tenant, *, rate, wanted, back, **_):
        await asyncio.sleep(0)
        if self.fails:
            raise RepliesUnavailable("away")
        got = min(wanted, self.tokens + back)
        self.tokens += back - got
        self.asked.append((wanted, back))
        return got, 1 / rate


async def outcomes(quotas, bucket, times, tenant="alice"):
    told = await asyncio.gather(*(quotas.spend(tenant, bucket) for _ in range(times)), return_exceptions=True)
    return sum(answer is None for answer in told)


def quotas(**fields):
    return Quotas({"alice": Quota(**{"requests_per_s": 10, "burst": 100, **fields})})


@pytest.fixture
def clock(monkeypatch):
    """The time that leases end by: it stands still unless a test moves it."""
    clock = SimpleNamespace(now_s=1000.0)
    monkeypatch.setattr(gateway_quotas, "time", SimpleNamespace(monotonic=lambda: clock.now_s))
    return clock


@pytest.mark.usefixtures("clock")
async def test_no_more_is_let_in_than_the_bucket_gives_and_few_questions_are_asked():
    bucket, one, two = Bucket(100), quotas(), quotas()
    assert sum(await asyncio.gather(outcomes(one, bucket, 200), outcomes(two, bucket, 200))) == 100
    assert len(bucket.asked) < 30
    asked = len(bucket.asked)
    with pytest.raises(QuotaExceeded) as caught:
        await one.spend("alice", bucket)
    assert caught.value.retry_after_s == 1
    assert len(bucket.asked) == asked  # a refusal costs no round trip


async def test_what_was_not_used_goes_back(clock):
    bucket, one = Bucket(100), quotas()
    assert await outcomes(one, bucket, 20) == 20
    clock.now_s += 2 * gateway_quotas._LEASE_S
    assert await outcomes(one, bucket, 1) == 1
    assert bucket.tokens >= 100 - 21 - 25  # but for one chunk, it is all there


async def test_others_are_not_limited_and_redis_down_is_told():
    bucket = Bucket(0, fails=True)
    assert await outcomes(quotas(), bucket, 5, tenant="bob") == 5
    assert await outcomes(quotas(), bucket, 5, tenant=None) == 5
    with pytest.raises(RepliesUnavailable):
        await quotas().spend("alice", bucket)


async def test_a_caller_that_leaves_takes_nobody_along():
    bucket, one = Bucket(10), quotas()
    leaving, staying = (asyncio.create_task(one.spend("alice", bucket)) for _ in range(2))
    await asyncio.sleep(0)
    leaving.cancel()
    await staying
    assert leaving.cancelled() or leaving.done()


@pytest.mark.parametrize(
    "value", ["[]", '{"a": {"requests_per_s": 0, "burst": 1}}', '{"a": {"requests_per_s": 1}}', "x"]
)
def test_quotas_are_checked_at_the_start(value):
    with pytest.raises(ValidationError):
        GatewaySettings(tenant_quotas=value)
