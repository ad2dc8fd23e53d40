"""What `max_buffer_size` counts: all that was made and that the consumer has not got."""

from __future__ import annotations

from collections import deque
from typing import Any

import pytest
from anyio import fail_after
from anyio.lowlevel import checkpoint

from anystreamer import TextChunk, stream_batch
from anystreamer._bridge import StreamState
from anystreamer._streams import GenerationState, Row

from ..helpers.inside import state_of
from ..helpers.scripted import PATIENCE, until


class Letters:
    """A tokenizer: an id is a code point."""

    def decode(self, token_ids: list[int], **kwargs: Any) -> str:
        return "".join(map(chr, token_ids))


class Rows:
    """A model: the rows of a batch, a letter for each in each step."""

    uses_torch = False

    def __init__(self, *texts: str) -> None:
        self.texts = texts
        self.steps = 0

    def generate(self, **kwargs: Any) -> None:
        streamer, sequences = kwargs["streamer"], [[*ids] for ids in kwargs["input_ids"]]
        streamer.put(kwargs["input_ids"])
        for letters in zip(*self.texts, strict=True):
            for row, letter in zip(sequences, letters, strict=True):
                row.append(ord(letter))
            self.steps += 1
            streamer.put([ord(letter) for letter in letters])
            if any(ask(sequences, None) for ask in kwargs["stopping_criteria"]):
                return
        streamer.end()


def prompts(count: int) -> dict[str, list[list[int]]]:
    return {"input_ids": [[ord("p")]] * count}


async def test_rows_that_were_not_given_yet_hold_the_model() -> None:
    model = Rows("abc", "xyz", "123")
    async with stream_batch(model, Letters(), prompts(3), max_buffer_size=1) as stream:
        state = state_of(stream)
        for step in "ax1", "by2", "cz3":
            await until(lambda: state.is_full)
            assert model.steps == "abc".index(step[0]) + 1
            assert await stream.receive() == step[0]
            assert state.is_full  # two rows are left
            assert await stream.receive() == step[1]
            assert state.is_full
            assert await stream.receive() == step[2]
        assert await stream.read() == ["", "", ""]
    assert stream.text == ["abc", "xyz", "123"]


def received(state: GenerationState) -> TextChunk:
    state.drain_pending()
    return state.take()


def field(name: str) -> TextChunk:
    return TextChunk("", [1], field=name, value=name)


class HasFields:
    message = None


async def test_fields_that_were_not_given_yet_hold_the_model() -> None:
    state = GenerationState(2)
    state.rows = [Row(response=HasFields())]  # type: ignore[arg-type]
    state.push(field("thinking"), field("content"), field("tool"))
    for left in 2, 1, 0:
        received(state)
        assert state.is_full == (left >= 2)
        assert state.has_item == (left > 0)
    state.exit()
    state.close_and_take_error()


async def test_chunks_of_one_row_are_joined_and_all_count() -> None:
    state = GenerationState(2)
    state.push(*(TextChunk(letter, [1]) for letter in "abc"))
    assert state.is_full
    assert received(state) == "abc"
    assert not state.is_full
    state.exit()
    state.close_and_take_error()


async def test_an_item_on_its_way_to_the_consumer_counts_all_the_time() -> None:
    """The producer's thread may look while the loop moves an item from one queue to the next."""
    seen: list[bool] = []

    class Watched(deque[int]):
        def popleft(self) -> int:
            item = super().popleft()
            seen.append(state.is_full)
            return item

    state = StreamState[int](1)
    state.pending = Watched()
    state.push(1)
    assert state.is_full
    state.drain_pending()
    assert seen == [True]
    assert state.take() == 1
    assert not state.is_full
    state.exit()
    state.close_and_take_error()


@pytest.mark.parametrize("size", [1, 3])
async def test_a_slow_consumer_of_a_batch_gets_everything(size: int) -> None:
    texts = ["abcdefgh" * 5, "ijklmnop" * 5]
    async with stream_batch(Rows(*texts), Letters(), prompts(2), max_buffer_size=size) as stream:
        with fail_after(PATIENCE):
            async for _ in stream:
                for _ in range(3):
                    await checkpoint()
    assert stream.text == texts
