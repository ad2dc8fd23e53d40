"""Prompts of every kind, and the models and tokenizers that take them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from anyio import create_task_group

from anystreamer import FinishReason, stream_text

from ..helpers.llama_streams import CHAT, PROMPT, collect, inputs_of, says, stream_llama
from ..helpers.model_calls import Calls, Gate
from ..helpers.tiny_models import (
    EOS,
    TinyProcessor,
    decoded,
    generated,
    ids_of,
    llama,
    new_tokenizer,
    steps_of,
    tokenizer,
)

pytestmark = pytest.mark.torch


async def test_chat_messages_go_through_the_chat_template() -> None:
    messages = [
        {"role": "user", "content": "Hi!"},
        {"role": "assistant", "content": "Yes?"},
        {"role": "user", "content": "Go."},
    ]
    expected = "u:Hi!\na:Yes?\nu:Go.\na:"
    _, stream = await collect(stream_llama(messages, max_new_tokens=5))
    assert decoded(stream.prompt_token_ids) == expected
    assert stream.token_ids == generated(llama(), expected, max_new_tokens=5)


async def test_chat_messages_can_be_a_tuple() -> None:
    _, stream = await collect(stream_llama(tuple(CHAT), max_new_tokens=1))
    assert decoded(stream.prompt_token_ids) == "u:Hi!\na:"


async def test_chat_template_kwargs_reach_the_template() -> None:
    kwargs: dict[str, Any] = {"system": "Be kind. "}
    async with stream_llama(CHAT, chat_template_kwargs=kwargs, max_new_tokens=1) as stream:
        assert decoded(stream.prompt_token_ids) == "Be kind. u:Hi!\na:"


async def test_chat_template_kwargs_can_continue_the_last_message() -> None:
    """The two go together in transformers: the caller's choice counts, not our default."""
    messages = [*CHAT, {"role": "assistant", "content": "I am"}]
    kwargs: dict[str, Any] = {"add_generation_prompt": False, "continue_final_message": True}
    async with stream_llama(messages, chat_template_kwargs=kwargs, max_new_tokens=1) as stream:
        assert decoded(stream.prompt_token_ids) == "u:Hi!\na:I am"


def mapping_prompts() -> dict[str, Callable[[], Mapping[str, Any]]]:
    return {
        "input_ids": lambda: {"input_ids": torch.tensor([ids_of(PROMPT)])},
        "dict": lambda: inputs_of(PROMPT),
        "inputs": lambda: {"inputs": torch.tensor([ids_of(PROMPT)])},
        "BatchEncoding": lambda: tokenizer()(PROMPT, return_tensors="pt"),
    }


@pytest.mark.parametrize("kind", mapping_prompts())
async def test_prompt_as_model_inputs(kind: str) -> None:
    prompt = mapping_prompts()[kind]()
    _, stream = await collect(stream_llama(prompt, max_new_tokens=8))
    assert stream.prompt_token_ids == ids_of(PROMPT)
    assert stream.token_ids == generated(llama(), PROMPT, max_new_tokens=8)


async def test_prompt_as_embeddings() -> None:
    """Their ids are not known; the text is the same."""
    with torch.no_grad():
        embeddings = llama().get_input_embeddings()(torch.tensor([ids_of(PROMPT)]))
    _, stream = await collect(stream_llama({"inputs_embeds": embeddings}, max_new_tokens=8))
    assert stream.prompt_token_ids == []
    assert stream.token_ids == generated(llama(), PROMPT, max_new_tokens=8)
    assert (stream.usage.prompt_tokens, stream.usage.completion_tokens) == (0, 8)
    assert stream.finish_reason is FinishReason.LENGTH


@pytest.mark.parametrize("kind", ["text", "chat"])
async def test_processor_in_place_of_a_tokenizer(kind: str) -> None:
    """It encodes, and its tokenizer decodes; the chat template is the processor's own."""
    processor = TinyProcessor(tokenizer())
    processor.chat_template = "<{{ messages[0].content[0].text }}>"
    messages = [{"role": "user", "content": [{"type": "text", "text": "Hi!"}]}]
    prompt, text = (PROMPT, PROMPT) if kind == "text" else (messages, "<Hi!>")
    _, stream = await collect(stream_text(llama(), processor, prompt, max_new_tokens=8))
    assert decoded(stream.prompt_token_ids) == text
    assert stream.token_ids == generated(llama(), text, max_new_tokens=8)
    assert stream.text == decoded(stream.token_ids)


async def test_a_tokenizer_with_an_attribute_tokenizer_is_not_a_processor() -> None:
    """Mistral's keeps the one of another library there, which cannot decode as transformers do."""
    own = new_tokenizer()
    own.tokenizer = SimpleNamespace(decode=lambda token_ids: "?")
    _, stream = await collect(stream_text(llama(), own, PROMPT, **says("abc")))
    assert stream.text == "abc"


@dataclass
class Unhashable:
    """It has only the methods that the protocols require."""

    inner: Any

    def generate(self, **kwargs: Any) -> Any:
        return self.inner.generate(**kwargs)

    def decode(self, token_ids: Any, **kwargs: Any) -> str:
        return str(self.inner.decode(token_ids, **kwargs))

    def __call__(self, **kwargs: Any) -> Any:
        return self.inner(**kwargs)


async def test_a_model_can_be_any_object(calls: Calls) -> None:
    """One that cannot be hashed as well. Its generations wait for each other all the same."""
    model = Unhashable(llama())
    texts = []

    async def one() -> None:
        context = stream_text(model, tokenizer(), PROMPT, **says("abc"))
        texts.append("".join((await collect(context))[0]))

    async with create_task_group() as tasks:
        tasks.start_soon(one)
        tasks.start_soon(one)
    assert texts == ["abc", "abc"]
    assert calls.most == 1


@pytest.mark.parametrize("prompt", [PROMPT, {"input_ids": torch.tensor([[1, 2]])}])
async def test_a_tokenizer_can_be_any_object(prompt: Any) -> None:
    context = stream_text(llama(), Unhashable(tokenizer()), prompt, **says("abc"))
    assert (await collect(context))[1].text == "abc"


async def test_a_tokenizer_of_the_library_below() -> None:
    """It cannot encode as transformers' do; it decodes what is given as ids."""
    backend = tokenizer().backend_tokenizer
    _, stream = await collect(stream_text(llama(), backend, inputs_of(PROMPT), **says("añ", EOS)))
    assert stream.text == "añ"


async def test_prompt_token_ids_are_known_when_the_block_is_entered() -> None:
    gate = Gate()
    with steps_of(llama(), {1: gate}):
        async with stream_llama(max_new_tokens=1) as stream:
            try:
                assert stream.prompt_token_ids == ids_of(PROMPT)
            finally:
                gate.open()


async def test_encoding_errors_are_raised_where_the_block_is_entered() -> None:
    """Bare, and before the model has done anything."""
    with steps_of(llama()) as steps:
        with pytest.raises(Exception, match="who is that") as caught:
            async with stream_llama([{"role": "nobody", "content": ""}]):
                pytest.fail("entered")
        assert not isinstance(caught.value, BaseExceptionGroup)
        without = new_tokenizer()
        without.chat_template = None
        with pytest.raises(ValueError, match="chat_template"):
            async with stream_text(llama(), without, CHAT):
                pytest.fail("entered")
    assert steps.count == 0


async def test_an_encoding_error_is_the_very_same_object() -> None:
    error = OSError("no vocabulary")

    class Broken:
        def decode(self, token_ids: Any, **kwargs: Any) -> str:
            return ""

        def __call__(self, **kwargs: Any) -> Any:
            raise error

    with pytest.raises(OSError, match="no vocabulary") as caught:
        async with stream_text(llama(), Broken(), PROMPT):
            pytest.fail("entered")
    assert caught.value is error
    assert error.__context__ is None
    assert error.__cause__ is None
