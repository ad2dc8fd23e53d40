"""A lock that threads get in the order in which they came."""

from __future__ import annotations

import random
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext, suppress
from itertools import count, pairwise
from types import FrameType

import pytest

from anystreamer._engine import turns as turns_module
from anystreamer._engine.turns import Turns

from ..helpers.inside import waiting_for
from ..helpers.scripted import PATIENCE


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.0005)


def test_those_that_wait_get_it_in_their_order() -> None:
    turns, order = Turns(), list[int]()

    def enter(number: int) -> None:
        with turns:
            order.append(number)

    threads = []
    with turns:
        for number in range(8):
            threads.append(threading.Thread(target=enter, args=(number,)))
            threads[-1].start()
            wait_until(lambda: waiting_for(turns) == len(threads))
    for thread in threads:
        thread.join(PATIENCE)
    assert order == list(range(8))


def test_who_comes_back_goes_behind_those_that_wait() -> None:
    """Two threads that never stop alternate: a plain lock goes to the one that has released it."""
    turns, order = Turns(), list[str]()

    def make_passes(name: str) -> None:
        for _ in range(50):
            with turns:
                order.append(name)
                # Until the other is back, unless it has ended.
                if order.count("a") < 50 and order.count("b") < 50:
                    wait_until(lambda: waiting_for(turns) == 1)

    with ThreadPoolExecutor(2) as threads:
        for ended in [threads.submit(make_passes, name) for name in "ab"]:
            ended.result(PATIENCE)
    both = order[: 2 * 50 - 2]
    assert all(each != following for each, following in pairwise(both)), order


def test_a_thread_that_has_it_can_enter_again() -> None:
    turns = Turns()
    with turns:
        with turns:
            pass
        other = threading.Thread(target=turns.__enter__)
        other.start()
        wait_until(lambda: waiting_for(turns) == 1)
    other.join(PATIENCE)
    assert not waiting_for(turns)


def test_an_error_gives_it_to_the_next() -> None:
    turns = Turns()
    for _ in range(2):
        with pytest.raises(KeyError), turns:
            raise KeyError
    with ThreadPoolExecutor(1) as threads:
        threads.submit(lambda: turns.__enter__()).result(PATIENCE)


class Strike:
    """Raises KeyboardInterrupt at one step of `Turns`, where the interpreter handles signals.

    That is at each call, and after each call of a function in C.
    """

    def __init__(self, step: int) -> None:
        self._steps_left = step
        self.has_struck = False

    def __enter__(self) -> None:
        sys.setprofile(self._at_call)

    def __exit__(self, *exc_info: object) -> None:
        sys.setprofile(None)

    def _at_call(self, frame: FrameType, event: str, arg: object) -> None:
        if frame.f_code.co_filename != turns_module.__file__ or event not in ("call", "c_return"):
            return
        self._steps_left -= 1
        if not self._steps_left:
            self.has_struck = True
            self.__exit__()
            raise KeyboardInterrupt


@pytest.mark.parametrize("state", ["free", "held", "mine"])
def test_an_interrupt_at_any_step_leaves_the_line(state: str) -> None:
    """Or the lock would be handed to a thread that does not wait for it any more."""

    def hold(turns: Turns, is_held: threading.Event, may_go: threading.Event) -> None:
        with turns:
            is_held.set()
            while not (waiting_for(turns) or may_go.is_set()):
                time.sleep(0.0005)

    def take(turns: Turns) -> None:
        with turns:
            pass

    for step in count(1):
        turns, strike = Turns(), Strike(step)
        is_held, may_go = threading.Event(), threading.Event()
        with ThreadPoolExecutor(2) as threads:
            if state == "held":
                holding = threads.submit(hold, turns, is_held, may_go)
                assert is_held.wait(PATIENCE)
            with turns if state == "mine" else nullcontext():
                try:
                    with strike:
                        turns.__enter__()
                    turns.__exit__()
                except KeyboardInterrupt:
                    assert strike.has_struck
                may_go.set()
            threads.submit(take, turns).result(PATIENCE)
            if state == "held":
                holding.result(PATIENCE)
        if not strike.has_struck:
            assert step > {"free": 10, "held": 10, "mine": 3}[state]
            return


def test_an_interrupt_of_the_end_gives_it_to_the_next() -> None:
    """At any step but the call of `__exit__` itself."""
    for step in count(2):
        turns, strike = Turns(), Strike(step)
        turns.__enter__()
        with suppress(KeyboardInterrupt), strike:
            turns.__exit__()
        with ThreadPoolExecutor(1) as threads:
            threads.submit(turns.__enter__).result(PATIENCE)
        if not strike.has_struck:
            assert step > 5
            return


def test_one_at_a_time_has_it() -> None:
    turns, inside, most = Turns(), 0, 0

    def make_passes(seed: int) -> None:
        nonlocal inside, most
        rng = random.Random(seed)
        for _ in range(100):
            with turns:
                inside += 1
                most = max(most, inside)
                time.sleep(rng.random() * 1e-5)
                inside -= 1

    with ThreadPoolExecutor(6) as threads:
        for ended in [threads.submit(make_passes, seed) for seed in range(6)]:
            ended.result(PATIENCE)
    assert most == 1
