"""Subclasses of the drop-in streamer: what those of transformers' class do works, or is refused."""

from __future__ import annotations

import asyncio
import queue
from functools import partial
from threading import Thread, get_ident
from typing import Any

import anyio
import pytest
import torch
import transformers
from anyio import to_thread

from anystreamer import AsyncTextIteratorStreamer

from ..helpers.scripted import PATIENCE
from ..helpers.tiny_models import generated, llama, tokenizer

pytestmark = pytest.mark.torch

PROMPT = "An increasing sequence: one,"
THEIRS: Any = transformers.AsyncTextIteratorStreamer
OURS: Any = AsyncTextIteratorStreamer


def inputs() -> dict[str, Any]:
    return {**tokenizer()([PROMPT], return_tensors="pt"), "max_new_tokens": 20}


# Each makes a class of its base, which is transformers' or ours.


def changes_the_text(base: Any) -> Any:
    class Streamer(base):  # type: ignore[misc]
        def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
            super().on_finalized_text(text.upper(), stream_end=stream_end)

    return Streamer


def filters_the_text(base: Any) -> Any:
    class Streamer(base):  # type: ignore[misc]
        def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
            super().on_finalized_text("".join(c for c in text if c.isascii()), stream_end)

    return Streamer


def records_the_text(base: Any) -> Any:
    class Streamer(base):  # type: ignore[misc]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            self.seen: list[str] = []
            super().__init__(*args, **kwargs)

        def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
            self.seen.append(text)
            super().on_finalized_text(text, stream_end)
            if stream_end:
                super().on_finalized_text("".join(self.seen))  # after the end: of a next iteration

    return Streamer


def puts_into_the_queue(base: Any) -> Any:
    class Streamer(base):  # type: ignore[misc]
        def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
            self.loop.call_soon_threadsafe(self.text_queue.put_nowait, f"<{text}>" if text else "")
            if stream_end:
                self.loop.call_soon_threadsafe(self.text_queue.put_nowait, self.stop_signal)

    return Streamer


def has_a_stop_signal_of_its_own(base: Any) -> Any:
    class Streamer(base):  # type: ignore[misc]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.stop_signal = "<stop>"

    return Streamer


def ends_as_transformers_does(base: Any) -> Any:
    """Most subclasses that override end() begin with a copy of it."""

    class Streamer(base):  # type: ignore[misc]
        token_cache: list[int]
        print_len: int
        next_tokens_are_prompt: bool

        def end(self) -> None:
            if self.token_cache:
                text = self.tokenizer.decode(self.token_cache, **self.decode_kwargs)
                printable_text = text[self.print_len :]
                self.token_cache = []
                self.print_len = 0
            else:
                printable_text = ""
            self.next_tokens_are_prompt = True
            self.on_finalized_text(printable_text + "[end]", stream_end=True)

    return Streamer


def counts_the_tokens(base: Any) -> Any:
    class Streamer(base):  # type: ignore[misc]
        tokens = 0

        def put(self, value: Any) -> None:
            super().put(value)
            self.tokens += value.numel()

        def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
            if stream_end:
                text += f"[{self.tokens}]"
                self.tokens = 0
            super().on_finalized_text(text, stream_end)

    return Streamer


def drops_tokens(base: Any) -> Any:
    class Streamer(base):  # type: ignore[misc]
        def put(self, value: Any) -> None:
            super().put(value[value >= 100] if value.dim() == 1 else value)

    return Streamer


def decodes_itself(base: Any) -> Any:
    """A put() that begins with a copy of transformers'."""

    class Streamer(base):  # type: ignore[misc]
        print_len: int
        next_tokens_are_prompt: bool

        def put(self, value: Any) -> None:
            if len(value.shape) > 1:
                value = value[0]
            if self.skip_prompt and self.next_tokens_are_prompt:
                self.next_tokens_are_prompt = False
                return
            self.token_cache.extend(value.tolist())
            text = self.tokenizer.decode(self.token_cache, **self.decode_kwargs)
            if len(text) > 0 and self._is_chinese_char(ord(text[-1])):
                return
            printable_text = text[self.print_len : text.rfind("\N{REPLACEMENT CHARACTER}") + 1]
            self.print_len += len(printable_text)
            self.on_finalized_text(printable_text)

    return Streamer


def iterates_itself(base: Any) -> Any:
    class Streamer(base):  # type: ignore[misc]
        async def __anext__(self) -> str:
            while (value := await self.text_queue.get()) == "":
                pass
            if value == self.stop_signal:
                raise StopAsyncIteration
            return f"<{value}>"

        def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
            # All the text at once, or the pieces would differ.
            self.pieces = [*getattr(self, "pieces", ()), text]
            if stream_end:
                super().on_finalized_text("".join(self.pieces), stream_end)
                self.pieces = []

    return Streamer


SUBCLASSES = [
    changes_the_text,
    filters_the_text,
    has_a_stop_signal_of_its_own,
    ends_as_transformers_does,
    counts_the_tokens,
    drops_tokens,
    decodes_itself,
    iterates_itself,
]


async def text_of(streamer: Any, **kwargs: Any) -> str:
    """The text of a generation in a plain thread."""
    thread = Thread(target=llama().generate, kwargs={**inputs(), **kwargs, "streamer": streamer})
    thread.start()
    with anyio.fail_after(PATIENCE):
        text = "".join([str(piece) async for piece in streamer])
        await to_thread.run_sync(thread.join)
    return text


@pytest.mark.parametrize("subclass", SUBCLASSES)
async def test_a_subclass_gives_what_it_gives_with_transformers_class(subclass: Any) -> None:
    for skip_prompt in (False, True):

        async def text_with(base: Any, skip_prompt: bool = skip_prompt) -> str:
            return await text_of(subclass(base)(tokenizer(), skip_prompt))

        streamer = subclass(OURS)(tokenizer(), skip_prompt)
        expected = await to_thread.run_sync(partial(anyio.run, text_with, THEIRS))
        assert expected
        assert await text_of(streamer) == expected
    assert await text_of(streamer) == expected  # it serves a next generation as well


async def test_a_subclass_that_puts_into_the_queue() -> None:
    for skip_prompt in (True, False):
        streamer = puts_into_the_queue(OURS)(tokenizer(), skip_prompt)
        text = await text_of(streamer)
        expected = tokenizer().decode(generated(llama(), PROMPT, max_new_tokens=20))
        expected = expected if skip_prompt else PROMPT + expected
        assert text.replace("<", "").replace(">", "") == expected
        assert text.startswith("<")


async def test_items_after_the_end_are_of_the_next_iteration() -> None:
    streamer = records_the_text(OURS)(tokenizer(), True)
    text = await text_of(streamer)
    assert text == tokenizer().decode(generated(llama(), PROMPT, max_new_tokens=20))
    assert await anext(streamer) == text
    assert len(streamer.seen) > 3


async def test_a_subclass_of_the_class_for_threads_puts_without_awaiting() -> None:
    """transformers' `TextIteratorStreamer` has a queue whose put() blocks."""

    class Streamer(AsyncTextIteratorStreamer):
        def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
            self.text_queue.put(text, timeout=self.timeout)
            if stream_end:
                self.text_queue.put(self.stop_signal, timeout=self.timeout)

    text = await text_of(Streamer(tokenizer(), True, timeout=PATIENCE))
    assert text == tokenizer().decode(generated(llama(), PROMPT, max_new_tokens=20))


async def test_a_subclass_with_a_queue_of_its_own() -> None:
    class Queue:
        """As `asyncio.Queue`: for the thread of the loop only."""

        def __init__(self) -> None:
            self.send, self.receive = anyio.create_memory_object_stream[Any](1000)
            self.thread = get_ident()

        def put_nowait(self, item: Any) -> None:
            assert get_ident() == self.thread
            self.send.send_nowait(item)

        async def get(self) -> Any:
            return await self.receive.receive()

    class Streamer(AsyncTextIteratorStreamer):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.text_queue = Queue()

    streamer = Streamer(tokenizer(), True)
    with streamer.text_queue.send, streamer.text_queue.receive:
        text = await text_of(streamer)
    assert text == tokenizer().decode(generated(llama(), PROMPT, max_new_tokens=20))


async def test_text_of_several_generations_that_a_subclass_does_not_end() -> None:
    class Streamer(AsyncTextIteratorStreamer):
        is_last = False

        def end(self) -> None:
            if self.is_last:
                super().end()
            else:
                self.next_tokens_are_prompt = True

    def generate_twice() -> None:
        for is_last in (False, True):
            streamer.is_last = is_last
            llama().generate(**inputs(), streamer=streamer)

    streamer = Streamer(tokenizer(), True)
    Thread(target=generate_twice).start()
    with anyio.fail_after(PATIENCE):
        text = "".join([piece async for piece in streamer])
    once = generated(llama(), PROMPT, max_new_tokens=20)
    assert text == tokenizer().decode([*once, *once])


async def test_it_has_the_attributes_of_transformers_class() -> None:
    async def theirs() -> set[str]:
        return set(vars(THEIRS(tokenizer()))) - {"has_asyncio_timeout"}  # before 5.1: which Python

    streamer = AsyncTextIteratorStreamer(tokenizer())
    assert await to_thread.run_sync(asyncio.run, theirs()) <= vars(streamer).keys()
    own = {name for cls in THEIRS.__mro__[:-1] for name in vars(cls) if not name.startswith("__")}
    assert own <= set(dir(streamer))


async def test_the_cache_has_the_tokens_of_the_text() -> None:
    streamer = AsyncTextIteratorStreamer(tokenizer(), skip_prompt=True)
    ids = tokenizer().encode("a é", add_special_tokens=False)
    streamer.put(torch.tensor([[1, 2]]))
    for count, token_id in enumerate(ids[:-1]):
        streamer.put(torch.tensor([token_id]))
        assert streamer.token_cache == ids[: count + 1]
    assert streamer.print_len == 2  # of the last character there is only half
    assert not streamer.next_tokens_are_prompt
    streamer.end()
    assert (streamer.token_cache, streamer.print_len) == ([], 0)
    assert streamer.next_tokens_are_prompt
    assert "".join([piece async for piece in streamer]) == "a \N{REPLACEMENT CHARACTER}"


async def test_the_queue_has_the_methods_of_asyncio_s() -> None:
    streamer = AsyncTextIteratorStreamer(tokenizer())
    items = streamer.text_queue
    assert (items.qsize(), items.empty(), items.full()) == (0, True, False)
    with pytest.raises(queue.Empty):
        items.get_nowait()
    items.put_nowait("a")
    await items.put("")
    items.put(7)
    items.put_nowait(streamer.stop_signal)
    with anyio.fail_after(PATIENCE):
        assert [await items.get() for _ in range(3)] == ["a", "", 7]
        with pytest.raises(StopAsyncIteration):
            await anext(streamer)
    assert items.empty()
    error: Any = ValueError("an item, and not raised")
    items.put_nowait(error)
    assert await anext(streamer) is error
    await streamer.aclose()


@pytest.mark.parametrize("name", ["put", "end", "on_finalized_text"])
def test_a_method_that_nobody_would_await_is_refused(name: str) -> None:
    async def method(self: Any, *args: Any) -> None: ...

    with pytest.raises(TypeError, match=rf"Mine\.{name}\(\) is async.*make it a plain function"):
        type("Mine", (AsyncTextIteratorStreamer,), {name: method})


def test_a_rule_that_is_not_asked_is_refused() -> None:
    def always(self: Any, cp: int) -> bool:
        return True

    with pytest.raises(TypeError, match=r"Mine overrides _is_chinese_char.*on_finalized_text\(\)"):
        type("Mine", (AsyncTextIteratorStreamer,), {"_is_chinese_char": always})
    type("Mine", (decodes_itself(OURS),), {"_is_chinese_char": always})  # its put() asks
