"""The drop-in streamer never hangs: not without a put(), nor when `generate()` raises."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from threading import Thread
from typing import Any

import anyio
import pytest
import torch
import transformers
import trio
from anyio import to_thread

from anystreamer import AsyncTextIteratorStreamer
from anystreamer._bridge import Crossing
from anystreamer._drop_in import delivery_thread, text_queue

from ..helpers.misbehaving import MISBEHAVING
from ..helpers.scripted import PATIENCE
from ..helpers.tiny_models import generated, llama, steps_of, tokenizer

pytestmark = pytest.mark.torch

PROMPT = "An increasing sequence: one,"


@pytest.fixture(autouse=True)
def threads_may_end_by_exceptions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threading, "excepthook", lambda args: None)


@pytest.fixture
def no_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing ends the text afterwards."""
    monkeypatch.setattr(text_queue, "END_GRACE", 0.0)


def inputs() -> dict[str, Any]:
    return dict(tokenizer()([PROMPT], return_tensors="pt"))


class NoStep(transformers.LogitsProcessor):
    def __init__(self, length: int) -> None:
        self.length = length

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        if input_ids.shape[1] >= self.length:
            raise ZeroDivisionError
        return scores


# Arguments with which generate() raises, and what it raises.
EARLY: dict[str, tuple[dict[str, Any], type[Exception]]] = {
    "an unknown argument": ({"no_such_argument": 1}, ValueError),
    "beams": ({"num_beams": 2}, ValueError),
    "no tokens": ({"max_new_tokens": 0}, ValueError),
    "a bad sampling value": ({"do_sample": True, "temperature": -1.0}, ValueError),
    "two rows": ({"do_sample": True, "num_return_sequences": 2}, ValueError),
    "a prompt of two rows": ({"input_ids": [[1], [2]]}, AttributeError),
}
LATE: dict[str, tuple[dict[str, Any], type[Exception]]] = {
    "the first step": ({"logits_processor": [NoStep(0)]}, ZeroDivisionError),
    "a later step": ({"logits_processor": [NoStep(32)]}, ZeroDivisionError),
}
FAILURES = EARLY | LATE
failing = pytest.mark.parametrize(("kwargs", "kind"), FAILURES.values(), ids=FAILURES.keys())
BOTH = (EARLY["an unknown argument"], LATE["a later step"])


def generate(streamer: Any, kwargs: dict[str, Any]) -> None:
    llama().generate(**{"max_new_tokens": 9, **inputs(), **kwargs}, streamer=streamer)


def whole_text() -> str:
    return str(tokenizer().decode(generated(llama(), PROMPT, max_new_tokens=9)))


async def text_of(streamer: Any) -> str:
    with anyio.fail_after(PATIENCE):
        return "".join([piece async for piece in streamer])


async def fails(streamer: Any, kind: type[Exception]) -> None:
    with pytest.raises(RuntimeError, match=f"did not return: it raised {kind.__name__}") as raised:
        await text_of(streamer)
    assert type(raised.value.__cause__) is kind


@failing
async def test_an_error_in_a_plain_thread(kwargs: dict[str, Any], kind: type[Exception]) -> None:
    streamer = AsyncTextIteratorStreamer(tokenizer(), skip_prompt=True)
    thread = Thread(target=generate, args=(streamer, kwargs))
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(fails, streamer, kind)
        await anyio.wait_all_tasks_blocked()
        thread.start()
    thread.join()


@pytest.mark.parametrize("kind", MISBEHAVING)
async def test_generate_raises_its_own_error(kind: Callable[[], BaseException]) -> None:
    """Also one whose class refuses what `contextlib` does with exceptions."""
    error = kind()
    streamer = AsyncTextIteratorStreamer(tokenizer(), skip_prompt=True)
    caught: BaseException | None = None

    class Raising:  # before generate() enters a context of contextlib's itself
        def __getattr__(self, name: str) -> Any:
            raise error

    try:
        generate(streamer, {"generation_config": Raising()})
    except BaseException as exc:
        caught = exc
    assert caught is error


@pytest.mark.parametrize(("kwargs", "kind"), BOTH, ids=["early", "late"])
async def test_an_error_before_the_consumer_comes(
    kwargs: dict[str, Any], kind: type[Exception]
) -> None:
    streamer = AsyncTextIteratorStreamer(tokenizer(), skip_prompt=True)
    thread = Thread(target=generate, args=(streamer, kwargs))
    thread.start()
    await to_thread.run_sync(thread.join)
    await fails(streamer, kind)


@pytest.mark.usefixtures("no_grace")
@pytest.mark.parametrize(("kwargs", "kind"), BOTH, ids=["early", "late"])
async def test_an_error_in_a_thread_of_a_pool(
    kwargs: dict[str, Any], kind: type[Exception]
) -> None:
    streamer = AsyncTextIteratorStreamer(tokenizer(), skip_prompt=True)
    with ThreadPoolExecutor(1) as pool:
        pool.submit(generate, streamer, kwargs)
        await fails(streamer, kind)


def by_end(streamer: Any) -> None:
    streamer.end()


def by_on_finalized_text(streamer: Any) -> None:
    streamer.on_finalized_text("", stream_end=True)


def by_the_queue(streamer: Any) -> None:
    streamer.text_queue.put_nowait(streamer.stop_signal)


ENDS = [by_end, by_on_finalized_text, by_the_queue]


@pytest.mark.parametrize("ends", ENDS)
async def test_the_end_alone_ends_the_iteration(ends: Callable[[Any], None]) -> None:
    streamer = AsyncTextIteratorStreamer(tokenizer(), skip_prompt=True)
    ends(streamer)  # on the loop
    assert await text_of(streamer) == ""
    await to_thread.run_sync(ends, streamer)  # in a thread
    assert await text_of(streamer) == ""
    async with anyio.create_task_group() as tasks:

        async def wait() -> None:
            assert await text_of(streamer) == ""

        tasks.start_soon(wait)
        await anyio.wait_all_tasks_blocked()
        ends(streamer)


@pytest.mark.parametrize(("kwargs", "kind"), BOTH, ids=["early", "late"])
@pytest.mark.parametrize("ends", ENDS)
async def test_an_error_whose_handler_ends_the_text(
    kwargs: dict[str, Any], kind: type[Exception], ends: Callable[[Any], None]
) -> None:
    def handle() -> None:
        try:
            generate(streamer, kwargs)
        except kind:
            ends(streamer)

    streamer = AsyncTextIteratorStreamer(tokenizer(), skip_prompt=True)
    thread = Thread(target=handle)
    thread.start()
    text = await text_of(streamer)
    whole = whole_text()
    assert whole.startswith(text.rstrip("\N{REPLACEMENT CHARACTER}"))
    await to_thread.run_sync(thread.join)


async def test_an_error_in_a_thread_of_a_task_group_ends_the_consumer_with_its_scope() -> None:
    streamer = AsyncTextIteratorStreamer(tokenizer(), skip_prompt=True)
    kwargs = {"no_such_argument": 1}
    with pytest.raises(ExceptionGroup) as raised:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(to_thread.run_sync, generate, streamer, kwargs)
            async for _ in streamer:
                pass
    assert [type(each) for each in raised.value.exceptions] == [ValueError]


async def test_a_streamer_serves_a_generation_after_one_that_failed() -> None:
    streamer = AsyncTextIteratorStreamer(tokenizer(), skip_prompt=True)
    expected = whole_text()
    for kwargs, kind in BOTH:
        thread = Thread(target=generate, args=(streamer, kwargs))
        thread.start()
        await fails(streamer, kind)
        streamer.next_tokens_are_prompt = True  # it was not ended
        thread = Thread(target=generate, args=(streamer, {}))
        thread.start()
        assert await text_of(streamer) == expected
        await to_thread.run_sync(thread.join)


async def test_an_error_that_is_handled_by_trying_again() -> None:
    def try_twice() -> None:
        try:
            generate(streamer, {"no_such_argument": 1})
        except ValueError:
            generate(streamer, {})

    streamer = AsyncTextIteratorStreamer(tokenizer(), skip_prompt=True)
    thread = Thread(target=try_twice)
    thread.start()
    text = await text_of(streamer)
    assert text == whole_text()
    await to_thread.run_sync(thread.join)


def other_decoding(model: Any, input_ids: Any, **kwargs: Any) -> Any:
    return input_ids  # the streamer is not among the arguments


@pytest.mark.usefixtures("no_grace")
async def test_a_generate_that_never_calls_the_streamer() -> None:
    streamer = AsyncTextIteratorStreamer(tokenizer(), skip_prompt=True)
    thread = Thread(target=generate, args=(streamer, {"custom_generate": other_decoding}))
    thread.start()
    with pytest.raises(RuntimeError, match="generate\\(\\) has returned, but the text was not"):
        await text_of(streamer)
    await to_thread.run_sync(thread.join)


async def test_a_model_class_with_a_generate_of_its_own() -> None:
    class Own(transformers.LlamaForCausalLM):
        def generate(self, *args: Any, **kwargs: Any) -> Any:
            raise NotImplementedError

    model = Own(llama().config)
    streamer = AsyncTextIteratorStreamer(tokenizer(), skip_prompt=True)
    thread = Thread(target=model.generate, kwargs={**inputs(), "streamer": streamer})
    thread.start()
    await fails(streamer, NotImplementedError)


@pytest.mark.usefixtures("no_grace")
async def test_a_subclass_that_drops_the_end() -> None:
    class Streamer(AsyncTextIteratorStreamer):
        def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
            super().on_finalized_text(text)

    streamer = Streamer(tokenizer(), skip_prompt=True)
    thread = Thread(target=generate, args=(streamer, {}))
    thread.start()
    text = ""
    with pytest.raises(RuntimeError, match=r"on_finalized_text\(\) does not put stop_signal"):
        with anyio.fail_after(PATIENCE):
            async for piece in streamer:
                text += piece
    assert text == whole_text()


class PutsOnTheLoop(AsyncTextIteratorStreamer):
    """Callbacks on the loop put the items; the end is put by a task that a callback starts."""

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        if text:
            self.loop.call_soon_threadsafe(self.text_queue.put_nowait, text)
        if stream_end:
            self.loop.call_soon_threadsafe(self.start_end)

    def start_end(self) -> None:
        async def put_end() -> None:
            await self.text_queue.put(self.stop_signal)

        if isinstance(self.loop, asyncio.AbstractEventLoop):
            self.task = self.loop.create_task(put_end())
        else:
            trio.lowlevel.spawn_system_task(put_end)


class PutsByCallbacks(PutsOnTheLoop):
    def start_end(self) -> None:
        self.text_queue.put_nowait(self.stop_signal)


puts_on_the_loop = pytest.mark.parametrize("subclass", [PutsByCallbacks, PutsOnTheLoop])


@puts_on_the_loop
async def test_an_end_that_the_loop_has_still_to_put(subclass: type[PutsOnTheLoop]) -> None:
    async def consume() -> None:
        for _ in range(2):
            text = await text_of(streamer)
            assert text == whole_text()

    streamer = subclass(tokenizer(), skip_prompt=True)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(consume)
        for _ in range(2):
            await anyio.wait_all_tasks_blocked()
            thread = Thread(target=generate, args=(streamer, {}))
            thread.start()
            thread.join()  # on the loop, which puts nothing meanwhile
            time.sleep(3 * delivery_thread.LIFE_POLL)


@pytest.mark.usefixtures("no_grace")
@pytest.mark.parametrize("is_busy", [False, True])
async def test_an_error_behind_what_the_loop_has_still_to_put(is_busy: bool) -> None:
    streamer = PutsOnTheLoop(tokenizer(), skip_prompt=True)
    thread = Thread(target=generate, args=(streamer, {"logits_processor": [NoStep(32)]}))
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(fails, streamer, ZeroDivisionError)
        await anyio.wait_all_tasks_blocked()
        thread.start()
        if is_busy:
            thread.join()
    await to_thread.run_sync(thread.join)


@puts_on_the_loop
async def test_an_error_of_a_call_before_the_loop_has_ended_the_text_of_the_one_before(
    subclass: type[PutsOnTheLoop],
) -> None:
    def two_calls() -> None:
        generate(streamer, {})
        generate(streamer, {"no_such_argument": 1})

    streamer = subclass(tokenizer(), skip_prompt=True)
    for is_busy in (False, True):
        thread = Thread(target=two_calls)
        thread.start()
        if is_busy:
            thread.join()
        assert await text_of(streamer) == whole_text()
        await fails(streamer, ValueError)
        await to_thread.run_sync(thread.join)


async def test_a_text_of_a_thread_that_ends_is_not_ended_by_the_late_end_before_it() -> None:
    def generate_and_put() -> None:
        generate(streamer, {})
        streamer.put(torch.tensor([[1]]))  # a prompt, which is not text

    streamer = PutsByCallbacks(tokenizer(), skip_prompt=True)
    thread = Thread(target=generate_and_put)
    thread.start()
    thread.join()  # on the loop, which puts nothing meanwhile
    assert await text_of(streamer) == whole_text()
    with pytest.raises(RuntimeError, match="in a thread that has ended"):
        await text_of(streamer)


@pytest.mark.usefixtures("no_grace")
@pytest.mark.parametrize("calls", [1, 2, 3])
async def test_text_of_several_calls_that_the_loop_ends(calls: int) -> None:
    class Streamer(AsyncTextIteratorStreamer):
        def end(self) -> None:
            self.next_tokens_are_prompt = True

    async def consume() -> None:
        for _ in range(2):
            assert await text_of(streamer) == calls * whole_text()

    def generate_all() -> None:
        for _ in range(calls):
            generate(streamer, {})
        have_returned.set()
        assert is_ended.wait(PATIENCE)

    streamer = Streamer(tokenizer(), skip_prompt=True)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(consume)
        for _ in range(2):
            have_returned, is_ended = threading.Event(), threading.Event()
            thread = Thread(target=generate_all)
            thread.start()
            assert await to_thread.run_sync(have_returned.wait, PATIENCE)
            streamer.text_queue.put_nowait(streamer.stop_signal)
            is_ended.set()
            await to_thread.run_sync(thread.join)
            await anyio.sleep(3 * delivery_thread.LIFE_POLL)  # an error would come


async def test_an_error_of_a_call_that_begins_while_the_end_is_being_put(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The consumer has the end before put() has returned in its thread."""
    submit = delivery_thread.DeliveryThread.submit
    began, goes_on = threading.Event(), threading.Event()

    def submit_and_wait(self: Any, to: Any, item: Any) -> None:
        submit(self, to, item)
        if item is None:
            assert goes_on.wait(PATIENCE)

    class FailsLater(transformers.LogitsProcessor):
        def __call__(self, input_ids: Any, scores: Any) -> Any:
            began.set()
            first.join()
            raise ZeroDivisionError

    monkeypatch.setattr(delivery_thread.DeliveryThread, "submit", submit_and_wait)
    streamer = AsyncTextIteratorStreamer(tokenizer(), skip_prompt=True)
    first = Thread(target=generate, args=(streamer, {}))
    first.start()
    assert await text_of(streamer) == whole_text()
    second = Thread(target=generate, args=(streamer, {"logits_processor": [FailsLater()]}))
    second.start()
    assert await to_thread.run_sync(began.wait, PATIENCE)
    goes_on.set()
    await fails(streamer, ZeroDivisionError)
    await to_thread.run_sync(second.join)


@pytest.mark.parametrize("is_ended", [True, False])
async def test_the_last_item_comes_when_nothing_is_under_way(
    is_ended: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A loop that ended then would leave the delivery thread to wait for it for ever."""
    flush = Crossing.flush
    deliveries: list[str] = []
    pushed = threading.Event()

    def flush_late(self: Any) -> None:
        deliveries.append("begin")
        pushed.set()
        time.sleep(0.1)
        flush(self)
        deliveries.append("end")

    def put_all() -> None:
        streamer.put(torch.tensor([[1]]))  # a prompt, which is not text
        streamer.on_finalized_text("a", stream_end=is_ended)

    monkeypatch.setattr(Crossing, "flush", flush_late)
    streamer = AsyncTextIteratorStreamer(tokenizer(), skip_prompt=True)
    thread = Thread(target=put_all)
    thread.start()
    await to_thread.run_sync(pushed.wait)
    with nullcontext() if is_ended else pytest.raises(RuntimeError):
        assert await text_of(streamer) == "a"
    assert deliveries.count("begin") == deliveries.count("end")
    await to_thread.run_sync(thread.join)


class Typewriter(AsyncTextIteratorStreamer):
    """A task on the loop puts the characters one by one, after the thread has ended as well."""

    def __init__(self) -> None:
        super().__init__(tokenizer(), skip_prompt=True)
        self.typed: list[str | None] = []

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        self.typed += [*text, self.stop_signal] if stream_end else text

    async def type(self) -> None:
        while True:
            await anyio.sleep(2 * delivery_thread.LIFE_POLL)
            if self.typed:
                self.text_queue.put_nowait(item := self.typed.pop(0))
                if item is None:
                    return


async def test_a_text_that_the_loop_ends_long_after_the_thread() -> None:
    streamer = Typewriter()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(streamer.type)
        thread = Thread(target=generate, args=(streamer, {}))
        thread.start()
        assert await text_of(streamer) == whole_text()


async def test_the_loop_begins_a_text_or_makes_all_of_it_after_one_of_a_thread() -> None:
    def generate_late() -> None:
        time.sleep(3 * delivery_thread.LIFE_POLL)
        generate(streamer, {})

    async def put_all() -> None:
        for item in ("b", "c", None):
            await anyio.sleep(3 * delivery_thread.LIFE_POLL)
            streamer.on_finalized_text(item or "", stream_end=item is None)

    streamer = AsyncTextIteratorStreamer(tokenizer(), skip_prompt=True)
    for prefix in ("", "a "):
        if prefix:
            streamer.on_finalized_text(prefix)
        thread = Thread(target=generate_late)
        thread.start()
        assert await text_of(streamer) == prefix + whole_text()
        await to_thread.run_sync(thread.join)
    streamer.on_finalized_text("a")
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(put_all)
        assert await text_of(streamer) == "abc"


async def test_a_subclass_that_raises() -> None:
    class Streamer(AsyncTextIteratorStreamer):
        def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
            raise KeyError(text)

    streamer = Streamer(tokenizer(), skip_prompt=True)
    Thread(target=generate, args=(streamer, {})).start()
    await fails(streamer, KeyError)


async def test_an_error_on_the_loop_itself_is_raised_there_alone() -> None:
    async with AsyncTextIteratorStreamer(tokenizer(), skip_prompt=True) as streamer:
        for kwargs, kind in FAILURES.values():
            with pytest.raises(kind):
                generate(streamer, kwargs)


async def test_calls_with_other_streamers_are_left_alone() -> None:
    """transformers' method is wrapped: all that it does stays."""
    AsyncTextIteratorStreamer(tokenizer())
    printed: list[str] = []

    class Printer(transformers.TextStreamer):
        def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
            printed.append(text)

    error = ZeroDivisionError()

    def fail() -> None:
        raise error

    generate(Printer(tokenizer(), skip_prompt=True), {})
    assert "".join(printed) == whole_text()
    with steps_of(llama(), {3: fail}), pytest.raises(ZeroDivisionError) as raised:
        generate(Printer(tokenizer()), {})
    assert raised.value is error
    assert llama().generate.__doc__.strip().startswith("Generates sequences")
