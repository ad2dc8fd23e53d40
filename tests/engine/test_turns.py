"""A lock that threads get in the order in which they came."""

from __future__ import annotations

import random
import signal
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import pytest

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


@pytest.mark.skipif(sys.platform == "win32", reason="a thread cannot be sent Ctrl-C")
def test_a_ctrl_c_leaves_the_line() -> None:
    """Or the lock would be handed to a thread that does not wait for it any more."""
    turns, is_held, may_go = Turns(), threading.Event(), threading.Event()
    left = threading.Event()

    def hold() -> None:
        with turns:
            is_held.set()
            may_go.wait(PATIENCE)

    def interrupt() -> None:
        wait_until(lambda: waiting_for(turns) == 1)
        # Again, if the interpreter has dropped it: it does where one strikes a finalizer.
        # But never after it was raised: a second one would end the whole run of the tests.
        while waiting_for(turns) and not left.is_set():
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
            left.wait(PATIENCE / 4)

    threads = [threading.Thread(target=hold), threading.Thread(target=interrupt)]
    for thread in threads:
        thread.start()
        is_held.wait(PATIENCE)
    try:
        with pytest.raises(KeyboardInterrupt):
            turns.__enter__()
        left.set()
        assert not waiting_for(turns)
    finally:
        may_go.set()
    for thread in threads:
        thread.join(PATIENCE)
    with turns:
        pass


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
