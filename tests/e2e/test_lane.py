"""Who waits for one worker's lane, and how long: deadlines, priorities and cancels behind and amidst long runs.

One worker with one thread, in a process of its own, and a gateway in another. The model is a loop that counts: as slow
as its input says.
"""

from __future__ import annotations

import asyncio
import time

import numpy as np
import onnxruntime
import pytest
import tritonclient.http as triton

from shared.tensors import to_numpy
from support import onnx_models
from support.front_door import body
from support.small_stack import small_stack
from support.waiting import eventually

pytestmark = [pytest.mark.stack, pytest.mark.alone]
LOOP, LINEAR = onnx_models.counting_loop(), onnx_models.linear()
DEADLINE_S = 0.1
BUSY_MACHINE_S = 0.1
"""On top of the 150 ms that are promised: a machine that has other work beside these tests."""


@pytest.fixture
async def there(backbone, tmp_path):
    async with small_stack(backbone, tmp_path) as stack:
        yield stack


@pytest.fixture(scope="module")
def trips_a_second():
    """How fast this machine counts, on a quiet core."""
    session = onnxruntime.InferenceSession(LOOP.content)
    trips = 200_000
    started_s = time.perf_counter()
    session.run(None, counting(trips))
    return trips / (time.perf_counter() - started_s)


def counting(trips):
    return {"x": np.zeros(1, np.float32), "trips": np.array([int(trips)], np.int64)}


def now_ms():
    return time.time_ns() // 1_000_000


async def starts(there, model, trips):
    """A run of so many trips is on; returns the id of its request, and where it lies."""
    request_id = f"long-{trips:.0f}"
    at = await there.door.send(model, body(counting(trips)), partition=0, ce_id=request_id)

    async def runs():
        return await there.rig.replies.running(model)

    await eventually(runs, what=f"{request_id} on the lane")
    return request_id, at


async def outcomes_of(outcomes, places, within_s):
    """The receipts of records, once all have one."""

    async def look():
        await asyncio.to_thread(outcomes.poll)
        return all(at in outcomes.accepted for at in places)

    await eventually(look, within_s=within_s, what=f"outcomes of {places}")
    return [outcomes.accepted[at] for at in places]


async def test_a_deadline_of_100_ms_behind_five_seconds_of_work(there, backbone, trips_a_second, record_property):
    """Answered by 150 ms, by HTTP and in the log, and never run. What lies behind the long one in its own partition
    has its answer as soon, and its outcome in the log in its turn, right behind that of the long one."""
    name = backbone.model()
    await there.serve(name, LOOP)
    outcomes = there.door.outcomes()
    assert (await there.door.infer(name, counting(1))).status == 200
    _, long_at = await starts(there, name, 5 * trips_a_second)
    long_since_s = time.monotonic()

    async def over_http():
        asked_s = time.monotonic()
        answer = await there.door.infer(name, counting(1), timeout=int(DEADLINE_S * 1e6))
        return answer, time.monotonic() - asked_s

    async def over_kafka(partition):
        deadline_ms = now_ms() + int(DEADLINE_S * 1000)
        headers = {"ce_id": f"late-{partition}", "deadline": str(deadline_ms)}
        at = await there.door.send(name, body(counting(1)), partition=partition, **headers)
        return at, deadline_ms

    alone, alone_s = await over_http()
    answered = [(alone, alone_s), *await asyncio.gather(*(over_http() for _ in range(8)))]
    sent = await asyncio.gather(*(over_kafka(partition) for partition in range(4)))
    told = await asyncio.gather(*(there.rig.result(name, f"late-{partition}") for partition in range(4)))
    told_ms = now_ms()
    assert [answer.status for answer, _ in answered] == [504] * 9
    assert {answer.code for answer, _ in answered} == {"deadline_exceeded"}
    slowest_s = max(took_s for _, took_s in answered)
    assert slowest_s < DEADLINE_S + 0.05 + BUSY_MACHINE_S
    assert {result.status for result in told} == {"expired"}
    others = await outcomes_of(outcomes, [at for at, _ in sent[1:]], within_s=2)
    assert long_at not in outcomes.accepted, f"the long run took {time.monotonic() - long_since_s:.1f} s only"
    late_ms = max(outcomes.written_ms[at] - deadline_ms for at, deadline_ms in sent[1:])
    assert told_ms - max(deadline_ms for _, deadline_ms in sent) < 1000
    assert late_ms < 50 + BUSY_MACHINE_S * 1000
    behind, long = await outcomes_of(outcomes, [sent[0][0], long_at], within_s=30)
    assert long.status == "succeeded"
    for receipt in (behind, *others, *(outcomes.by_id[name, answer.id][0] for answer, _ in answered)):
        assert (receipt.status, receipt.runtime, receipt.batch) == ("expired", None, None)
    record_property("http_alone_ms", round(alone_s * 1000))
    record_property("http_slowest_of_8_ms", round(slowest_s * 1000))
    record_property("kafka_outcome_after_deadline_ms", late_ms)


LATE = 100
"""More than three batches: whole ones are got ready while another runs, and must expire there too."""


async def test_whole_batches_behind_a_long_run_expire_in_time_and_are_never_run(there, backbone, record_property):
    name = backbone.model()
    await there.serve(name, onnx_models.slow_rows(4_000_000))
    outcomes, row = there.door.outcomes(), {"x": np.zeros((1, 2), np.float32)}
    long_at = await there.door.send(name, body(row), partition=0, ce_id="long")

    async def runs():
        return await there.rig.replies.running(name)

    await eventually(runs)
    deadline_ms = now_ms() + 600  # behind all of the sending
    headers = {"deadline": str(deadline_ms)}
    late = await asyncio.gather(
        *(there.door.send(name, body(row), partition=1 + i % 3, ce_id=f"late-{i}", **headers) for i in range(LATE))
    )
    assert now_ms() < deadline_ms, "this machine is too busy to tell"
    receipts = await outcomes_of(outcomes, late, within_s=20)
    assert long_at not in outcomes.accepted, "they were told when the lane was free, not when they were late"
    assert {(receipt.status, receipt.batch) for receipt in receipts} == {("expired", None)}
    after_ms = max(outcomes.written_ms[at] for at in late) - deadline_ms
    assert after_ms < 150 + 1000 * BUSY_MACHINE_S
    record_property("the_last_of_100_in_the_log_after_ms", after_ms)


def ask_urgently(url, model, trips, priority=1):
    """By an unmodified client of Triton's; returns what it was told and how long that took."""
    inputs = []
    for tensor, array in counting(trips).items():
        each = triton.InferInput(tensor, list(array.shape), triton.np_to_triton_dtype(array.dtype))
        each.set_data_from_numpy(array)
        inputs.append(each)
    started_s = time.monotonic()
    client = triton.InferenceServerClient(url.removeprefix("http://"), network_timeout=120)
    try:
        told = client.infer(model, inputs, priority=priority).as_numpy("y")
    finally:
        client.close()
    return float(told[0]), time.monotonic() - started_s


BACKLOG = 700
"""More than a worker takes out of Kafka at a time."""
URGENT = 12


async def test_urgent_requests_pass_a_backlog(there, backbone, trips_a_second, record_property):
    """Of 15 ms runs that wait in Kafka: by Triton's client, and by the topic that upstream systems write to."""
    name = backbone.model()
    await there.serve(name, LOOP)
    trips = 0.015 * trips_a_second
    usual = await asyncio.gather(
        *(there.door.send(name, body(counting(trips)), partition=i % 4) for i in range(BACKLOG))
    )
    outcomes = there.door.outcomes()
    await outcomes_of(outcomes, usual[:1], within_s=30)

    answered = [await asyncio.to_thread(ask_urgently, there.gateway_url, name, 7 + i) for i in range(URGENT)]
    await there.door.send(f"{name}.high", body(counting(3)), ce_id="upstream", partition=2)
    result = await there.rig.result(name, "upstream")
    await asyncio.to_thread(outcomes.poll)
    done = sum(at in outcomes.accepted for at in usual)
    assert [value for value, _ in answered] == [7.0 + i for i in range(URGENT)]
    assert (result.status, np.frombuffer(result.outputs[0].data, np.float32).tolist()) == ("succeeded", [3.0])
    assert done < BACKLOG / 2, f"{done} of {BACKLOG} usual ones were before {URGENT + 1} urgent ones"
    receipts = await outcomes_of(outcomes, usual, within_s=90)
    assert {receipt.status for receipt in receipts} == {"succeeded"}
    record_property("urgent_slowest_ms", round(max(took_s for _, took_s in answered) * 1000))
    record_property("usual_answered_before_them", done)


async def test_usual_requests_are_not_starved_by_a_flood_of_urgent_ones(there, backbone, trips_a_second):
    name = backbone.model()
    await there.serve(name, LOOP)
    urgent = f"{name}.high", body(counting(0.015 * trips_a_second))
    flood = await asyncio.gather(*(there.door.send(*urgent, partition=i % 4) for i in range(BACKLOG)))
    outcomes = there.door.outcomes()
    await outcomes_of(outcomes, flood[:1], within_s=30)
    answers = await asyncio.gather(*(there.door.infer(name, counting(i)) for i in range(20)))
    await asyncio.to_thread(outcomes.poll)
    before = sum(at in outcomes.accepted for at in flood)
    assert [answer.status for answer in answers] == [200] * 20
    assert before < BACKLOG * 0.75, "20 usual ones take turns with the flood: one run in five is theirs"
    receipts = await outcomes_of(outcomes, flood, within_s=90)
    assert {receipt.status for receipt in receipts} == {"succeeded"}


async def test_a_running_job_that_is_cancelled_lets_the_next_one_in(there, backbone, trips_a_second, record_property):
    name, neighbour = backbone.model(), backbone.model()
    await there.serve(name, LOOP)
    await there.serve(neighbour, LINEAR)
    outcomes = there.door.outcomes()
    request_id, at = await starts(there, name, 10 * trips_a_second)
    waiting = [
        asyncio.create_task(there.door.infer(name, counting(5))),
        asyncio.create_task(there.door.infer(neighbour, {"x": np.ones((1, 4), np.float32)})),
    ]
    await asyncio.sleep(0.3)
    assert not any(task.done() for task in waiting), "the lane is taken"
    asked_s = time.monotonic()
    response = await there.door.http.delete(f"/v2/models/{name}/requests/{request_id}")
    told_s = time.monotonic() - asked_s
    assert (response.status_code, response.json()["state"]) == (200, "cancelled")
    answers = await asyncio.gather(*waiting)
    free_s = time.monotonic() - asked_s
    assert [answer.status for answer in answers] == [200, 200]
    assert to_numpy(answers[0].outputs[0]).tolist() == [5.0]
    assert told_s < 0.5
    assert free_s < 1.0 + BUSY_MACHINE_S
    [receipt] = await outcomes_of(outcomes, [at], within_s=5)
    assert (receipt.status, receipt.error_code) == ("cancelled", "cancelled")
    record_property("told_ms", round(told_s * 1000))
    record_property("lane_free_ms", round(free_s * 1000))


async def test_one_that_is_cancelled_in_a_batch_takes_no_other_with_it(there, backbone):
    """A batch of rows that each count to three million: all but one of them are still wanted."""
    name = backbone.model()
    await there.serve(name, onnx_models.slow_rows())
    row = {"x": np.zeros((1, 2), np.float32)}
    blocked = await there.door.later(name, row)

    async def runs():
        return await there.rig.replies.running(name)

    await eventually(runs)
    ids = [await there.door.later(name, {"x": np.full((1, 2), i, np.float32)}) for i in range(6)]
    await there.door.result(name, blocked, within_s=60)

    async def all_run():
        records = await there.rig.replies.running(name)
        assert len(records) >= len(ids), records
        return True

    await eventually(all_run, within_s=30, what="all six in one run")
    response = await there.door.http.delete(f"/v2/models/{name}/requests/{ids[2]}")
    assert response.json()["state"] == "cancelled"
    states = [await there.door.result(name, request_id, within_s=60) for request_id in ids]
    assert [state["state"] for state in states] == ["succeeded"] * 2 + ["cancelled"] + ["succeeded"] * 3
    outcomes = there.door.outcomes()

    async def settled():
        await asyncio.to_thread(outcomes.poll)
        return all((name, request_id) in outcomes.by_id for request_id in ids)

    await eventually(settled, within_s=10)
    receipts = [outcomes.by_id[name, request_id][0] for request_id in ids]
    assert [receipt.status for receipt in receipts] == ["succeeded"] * 2 + ["cancelled"] + ["succeeded"] * 3
    assert {receipt.batch.size for receipt in receipts if receipt.batch} == {len(ids)}
