"""What a response does for each chunk: one event, one part, and one look for a disconnect."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import anyio
import pytest
from anyio import EndOfStream
from anyio.abc import ObjectReceiveStream
from hypothesis import given
from hypothesis import strategies as st

from anystreamer import TextChunk, stream_iterable
from anystreamer.server import TextStreamResponse, create_app
from anystreamer.server import _openai_format as openai_format
from anystreamer.server._body_sender import BodySender
from anystreamer.server._openai_format import (
    ChatCompletionBuilder,
    CompletionBuilder,
    TextCompletionBuilder,
)

from ..helpers.inside import worker_left
from ..helpers.scripted import until
from ..helpers.serving import data_of, events_of

CALL = {"name": "look", "arguments": {"at": "\u2028"}}
# Names of a template's fields; None is a stream without a template.
FIELDS = [None, "content", "thinking", 'other "field"']


def text_of(field: str | None, text: str) -> TextChunk:
    return TextChunk(text) if field is None else TextChunk(field=field, value=text)


def a_call() -> TextChunk:
    chunk = TextChunk(field="tool_calls", value=CALL)
    chunk.is_complete_value = True
    return chunk


# Everything that a str can have: quotes, escapes, line breaks of all kinds, half a character.
texts = st.text(st.characters(exclude_categories=()), min_size=1)
chunks = st.lists(
    st.tuples(st.integers(0, 1), st.builds(text_of, st.sampled_from(FIELDS), texts))
    | st.tuples(st.integers(0, 1), st.builds(a_call))
)


@given(
    chunks,
    st.sampled_from([ChatCompletionBuilder, TextCompletionBuilder]),
    st.sampled_from(["model", 'a "model": {"content":""}', "\u2028\ud800"]),
    st.booleans(),
)
def test_each_event_is_what_it_would_be_alone(
    chunks: list[tuple[int, TextChunk]],
    kind: type[CompletionBuilder],
    model: str,
    includes_usage: bool,
) -> None:
    """An event is made of parts that are encoded once; its bytes are those of ``json.dumps``."""
    builder = kind(model, includes_usage=includes_usage, top=None)
    fields = set()
    for _ in range(2):
        builder.add_choice()
    for index, chunk in chunks:
        events = builder.chunk(index, chunk, ())
        for event in data_of(events):
            assert openai_format.event(event) in events
            (choice,) = event["choices"]
            assert choice["index"] == index
            assert choice["logprobs"] is choice["finish_reason"] is None
            assert event["model"] == model
            assert ("usage" in event) is includes_usage
            fields |= {name for name in event if name != "usage"}
        if kind is TextCompletionBuilder:
            assert choice["text"] == chunk
        elif chunk.field == "tool_calls":
            assert choice["delta"]["tool_calls"][0]["function"]["name"] == "look"
        else:
            name = {None: "content", "thinking": "reasoning_content"}.get(chunk.field, chunk.field)
            said = chunk if chunk.field is None else chunk.value
            # A field that goes on after another one begins a new line.
            assert choice["delta"] in ({name: said}, {name: f"\n{said}"})
    assert fields in (set(), {"id", "created", "model", "system_fingerprint", "object", "choices"})


@pytest.mark.parametrize("kind", [ChatCompletionBuilder, TextCompletionBuilder])
def test_what_never_changes_in_an_event_is_encoded_once(
    kind: type[CompletionBuilder], monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded: list[object] = []
    dumps = json.dumps

    def counted(data: object, **kwargs: Any) -> str:
        encoded.append(data)
        return dumps(data, **kwargs)

    builder = kind("model", includes_usage=True, top=None)
    for _ in range(2):
        builder.add_choice()
    monkeypatch.setattr(json, "dumps", counted)
    for _ in range(100):
        for index in range(2):
            builder.chunk(index, TextChunk("a"), ())
    assert len([data for data in encoded if isinstance(data, dict)]) <= 6  # first ones, and once


@given(texts)
def test_an_event_of_a_text_response_is_json(text: str) -> None:
    async def send_one() -> list[Any]:
        parts: list[bytes] = []

        async def send(message: Any) -> None:
            parts.append(message.get("body", b""))

        response = TextStreamResponse(stream_of([text]), "sse")
        await response({"type": "http", "method": "GET"}, never, send)
        return events_of(b"".join(parts).decode())

    (kind, data), _ = anyio.run(send_one)
    assert (kind, json.loads(data)) == ("message", {"text": text})


async def test_a_part_takes_no_turn_of_the_loop() -> None:
    """A stream has waited already. The loop has other work than a turn for nothing."""
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    sender = BodySender(send, 200, [])
    sending = sender.send("a")
    with pytest.raises(StopIteration):
        sending.send(None)
    assert [message.get("body") for message in sent] == [None, b"a"]


class Texts(ObjectReceiveStream[str]):
    """Text that is always ready, in a stream without checkpoints."""

    # Of an engine's stream, too.
    prompt_token_ids: tuple[int, ...] = ()
    textless_end = usage = finish_reason = stop_string = None

    def __init__(self, texts: list[str]) -> None:
        self._texts = iter(texts)
        self.received = 0

    async def receive(self) -> str:
        self.received += 1
        for text in self._texts:
            return TextChunk(text)
        raise EndOfStream

    async def aclose(self) -> None:
        pass


@asynccontextmanager
async def _opened(stream: ObjectReceiveStream[str]) -> AsyncIterator[Any]:
    yield stream


def stream_of(texts: list[str]) -> Callable[[], Any]:
    return lambda: _opened(Texts(texts))


@pytest.mark.parametrize("format", ["text", "sse"])
async def test_all_that_is_ready_goes_out_in_few_parts(format: Any) -> None:
    """Each part costs a call of the server and of the kernel."""
    parts: list[bytes] = []

    async def send(message: Any) -> None:
        parts.append(message.get("body", b""))

    texts = [f"{number} " for number in range(1000)]
    async with stream_iterable(lambda: texts) as stream:
        await until(lambda: worker_left(stream))
        response = TextStreamResponse(lambda: _opened(stream), format)
        await response({"type": "http", "method": "GET"}, never, send)
    body = b"".join(parts).decode()
    if format == "sse":
        *said, _ = events_of(body)
        assert [json.loads(data)["text"] for _, data in said] == texts
    else:
        assert body == "".join(texts)
    assert 10 <= len(parts) <= 13  # the head, the end, and parts that are not without bounds


async def never() -> Any:
    await anyio.sleep_forever()


MANY = 10_000


@pytest.mark.parametrize("kind", ["text", "sse", "events of an engine", "whole"])
async def test_a_stream_without_checkpoints_does_not_hold_the_loop(kind: Any) -> None:
    """A client that leaves ends it, and other tasks go on, where ``send`` does not wait either."""
    stream = Texts(["a"] * MANY)
    has_left = anyio.Event()
    body = json.dumps({"prompt": "Hi", "stream": kind != "whole"}).encode()
    parts = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> Any:
        if parts:
            return parts.pop()
        if kind != "whole":
            await has_left.wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        if stream.received == 10:
            has_left.set()

    scope = {"type": "http", "method": "POST", "path": "/v1/completions", "query_string": b""}
    scope |= {"headers": [(b"content-type", b"application/json")]}
    if kind not in ("text", "sse"):
        engine: Any = SimpleNamespace(stream_text=lambda *_, **__: _opened(stream))
        await create_app(engine)(scope, receive, send)
    else:
        parts.clear()
        await TextStreamResponse(lambda: _opened(stream), kind)(scope, receive, send)
    assert stream.received < 100
