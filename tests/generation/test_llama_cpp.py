"""llama.cpp generates with the embedded model, behind an iterator."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from anyio import CancelScope, create_task_group

from anystreamer import open_worker, stream_iterable, text_decoder
from anystreamer.demo import load_demo
from anystreamer.testing import no_worker_left

from ..conftest import installed
from ..helpers.frameworks import skip_without
from ..helpers.gguf_model import write_gguf
from ..helpers.ways_out import BodyError, WayOut, each_way_out

pytestmark = pytest.mark.torch

PROMPT = "An increasing sequence: one,"
LENGTH = 500
GREEDY = {"temp": 0.0}


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The embedded model, as llama.cpp runs it."""
    if not installed("llama_cpp"):
        skip_without("llama_cpp")
    from llama_cpp import Llama

    path = tmp_path_factory.mktemp("llama_cpp") / "model.gguf"
    write_gguf(path)
    found = Llama(str(path), n_ctx=1024, n_threads=1, n_threads_batch=1, verbose=False)
    yield found
    found.close()


@pytest.fixture(scope="module")
def demo() -> tuple[Any, Any]:
    return load_demo()


class Counting:
    """Has llama.cpp count. It would go on for ever: `generate` never ends by itself."""

    def __init__(self, llama: Any, tokenizer: Any) -> None:
        self.llama, self.prompt = llama, tokenizer(PROMPT)["input_ids"]
        self.threads: set[int] = set()
        self.steps = 0
        self.closed = False

    def __call__(self) -> Iterator[int]:
        try:
            self.threads.add(threading.get_ident())
            for token_id in self.llama.generate(self.prompt, **GREEDY):
                self.steps += 1
                yield token_id
                if self.steps == LENGTH:
                    break
        finally:
            self.threads.add(threading.get_ident())
            self.closed = True


async def test_its_ids_and_text_are_those_of_transformers(llama: Any, demo: Any) -> None:
    model, tokenizer = demo
    inputs = tokenizer(PROMPT, return_tensors="pt")
    expected = model.generate(**inputs, max_new_tokens=100, do_sample=False)[0]
    expected = expected[inputs["input_ids"].shape[1] :].tolist()
    counting, decoder = Counting(llama, tokenizer), text_decoder(tokenizer)
    ids, text = [], ""
    async with stream_iterable(counting) as stream:
        async for token_id in stream:
            ids.append(token_id)
            text += decoder.decode([token_id])
            if len(ids) == len(expected):
                break
    text += decoder.flush()
    assert ids == expected
    assert len(ids) > 30
    assert text == tokenizer.decode(expected, skip_special_tokens=True)
    assert len(counting.threads) == 1
    assert threading.get_ident() not in counting.threads


async def test_the_text_that_it_makes_itself(llama: Any) -> None:
    def pieces() -> Iterator[str]:
        messages = [{"role": "user", "content": "Count from seven to twelve."}]
        for chunk in llama.create_chat_completion(messages, stream=True, temperature=0.0):
            yield chunk["choices"][0]["delta"].get("content") or ""

    async with stream_iterable(pieces) as stream:
        text = "".join([piece async for piece in stream])
    assert text == "seven, eight, nine, ten, eleven, twelve."


@each_way_out
async def test_it_ends_at_its_next_step(llama: Any, demo: Any, way: WayOut) -> None:
    counting = Counting(llama, demo[1])
    with no_worker_left(timeout=0), CancelScope() as scope, contextlib.suppress(BodyError):
        async with stream_iterable(counting, max_buffer_size=3) as stream:
            await stream.receive()
            await stream.wait_until_held()
            assert counting.steps == 4
            await way(stream, scope)
    assert counting.closed
    assert len(counting.threads) == 1  # which made it, and closed it
    if way.__name__ != "reaching_the_end":
        assert counting.steps < LENGTH


async def test_two_requests_take_turns_in_a_worker(llama: Any, demo: Any) -> None:
    both = [Counting(llama, demo[1]) for _ in range(2)]
    texts = []

    async def ask(worker: Any, counting: Counting) -> None:
        decoder = text_decoder(demo[1])
        async with worker.stream_iterable(counting) as stream:
            texts.append("".join([decoder.decode([await stream.receive()]) for _ in range(8)]))

    async with open_worker(name="llama.cpp") as worker, create_task_group() as tg:
        for counting in both:
            tg.start_soon(ask, worker, counting)
    assert texts == [" two, three, four, five,"] * 2
    assert all(counting.closed for counting in both)


async def test_what_it_raises_arrives(llama: Any) -> None:
    with pytest.raises(ValueError, match=r"exceed context window|Requested tokens"):
        async with stream_iterable(lambda: llama([5] * 2000, stream=True)) as stream:
            await stream.receive()
