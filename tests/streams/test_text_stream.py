"""What a consumer of generated text holds. Needs no torch: the model here plays a list of ids."""

from __future__ import annotations

import copy
import json
import pickle
from collections.abc import Callable
from typing import Any

import pytest
from anyio import (
    BusyResourceError,
    ClosedResourceError,
    EndOfStream,
    create_task_group,
    fail_after,
    wait_all_tasks_blocked,
)
from anyio.abc import ObjectReceiveStream
from anyio.lowlevel import checkpoint

from anystreamer import FinishReason, TextChunk, TextStream, Timing, Usage, stream_text

# -- TextChunk --------------------------------------------------------------------------------


def test_a_chunk_is_a_str() -> None:
    chunk = TextChunk("añ👍", [1, 2, 3], elapsed=0.5)
    assert isinstance(chunk, str)
    assert chunk == "añ👍"
    assert hash(chunk) == hash("añ👍")
    assert (len(chunk), chunk[0], chunk + "!") == (3, "a", "añ👍!")
    assert f"{chunk:>4}" == " añ👍"
    assert json.loads(json.dumps([chunk])) == ["añ👍"]
    assert "añ👍" in {chunk}


def test_a_chunk_says_where_it_comes_from() -> None:
    chunk = TextChunk(
        "ab",
        iter([1, 2]),
        logprobs=iter([-0.5, -1.5]),
        top_logprobs=iter([((1, -0.5),), ((3, -0.5),)]),
        row=3,
        elapsed=0.5,
    )
    assert chunk.token_ids == (1, 2)
    assert chunk.logprobs == (-0.5, -1.5)
    assert chunk.top_logprobs == (((1, -0.5),), ((3, -0.5),))
    assert TextChunk.joined([chunk, chunk]).top_logprobs == chunk.top_logprobs * 2
    assert (chunk.row, chunk.elapsed) == (3, 0.5)


def test_a_chunk_hides_nothing_of_a_str() -> None:
    own = {name for name in vars(TextChunk) if not name.startswith("_")}
    assert not own & {*dir(str)}
    assert TextChunk("so</think>").index("</think>") == 2


def test_a_chunk_needs_nothing_but_its_text() -> None:
    """For code that is tested with chunks of its own."""
    chunk = TextChunk("ab")
    assert (chunk.token_ids, chunk.logprobs, chunk.row, chunk.elapsed) == ((), None, 0, 0.0)


def test_a_chunk_has_no_room_for_anything_else() -> None:
    with pytest.raises(AttributeError):
        TextChunk("ab").tokens = 1  # type: ignore[attr-defined]


def test_what_is_made_of_a_chunk_is_plain_text() -> None:
    """A part of the text is not made of all of its tokens."""
    assert type(TextChunk("ab", [1]).upper()) is str
    assert type(TextChunk("ab", [1])[:1]) is str


@pytest.mark.parametrize(
    "duplicate",
    [copy.copy, copy.deepcopy, lambda chunk: pickle.loads(pickle.dumps(chunk))],
    ids=["copy", "deepcopy", "pickle"],
)
def test_a_chunk_can_be_copied_and_sent(duplicate: Callable[[TextChunk], TextChunk]) -> None:
    chunk = TextChunk("ab", [1, 2], logprobs=[-1.0, -2.0], row=1, elapsed=0.25)
    twin = duplicate(chunk)
    assert type(twin) is TextChunk
    assert twin == chunk
    assert (twin.token_ids, twin.logprobs) == (chunk.token_ids, chunk.logprobs)
    assert (twin.row, twin.elapsed) == (chunk.row, chunk.elapsed)


def test_a_chunk_becomes_plain_text_for_what_compares_the_exact_type() -> None:
    """As the documentation of `TextChunk` says."""
    chunk = TextChunk("añ👍", [1, 2])
    assert type(str(chunk)) is str

    msgspec = pytest.importorskip("msgspec")
    with pytest.raises(TypeError):
        msgspec.json.encode([chunk])
    assert msgspec.json.decode(msgspec.json.encode([str(chunk)])) == [chunk]
    assert msgspec.json.decode(msgspec.json.encode([chunk], enc_hook=str)) == [chunk]

    yaml = pytest.importorskip("yaml")
    with pytest.raises(yaml.representer.RepresenterError):
        yaml.safe_dump([chunk])
    assert yaml.safe_load(yaml.safe_dump([str(chunk)])) == [chunk]


def test_joined_chunks_have_all_ids_and_the_last_times() -> None:
    first = TextChunk("a", [1], logprobs=[-1.0], row=2, elapsed=0.1)
    second = TextChunk("bc", [2, 3], logprobs=[-2.0, -3.0], row=2, elapsed=0.2)
    joined = TextChunk.joined([first, second])
    assert joined == "abc"
    assert joined.token_ids == (1, 2, 3)
    assert joined.logprobs == (-1.0, -2.0, -3.0)
    assert (joined.row, joined.elapsed) == (2, 0.2)
    assert TextChunk.joined([first]) is first


# -- FinishReason, Usage, Timing --------------------------------------------------------------


@pytest.mark.parametrize("reason", FinishReason)
def test_a_finish_reason_is_its_name(reason: FinishReason) -> None:
    assert reason == reason.name.lower() == str(reason)
    assert json.dumps(reason) == f'"{reason}"'
    assert FinishReason(str(reason)) is reason


def test_finish_reasons_in_the_words_of_openai() -> None:
    """Those of an unfinished text have none."""
    words = {reason: reason.openai for reason in FinishReason}
    stop = {"eos", "stop_string", "criteria"}
    length = {"length", "time"}
    assert {reason for reason, word in words.items() if word == "stop"} == stop
    assert {reason for reason, word in words.items() if word == "length"} == length
    assert {words[reason] for reason in words.keys() - stop - length} == {None}


def test_usage_and_timing_are_values() -> None:
    usage = Usage(prompt_tokens=3, completion_tokens=2, computed_tokens=4)
    assert usage == Usage(3, 2, 4)
    assert pickle.loads(pickle.dumps(usage)) == usage
    timing = Timing(queued=0.1, first_token=None, total=0.2)
    assert timing == copy.deepcopy(timing)
    with pytest.raises(AttributeError):
        usage.computed_tokens = 1  # type: ignore[misc]
    with pytest.raises(AttributeError):
        timing.total = 1  # type: ignore[misc]


# -- TextStream -------------------------------------------------------------------------------


class Letters:
    """A tokenizer: an id is a code point; 0 is a token without text."""

    def __call__(self, text: list[str], **kwargs: Any) -> dict[str, list[list[int]]]:
        return {"input_ids": [[ord(letter) for letter in each] for each in text]}

    def decode(self, token_ids: list[int], **kwargs: Any) -> str:
        return "".join(chr(token_id) for token_id in token_ids if token_id)


class Playing:
    """A model: plays these ids, and does these things in between."""

    uses_torch = False

    def __init__(self, *score: str | int | Callable[[], object]) -> None:
        self.score = score

    def generate(self, **kwargs: Any) -> list[int]:
        input_ids, streamer = kwargs["input_ids"], kwargs["streamer"]
        streamer.put(input_ids)
        made: list[int] = []
        for each in self.score:
            if callable(each):
                each()
                continue
            for token_id in [each] if isinstance(each, int) else map(ord, each):
                made.append(token_id)
                streamer.put([token_id])
                sequences = [[*input_ids[0], *made]]
                answers = [ask(sequences, None) for ask in kwargs["stopping_criteria"]]
                if any(answers):
                    streamer.end()
                    return made
        streamer.end()
        return made


def play(*score: str | int | Callable[[], object], **kwargs: Any) -> Any:
    return stream_text(Playing(*score), Letters(), "go", **kwargs)


async def ended(stream: TextStream) -> None:
    with fail_after(30):
        while "ended" not in repr(stream):
            await checkpoint()


async def test_a_text_stream_is_an_object_receive_stream() -> None:
    async with play("abc") as stream:
        assert isinstance(stream, ObjectReceiveStream)
        assert isinstance(stream, TextStream)
        assert "".join([chunk async for chunk in stream]) == "abc"
        for _ in range(2):
            with pytest.raises(EndOfStream):
                await stream.receive()
        with pytest.raises(StopAsyncIteration):
            await anext(stream)


async def test_text_and_ids_are_what_was_delivered_so_far() -> None:
    async with play("ab", 0, "c", 0) as stream:
        await ended(stream)
        assert (stream.text, stream.token_ids) == ("", [])
        chunk = await stream.receive()
        assert chunk == stream.text == "abc"
        assert list(chunk.token_ids) == stream.token_ids
        assert stream.token_ids[:4] == [97, 98, 0, 99]
        assert stream.finish_reason is None
        with pytest.raises(EndOfStream):
            await stream.receive()
        assert (stream.text, stream.token_ids) == ("abc", [97, 98, 0, 99, 0])
        assert stream.finish_reason is FinishReason.EOS


async def test_what_a_stream_gives_out_cannot_change_it() -> None:
    async with play("ab") as stream:
        await stream.read()
        stream.token_ids.clear()
        stream.prompt_token_ids.clear()
        assert stream.token_ids == [97, 98]
        assert stream.prompt_token_ids == [ord("g"), ord("o")]


async def test_what_is_known_of_the_end_is_read_only() -> None:
    async with play("ab") as stream:
        await stream.read()
        for name in ("text", "token_ids", "finish_reason", "stop_string", "usage", "output"):
            with pytest.raises(AttributeError):
                setattr(stream, name, None)


async def test_usage_timing_and_output() -> None:
    async with play("abc") as stream:
        assert [stream.usage, stream.timing, stream.output] == [None] * 3
        await stream.read()
        assert stream.usage == Usage(prompt_tokens=2, completion_tokens=3, computed_tokens=3)
        assert 0 <= stream.timing.queued <= stream.timing.first_token <= stream.timing.total
        assert stream.output == [97, 98, 99]


async def test_a_text_without_tokens() -> None:
    async with play() as stream:
        assert await stream.read() == ""
    assert stream.usage == Usage(prompt_tokens=2, completion_tokens=0, computed_tokens=0)
    assert stream.timing.first_token is None
    assert stream.finish_reason is not None


async def test_a_stop_string_is_told_when_the_end_is_seen() -> None:
    async with play("one, two", stop=[", ", "two"]) as stream:
        await ended(stream)
        assert await stream.receive() == "one"
        assert stream.stop_string is None
        assert await stream.read() == ""
        assert [stream.stop_string, stream.finish_reason] == [", ", FinishReason.STOP_STRING]
    assert stream.token_ids == [ord(letter) for letter in "one, "]


async def test_the_last_word_stays_when_the_block_is_left() -> None:
    """Neither leaving nor closing again changes how it ended."""
    async with play("abc") as stream:
        await stream.read()
        known = (stream.finish_reason, stream.usage, stream.timing, stream.output)
        stream.stop()
        await stream.aclose()
        assert (stream.finish_reason, stream.usage, stream.timing, stream.output) == known
    stream.stop()
    await stream.aclose()
    assert (stream.finish_reason, stream.usage, stream.timing, stream.output) == known
    with pytest.raises(ClosedResourceError):
        await stream.receive()


async def test_read_by_two_at_once_is_refused() -> None:
    async with play(lambda: None, "abc", limiter=None) as stream, create_task_group() as tasks:
        receive = stream.receive

        async def second() -> None:
            with pytest.raises(BusyResourceError):
                await stream.read()

        # The first has begun, and has not yet got anything: receive() is always a checkpoint.
        tasks.start_soon(second)
        text = await receive()
        await wait_all_tasks_blocked()
        assert text + await stream.read() == "abc"


async def test_read_that_fails_leaves_the_text_before_it() -> None:
    error = RuntimeError("broken")

    def fail() -> None:
        raise error

    async with play("ab", fail) as stream:
        with pytest.raises(RuntimeError) as caught:
            await stream.read()
        assert caught.value is error
        assert (stream.text, stream.finish_reason) == ("ab", FinishReason.ERROR)
        assert stream.usage == Usage(prompt_tokens=2, completion_tokens=2, computed_tokens=2)
        assert stream.output is None
        assert stream.timing.total >= 0


async def test_a_chunk_carries_no_time_before_the_call() -> None:
    async with play("abc") as stream:
        chunk = await stream.receive()
        await stream.read()
    assert 0 <= chunk.elapsed <= stream.timing.total


async def test_repr_tells_the_state() -> None:
    async with play("abc") as stream:
        await ended(stream)
        assert repr(stream) == "<anystreamer.TextStream ended, 3 waiting>"
    assert repr(stream) == "<anystreamer.TextStream closed, cancelled>"
