"""One timer for all deadlines: none is early, none is forgotten, and nothing is kept of those that were discarded."""

from __future__ import annotations

import asyncio
import random
from collections import deque

import pytest

from services.gateway.deadlines import _SLOT_S, Deadlines
from support.waiting import eventually


@pytest.fixture
def clock(monkeypatch):
    """The event loop's time and its timers, moved by hand."""
    return Clock(monkeypatch)


class Clock:
    """Stands in for the event loop: what is timed is called when `pass_to` comes to it."""

    def __init__(self, monkeypatch):
        monkeypatch.setattr(asyncio, "get_running_loop", lambda: self)
        self.now_s = 1000.0
        self.timers = []
        self.most_timers = 0
        self._soon = deque()

    def time(self):
        return self.now_s

    def call_at(self, when_s, callback):
        timer = Timer(when_s, callback)
        self.timers = [*self.waiting(), timer]
        self.most_timers = max(self.most_timers, len(self.timers))
        return timer

    def call_soon(self, callback, *args):
        self._soon.append((callback, args))

    def waiting(self):
        return [timer for timer in self.timers if not timer.over]

    def pass_to(self, time_s):
        while True:
            while self._soon:
                callback, args = self._soon.popleft()
                callback(*args)
            due = [timer for timer in self.waiting() if timer.when_s <= time_s]
            if not due:
                break
            first = min(due, key=lambda timer: timer.when_s)
            self.now_s = max(self.now_s, first.when_s)
            first.over = True
            first.callback()
        self.now_s = max(self.now_s, time_s)


class Timer:
    def __init__(self, when_s, callback):
        self.when_s, self.callback, self.over = when_s, callback, False

    def cancel(self):
        self.over = True


def kept(deadlines):
    """How much it holds."""
    return len(deadlines._order) + sum(len(slot) + 1 for slot in deadlines._slots.values()) + len(deadlines._called)


def test_thousands_are_called_in_order_none_early_and_none_later_than_a_slot(clock):
    deadlines, called = Deadlines(), []
    times_s = [1000 + random.Random(1).uniform(0, 5) for _ in range(5000)]
    for number, time_s in enumerate(times_s):
        deadlines.add(time_s, number, lambda number=number: called.append((number, clock.now_s)))
    clock.pass_to(1010)
    assert sorted(number for number, _ in called) == list(range(5000))
    assert all(0 <= now_s - times_s[number] <= _SLOT_S + 1e-6 for number, now_s in called)
    assert [now_s for _, now_s in called] == sorted(now_s for _, now_s in called)
    assert clock.most_timers == 1
    assert kept(deadlines) == 0
    assert not clock.waiting()


def test_an_earlier_one_that_is_added_later_does_not_wait(clock):
    deadlines, called = Deadlines(), []
    for after_s in (3, 1, 2, 0.5):
        deadlines.add(1000 + after_s, after_s, lambda after_s=after_s: called.append(after_s))
    clock.pass_to(1000.6)
    assert called == [0.5]
    deadlines.add(1000.7, 0.7, lambda: called.append(0.7))
    clock.pass_to(1004)
    assert called == [0.5, 0.7, 1, 2, 3]


def test_what_is_past_is_called_at_once(clock):
    deadlines, called = Deadlines(), []
    deadlines.add(900, "late", lambda: called.append("late"))
    assert not called  # but not from within `add`
    clock.pass_to(1000)
    assert called == ["late"]


def test_those_of_one_slot_are_called_in_their_order(clock):
    deadlines, called = Deadlines(), []
    for number in range(100):
        deadlines.add(1001, number, lambda number=number: called.append(number))
    clock.pass_to(1002)
    assert called == list(range(100))


def test_who_is_discarded_is_not_called(clock):
    deadlines, called = Deadlines(), []
    slots = [deadlines.add(1001 + n / 1000, n, lambda n=n: called.append(n)) for n in range(100)]
    for n in range(0, 100, 2):
        deadlines.discard(slots[n], n)
        deadlines.discard(slots[n], n)  # twice is harmless
    deadlines.discard(slots[1], "nobody")
    deadlines.discard(-1, 1)
    clock.pass_to(1002)
    assert called == list(range(1, 100, 2))
    deadlines.discard(slots[1], 1)  # and so is too late


def test_a_callback_may_discard_who_is_due_in_the_same_moment(clock):
    deadlines, called = Deadlines(), []
    slots = {}

    def one(me, other):
        called.append(me)
        deadlines.discard(slots[other], other)

    slots["a"] = deadlines.add(1001, "a", lambda: one("a", "b"))
    slots["b"] = deadlines.add(1001, "b", lambda: one("b", "a"))
    clock.pass_to(1002)
    assert called == ["a"]


def test_a_callback_that_fails_keeps_nobody_else_waiting(clock):
    deadlines, called = Deadlines(), []

    def fail():
        raise RuntimeError("a bug")

    deadlines.add(1001, "bad", fail)
    deadlines.add(1001, "good", lambda: called.append("good"))
    deadlines.add(1002, "later", lambda: called.append("later"))
    with pytest.raises(RuntimeError, match="a bug"):  # an event loop logs it
        clock.pass_to(1003)
    clock.pass_to(1003)
    assert called == ["good", "later"]
    assert kept(deadlines) == 0


def test_callbacks_may_add(clock):
    deadlines, called = Deadlines(), []

    def again(times):
        called.append(times)
        if times:
            deadlines.add(clock.now_s, times, lambda: again(times - 1))  # due at once
            deadlines.add(clock.now_s + 1, (times, "later"), lambda: called.append("later"))

    deadlines.add(1001, "first", lambda: again(3))
    clock.pass_to(1001.5)
    assert called == [3, 2, 1, 0]
    clock.pass_to(1003)
    assert called == [3, 2, 1, 0, "later", "later", "later"]
    assert kept(deadlines) == 0


def test_little_is_kept_of_those_that_were_discarded(clock):
    """As at a gateway: each has long to live, and is discarded before the next one comes."""
    deadlines = Deadlines()
    stays = deadlines.add(1600, "stays", lambda: None)
    for number in range(20_000):
        clock.now_s += 0.0005
        deadlines.discard(deadlines.add(clock.now_s + 600, number, lambda: None), number)
    assert kept(deadlines) < 1000
    deadlines.discard(stays, "stays")
    clock.pass_to(2000)
    assert kept(deadlines) == 0
    assert not clock.waiting()


def test_the_earliest_is_timed_after_what_was_discarded_is_forgotten(clock):
    deadlines, called = Deadlines(), []
    for number in range(5000):
        slot = deadlines.add(1000 + (number * 7919 % 5000) / 100, number, lambda number=number: called.append(number))
        if number % 10:
            deadlines.discard(slot, number)
    clock.pass_to(1100)
    assert called == sorted(range(0, 5000, 10), key=lambda number: number * 7919 % 5000)


@pytest.mark.parametrize("count", [1, 2000])
async def test_on_an_event_loop(count):
    deadlines, called = Deadlines(), []
    loop = asyncio.get_running_loop()
    began_s = loop.time()
    for number in range(count):
        deadlines.add(
            began_s + 0.05 * number / count, number, lambda number=number: called.append((number, loop.time()))
        )
    await eventually(lambda: len(called) == count)
    assert [number for number, _ in called] == list(range(count))
    assert all(now_s >= began_s + 0.05 * number / count - 1e-6 for number, now_s in called)
    assert kept(deadlines) == 0
