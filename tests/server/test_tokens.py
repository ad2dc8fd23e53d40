"""Tokens with their log-probabilities: their bytes, and where their texts begin."""

from __future__ import annotations

import json
import re
import threading
import tracemalloc
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import cache
from typing import Any, cast

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import LogitsProcessor

from anystreamer import TextChunk, TextStream, open_engine
from anystreamer.server import create_app
from anystreamer.server._openai_choices import Token
from anystreamer.server._openai_format import (
    ChatCompletionBuilder,
    CompletionBuilder,
    TextCompletionBuilder,
)
from anystreamer.server._tokens import TokenTexts

from ..helpers import tokenizer_families as families
from ..helpers.scripted import until
from ..helpers.serving import client_of, data_of, serving
from ..helpers.tiny_models import EOS, Say, new_llama, new_tokenizer

pytestmark = pytest.mark.torch

REPLACEMENT = "\ufffd"
TEXT = "Größe 👍🏽 京, naïve ! 👩‍👩‍👧 x"

FAMILIES = {family.name: family for family in families.FAMILIES}
# Those that spell a character by its bytes where they have no token for it.
SPELLING = [
    "byte level",
    "byte fallback",
    "byte fallback, strip",
    "byte fallback, nested",
    "raw tokenizer",
    "own decode",
    "own _decode",
]


@cache
def made(name: str) -> Any:
    return FAMILIES[name].make()


def bytes_first(name: str, text: str) -> list[int]:
    """A text with all but its ASCII letters spelled by bytes."""
    return [token_id for character in text for token_id in character.encode()]


def tokens_of(texts: TokenTexts, ids: Sequence[int], size: int = 1) -> list[Token]:
    tokens: list[Token] = []
    for start in range(0, len(ids), size):
        part = ids[start : start + size]
        top = [((ids[-1], -2.0),)] * len(part)
        tokens += texts.of(TextChunk("", part, logprobs=[-1.0] * len(part), top_logprobs=top))
    return tokens


@pytest.mark.parametrize("name", SPELLING)
def test_the_bytes_of_half_a_character_are_known(name: str) -> None:
    """Joined, they are the text's; those of the likeliest tokens are known as well."""
    ids = bytes_first(name, TEXT)
    tokens = tokens_of(TokenTexts(made(name)), ids)
    assert any(token.text == REPLACEMENT for token in tokens)
    known = [token.utf8 for token in tokens if token.utf8 is not None]
    assert len(known) == len(ids)
    assert b"".join(known).decode() == TEXT
    assert all(token.top[0].utf8 is not None for token in tokens)


def test_the_bytes_of_a_slow_tokenizer() -> None:
    """It has no decoder to be read, but names its byte tokens as all do."""
    slow = families.PythonSentencePiece([*families.byte_tokens(), "▁a"])
    token_id: Any = slow.convert_tokens_to_ids("<0xE4>")
    (half,) = tokens_of(TokenTexts(Halves(slow)), [token_id])
    assert (half.text, half.utf8) == (REPLACEMENT, b"\xe4")


class Halves:
    """Decodes byte tokens, which transformers' slow tokenizers leave to their subclasses."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    def convert_ids_to_tokens(self, token_id: int) -> str:
        return str(self._tokenizer.convert_ids_to_tokens(token_id))

    def decode(self, ids: Sequence[int], **kwargs: Any) -> str:
        tokens = [self.convert_ids_to_tokens(token_id) for token_id in ids]
        return "".join(REPLACEMENT if "<0x" in token else token for token in tokens)


def test_bytes_that_nothing_shows_are_not_known() -> None:
    class Opaque:
        def decode(self, ids: Sequence[int], **kwargs: Any) -> str:
            return bytes(ids).decode(errors="replace")

    tokens = tokens_of(TokenTexts(Opaque()), "é!".encode())
    assert [token.utf8 for token in tokens] == [None, None, b"!"]


def test_a_token_that_has_the_replacement_character_in_it() -> None:
    """It is a character like any other there, with bytes of its own."""
    tokenizer = made("byte fallback")
    (token,) = tokens_of(TokenTexts(tokenizer), [tokenizer.convert_tokens_to_ids(REPLACEMENT)])
    assert (token.text, token.utf8) == (REPLACEMENT, REPLACEMENT.encode())


@pytest.mark.parametrize("name", FAMILIES)
@given(data=st.data())
def test_tokens_never_begin_before_those_before_them(name: str, data: st.DataObject) -> None:
    """Whatever tokens, in whatever chunks, after whatever prompt."""
    tokenizer = made(name)
    size = tokenizer.get_vocab_size() if name == "raw tokenizer" else len(tokenizer)
    ids = st.lists(st.integers(0, size - 1), max_size=20)
    texts = TokenTexts(tokenizer, data.draw(ids))
    tokens = tokens_of(texts, data.draw(ids), data.draw(st.integers(1, 5)))
    starts = [token.start for token in tokens]
    assert starts == sorted(starts)
    assert not starts or starts[0] == 0


@pytest.mark.parametrize("name", ["byte level", "byte fallback, strip"])
def test_a_token_begins_where_its_text_does(name: str) -> None:
    """Parts of one character all begin where it does, and skipped tokens take no place."""
    tokenizer = made(name)
    special = tokenizer.convert_tokens_to_ids("<s>")
    ids = [special, *bytes_first(name, "a👍b"), special, *bytes_first(name, "é!")]
    tokens = tokens_of(TokenTexts(tokenizer), ids)
    assert [token.start for token in tokens] == [0, 0, 1, 1, 1, 1, 2, 3, 3, 3, 4]
    assert tokens[0].text == "<s>"


@pytest.mark.parametrize("name", ["byte fallback, strip", "unigram", "python, sentencepiece"])
def test_the_first_token_of_a_continuation_has_its_space(name: str) -> None:
    """Joined, the texts are what is sent: with the space after a prompt, without it at a start."""
    tokenizer = made(name)
    words = [token for token in tokenizer.get_vocab() if re.fullmatch("▁[a-z]+", token)]
    the, dog = tokenizer.convert_tokens_to_ids(sorted(words)[:2])
    alone, after = TokenTexts(tokenizer), TokenTexts(tokenizer, [the])
    assert tokens_of(after, [dog])[0].text == " " + tokens_of(alone, [dog])[0].text
    special = tokenizer.convert_tokens_to_ids("<s>")
    begun = TokenTexts(tokenizer, [special])
    assert tokens_of(begun, [dog])[0].text == tokens_of(TokenTexts(tokenizer), [dog])[0].text


async def test_offsets_and_bytes_through_the_edge() -> None:
    """A character may come in four tokens and in several chunks; clients can put it together."""
    model, tokenizer = new_llama(), new_tokenizer()
    text = "a 👍, é!"
    ids = tokenizer.encode(text)
    generate = model.generate
    model.generate = lambda **kwargs: generate(
        **{
            **kwargs,
            "logits_processor": [Say(*ids, EOS), *kwargs.get("logits_processor", ())],
        }
    )
    async with open_engine(model, tokenizer) as engine:
        async with serving(create_app(engine)) as url, client_of(url) as client:
            body = {"prompt": "go", "logprobs": 1, "max_tokens": 40}
            (choice,) = (await client.post("/v1/completions", json=body)).json()["choices"]
            response = await client.post("/v1/completions", json={**body, "stream": True})
            chunks = [chunk["choices"][0] for chunk in data_of(response.text)[:-1]]
            chat = {"messages": [{"role": "user", "content": "go"}], "logprobs": True}
            (said,) = (await client.post("/v1/chat/completions", json=chat)).json()["choices"]
    assert choice["text"] == text
    offsets = choice["logprobs"]["text_offset"]
    assert offsets == [0, 1, 2, 2, 2, 2, 3, 4, 5, 5, 6, 7]  # the last is the end's
    parts = [chunk["logprobs"]["text_offset"] for chunk in chunks if chunk["logprobs"]]
    assert [offset for part in parts for offset in part] == offsets
    tokens = said["logprobs"]["content"][: len(ids)]
    assert b"".join(bytes(token["bytes"]) for token in tokens).decode() == text


class SlowReader:
    """An engine whose streams are read once all has been made: all chunks are joined."""

    def __init__(self, engine: Any) -> None:
        self._engine = engine
        self.model, self.tokenizer = engine.model, engine.tokenizer

    @asynccontextmanager
    async def stream_text(self, prompt: Any, **kwargs: Any) -> AsyncIterator[TextStream]:
        async with self._engine.stream_text(prompt, **kwargs) as stream:
            await until(lambda: not self._engine.statistics().running)
            yield stream


@pytest.mark.parametrize("stop", [None, "b<"])
@pytest.mark.parametrize("reads", ["at once", "late"])
async def test_each_counted_token_is_listed_however_it_comes(reads: str, stop: str | None) -> None:
    """The end of the text comes with text if the client is slow, and alone if it is fast.

    So do the tokens of a stop string, which are no part of the text either.
    """
    model, tokenizer = new_llama(), new_tokenizer()
    ids = tokenizer.encode("ab<c" if stop else "ab")
    gate = threading.Event()

    class HoldTheEnd(LogitsProcessor):
        def __call__(self, input_ids: Any, scores: Any) -> Any:
            if input_ids.shape[1] == len("go") + 2:  # before the token after "ab"
                gate.wait()
            return scores

    generate = model.generate
    model.generate = lambda **kwargs: generate(
        **{
            **kwargs,
            "logits_processor": [HoldTheEnd(), Say(*ids, EOS), *kwargs.get("logits_processor", ())],
        }
    )
    body = {"prompt": "go", "logprobs": 1, "max_tokens": 40, "stream": True, "stop": stop}
    body |= {"stream_options": {"include_usage": True}}
    async with open_engine(model, tokenizer) as engine:
        reader: Any = SlowReader(engine) if reads == "late" else engine
        app = create_app(reader)
        async with serving(app) as url, client_of(url) as client:
            lines, shown = [], ""
            try:
                if reads == "late":
                    gate.set()
                async with client.stream("POST", "/v1/completions", json=body) as response:
                    async for line in response.aiter_lines():
                        lines.append(line)
                        for choice in json.loads(line[6:])["choices"] if "{" in line else ():
                            shown += choice["text"]
                        if shown == ("a" if stop else "ab"):
                            gate.set()
            finally:
                gate.set()
    *events, usage, _ = data_of("\n".join([*lines, ""]))
    parts = [event["choices"][0]["logprobs"] for event in events]
    tokens = [token for part in parts if part for token in part["tokens"]]
    assert tokens == (["a", "b", "<"] if stop else ["a", "b", "<eos>"])
    assert usage["usage"]["completion_tokens"] == len(tokens)


def test_a_builder_takes_the_offsets_of_the_tokens() -> None:
    """And not the lengths of chunks: text that is held back has tokens in the chunk before."""
    builder = TextCompletionBuilder("model", includes_usage=False, top=0)
    builder.add_choice()
    builder.keep(0, TextChunk("a"), [Token("a", -1.0, b"a", 0), Token("b", -1.0, b"b", 1)])
    builder.keep(0, TextChunk("bc"), [Token("c", -1.0, b"c", 2)])
    (choice,) = json.loads(builder.full_response(["stop"], {}))["choices"]
    assert choice["logprobs"]["text_offset"] == [0, 1, 2]


# -- what listing the likeliest tokens costs

TOP = [Token(f"t{number}", -float(number), b"t", 0) for number in range(20)]
LISTED = Token("t", -1.0, b"t", 0, TOP)
BUILDERS = [ChatCompletionBuilder, TextCompletionBuilder]


@pytest.mark.parametrize("kind", BUILDERS)
def test_a_stream_keeps_no_tokens_that_it_has_sent(kind: type[CompletionBuilder]) -> None:
    builder = kind("model", includes_usage=False, top=20)
    builder.add_choice()
    builder.chunk(0, TextChunk("t"), [LISTED])
    tracemalloc.start()
    try:
        for _ in range(200):
            builder.chunk(0, TextChunk("t"), [LISTED])
        taken, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert taken < 200 * 500  # bytes; the tokens as objects would take 14 times as many


@pytest.mark.parametrize("kind", BUILDERS)
def test_the_end_of_a_whole_answer_encodes_no_tokens(
    kind: type[CompletionBuilder], monkeypatch: pytest.MonkeyPatch
) -> None:
    """That would hold the event loop: it is done as they come."""
    builder = kind("model", includes_usage=False, top=20)
    for index in range(2):
        builder.add_choice()
        for _ in range(50):
            builder.keep(index, TextChunk("t"), [LISTED])
        builder.keep(index, None, [LISTED])
    encoded = 0
    dumps = json.dumps

    def counted(data: object, **kwargs: Any) -> str:
        nonlocal encoded
        text = dumps(data, **kwargs)
        encoded += len(text)
        return text

    monkeypatch.setattr(json, "dumps", counted)
    whole = json.loads(builder.full_response(["stop", "stop"], {}))
    assert encoded < 1000  # characters
    for choice in whole["choices"]:
        lists = [each for each in choice["logprobs"].values() if each is not None]
        assert [len(each) for each in lists] == [51] * len(lists)


async def test_no_part_lists_many_tokens() -> None:
    """Between two parts other clients get theirs."""
    model, tokenizer = new_llama(), new_tokenizer()
    body = {"prompt": "go", "logprobs": 20, "max_tokens": 60, "stream": True, "ignore_eos": True}
    received = iter([{"type": "http.request", "body": json.dumps(body).encode()}])
    parts: list[str] = []

    async def receive() -> Any:
        for message in received:
            return message
        await anyio.sleep_forever()

    async def send(message: Any) -> None:
        if part := message.get("body"):
            parts.append(part.decode())

    scope = {
        "type": "http",
        "method": "POST",
        "path": "/v1/completions",
        "root_path": "",
        "query_string": b"",
        "headers": [(b"content-type", b"application/json")],
    }
    async with open_engine(model, tokenizer) as engine:
        await create_app(cast(Any, SlowReader(engine)))(scope, receive, send)
    listed = []
    for part in parts:
        events = [each for each in data_of(part) if each != "[DONE]"]
        logprobs = [event["choices"][0]["logprobs"] for event in events]
        listed.append(sum(len(each["tokens"]) for each in logprobs if each is not None))
    assert sum(listed) == 60
    assert max(listed) <= 10


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
async def test_all_choices_know_the_texts_of_tokens_together(path: str) -> None:
    model, tokenizer = new_llama(), new_tokenizer()
    decoded: list[Any] = []
    decode = tokenizer.decode

    def counted(ids: Any, **kwargs: Any) -> Any:
        decoded.append(ids)
        return decode(ids, **kwargs)

    tokenizer.decode = counted
    is_chat = "chat" in path
    prompt = {"messages": [{"role": "user", "content": "go"}]} if is_chat else {"prompt": "go"}
    listing = {"logprobs": True, "top_logprobs": 20} if is_chat else {"logprobs": 20}
    body = {**prompt, **listing, "max_tokens": 8, "temperature": 0, "ignore_eos": True}
    counts = []
    async with open_engine(model, tokenizer) as engine:
        async with serving(create_app(engine)) as url, client_of(url) as client:
            for n in (1, 4):
                decoded.clear()
                assert (await client.post(path, json={**body, "n": n})).status_code == 200
                counts.append(len([each for each in decoded if isinstance(each, list)]))
    # The first token of each choice is decoded for itself, with those in its place.
    assert counts[1] < 2 * counts[0]
