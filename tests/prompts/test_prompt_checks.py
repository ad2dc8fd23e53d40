"""Prompts that are much too long are refused early; those that fit never are."""

from __future__ import annotations

import pickle
from typing import Any, Literal

import pytest

from anystreamer import open_engine
from anystreamer._errors import PromptTooLong
from anystreamer._prompts import prompt_checks
from anystreamer._prompts.prompt_checks import MARGIN, SLICE, SPARE, check_length
from anystreamer.demo import load_demo

from ..helpers.batchings import BATCHINGS
from ..helpers.tokenizer_families import FAMILIES, SAMPLE

pytestmark = pytest.mark.torch

RUST = [family for family in FAMILIES if hasattr(family.make(), "backend_tokenizer")]


@pytest.mark.parametrize("family", RUST, ids=lambda family: family.name)
@pytest.mark.parametrize("size", [50, SLICE])
def test_what_fits_is_not_refused(family: Any, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where it is cut into slices that are much shorter than usual."""
    monkeypatch.setattr(prompt_checks, "SLICE", size)
    tokenizer = family.make()
    # For some tokenizers a very long word is one unknown token: they see it in few slices.
    long_words = ["word" * 500, "x" * 100_000] if size == SLICE else []
    for text in (SAMPLE * 10, " " * 500, "👍🏽" * 100, *long_words):
        check_length(tokenizer, text, len(tokenizer(text, add_special_tokens=False)["input_ids"]))


async def refusal(
    prompt: Any, batching: Literal["none", "continuous"], context_length: int
) -> PromptTooLong:
    model, tokenizer = load_demo()
    async with open_engine(
        model, tokenizer, batching=batching, context_length=context_length
    ) as engine:
        with pytest.raises(PromptTooLong) as raised:
            async with engine.stream_text(prompt, max_new_tokens=1):
                pytest.fail("entered")
    return raised.value


@pytest.mark.parametrize("batching", BATCHINGS)
@pytest.mark.parametrize("kind", ["text", "chat", "one of many messages"])
async def test_only_the_beginning_of_a_long_prompt_is_encoded(
    kind: str, batching: Literal["none", "continuous"]
) -> None:
    text = "one, two, three, " * 50_000
    prompt: Any = {
        "text": text,
        "chat": [{"role": "user", "content": text}],
        "one of many messages": [{"role": "user", "content": "one, " * 100}] * 500,
    }[kind]
    error = await refusal(prompt, batching, 100)
    assert error.is_lower_bound
    assert MARGIN * 100 + SPARE < error.prompt_tokens <= MARGIN * 100 + SPARE + SLICE
    assert str(error).endswith(f"the prompt has at least {error.prompt_tokens}")
    copy = pickle.loads(pickle.dumps(error))
    assert (str(copy), copy.is_lower_bound) == (str(error), True)


async def test_one_that_is_a_little_too_long_is_counted() -> None:
    _, tokenizer = load_demo()
    prompt = "one, two, three, " * 20
    tokens = len(tokenizer(prompt)["input_ids"])
    error = await refusal(prompt, "none", tokens)
    assert (error.prompt_tokens, error.is_lower_bound) == (tokens, False)
