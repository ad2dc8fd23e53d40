"""`AsyncTextIteratorStreamer`, which takes the place of transformers' class of that name."""

from __future__ import annotations

import inspect
import queue
import threading
from threading import Thread
from types import SimpleNamespace
from typing import Any

import anyio
import pytest
import torch
import transformers
from anyio import to_thread

from anystreamer import AsyncTextIteratorStreamer, GenerationStopped
from anystreamer._drop_in import delivery_thread

from ..helpers.tiny_models import generated, llama, seeded, steps_of, tokenizer

pytestmark = pytest.mark.torch

PROMPT = "An increasing sequence: one,"


def inputs(**kwargs: Any) -> dict[str, Any]:
    return {**tokenizer()([PROMPT], return_tensors="pt"), **kwargs}


@pytest.fixture
def ended() -> list[type[BaseException]]:
    """What ended the plain threads of a test, where it was an exception."""
    return []


@pytest.fixture(autouse=True)
def threads_may_end_by_exceptions(
    ended: list[type[BaseException]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def hook(args: threading.ExceptHookArgs) -> None:
        ended.append(args.exc_type)

    monkeypatch.setattr(threading, "excepthook", hook)


async def joined(thread: Thread) -> None:
    await to_thread.run_sync(thread.join, 30.0)
    assert not thread.is_alive()


async def in_worker(**kwargs: Any) -> None:
    await to_thread.run_sync(lambda: llama().generate(**kwargs))


def test_it_has_the_signature_of_transformers_class() -> None:
    theirs = inspect.signature(transformers.AsyncTextIteratorStreamer).parameters
    ours = inspect.signature(AsyncTextIteratorStreamer).parameters
    assert [(p.name, p.kind, p.default) for p in ours.values()] == [
        (p.name, p.kind, p.default) for p in theirs.values()
    ]


async def test_the_example_of_transformers_runs_with_another_import() -> None:
    """The prompt is part of the text, as it is with theirs."""
    streamer = AsyncTextIteratorStreamer(tokenizer())
    generation_kwargs = dict(inputs(), streamer=streamer, max_new_tokens=20)
    thread = Thread(target=llama().generate, kwargs=generation_kwargs)
    thread.start()
    generated_text = ""
    async for new_text in streamer:
        assert new_text
        generated_text += new_text
    assert generated_text == PROMPT + tokenizer().decode(
        generated(llama(), PROMPT, max_new_tokens=20)
    )
    await joined(thread)


async def test_it_streams_from_a_worker_thread_of_a_task_group() -> None:
    streamer = AsyncTextIteratorStreamer(tokenizer(), skip_prompt=True)
    async with anyio.create_task_group() as group:
        group.start_soon(lambda: in_worker(**inputs(streamer=streamer, max_new_tokens=200)))
        text = "".join([piece async for piece in streamer])
    assert text == tokenizer().decode(generated(llama(), PROMPT, max_new_tokens=200))


async def test_decode_kwargs_reach_the_tokenizer() -> None:
    last = generated(llama(), PROMPT, max_new_tokens=1)[0]
    for skip in (False, True):
        streamer = AsyncTextIteratorStreamer(tokenizer(), skip_special_tokens=skip)
        streamer.put(inputs()["input_ids"])
        streamer.put(torch.tensor([last, tokenizer().eos_token_id]))
        streamer.end()
        text = "".join([piece async for piece in streamer])
        ids = [*inputs()["input_ids"][0].tolist(), last, tokenizer().eos_token_id]
        assert text == tokenizer().decode(ids, skip_special_tokens=skip)


async def test_it_serves_one_generation_after_another() -> None:
    streamer = AsyncTextIteratorStreamer(tokenizer(), skip_prompt=True)
    expected = tokenizer().decode(generated(llama(), PROMPT, max_new_tokens=10))
    for _ in range(2):
        thread = Thread(
            target=llama().generate, kwargs=inputs(streamer=streamer, max_new_tokens=10)
        )
        thread.start()
        assert "".join([piece async for piece in streamer]) == expected
        await joined(thread)


async def test_generate_may_block_the_loop_itself() -> None:
    streamer = AsyncTextIteratorStreamer(tokenizer(), skip_prompt=True)
    llama().generate(**inputs(streamer=streamer, max_new_tokens=10))
    text = "".join([piece async for piece in streamer])
    assert text == tokenizer().decode(generated(llama(), PROMPT, max_new_tokens=10))


async def test_a_timeout_ends_one_wait_and_stops_nothing() -> None:
    streamer = AsyncTextIteratorStreamer(tokenizer(), skip_prompt=True, timeout=0.01)
    with pytest.raises(TimeoutError):
        await anext(streamer)
    streamer.timeout = 30.0
    thread = Thread(target=llama().generate, kwargs=inputs(streamer=streamer, max_new_tokens=10))
    thread.start()
    text = "".join([piece async for piece in streamer])
    assert text == tokenizer().decode(generated(llama(), PROMPT, max_new_tokens=10))
    await joined(thread)


async def test_leaving_the_block_stops_the_model_through_the_criteria() -> None:
    with steps_of(llama()) as steps:
        async with AsyncTextIteratorStreamer(tokenizer(), skip_prompt=True) as streamer:
            kwargs = inputs(streamer=streamer, stopping_criteria=streamer.stopping_criteria)
            returned: list[Any] = []
            thread = Thread(
                target=lambda: returned.append(llama().generate(**kwargs, max_new_tokens=4000))
            )
            thread.start()
            await anext(streamer)
        await joined(thread)
    assert steps.count < 4000
    assert returned  # generate() has returned properly


async def test_leaving_the_block_stops_a_plain_thread_without_criteria(
    ended: list[type[BaseException]],
) -> None:
    async with AsyncTextIteratorStreamer(tokenizer(), skip_prompt=True) as streamer:
        kwargs = inputs(streamer=streamer, max_new_tokens=4000)
        thread = Thread(target=llama().generate, kwargs=kwargs)
        thread.start()
        await anext(streamer)
    await joined(thread)
    assert ended == [GenerationStopped]


async def test_stop_keeps_what_has_been_made() -> None:
    streamer = AsyncTextIteratorStreamer(tokenizer(), skip_prompt=True)
    kwargs = inputs(streamer=streamer, stopping_criteria=streamer.stopping_criteria)
    outputs: list[Any] = []
    thread = Thread(target=lambda: outputs.append(llama().generate(**kwargs, max_new_tokens=4000)))
    thread.start()
    pieces = [await anext(streamer)]
    streamer.stop()
    pieces += [piece async for piece in streamer]
    await joined(thread)
    made = outputs[0][0, inputs()["input_ids"].shape[1] :]
    assert len(made) < 4000
    assert "".join(pieces) == tokenizer().decode(made)


async def test_stop_without_criteria_ends_the_iteration_too(
    ended: list[type[BaseException]],
) -> None:
    streamer = AsyncTextIteratorStreamer(tokenizer(), skip_prompt=True)
    kwargs = inputs(streamer=streamer, max_new_tokens=4000)
    thread = Thread(target=llama().generate, kwargs=kwargs)
    thread.start()
    await anext(streamer)
    streamer.stop()
    async for _ in streamer:
        pass
    await joined(thread)
    assert ended == [GenerationStopped]


@pytest.mark.parametrize("with_criteria", [True, False])
async def test_cancelling_the_scope_of_a_worker_thread_stops_the_model(with_criteria: bool) -> None:
    """Without criteria, put() raises the worker's own cancellation: nothing else comes out."""
    streamer = AsyncTextIteratorStreamer(tokenizer(), skip_prompt=True)
    kwargs = inputs(streamer=streamer, max_new_tokens=4000)
    if with_criteria:
        kwargs["stopping_criteria"] = streamer.stopping_criteria
    with steps_of(llama()) as steps, anyio.CancelScope() as scope:
        async with anyio.create_task_group() as group:
            group.start_soon(lambda: in_worker(**kwargs))
            async for _ in streamer:
                scope.cancel()
    assert scope.cancelled_caught
    assert steps.count < 4000


async def test_a_model_that_raises_in_a_plain_thread_does_not_hang_the_consumer(
    ended: list[type[BaseException]],
) -> None:
    def fail() -> None:
        raise ZeroDivisionError

    streamer = AsyncTextIteratorStreamer(tokenizer(), skip_prompt=True)
    with steps_of(llama(), {3: fail}):
        kwargs = inputs(streamer=streamer, max_new_tokens=4000)
        thread = Thread(target=llama().generate, kwargs=kwargs)
        thread.start()
        with pytest.raises(RuntimeError, match="did not return"):
            async for _ in streamer:
                pass
        await joined(thread)
    assert ended == [ZeroDivisionError]


@pytest.mark.parametrize("when", ["while it waits", "after it has looked"])
async def test_text_from_just_before_the_thread_ended_is_received(
    when: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The delivery thread finds no text, and then the generating thread puts its last and ends."""

    class LateQueue(queue.SimpleQueue[Any]):
        def get(self, block: bool = True, timeout: float | None = None) -> Any:
            # It waits for a while, and after a look at the thread it takes what is there.
            if (timeout or when == "after it has looked") and thread.is_alive():
                if bool(timeout) == (when == "while it waits"):
                    go_on.set()
                    thread.join()
                raise queue.Empty
            return super().get(block, timeout)

    def produce() -> None:
        streamer.put(torch.tensor([[1, 2]]))  # the prompt
        go_on.wait()
        texts = streamer.text_queue
        texts._delivery.submit(texts, "the last")  # as put() does, after its look at the text

    go_on = threading.Event()
    names = SimpleNamespace(SimpleQueue=LateQueue, Empty=queue.Empty)
    monkeypatch.setattr(delivery_thread, "queue", names)
    streamer = AsyncTextIteratorStreamer(tokenizer(), skip_prompt=True)
    thread = Thread(target=produce)
    thread.start()
    received = []
    with pytest.raises(RuntimeError, match="in a thread that has ended"):
        async for text in streamer:
            received.append(text)
    assert received == ["the last"]
    await streamer.aclose()


async def test_closing_it_wakes_a_waiting_consumer() -> None:
    streamer = AsyncTextIteratorStreamer(tokenizer())

    async def wait() -> None:
        with pytest.raises(anyio.ClosedResourceError):
            await anext(streamer)

    async with anyio.create_task_group() as group:
        group.start_soon(wait)
        await anyio.wait_all_tasks_blocked()
        await streamer.aclose()


async def test_sampling_with_two_rows_is_refused() -> None:
    streamer = AsyncTextIteratorStreamer(tokenizer())
    with seeded(0), pytest.raises(ValueError, match="streams one sequence"):
        await in_worker(**inputs(streamer=streamer, num_return_sequences=2, do_sample=True))


def test_it_must_be_made_where_a_loop_runs() -> None:
    with pytest.raises(RuntimeError, match="inside of an async function"):
        AsyncTextIteratorStreamer(tokenizer())


async def test_a_tokenizer_that_cannot_decode_is_refused() -> None:
    with pytest.raises(TypeError, match="decode"):
        AsyncTextIteratorStreamer(object())  # type: ignore[arg-type]


# asyncio never answers a crossing that was under way when its loop closed. The delivery thread is
# there to be stuck in it, in place of the thread that generates.
@pytest.mark.may_leave_stuck("anystreamer delivery")
def test_a_loop_that_has_ended_neither_kills_nor_blocks_a_plain_thread(
    ended: list[type[BaseException]], anyio_backend: Any
) -> None:
    """The application left without a thought for its thread, which goes on to its own end."""
    outputs: list[Any] = []
    threads: list[Thread] = []

    async def main() -> None:
        streamer = AsyncTextIteratorStreamer(tokenizer(), skip_prompt=True)
        kwargs = inputs(streamer=streamer, max_new_tokens=400)
        threads.append(Thread(target=lambda: outputs.append(llama().generate(**kwargs))))
        threads[0].start()
        await anext(streamer)

    backend, options = anyio_backend
    anyio.run(main, backend=backend, backend_options=options)
    threads[0].join(30.0)
    assert not threads[0].is_alive()
    assert ended == []
    assert outputs[0].shape[1] == inputs()["input_ids"].shape[1] + 400
