"""Exceptions that strike a thread while it reads or closes a synchronous stream.

A Ctrl-C is one. Handlers of other signals raise their own, such as a TimeoutError for an alarm.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import pytest

from anystreamer import sync
from anystreamer.testing import ScriptedModel

from ..helpers.inside import waits_for_a_call
from ..helpers.scripted import PATIENCE, Latch

pytestmark = pytest.mark.skipif(not hasattr(signal, "SIGUSR1"), reason="Windows has no such signal")

ERRORS = [KeyboardInterrupt, TimeoutError]
ITEMS = 300


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


class Striking:
    """A handler of a signal, which raises where a synchronous stream does one of *calls*.

    It raises once, and again when it has been armed again.
    """

    def __init__(self, error: type[BaseException], *calls: str) -> None:
        self.error = error
        self.calls = calls
        self.strikes = 0
        self.is_armed = True

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if self.is_armed and self._is_inside(frame):
            self.is_armed = False
            self.strikes += 1
            raise self.error

    def _is_inside(self, frame: FrameType | None) -> bool:
        while frame is not None:
            is_ours = frame.f_globals.get("__name__") == "anystreamer.sync._streams"
            if is_ours and frame.f_code.co_name in self.calls:
                return True
            frame = frame.f_back
        return False


@pytest.fixture
def strike() -> Iterator[Callable[[Striking], Striking]]:
    """Let a handler have signals all the time, until the test ends."""
    before = signal.getsignal(signal.SIGUSR1)
    is_over = threading.Event()

    def send() -> None:
        while not is_over.is_set():
            os.kill(os.getpid(), signal.SIGUSR1)
            time.sleep(0.0007)

    sender = threading.Thread(target=send)

    def begin(handler: Striking) -> Striking:
        signal.signal(signal.SIGUSR1, handler)
        sender.start()
        return handler

    yield begin
    is_over.set()
    if sender.ident is not None:
        sender.join()
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # one that is on its way
    signal.signal(signal.SIGUSR1, before)


def numbers(emit: Callable[[int], None], should_stop: Callable[[], bool]) -> None:
    for number in range(ITEMS):
        emit(number)
        time.sleep(0.0003)


@pytest.mark.parametrize("error", ERRORS)
def test_no_item_is_lost_and_none_comes_twice(strike: Any, error: type[BaseException]) -> None:
    """What was being received is received by the next call, which is not refused as a second."""
    handler = strike(Striking(error, "__next__", "receive_many"))
    items: list[int] = []
    with sync.stream_from_thread(numbers) as stream:
        while len(items) < ITEMS:
            try:
                items += [next(stream)] if len(items) % 2 else stream.receive_many(3)
            except error:
                handler.is_armed = True
    assert items == list(range(ITEMS))
    assert handler.strikes


def test_no_text_is_lost(strike: Any) -> None:
    words = [f"{number} " for number in range(ITEMS)]
    model = ScriptedModel(words, delay=0.0003)
    handler = strike(Striking(KeyboardInterrupt, "__next__"))
    pieces: list[str] = []
    with sync.stream_text(model, model.tokenizer, "Count!") as stream:
        while handler.strikes < 5:
            try:
                pieces.append(next(stream))
            except KeyboardInterrupt:
                handler.is_armed = handler.strikes < 5
        pieces.append(stream.read())
    assert "".join(pieces) == stream.text == "".join(words)
    assert stream.finish_reason == "eos"


@pytest.mark.parametrize("owner", ["stream", "worker"])
def test_two_of_them_do_not_end_the_wait_for_a_step(owner: str) -> None:
    """As two Ctrl-Cs at the end of an async block."""
    producer, main = Latch(), threading.get_ident()
    struck = threading.Semaphore(0)

    def handler(number: int, frame: FrameType | None) -> None:
        struck.release()
        raise KeyboardInterrupt

    def interrupt() -> None:
        for _ in range(2):
            until(lambda: waits_for_a_call(main))
            os.kill(os.getpid(), signal.SIGUSR1)
            assert struck.acquire(timeout=PATIENCE)
        until(lambda: waits_for_a_call(main))
        assert producer.running
        producer.let_go()

    before = signal.signal(signal.SIGUSR1, handler)
    interrupter = threading.Thread(target=interrupt)
    try:
        with pytest.raises(KeyboardInterrupt):
            if owner == "stream":
                with sync.stream_from_thread(producer):
                    assert producer.holding.wait(PATIENCE)
                    interrupter.start()
            else:
                with sync.open_worker() as worker:
                    stream = worker.stream_from_thread(producer).__enter__()
                    assert producer.holding.wait(PATIENCE)
                    interrupter.start()
                stream.close()
        assert not producer.running
    finally:
        if interrupter.ident is not None:
            interrupter.join()
        signal.signal(signal.SIGUSR1, before)


STRUCK_AT_ANY_CALL = """
    import concurrent.futures, contextlib, faulthandler, os, signal, sys, threading, time
    import anyio, anystreamer
    from anystreamer import sync
    from anystreamer.sync import _portal
    from anystreamer.testing import ScriptedModel

    OURS = os.path.dirname(anystreamer.__file__)
    BELOW = tuple(
        os.path.dirname(each) for each in (anyio.__file__, concurrent.futures.__file__)
    ) + (threading.__file__,)
    WORDS = [f"{number} " for number in range(12)]
    model = ScriptedModel(WORDS)
    struck = []

    def produce(emit, should_stop):
        for word in WORDS:
            emit(word)

    def new_stream():
        return sync.stream_from_thread(produce, max_buffer_size=3)

    def is_ours_or_below(frame):
        while frame.f_back is not None and frame.f_code.co_filename.startswith(BELOW):
            frame = frame.f_back
        return frame.f_code.co_filename.startswith(OURS)

    def profile(frame, event, arg):
        if event == "c_call" and arg.__name__ != "acquire":  # which a signal can wake
            return
        if event in ("call", "c_call", "c_return") and is_ours_or_below(frame):
            caller = frame.f_back.f_code.co_qualname
            place = frame.f_code.co_qualname, frame.f_lineno, event, caller
            if place not in struck:
                sys.setprofile(None)
                struck.append(place)
                signal.raise_signal(signal.SIGINT)

    @contextlib.contextmanager
    def interrupted():
        try:
            sys.setprofile(profile)
            yield
        except KeyboardInterrupt:
            pass
        finally:
            sys.setprofile(None)

    def check(stream):
        with stream:
            assert "".join(stream) == "".join(WORDS)

    def reading():
        words, is_over = [], False
        with new_stream() as stream:
            while not is_over:
                with interrupted():
                    if len(words) % 3:
                        words.append(next(stream))
                    else:
                        words += (more := stream.receive_many(2))
                        is_over = not more
        assert "".join(words) == "".join(WORDS), words

    def a_block():
        with interrupted(), new_stream() as stream:
            next(stream)
        check(new_stream())

    def the_first_block():
        _portal.portal.close()  # its loop is started again
        a_block()

    def an_engine():
        engine = sync.open_engine(model, model.tokenizer)
        with interrupted():
            engine.open()
            engine.close()
        engine.close()
        with sync.open_engine(model, model.tokenizer) as engine:
            check(engine.stream_text("hi"))

    def a_call():
        with sync.open_worker() as worker:
            with interrupted():
                assert worker.run(int) == 0
            assert worker.run(int) == 0

    while True:
        before = len(struck)
        faulthandler.dump_traceback_later(30, exit=True)
        try:
            globals()[sys.argv[1]]()
        except BaseException:
            print(struck[-1], flush=True)
            raise
        if len(struck) == before:  # there is no other place
            break
    print(len(struck))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "what",
    [
        "reading",
        "the_first_block",
        "an_engine",
        pytest.param("a_block", marks=pytest.mark.nightly),
        pytest.param("a_call", marks=pytest.mark.nightly),
    ],
)
def test_one_at_any_call_harms_nothing_that_follows(what: str) -> None:
    """Also in Python's own code, where it can leave a lock of a future or of an event locked.

    No item is lost, and the next stream, engine or call works.
    """
    program = [sys.executable, "-c", textwrap.dedent(STRUCK_AT_ANY_CALL), what]
    ran = subprocess.run(program, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert int(ran.stdout) > 25
