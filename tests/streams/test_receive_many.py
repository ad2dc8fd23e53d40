"""`receive_many` of streams of text: the chunks that `receive` would return one after the other."""

from __future__ import annotations

import math

import anyio
import pytest
from anyio import fail_after

from anystreamer import stream_batch, stream_text
from anystreamer._streams import GenerationState, Row
from anystreamer.testing import Gate, ScriptedModel

from ..helpers.scripted import PATIENCE, until
from .test_back_pressure import HasFields, Letters, Rows, field, prompts


async def test_a_stream_of_text_returns_what_is_ready_as_joined_chunks() -> None:
    gate = Gate()
    model = ScriptedModel(["a", "b", gate, "c", "d"])
    async with stream_text(model, model.tokenizer, "hi") as stream:
        with fail_after(PATIENCE):
            await gate.reached()
            await until(lambda: stream.unread_tokens == 2)
            chunks = await stream.receive_many()
            assert (chunks, chunks[0].token_ids) == (["ab"], tuple(stream.token_ids))
            gate.open()
            received = [*chunks]
            with pytest.raises(anyio.EndOfStream):
                while True:
                    received += await stream.receive_many()
        assert "".join(received) == stream.text == "abcd"
        assert stream.finish_reason is not None


@pytest.mark.parametrize("max_items", [None, 1, 2])
async def test_a_batch_returns_a_chunk_for_each_row_that_has_text(max_items: int | None) -> None:
    async with stream_batch(Rows("abc", "xyz"), Letters(), prompts(2)) as stream:
        await until(lambda: stream.unread_tokens >= 6)
        received = []
        with pytest.raises(anyio.EndOfStream):
            while True:
                chunks = await stream.receive_many(max_items)
                assert len(chunks) == (max_items or 2)
                received += chunks
        assert {(chunk.row, chunk) for chunk in received} == {(0, "abc"), (1, "xyz")}
    assert stream.text == ["abc", "xyz"]


@pytest.mark.parametrize("most", [math.inf, 2])
async def test_parts_of_a_message_stay_chunks_of_their_own(most: float) -> None:
    state = GenerationState()
    state.rows = [Row(response=HasFields())]  # type: ignore[arg-type]
    fields = ["thinking", "content", "tool"]
    state.push(*(field(name) for name in fields))
    state.drain_pending()
    taken = []
    with pytest.raises(anyio.WouldBlock):
        while True:
            chunks = state.take_many(most)
            assert len(chunks) <= most
            taken += [chunk.field for chunk in chunks]
    assert taken == fields
    state.exit()
    state.close_and_take_error()
