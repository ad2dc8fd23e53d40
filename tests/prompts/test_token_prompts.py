"""Prompts in tokens, special tokens as stop strings, and tokenizers that make token type ids."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from anystreamer import FinishReason, TokenIds, open_engine, stream_batch, stream_text

from ..helpers.batchings import BATCHINGS
from ..helpers.tiny_models import (
    EOS,
    MARK,
    Say,
    generated,
    ids_of,
    llama,
    new_llama,
    new_tokenizer,
    tokenizer,
)
from ..helpers.tokenizer_families import byte_fallback

pytestmark = pytest.mark.torch

PROMPT = "Once upon"


async def test_ids_are_the_text_that_they_stand_for() -> None:
    expected = generated(llama(), PROMPT, max_new_tokens=6)
    async with stream_text(llama(), tokenizer(), TokenIds(ids_of(PROMPT)), max_new_tokens=6) as s:
        text = await s.read()
    assert s.token_ids == expected
    assert s.prompt_token_ids == ids_of(PROMPT)
    async with stream_text(llama(), tokenizer(), PROMPT, max_new_tokens=6) as s:
        assert await s.read() == text


async def test_the_answer_continues_them() -> None:
    """With the space that the decoder drops at a text's beginning."""
    tokenizer = byte_fallback(strip=True)
    model = new_llama(vocabulary=len(tokenizer), eos=0, never=())
    ids = tokenizer("the cat", add_special_tokens=False)["input_ids"]
    word = tokenizer(" dog", add_special_tokens=False)["input_ids"]
    for prompt in ("the cat", TokenIds(ids)):
        async with stream_text(
            model, tokenizer, prompt, max_new_tokens=len(word), logits_processor=[Say(*word)]
        ) as stream:
            assert await stream.read() == tokenizer.decode([*ids, *word])[len("the cat") :]


async def test_a_batch_of_them() -> None:
    prompts = [TokenIds(ids_of(each)) for each in (PROMPT, "A")]
    async with stream_batch(llama(), tokenizer(), prompts, max_new_tokens=4) as stream:
        async for _ in stream:
            pass
    assert stream.token_ids == [
        generated(llama(), each, max_new_tokens=4) for each in (PROMPT, "A")
    ]


@pytest.mark.parametrize("batching", BATCHINGS)
async def test_engines_take_them(batching: Any) -> None:
    async with open_engine(llama(), tokenizer(), batching=batching) as engine:
        async with engine.stream_text(TokenIds(ids_of(PROMPT)), max_new_tokens=4) as stream:
            await stream.read()
        assert stream.token_ids == generated(llama(), PROMPT, max_new_tokens=4)
        with pytest.raises(ValueError, match="embeddings for"):
            async with engine.stream_text(TokenIds([10**6]), max_new_tokens=4) as stream:
                await stream.read()


async def test_what_is_no_prompt_of_ids() -> None:
    for wrong, error in (([1.0], TypeError), ([True], TypeError), ([-1], ValueError)):
        with pytest.raises(error, match="TokenIds must be"):
            TokenIds(wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="empty"):
        stream_text(llama(), tokenizer(), TokenIds([]))
    plain: Any = [1, 2]
    with pytest.raises(TypeError, match="pass ids as anystreamer"):
        stream_text(llama(), tokenizer(), plain)
    matrix: Any = torch.tensor([1, 2])
    with pytest.raises(TypeError, match="pass ids as anystreamer"):
        stream_text(llama(), tokenizer(), matrix)


@pytest.mark.parametrize("stop", ["<mark>", ["nothing", "<mark>"]])
@pytest.mark.parametrize("skips", [True, False])
async def test_a_special_token_stops_where_the_model_makes_it(stop: Any, skips: bool) -> None:
    """Though it has no text where special tokens are left out."""
    async with stream_text(
        llama(),
        tokenizer(),
        PROMPT,
        stop=stop,
        max_new_tokens=9,
        skip_special_tokens=skips,
        logits_processor=[Say("ab", MARK, "cd", EOS)],
    ) as stream:
        assert await stream.read() == "ab"
    assert stream.finish_reason is FinishReason.STOP_STRING
    assert stream.stop_string == "<mark>"
    assert stream.token_ids == [*ids_of("ab"), MARK]
    assert stream.usage is not None
    assert stream.usage.computed_tokens == 3


async def test_a_stop_string_before_the_special_token_comes_first() -> None:
    for stop in (["<mark>", "b"], ["b", "<mark>"]):
        async with stream_text(
            llama(),
            tokenizer(),
            PROMPT,
            stop=stop,
            max_new_tokens=9,
            logits_processor=[Say("ab", MARK, EOS)],
        ) as stream:
            assert await stream.read() == "a"
        assert stream.stop_string == "b"


async def test_text_that_a_stop_string_holds_back_is_shown_at_the_special_token() -> None:
    async with stream_text(
        llama(),
        tokenizer(),
        PROMPT,
        stop=["bcd", "<mark>"],
        max_new_tokens=9,
        logits_processor=[Say("abc", MARK, "d", EOS)],
    ) as stream:
        assert await stream.read() == "abc"
    assert stream.stop_string == "<mark>"


async def test_each_row_stops_at_its_own_special_token() -> None:
    async with stream_batch(
        llama(),
        tokenizer(),
        [PROMPT],
        num_return_sequences=2,
        do_sample=True,
        stop="<mark>",
        max_new_tokens=9,
        logits_processor=[Say("ab", MARK, "cd", EOS)],
    ) as stream:
        async for _ in stream:
            pass
    assert (stream.text, stream.stop_string) == (["ab"] * 2, ["<mark>"] * 2)


async def test_an_eos_among_the_stop_strings_is_named() -> None:
    async with stream_text(
        llama(),
        tokenizer(),
        PROMPT,
        stop="<eos>",
        max_new_tokens=9,
        logits_processor=[Say("ab", EOS)],
    ) as stream:
        assert await stream.read() == "ab"
    assert (stream.finish_reason, stream.stop_string) == (FinishReason.STOP_STRING, "<eos>")


@pytest.mark.parametrize("batching", BATCHINGS[1:])
async def test_continuous_batching_stops_at_a_special_token(batching: Any) -> None:
    """The weights say it: it takes no processors."""
    model = new_llama(never=(EOS,))
    first, *_ = generated(model, PROMPT, max_new_tokens=1)
    model.lm_head.weight.data[MARK] = model.lm_head.weight.data[first] * 2
    model.lm_head.weight.data[first] = 0
    assert generated(model, PROMPT, max_new_tokens=1) == [MARK]
    async with open_engine(model, tokenizer(), batching=batching) as engine:
        async with engine.stream_text(PROMPT, stop="<mark>", max_new_tokens=9) as stream:
            assert await stream.read() == ""
    assert (stream.finish_reason, stream.stop_string) == (FinishReason.STOP_STRING, "<mark>")
    assert stream.token_ids == [MARK]


@pytest.mark.parametrize("batching", BATCHINGS)
async def test_a_tokenizer_that_makes_token_type_ids(batching: Any) -> None:
    """A decoder does not take them, and ``generate()`` would refuse them."""
    typed = new_tokenizer()
    typed.model_input_names = ["input_ids", "token_type_ids", "attention_mask"]
    assert "token_type_ids" in typed(PROMPT)
    expected = generated(llama(), PROMPT, max_new_tokens=4)
    async with open_engine(llama(), typed, batching=batching) as engine:
        async with engine.stream_text(PROMPT, max_new_tokens=4) as stream:
            await stream.read()
        assert stream.token_ids == expected
        chat = [{"role": "user", "content": "Hi"}]
        async with engine.stream_text(chat, max_new_tokens=4) as stream:
            await stream.read()
        assert len(stream.token_ids) == 4
    prompts = [PROMPT, "A"]
    async with stream_batch(llama(), typed, prompts, max_new_tokens=4) as batch:
        async for _ in batch:
            pass
    assert batch.token_ids[0] == expected


async def test_a_model_that_takes_token_type_ids_gets_them() -> None:
    class Typed(type(llama())):  # type: ignore[misc]
        seen: Any = None

        def forward(self, *args: Any, token_type_ids: Any = None, **kwargs: Any) -> Any:
            Typed.seen = token_type_ids if Typed.seen is None else Typed.seen
            return super().forward(*args, **kwargs)

    model = Typed(llama().config).eval()
    typed = new_tokenizer()
    typed.model_input_names = ["input_ids", "token_type_ids", "attention_mask"]
    async with stream_text(model, typed, PROMPT, max_new_tokens=2) as stream:
        await stream.read()
    assert Typed.seen.tolist() == [[0] * len(ids_of(PROMPT))]
