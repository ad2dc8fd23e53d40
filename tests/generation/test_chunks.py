"""What is iterated: chunks of text with their ids, as soon as they are final."""

from __future__ import annotations

import pytest
from anyio import EndOfStream, fail_after
from anyio.lowlevel import checkpoint

from anystreamer import TextChunk

from ..helpers.llama_streams import collect, says, stream_llama
from ..helpers.model_calls import Gate
from ..helpers.tiny_models import EOS, MARK, ids_of, llama, steps_of

pytestmark = pytest.mark.torch


async def test_chunks_are_never_empty_and_ids_come_once_and_in_order() -> None:
    say = says("añ👍", MARK, MARK, "b", EOS)
    chunks, stream = await collect(stream_llama(**say))
    assert all(chunks)
    assert all(isinstance(chunk, TextChunk) for chunk in chunks)
    assert stream.token_ids == say["logits_processor"][0].ids
    # The end-of-sequence token has no text. Unless it was joined, it is in the stream alone.
    delivered = [token_id for chunk in chunks for token_id in chunk.token_ids]
    assert delivered in (stream.token_ids[:-1], stream.token_ids)


async def test_a_special_token_in_the_text_comes_with_the_next_piece() -> None:
    """A consumer that waits for each piece sees which ids made it."""
    gates = {step: Gate() for step in range(2, 5)}
    pieces = []
    with steps_of(llama(), gates):
        async with stream_llama(**says("a", MARK, "b", EOS)) as stream:
            gates[2].open()  # each piece is received before its next token is made
            pieces.append(await stream.receive())
            gates[3].open()
            pieces.append(await stream.receive())
            gates[4].open()
            assert await stream.read() == ""
    assert [piece.token_ids for piece in pieces] == [(ids_of("a")[0],), (MARK, ids_of("b")[0])]
    assert stream.token_ids[-1] == EOS


async def test_elapsed_never_decreases() -> None:
    chunks, stream = await collect(stream_llama(max_new_tokens=30))
    elapsed = [chunk.elapsed for chunk in chunks]
    assert elapsed == sorted(elapsed)
    assert elapsed[0] > 0
    assert elapsed[-1] <= stream.timing.total


async def test_a_consumer_that_lags_gets_what_is_ready_in_one_piece() -> None:
    async with stream_llama(**says("all of this")) as stream:
        with fail_after(30):
            while "ended" not in repr(stream):
                await checkpoint()
        chunk = await stream.receive()
        assert chunk == "all of this"
        assert list(chunk.token_ids) == ids_of("all of this")
        with pytest.raises(EndOfStream):
            await stream.receive()


async def test_each_character_is_delivered_when_it_is_complete() -> None:
    """The model waits for the consumer in each step: nothing that is final is held back."""
    text = "xé東!"
    starts = [sum(len(c.encode()) for c in text[:n]) for n in range(len(text) + 1)]
    gates = {start + 1: Gate() for start in starts[1:-1]}
    with steps_of(llama(), gates):
        async with stream_llama(**says(text)) as stream:
            received = []
            for start in starts[1:]:
                received.append(await stream.receive())
                if start + 1 in gates:
                    gates[start + 1].open()
    assert received == list(text)
