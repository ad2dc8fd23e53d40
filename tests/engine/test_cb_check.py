"""Continuous batching answers as `generate()` does, or the engine is not opened."""

from __future__ import annotations

import copy
import gc
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache, partial
from typing import Any

import anyio
import pytest
import torch
from anyio import Event, create_task_group, to_thread
from transformers import BartConfig, BartForConditionalGeneration, ContinuousBatchingConfig

from anystreamer import Engine, open_engine, stream_text
from anystreamer._engine import cb_open
from anystreamer._engine.cb_manager import attention_of
from anystreamer.demo import load_demo

from ..helpers.scripted import until
from ..helpers.tiny_models import TinyProcessor, generated, llama, new_llama, steps_of, tokenizer
from ..zoo.build import build

pytestmark = [
    pytest.mark.torch,
    pytest.mark.usefixtures("asyncio_complains_of_nothing", "one_thread_for_the_model"),
    # Of configs that were made small.
    pytest.mark.filterwarnings("ignore::UserWarning:transformers"),
]

PROMPT = "Once upon"


@pytest.fixture(scope="module", autouse=True)
def what_torch_loads_late_is_no_garbage(one_thread_for_the_model: None) -> None:
    generated(llama(), PROMPT, max_new_tokens=2)
    gc.collect()
    gc.freeze()


@cache
def zoo(class_name: str) -> Any:
    return build(class_name).model


def continuous(model: Any, encoder: Any = None, **kwargs: Any) -> Any:
    return open_engine(model, encoder or tokenizer(), batching="continuous", **kwargs)


async def ids_of(engine: Engine, prompt: Any = PROMPT, **kwargs: Any) -> list[int]:
    async with engine.stream_text(prompt, **{"max_new_tokens": 10, **kwargs}) as stream:
        await stream.read()
    return stream.token_ids


def ids(*numbers: int) -> dict[str, Any]:
    return {"input_ids": torch.tensor([numbers])}


# -- which models are served


@pytest.mark.parametrize(
    "class_name",
    [
        # Its attention does not go through transformers' interface.
        "MptForCausalLM",
        # Theirs does, and they compute positions or masks in their own way.
        *("BertLMHeadModel", "XLMRobertaForCausalLM", "PaliGemmaForConditionalGeneration"),
        # The manager fails with them.
        *("MambaForCausalLM", "MiniMaxForCausalLM", "GPTBigCodeForCausalLM"),
    ],
)
async def test_a_model_that_is_not_served_correctly_is_refused_when_the_engine_opens(
    class_name: str,
) -> None:
    model = zoo(class_name)
    attention = attention_of(model)
    before = generated(model, ids(50, 60, 70), max_new_tokens=3)
    with pytest.raises(ValueError, match=f"(?s)cannot serve {class_name}: .*use batching='none'"):
        async with continuous(model):
            pass
    assert attention.items() <= attention_of(model).items()
    async with open_engine(model, tokenizer()) as engine:
        assert await ids_of(engine, ids(50, 60, 70), max_new_tokens=3) == before


@pytest.mark.parametrize("neighbour", ["one two three four", "nine eight seven six five"])
@pytest.mark.parametrize(
    "class_name", ["MptForCausalLM", "BloomForCausalLM", "GPTJForCausalLM", "GPTNeoForCausalLM"]
)
async def test_no_neighbour_changes_an_answer(class_name: str, neighbour: str) -> None:
    """Which of them are served depends on the release of transformers."""
    model = zoo(class_name)
    alone = generated(model, PROMPT, max_new_tokens=10)
    answers: list[list[int]] = []

    async def ask(engine: Engine, prompt: str) -> None:
        token_ids = await ids_of(engine, prompt)
        if prompt == PROMPT:
            answers.append(token_ids)

    try:
        async with continuous(model) as engine, create_task_group() as tasks:
            for prompt in [neighbour] * 3 + [PROMPT]:
                tasks.start_soon(ask, engine, prompt)
    except ValueError as exc:
        assert re.search("cannot serve.*use batching='none'", str(exc), re.DOTALL)  # noqa: PT017  either is right
    else:
        assert answers == [alone]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(
    "class_name",
    [
        *("LlamaForCausalLM", "GPT2LMHeadModel", "Qwen3ForCausalLM", "Gemma2ForCausalLM"),
        *("MixtralForCausalLM", "Qwen3MoeForCausalLM", "Gemma3ForConditionalGeneration"),
    ],
)
async def test_a_model_that_is_served_correctly_is_not_refused(class_name: str, dtype: Any) -> None:
    model = copy.deepcopy(zoo(class_name)).to(dtype)
    async with continuous(model) as engine:
        assert len(await ids_of(engine, ids(50, 60, 70))) == 10


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
async def test_the_attention_of_a_model_is_what_it_was(attention: str) -> None:
    model = new_llama()
    model.set_attn_implementation(attention)
    expected = generated(model, PROMPT, max_new_tokens=10)
    async with continuous(model) as engine:
        assert await ids_of(engine) == expected
    assert model.config._attn_implementation == attention
    assert generated(model, PROMPT, max_new_tokens=10) == expected


async def test_a_manager_that_cannot_be_made_leaves_the_attention_as_it_was() -> None:
    model = copy.deepcopy(zoo("MiniMaxForCausalLM"))
    model.set_attn_implementation("eager")
    expected = generated(model, ids(50, 60, 70), max_new_tokens=3)
    with pytest.raises(ValueError, match="Invalid layer type"):
        async with continuous(model):
            pass
    assert model.config._attn_implementation == "eager"
    assert generated(model, ids(50, 60, 70), max_new_tokens=3) == expected


async def test_parts_of_a_model_keep_their_own_attention() -> None:
    model = copy.deepcopy(zoo("GotOcr2ForConditionalGeneration"))
    parts = attention_of(model)
    assert len(set(parts.values())) == 2
    async with continuous(model) as engine:
        assert len(await ids_of(engine, ids(50, 60, 70))) == 10
    assert attention_of(model) == parts


class SoftPrompt:
    """A model with trained embeddings before each prompt, as PEFT's prompt tuning makes one.

    All else is the model's own, and so is its manager for continuous batching.
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.embeddings = torch.randn(1, 4, model.config.hidden_size)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)

    def generate(self, input_ids: Any, attention_mask: Any, **kwargs: Any) -> Any:
        embedded = self.model.get_input_embeddings()(input_ids)
        embedded = torch.cat([self.embeddings, embedded], dim=1)
        mask = torch.ones(embedded.shape[:2], dtype=torch.long)
        return self.model.generate(inputs_embeds=embedded, attention_mask=mask, **kwargs)


async def test_a_model_with_a_soft_prompt_is_refused() -> None:
    with pytest.raises(ValueError, match=r"not those of generate.*use batching='none'"):
        async with continuous(SoftPrompt(llama())):
            pass


async def test_what_peft_says_of_a_soft_prompt_is_enough() -> None:
    class Config:
        is_prompt_learning = True

    model = new_llama()
    model.active_peft_config = Config()
    with pytest.raises(ValueError, match="soft prompt"):
        continuous(model)


async def test_a_manager_whose_steps_cannot_be_recorded_has_another_one_checked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It replays CUDA graphs, or is compiled."""
    monkeypatch.setattr(cb_open, "runs_python", lambda manager: False)
    async with continuous(llama()) as engine:
        assert await ids_of(engine) == generated(llama(), PROMPT, max_new_tokens=10)
    with pytest.raises(ValueError, match="cannot serve"):
        async with continuous(zoo("MptForCausalLM")):
            pass


async def test_nothing_of_the_check_is_left() -> None:
    model = new_llama()
    config = model.generation_config.to_dict()
    async with continuous(model) as engine:
        statistics = engine.statistics()
        assert (statistics.computed_tokens, statistics.cache_used) == (0, 0.0)
        assert not model._forward_hooks
        assert not model._forward_pre_hooks
        assert "update" not in vars(engine.manager.batch_processor.cache)
    assert "forward" not in vars(model)  # where passes took turns
    assert model.generation_config.to_dict() == config


async def test_a_model_that_samples_is_checked_too() -> None:
    model = new_llama()
    model.generation_config.update(do_sample=True, temperature=0.7)
    async with continuous(model) as engine:
        assert len(await ids_of(engine)) == 10
    mpt = copy.deepcopy(zoo("MptForCausalLM"))
    mpt.generation_config.do_sample = True
    with pytest.raises(ValueError, match="cannot serve"):
        async with continuous(mpt):
            pass


async def test_an_engine_whose_opening_is_cancelled_leaves_nothing() -> None:
    """In the middle of the check, when the manager is at its first step."""
    model = new_llama()
    reached, release = threading.Event(), threading.Event()

    def hold(*_: Any) -> None:
        reached.set()
        release.wait()

    handle = model.register_forward_pre_hook(hold)
    async with create_task_group() as tasks:

        @tasks.start_soon
        async def open_it() -> None:
            async with continuous(model):
                pass

        await until(reached.is_set)
        tasks.cancel_scope.cancel()
        release.set()
    handle.remove()
    assert not model._forward_hooks
    async with continuous(model) as engine:
        assert await ids_of(engine) == generated(model, PROMPT, max_new_tokens=10)


async def test_not_enough_memory_is_no_fault_of_the_model() -> None:
    config = ContinuousBatchingConfig(page_size=16, max_batch_tokens=64, num_blocks=10**9)
    with pytest.raises(MemoryError):
        async with continuous(llama(), continuous_batching_config=config):
            pass


# -- beside generate()


@pytest.mark.slow
async def test_generate_beside_an_engine_disturbs_neither() -> None:
    """transformers writes into the model's config in each pass of the manager."""
    model = new_llama(layers=2)
    expected = generated(model, PROMPT, max_new_tokens=200)
    other = generated(model, "Another", max_new_tokens=200)
    attributes = set(vars(model.config))
    answers: list[list[int]] = []
    async with continuous(model) as engine:
        async with create_task_group() as tasks:

            @tasks.start_soon
            async def ask() -> None:
                for _ in range(3):
                    answers.append(await ids_of(engine, max_new_tokens=200))

            for _ in range(3):
                async with stream_text(model, tokenizer(), "Another", max_new_tokens=200) as stream:
                    await stream.read()
                answers.append(stream.token_ids)
    assert sorted(answers) == sorted([expected, other] * 3)
    assert set(vars(model.config)) == attributes
    assert generated(model, PROMPT, max_new_tokens=200) == expected


async def test_a_pass_that_fails_leaves_the_model_to_others() -> None:
    model = new_llama()
    async with continuous(model) as engine:
        for error in (KeyError(), Panic()):
            with steps_of(model.model, {1: partial(fail, error)}), pytest.raises(type(error)):
                await to_thread.run_sync(lambda: generated(model, PROMPT, max_new_tokens=2))
        assert await ids_of(engine) == generated(model, PROMPT, max_new_tokens=10)


class Panic(BaseException):
    """What a panic of Rust's becomes."""


def fail(error: BaseException) -> None:
    raise error


async def test_two_engines_of_one_model_take_turns_until_both_are_closed() -> None:
    model = new_llama()
    expected = generated(model, PROMPT, max_new_tokens=10)
    is_opened, both_asked, is_closed = Event(), Event(), Event()

    async def first() -> None:
        async with continuous(model) as engine:
            assert await ids_of(engine) == expected
            is_opened.set()
            await both_asked.wait()
        is_closed.set()

    async with create_task_group() as tasks:
        tasks.start_soon(first)
        await is_opened.wait()
        async with continuous(model) as engine:
            assert await ids_of(engine) == expected
            both_asked.set()
            await is_closed.wait()
            assert "forward" in vars(model)
            assert await ids_of(engine) == expected
    assert "forward" not in vars(model)
    assert generated(model, PROMPT, max_new_tokens=10) == expected


# -- what is not ids


class ProcessorOfImages(TinyProcessor):
    """Its chat template puts out the pixels of images, as those of vision models do."""

    def apply_chat_template(self, conversation: Any, **kwargs: Any) -> Any:  # type: ignore[override]
        texts, images = [], 0
        for message in conversation:
            parts = message["content"]
            parts = [{"type": "text", "text": parts}] if isinstance(parts, str) else parts
            texts += [part["text"] for part in parts if part["type"] == "text"]
            images += sum(part["type"] == "image" for part in parts)
        encoded = dict(tokenizer()("".join(texts), return_tensors="pt"))
        encoded["mm_token_type_ids"] = torch.zeros_like(encoded["input_ids"])
        if images:
            encoded["pixel_values"] = torch.zeros(images, 3, 8, 8)
        return encoded


async def test_images_are_refused_by_name_and_text_through_a_processor_is_served() -> None:
    text = {"type": "text", "text": PROMPT}
    image = {"type": "image", "url": "data:image/png;base64,"}
    async with continuous(llama(), ProcessorOfImages(tokenizer())) as engine:
        with pytest.raises(ValueError, match=r"pictures.*use batching='none'"):
            await ids_of(engine, [{"role": "user", "content": [image, text]}])
        chat = [{"role": "user", "content": [text]}]
        assert await ids_of(engine, chat) == generated(llama(), PROMPT, max_new_tokens=10)


@pytest.mark.parametrize(
    ("inputs", "name"),
    [
        ({"pixel_values": torch.zeros(1, 3, 8, 8)}, "pixel_values"),
        ({"input_features": torch.zeros(1, 3, 8)}, "input_features"),
        ({"token_type_ids": torch.tensor([[0, 1]])}, "token_type_ids"),
        ({"attention_mask": torch.tensor([[0, 1]])}, "attention_mask"),
    ],
)
async def test_inputs_that_are_more_than_ids_are_refused_by_name(
    inputs: dict[str, Any], name: str
) -> None:
    async with continuous(llama()) as engine:
        with pytest.raises(ValueError, match=name):
            engine.stream_text(ids(50, 60) | inputs)


async def test_token_kinds_that_are_all_0_are_plain_text() -> None:
    inputs = ids(50, 60, 70)
    plain = {"token_type_ids": torch.zeros(1, 3), "pixel_values": None}
    async with continuous(llama()) as engine:
        assert await ids_of(engine, inputs | plain) == await ids_of(engine, inputs)


# -- how long a prompt can be


@contextmanager
def no_step(model: Any) -> Iterator[None]:
    with steps_of(model) as steps:
        yield
    assert not steps.count


@pytest.mark.parametrize("batching", ["none", "continuous"])
async def test_a_prompt_as_long_as_the_context_is_refused(batching: Any) -> None:
    model = llama()
    context = model.config.max_position_embeddings
    async with open_engine(model, tokenizer(), batching=batching) as engine:
        for prompt in ("a" * context, ids(*[50] * (context + 100))):
            with no_step(model), pytest.raises(ValueError, match=f"takes {context} tokens in all"):
                await ids_of(engine, prompt, max_new_tokens=1)
        assert len(await ids_of(engine, "a" * (context - 1), max_new_tokens=1)) == 1


@pytest.mark.parametrize("batching", ["none", "continuous"])
async def test_the_context_can_be_said(batching: Any) -> None:
    async with open_engine(llama(), tokenizer(), batching=batching, context_length=5) as engine:
        with pytest.raises(ValueError, match=r"takes 5 tokens in all; the prompt has 9"):
            await ids_of(engine)
        assert len(await ids_of(engine, "Once")) == 10
    with pytest.raises(ValueError, match="context_length must be at least 1"):
        open_engine(llama(), tokenizer(), batching=batching, context_length=0)


async def test_the_prompt_of_an_encoder_can_fill_its_context() -> None:
    sizes: dict[str, Any] = {
        **{f"{part}_layers": 1 for part in ("encoder", "decoder")},
        **{f"{part}_attention_heads": 2 for part in ("encoder", "decoder")},
        **{f"{part}_ffn_dim": 16 for part in ("encoder", "decoder")},
    }
    config = BartConfig(vocab_size=300, d_model=16, max_position_embeddings=32, **sizes)
    model = BartForConditionalGeneration(config).eval()
    async with open_engine(model, tokenizer()) as engine:
        assert await ids_of(engine, "a" * 32, max_new_tokens=3)
        with no_step(model), pytest.raises(ValueError, match="takes 32 tokens in all"):
            await ids_of(engine, "a" * 33, max_new_tokens=3)


async def test_a_long_prompt_does_not_harm_the_others() -> None:
    async with continuous(llama()) as engine:
        async with engine.stream_text(PROMPT, max_new_tokens=50) as stream:
            await stream.receive()
            with pytest.raises(ValueError, match="tokens in all"):
                await ids_of(engine, "a" * 2000)
            await stream.read()
    assert stream.token_ids == generated(llama(), PROMPT, max_new_tokens=50)


def test_the_check_takes_nine_steps() -> None:
    """Counted in forward passes, so that no machine is too busy for it."""
    model, demo_tokenizer = load_demo()

    async def main() -> None:
        with steps_of(model) as steps:
            async with continuous(model, demo_tokenizer):
                assert steps.count == 9  # 3 for both prompts together, 3 for each alone

    anyio.run(main)
