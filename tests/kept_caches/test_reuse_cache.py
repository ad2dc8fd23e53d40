"""`reuse_cache=`: the next turn of a conversation computes its new tokens only."""

from __future__ import annotations

import contextlib
import copy
import gc
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import anyio
import pytest
import torch
import transformers
from anyio import CancelScope, from_thread
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import DynamicCache, GenerationConfig

from anystreamer import GenerationTimeout, ReuseCache, open_engine
from anystreamer._kept_caches import cache_reuse
from anystreamer._kept_caches.model_state import model_state
from anystreamer.testing import ScriptedModel

from ..helpers.decoders import OTHERS, POSITIONS, WITH_FULL_ATTENTION, Varied, decoder, passes_of
from ..helpers.scripted import DeadlineClock
from ..helpers.tiny_models import EOS, VOCABULARY, generated, t5, tokenizer

pytestmark = pytest.mark.torch

WORDS = st.lists(st.integers(0, VOCABULARY - 3), min_size=1, max_size=6)
VERSION = tuple(map(int, transformers.__version__.split(".")[:2]))
LAYER = 1  # where something happens within a step


def inputs(ids: list[int]) -> dict[str, Any]:
    return {"input_ids": torch.tensor([ids]), "attention_mask": torch.ones(1, len(ids)).long()}


def alone(model: Any, ids: list[int], tokens: int, seed: int = 0) -> list[int]:
    """What ``generate()`` makes of a prompt without an engine."""
    return generated(
        model, inputs(ids), max_new_tokens=tokens, logits_processor=[Varied(seed)], do_sample=False
    )


def layers_of(model: Any) -> Any:
    """The list of a decoder's layers."""
    (layers,) = (
        each
        for each in model.modules()
        if isinstance(each, torch.nn.ModuleList) and len(each) == model.config.num_hidden_layers
    )
    return layers


@dataclass(frozen=True)
class Turn:
    """One turn of a conversation."""

    words: list[int]  # of the user
    tokens: int  # of the answer at most
    way: str  # how it ends
    at: int  # the step in which that happens, from 1
    back: int  # how many turns the user goes back before


TURNS = st.builds(
    Turn,
    words=WORDS,
    tokens=st.integers(1, 6),
    way=st.sampled_from(["end", "stop", "stop in a layer", "cancel", "error", "leave"]),
    at=st.integers(1, 4),
    back=st.sampled_from([0, 0, 0, 0, 1, 3]),
)


class Interruption:
    """Does something in the worker thread, in a layer of the model's *at*-th pass."""

    def __init__(self, model: Any, at: int, action: Callable[[], object]) -> None:
        self._passes_left = at
        self._action = action
        self._handle = layers_of(model)[LAYER].register_forward_hook(self._hook)

    def _hook(self, *args: Any) -> None:
        self._passes_left -= 1
        if not self._passes_left:
            self._action()

    def __enter__(self) -> None: ...

    def __exit__(self, *args: object) -> None:
        self._handle.remove()


class DeviceError(Exception):
    """Of a model."""


def fail() -> None:
    raise DeviceError


async def take_turn(engine: Any, model: Any, ids: list[int], turn: Turn) -> Any:
    """One turn, and how it ended: the stream."""
    within = "layer" if turn.way == "stop in a layer" else "step"
    with CancelScope() as scope:
        async with engine.stream_text(
            inputs(ids),
            max_new_tokens=turn.tokens,
            cancel_within=within,
            logits_processor=[Varied()],
            do_sample=False,
        ) as stream:
            actions: dict[str, Callable[[], object]] = {
                "end": lambda: None,
                "leave": lambda: None,
                "stop": stream.stop,
                "stop in a layer": stream.stop,
                "cancel": lambda: from_thread.run_sync(scope.cancel),
                "error": fail,
            }
            with Interruption(model, turn.at, actions[turn.way]):
                try:
                    async for _ in stream:
                        if turn.way == "leave" and len(stream.token_ids) >= turn.at:
                            break
                except DeviceError:
                    assert turn.way == "error"
                if turn.way == "leave":
                    await stream.aclose()
    return stream


async def converse(family: str, turns: list[Turn]) -> None:
    model = decoder(family)
    history: list[list[int]] = [[]]
    async with open_engine(model, tokenizer(), context_length=POSITIONS) as engine:
        for turn in turns:
            history = history[: max(1, len(history) - turn.back)]
            ids = history[-1] + turn.words
            with passes_of(model) as passes:
                stream = await take_turn(engine, model, ids, turn)
            # Exactly one: what the cache has is not computed again, and nothing else is left out.
            assert passes.tokens[:1] in ([], [len(ids) - stream.usage.cached_tokens])
            expected = alone(model, ids, turn.tokens)
            assert stream.token_ids == expected[: len(stream.token_ids)]
            if turn.way == "end":
                assert stream.token_ids == expected
            if family in OTHERS:
                assert stream.usage.cached_tokens == 0
            history.append(ids + stream.token_ids)


@given(
    family=st.sampled_from([*WITH_FULL_ATTENTION]),
    turns=st.lists(TURNS, min_size=20, max_size=20),
    backend=st.sampled_from(["asyncio", "trio"]),
)
@settings(max_examples=max(5, settings().max_examples // 5))
def test_any_conversation_has_the_tokens_that_it_has_without_a_cache(
    family: str, turns: list[Turn], backend: str
) -> None:
    anyio.run(converse, family, turns, backend=backend)


@pytest.mark.parametrize("family", OTHERS)
async def test_caches_that_cannot_be_cropped_are_not_taken_over(family: str) -> None:
    ways = ["end", "stop", "error", "cancel", "leave"]
    turns = [Turn([7, 8, 9, 10 + i], 4, way, 2, 0) for i, way in enumerate(ways)]
    await converse(family, turns)


# -- what is taken over


async def ask(engine: Any, ids: list[int], tokens: int = 4, **kwargs: Any) -> Any:
    """The stream of an answer, at its end."""
    kwargs = {"do_sample": False, "logits_processor": [Varied()], **kwargs}
    async with engine.stream_text(inputs(ids), max_new_tokens=tokens, **kwargs) as stream:
        async for _ in stream:
            pass
    return stream


FIRST = list(b"What is the first number of all?")


@pytest.mark.parametrize("family", WITH_FULL_ATTENTION)
async def test_the_next_turn_computes_its_new_tokens_only(family: str) -> None:
    model = decoder(family)
    async with open_engine(model, tokenizer()) as engine:
        first = await ask(engine, FIRST)
        assert first.usage.cached_tokens == 0
        ids = FIRST + first.token_ids
        with passes_of(model) as passes:
            second = await ask(engine, [*ids, 1, 2, 3])
    # The last token of an answer has not been through the model.
    assert second.usage.cached_tokens == len(ids) - 1
    assert second.usage.prompt_tokens == len(ids) + 3
    assert passes.tokens == [4, 1, 1, 1]
    assert second.token_ids == alone(model, [*ids, 1, 2, 3], 4)


@pytest.mark.parametrize("where", ["argument", "config", "model"])
async def test_the_kind_of_cache_that_is_lent_can_be_named(where: str) -> None:
    """`generate()` refuses the name beside a cache, which is ours and not the caller's."""
    model = copy.deepcopy(decoder("Llama"))
    kwargs: dict[str, Any] = {}
    match where:
        case "argument":
            kwargs["cache_implementation"] = "dynamic"
        case "config":
            kwargs["generation_config"] = GenerationConfig(cache_implementation="dynamic")
        case "model":
            model.generation_config.cache_implementation = "dynamic"
    async with open_engine(model, tokenizer()) as engine:
        first = await ask(engine, FIRST, **kwargs)
        ids = [*FIRST, *first.token_ids, 1]
        second = await ask(engine, ids, **kwargs)
    assert second.usage.cached_tokens == len(FIRST) + 3
    assert second.token_ids == alone(model, ids, 4)


async def test_without_reuse_cache_nothing_is_kept() -> None:
    model = decoder("Llama")
    async with open_engine(model, tokenizer(), reuse_cache=False) as engine:
        await ask(engine, FIRST)
        assert (await ask(engine, [*FIRST, 1])).usage.cached_tokens == 0


async def test_the_same_prompt_again_computes_its_last_token_alone() -> None:
    model = decoder("Llama")
    async with open_engine(model, tokenizer()) as engine:
        answers = []
        for seed in (0, 0, 1):
            with passes_of(model) as passes:
                stream = await ask(engine, FIRST, logits_processor=[Varied(seed)])
            answers.append(stream.token_ids)
        assert passes.tokens == [1] * 4
    assert answers == [alone(model, FIRST, 4, seed) for seed in (0, 0, 1)]


async def test_conversations_that_begin_alike_do_not_disturb_each_other() -> None:
    model = decoder("Llama")
    system = list(b"You are a helpful counter.")
    async with open_engine(model, tokenizer()) as engine:
        talks = [[*system, *range(1, 9)], [*system, *range(11, 19)], [*system, *range(21, 29)]]
        cached = []
        for _ in range(3):
            for number, ids in enumerate(talks):
                stream = await ask(engine, ids)
                assert stream.token_ids == alone(model, ids, 4)
                cached.append(stream.usage.cached_tokens)
                talks[number] = [*ids, *stream.token_ids, number]
    start = len(system)
    # Four tokens of an answer, the first one or two have no cache, and one of the next question.
    first = [0, start, start]
    assert cached[:3] == first
    assert cached[3:] == [start + 11] * 3 + [start + 16] * 3


@pytest.mark.skipif(VERSION < (5, 2), reason="it asks for a cache of the caller's")
@pytest.mark.parametrize("chunk", [1, 3, 100])
async def test_the_rest_of_a_prompt_can_be_read_in_chunks(chunk: int) -> None:
    model = decoder("Llama")
    async with open_engine(model, tokenizer()) as engine:
        first = await ask(engine, FIRST, prefill_chunk_size=chunk)
        ids = FIRST + first.token_ids + list(range(1, 9))
        second = await ask(engine, ids, prefill_chunk_size=chunk)
        # Where transformers would read such a prompt wrong, nothing is taken over.
        assert second.usage.cached_tokens == (len(FIRST) + 3 if VERSION >= (5, 23) else 0)
        assert second.token_ids == alone(model, ids, 4)


@pytest.mark.skipif(VERSION < (5, 2), reason="it asks for a cache of the caller's")
async def test_a_long_prompt_after_a_short_cache_needs_no_large_mask(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cache_reuse, "MASK_ENTRIES", 400)
    monkeypatch.setattr(cache_reuse, "MIN_CHUNK", 5)
    model, rest = decoder("Llama"), list(range(1, 25))
    async with open_engine(model, tokenizer()) as engine:
        for ids, chunks in (
            (FIRST, [len(FIRST)]),
            ([*FIRST, 1, 2], [2]),
            ([*FIRST[:-2], *rest], [7, 7, 7, 3] if VERSION >= (5, 23) else [54]),
        ):
            with passes_of(model) as passes:
                stream = await ask(engine, ids)
            assert passes.tokens == [*chunks, 1, 1, 1]
            assert stream.usage.cached_tokens == len(ids) - sum(chunks)
            assert stream.token_ids == alone(model, ids, 4)


async def test_processors_and_criteria_see_the_whole_text() -> None:
    model = decoder("Llama")
    seen: list[list[int]] = []

    def processor(ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        seen.append(ids[0].tolist())
        return scores

    async with open_engine(model, tokenizer()) as engine:
        await ask(engine, FIRST)
        stream = await ask(engine, [*FIRST, 1], tokens=2, logits_processor=[processor])
    assert stream.usage.cached_tokens == len(FIRST)
    assert seen == [[*FIRST, 1], [*FIRST, 1, stream.token_ids[0]]]


# -- what is not


def assisted() -> dict[str, Any]:
    return {"prompt_lookup_num_tokens": 2, "logits_processor": []}


@pytest.mark.parametrize(
    "arguments",
    [
        lambda: {"past_key_values": DynamicCache()},
        lambda: {"cache_implementation": "static", "disable_compile": True},
        lambda: {"cache_implementation": "offloaded"} if torch.cuda.is_available() else assisted(),
        lambda: {"use_cache": False},
        assisted,
        lambda: {"return_dict_in_generate": True},
        lambda: {"worker_context": contextlib.nullcontext},
        lambda: {"position_ids": torch.arange(5, 5 + len(FIRST) + 1)[None]},
        lambda: {"generation_config": GenerationConfig(use_cache=False)},
        lambda: {"output_hidden_states": True, "return_dict_in_generate": True},
    ],
)
async def test_requests_with_a_cache_of_their_own_take_nothing_and_leave_nothing(
    arguments: Callable[[], dict[str, Any]],
) -> None:
    model = decoder("Llama")
    ids = [*FIRST, 1]
    kwargs = {"logits_processor": [Varied()], "do_sample": False, **arguments()}
    plain = {key: each for key, each in kwargs.items() if key != "worker_context"}
    output = model.generate(**inputs(ids), max_new_tokens=4, **plain)
    expected = getattr(output, "sequences", output)[0, len(ids) :].tolist()
    async with open_engine(model, tokenizer()) as engine:
        await ask(engine, FIRST)
        stream = await ask(engine, ids, **{**kwargs, **arguments()})
        assert stream.usage.cached_tokens == 0
        assert stream.token_ids == expected
        # The first one is still there, and nothing longer.
        after = await ask(engine, [*ids, *stream.token_ids, 2])
        assert after.usage.cached_tokens == len(FIRST)


@pytest.mark.parametrize(
    "change",
    [
        lambda ids: {"input_ids": ids, "attention_mask": (ids != FIRST[3]).long()},
        lambda ids: {"input_ids": ids, "token_type_ids": torch.zeros_like(ids)},
        lambda ids: {"inputs_embeds": decoder("GPT-2").transformer.wte(ids).detach()},
        lambda ids: {"inputs": ids},
    ],
    ids=["masked", "token types", "embeddings", "inputs"],
)
async def test_prompts_that_are_more_than_ids_take_nothing_and_leave_nothing(
    change: Callable[[torch.Tensor], dict[str, Any]],
) -> None:
    model = decoder("GPT-2")
    prompt = change(torch.tensor([[*FIRST, 1]]))
    kwargs: dict[str, Any] = {"max_new_tokens": 4, "do_sample": False}
    async with open_engine(model, tokenizer()) as engine:
        await ask(engine, FIRST)
        async with engine.stream_text(prompt, **kwargs) as stream:
            await stream.read()
        assert stream.usage is not None
        assert stream.usage.cached_tokens == 0
        assert stream.token_ids == model.generate(**prompt, **kwargs)[0, -4:].tolist()
        after = await ask(engine, [*FIRST, 1, *stream.token_ids, 2])
        assert after.usage.cached_tokens == len(FIRST)
        assert after.token_ids == alone(model, [*FIRST, 1, *stream.token_ids, 2], 4)


async def test_pad_tokens_without_a_mask_are_padding() -> None:
    model = decoder("Llama")
    ids = torch.tensor([[65, 65, *FIRST]])
    kwargs: dict[str, Any] = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 65}
    async with open_engine(model, tokenizer()) as engine:
        await ask(engine, [65, 65, *FIRST])
        async with engine.stream_text({"input_ids": ids}, **kwargs) as stream:
            await stream.read()
    assert stream.usage is not None
    assert stream.usage.cached_tokens == 0
    assert stream.token_ids == model.generate(ids, **kwargs)[0, -4:].tolist()


@pytest.mark.parametrize("layers", [["in_place"], ["replaced"], ["adapter"]], ids=str)
async def test_other_weights_take_nothing_over(layers: list[str]) -> None:
    model = copy.deepcopy(decoder("Llama"))
    projection = model.model.layers[0].self_attn.v_proj
    adapter = Adapted(projection) if layers == ["adapter"] else None
    if adapter is not None:
        model.model.layers[0].self_attn.v_proj = adapter
    async with open_engine(model, tokenizer()) as engine:
        before = await ask(engine, FIRST)
        if adapter is not None:
            adapter.active_adapters = ["other"]
        elif layers == ["in_place"]:
            with torch.no_grad():
                projection.weight.mul_(-2)
        else:
            projection.weight = torch.nn.Parameter(projection.weight.detach() * -2)
        changed = await ask(engine, FIRST)
        assert changed.usage.cached_tokens == 0
        assert changed.token_ids == alone(model, FIRST, 4) != before.token_ids
        if adapter is not None:  # and back: what the first adapter has computed is right again
            adapter.active_adapters = ["one"]
            back = await ask(engine, FIRST)
            assert back.usage.cached_tokens == len(FIRST) - 1
            assert back.token_ids == before.token_ids


def test_a_weight_at_the_address_of_one_that_was_deleted_is_another() -> None:
    layer: Any = torch.nn.Linear(8, 8, bias=False)
    states = []
    for _ in range(200):
        layer.weight = None
        layer.weight = torch.nn.Parameter(torch.zeros(8, 8))
        states.append(model_state(layer))
        assert model_state(layer) == states[-1]
    assert len(set(states)) == len(states)


class Adapted(torch.nn.Module):
    """A layer with two adapters, and the attributes of PEFT's."""

    def __init__(self, base: torch.nn.Module) -> None:
        super().__init__()
        self.base = base
        self.active_adapters = ["one"]
        self.merged_adapters: list[str] = []
        self.disable_adapters = False
        self.scaling = {"one": 1.0, "other": -2.0}

    def forward(self, states: torch.Tensor) -> Any:
        return self.base(states) * self.scaling[self.active_adapters[0]]


async def test_a_model_with_steps_of_its_own_takes_nothing_over() -> None:
    """It can have more state than its cache, as those that count the positions of pictures."""
    model = copy.deepcopy(decoder("Llama"))

    class Own(type(model)):  # type: ignore[misc]  # a class that is not known before
        def prepare_inputs_for_generation(self, *args: Any, **kwargs: Any) -> Any:
            return super().prepare_inputs_for_generation(*args, **kwargs)

    model.__class__ = Own
    async with open_engine(model, tokenizer()) as engine:
        for _ in range(2):
            stream = await ask(engine, FIRST)
            assert stream.usage.cached_tokens == 0
            assert stream.token_ids == alone(model, FIRST, 4)


ignores_deprecation_in_peft = pytest.mark.filterwarnings(
    "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"
)


def prompted(model: Any, ids: list[int]) -> list[int]:
    """As `alone`, for the wrappers of PEFT."""
    kwargs = {"max_new_tokens": 4, "logits_processor": [Varied()], "do_sample": False}
    answer: list[int] = model.generate(**inputs(ids), **kwargs)[0, len(ids) :].tolist()
    return answer


@ignores_deprecation_in_peft
async def test_each_adapter_of_peft_has_its_own_conversations() -> None:
    peft: Any = pytest.importorskip("peft")

    def lora() -> Any:
        return peft.LoraConfig(
            r=4, target_modules=["v_proj", "o_proj"], init_lora_weights=False, task_type="CAUSAL_LM"
        )

    model = peft.get_peft_model(copy.deepcopy(decoder("Llama")), lora(), adapter_name="one")
    model.add_adapter("two", lora())
    model = model.double().eval()
    all_but_one = len(FIRST) - 1

    async def cached() -> int:
        stream = await ask(engine, FIRST)
        assert stream.token_ids == prompted(model, FIRST)
        return int(stream.usage.cached_tokens)

    async with open_engine(model, tokenizer()) as engine:
        assert [await cached() for _ in range(2)] == [0, all_but_one]
        model.set_adapter("two")
        assert [await cached() for _ in range(2)] == [0, all_but_one]
        model.set_adapter("one")
        assert await cached() == all_but_one
        with model.disable_adapter():
            assert await cached() == 0
        model.merge_adapter()
        assert await cached() == 0
        model.unmerge_adapter()
        assert await cached() == all_but_one
        model.base_model.model.model.layers[0].self_attn.v_proj.scale_layer(3.0)
        assert await cached() == 0


@ignores_deprecation_in_peft
@pytest.mark.filterwarnings("ignore:Position ids are not supported:UserWarning")
async def test_a_soft_prompt_of_peft_takes_nothing_over() -> None:
    peft: Any = pytest.importorskip("peft")
    config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=5)
    model = peft.get_peft_model(copy.deepcopy(decoder("Llama")), config).double().eval()
    async with open_engine(model, tokenizer()) as engine:
        for _ in range(2):
            stream = await ask(engine, FIRST)
            assert stream.usage.cached_tokens == 0
            assert stream.token_ids == prompted(model, FIRST)


# -- however a turn ends


@pytest.mark.parametrize("way", ["end", "stop", "stop in a layer", "cancel", "error", "leave"])
@pytest.mark.parametrize("at", [1, 2, 3])
async def test_what_was_computed_before_an_end_is_kept(way: str, at: int) -> None:
    model = decoder("Llama")
    async with open_engine(model, tokenizer()) as engine:
        await ask(engine, FIRST)
        turn = Turn([], 6, way, at, 0)
        ids = [*FIRST, *range(1, 9)]
        await take_turn(engine, model, ids, turn)
        text = ids + alone(model, ids, 6)
        with passes_of(model) as passes:
            after = await ask(engine, [*text, 1])
    # At least what the turn before it has left; and all of the prompt if its pass has ended.
    kept = len(FIRST) if way in ("error", "stop in a layer") and at == 1 else len(ids)
    assert kept <= after.usage.cached_tokens < len(text)
    assert passes.tokens == [len(text) + 1 - after.usage.cached_tokens, 1, 1, 1]
    assert after.token_ids == alone(model, [*text, 1], 4)


async def test_a_timeout_keeps_what_was_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    model, clock = decoder("Llama"), DeadlineClock(monkeypatch)
    async with open_engine(model, tokenizer()) as engine:
        with Interruption(model, 3, clock.pass_all), pytest.raises(GenerationTimeout):
            await ask(engine, FIRST, tokens=900, timeout=1000, suppress_tokens=[EOS])
        after = await ask(engine, [*FIRST, 1])
        assert after.usage.cached_tokens == len(FIRST)
        assert after.token_ids == alone(model, [*FIRST, 1], 4)


async def test_queued_and_refused_requests_leave_everything_as_it_was() -> None:
    model = decoder("Llama")
    async with open_engine(model, tokenizer()) as engine:
        first = await ask(engine, FIRST)
        with CancelScope() as scope:
            scope.cancel()
            await ask(engine, [1, 2, 3])
        with pytest.raises(ValueError, match="unknown_argument"):
            await ask(engine, FIRST, unknown_argument=1)
        ids = [*FIRST, *first.token_ids]
        assert (await ask(engine, [*ids, 1])).usage.cached_tokens == len(ids) - 1


# -- the bounds


def caches_of(engine: Any) -> Any:
    """What an engine has kept."""
    return engine.caches.kept


def bytes_of(model: Any, tokens: int) -> int:
    """What the cache of this many tokens takes."""
    config = model.config
    width = config.head_dim * config.num_key_value_heads
    return int(2 * config.num_hidden_layers * width * tokens * model.dtype.itemsize)


async def test_the_least_recently_used_conversation_goes_first() -> None:
    model = decoder("Llama")
    async with open_engine(
        model, tokenizer(), reuse_cache=ReuseCache(max_conversations=2)
    ) as engine:
        one, two, three = [10] * 9, [20] * 9, [30] * 9
        for ids in (one, two, one, three):
            await ask(engine, ids)
            assert len(caches_of(engine)) <= 2
        cached = [
            (await ask(engine, [*ids, 1], tokens=1)).usage.cached_tokens for ids in (one, two)
        ]
    assert cached == [9, 0]


async def test_the_caches_take_no_more_than_their_share(monkeypatch: pytest.MonkeyPatch) -> None:
    model = decoder("Llama")
    free = bytes_of(model, 400)
    monkeypatch.setattr("anystreamer._kept_caches.kept_caches.free_bytes", lambda device: free)
    limits = ReuseCache(max_conversations=50, max_share=0.25)
    async with open_engine(model, tokenizer(), reuse_cache=limits) as engine:
        seen = set()
        for number in range(12):
            # Some are stopped in a layer: their layers have different lengths.
            way = "stop in a layer" if number % 3 == 2 else "end"
            await take_turn(engine, model, [number] * 30, Turn([], 5, way, 2, 0))
            tensors = storages()
            seen.add(len(caches_of(engine)))
            # A quarter of what was free before the first one.
            assert caches_of(engine).bytes <= bytes_of(model, 109)
            assert sum(tensors.values()) == caches_of(engine).bytes
        assert seen == {1, 2, 3}  # of 30 to 34 tokens
        # One that is too large alone is not kept, and no other one goes for it.
        before = caches_of(engine).bytes
        await ask(engine, [99] * 200)
        assert caches_of(engine).bytes == before > 0


def storages() -> dict[int, int]:
    """The memory of all tensors of caches that are alive, by its address."""
    gc.collect()
    caches: list[Any] = [each for each in gc.get_objects() if type(each) is DynamicCache]
    tensors = [
        each
        for cache in caches
        for layer in cache.layers
        for each in (layer.keys, layer.values)
        if each is not None
    ]
    found = [each.untyped_storage() for each in tensors]
    return {each.data_ptr(): each.nbytes() for each in found}


async def test_closing_the_engine_gives_the_memory_back() -> None:
    model = decoder("Llama")
    before = storages().keys()
    async with open_engine(model, tokenizer()) as engine:
        streams = [await ask(engine, FIRST), await ask(engine, [1, 2, 3])]
        assert storages().keys() - before
    assert not storages().keys() - before
    assert streams  # they, and the engine, are still held
    assert engine is not None


@pytest.mark.parametrize("value", [None, 1, "yes", {}])
def test_reuse_cache_is_a_bool_or_limits(value: Any) -> None:
    with pytest.raises(TypeError, match="reuse_cache must be True, False or a ReuseCache"):
        open_engine(decoder("Llama"), tokenizer(), reuse_cache=value)


@pytest.mark.parametrize(
    ("limits", "error"),
    [
        ({"max_conversations": 0}, ValueError),
        ({"max_conversations": 1.5}, TypeError),
        ({"max_conversations": True}, TypeError),
        ({"max_share": 0}, ValueError),
        ({"max_share": 1}, ValueError),
        ({"max_share": math.nan}, ValueError),
        ({"max_share": "0.5"}, TypeError),
    ],
)
def test_limits_that_cannot_work_are_refused(
    limits: dict[str, Any], error: type[Exception]
) -> None:
    with pytest.raises(error, match=next(iter(limits))):
        ReuseCache(**limits)


def test_continuous_batching_has_its_own_cache() -> None:
    with pytest.raises(ValueError, match="reuse_cache= needs batching='none'"):
        open_engine(decoder("Llama"), tokenizer(), batching="continuous", reuse_cache=False)


async def test_a_model_without_torch_has_no_cache() -> None:
    model = ScriptedModel(["a", "b"])
    async with open_engine(model, model.tokenizer) as engine:
        for _ in range(2):
            async with engine.stream_text("hello there") as stream:
                assert await stream.read() == "ab"
            assert stream.usage is not None
            assert stream.usage.cached_tokens == 0


async def test_an_encoder_decoder_takes_nothing_over() -> None:
    model = t5()
    async with open_engine(model, tokenizer()) as engine:
        for _ in range(2):
            async with engine.stream_text("hello there", max_new_tokens=4) as stream:
                await stream.read()
            assert stream.token_ids == generated(model, "hello there", max_new_tokens=4)
            assert stream.usage is not None
            assert stream.usage.cached_tokens == 0
