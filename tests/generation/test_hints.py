"""What does nothing, or is written as elsewhere, is refused at once with what to write."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM

from anystreamer import open_engine, stream_batch, stream_text, sync
from anystreamer._errors import PromptTooLong
from anystreamer.testing import ScriptedModel

from ..helpers.tiny_models import generated, ids_of, llama, new_llama, steps_of, t5, tokenizer

pytestmark = pytest.mark.torch

PROMPT = "Once"


@pytest.mark.parametrize(
    ("argument", "value", "hint"),
    [
        ("max_tokens", 3, "max_new_tokens="),
        ("max_completion_tokens", 3, "max_new_tokens="),
        ("stop_sequences", ["x"], "stop="),
        ("stream", True, "leave it out"),
        ("n", 2, "num_return_sequences="),
        ("best_of", 2, "num_return_sequences="),
        ("seed", 1, "worker_context="),
        ("system", "Be brief.", "'role': 'system'"),
        ("messages", [], "as the prompt"),
        ("tools", [], "chat_template_kwargs="),
        ("enable_thinking", False, "chat_template_kwargs="),
        ("response_model", dict, "response_format="),
    ],
)
async def test_names_of_other_libraries(argument: str, value: Any, hint: str) -> None:
    kwargs = {argument: value}
    with pytest.raises(TypeError, match=f"^{argument}= is not an argument of stream_text.*{hint}"):
        stream_text(llama(), tokenizer(), PROMPT, **kwargs)
    with pytest.raises(TypeError, match=f"^{argument}= is not an argument of stream_batch"):
        stream_batch(llama(), tokenizer(), [PROMPT], **kwargs)
    with pytest.raises(TypeError, match=f"^{argument}="):
        sync.stream_text(llama(), tokenizer(), PROMPT, **kwargs)
    scripted = ScriptedModel(["a"])
    with pytest.raises(TypeError, match=f"^{argument}="):
        stream_text(scripted, scripted.tokenizer, PROMPT, **kwargs)
    async with open_engine(llama(), tokenizer()) as engine:
        with pytest.raises(TypeError, match=f"^{argument}="):
            engine.stream_text(PROMPT, **kwargs)


async def test_an_engine_has_its_tokenizer() -> None:
    async with open_engine(llama(), tokenizer()) as engine:
        with pytest.raises(TypeError, match=r"^tokenizer= .* known already"):
            engine.stream_text(PROMPT, tokenizer=tokenizer())


class Seeded(LlamaForCausalLM):
    """A model with an input of a name that others have for something else."""

    def forward(
        self, input_ids: Any = None, attention_mask: Any = None, seed: Any = None, **kwargs: Any
    ) -> Any:
        self.seeds = [*getattr(self, "seeds", ()), seed]
        return super().forward(input_ids=input_ids, attention_mask=attention_mask, **kwargs)


async def test_an_input_of_the_model_is_an_argument() -> None:
    model: Any = Seeded(llama().config).eval()
    async with stream_text(model, tokenizer(), PROMPT, seed=7, max_new_tokens=2) as stream:
        await stream.read()
    assert model.seeds == [7, 7]


SAMPLING: dict[str, Any] = {
    "temperature": 0.7,
    "top_k": 5,
    "top_p": 0.9,
    "min_p": 0.1,
    "typical_p": 0.9,
    "epsilon_cutoff": 0.1,
    "eta_cutoff": 0.1,
}


@pytest.mark.parametrize("name", SAMPLING)
async def test_settings_that_only_sampling_reads(name: str) -> None:
    setting = {name: SAMPLING[name]}
    for kwargs in (setting, {**setting, "do_sample": False}):
        with pytest.raises(ValueError, match=rf"^{name}=.* does nothing .* do_sample=True"):
            stream_text(llama(), tokenizer(), PROMPT, **kwargs)
    async with stream_text(
        llama(), tokenizer(), PROMPT, do_sample=True, max_new_tokens=2, **setting
    ) as stream:
        await stream.read()
    assert len(stream.token_ids) == 2


@pytest.mark.parametrize(
    "neutral", [{"temperature": 1.0}, {"temperature": 0}, {"top_p": 1.0}], ids=str
)
async def test_values_that_change_nothing_are_taken(neutral: dict[str, Any]) -> None:
    async with stream_text(llama(), tokenizer(), PROMPT, max_new_tokens=3, **neutral) as stream:
        await stream.read()
    assert stream.token_ids == generated(llama(), PROMPT, max_new_tokens=3)


async def test_a_model_that_samples_by_its_own_config_reads_them() -> None:
    model = new_llama()
    model.generation_config.do_sample = True
    async with stream_text(model, tokenizer(), PROMPT, temperature=0.7, max_new_tokens=2) as stream:
        await stream.read()
    assert len(stream.token_ids) == 2


@pytest.mark.parametrize(
    "ids", [torch.tensor([1, 2]), [1, 2], [[1, 2]]], ids=["1-D", "list", "lists"]
)
async def test_ids_that_are_no_matrix(ids: Any) -> None:
    with steps_of(llama()) as steps:
        with pytest.raises(TypeError, match=r"'input_ids'\] must be a tensor of shape"):
            async with stream_text(llama(), tokenizer(), {"input_ids": ids}, max_new_tokens=2):
                pass
    assert steps.count == 0


def test_one_message_that_is_no_list() -> None:
    message = {"role": "user", "content": "hi"}
    with pytest.raises(TypeError, match="one chat message: put it into a list"):
        stream_text(llama(), tokenizer(), message)
    with pytest.raises(TypeError, match="one chat message: put it into a list"):
        stream_batch(llama(), tokenizer(), message)


async def test_a_tokenizer_of_another_model() -> None:
    small = new_llama(vocabulary=50, eos=3, never=())
    with steps_of(small) as steps:
        with pytest.raises(ValueError, match="embeddings for 50 ids only"):
            async with stream_text(small, tokenizer(), "zzz", max_new_tokens=2):
                pass
        with pytest.raises(ValueError, match="embeddings for 50 ids only"):
            async with stream_batch(small, tokenizer(), ["zzz", "zz"], max_new_tokens=2):
                pass
    assert steps.count == 0


async def test_a_prompt_longer_than_the_context() -> None:
    limit = llama().config.max_position_embeddings
    with steps_of(llama()) as steps:
        for prompt in ("x" * limit, "x" * 100_000):
            with pytest.raises(PromptTooLong, match=f"takes {limit} tokens"):
                async with stream_text(llama(), tokenizer(), prompt, max_new_tokens=2):
                    pass
        with pytest.raises(PromptTooLong):
            async with stream_batch(llama(), tokenizer(), ["a", "x" * limit], max_new_tokens=2):
                pass
    assert steps.count == 0
    fits = "x" * (limit - 1)
    async with stream_text(llama(), tokenizer(), fits, max_new_tokens=1) as stream:
        await stream.read()
    assert len(ids_of(fits)) + len(stream.token_ids) == limit


async def test_a_model_without_a_limit_takes_any_prompt() -> None:
    async with stream_text(t5(), tokenizer(), "x" * 3000, max_new_tokens=1) as stream:
        await stream.read()
    assert len(stream.token_ids) == 1
