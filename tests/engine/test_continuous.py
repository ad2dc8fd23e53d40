"""An engine over transformers' continuous batching: many at once, and what goes wrong with one."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import gc
import itertools
import random
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from functools import cache
from types import SimpleNamespace
from typing import Any

import anyio
import pytest
import torch
from anyio import CancelScope, create_task_group, fail_after
from anyio.lowlevel import checkpoint
from transformers import ContinuousBatchingConfig

from anystreamer import (
    Engine,
    EngineBusy,
    EngineClosed,
    EngineDied,
    FinishReason,
    GenerationTimeout,
    Timeouts,
    open_engine,
)
from anystreamer._engine import continuous
from anystreamer._engine.active_request import ActiveRequest, publish
from anystreamer._engine.cb_config import validate_cb_config
from anystreamer._engine.cb_manager import whole_pages
from anystreamer._engine.continuous import ContinuousBatchingEngine
from anystreamer._generation.request import GenerationRequest
from anystreamer.demo import load_demo

from ..helpers.held import Held, close
from ..helpers.inside import decoder_of, is_idle, open_states, state_of, wake_drain
from ..helpers.scripted import NATIVE_LOOPS, PATIENCE, DeadlineClock, Native, until
from ..helpers.tiny_models import steps_of, t5, tokenizer
from ..helpers.training import sequences

pytestmark = [
    pytest.mark.torch,
    pytest.mark.usefixtures("asyncio_complains_of_nothing", "one_thread_for_the_model"),
]

BATCHING = ["none", "continuous"]


@cache
def demo() -> tuple[Any, Any]:
    return load_demo()


@pytest.fixture(scope="module", autouse=True)
def torch_is_loaded_completely(one_thread_for_the_model: None) -> None:
    expected("one, two,", 2)
    gc.collect()
    gc.freeze()


def engine_of(batching: str = "continuous", **kwargs: Any) -> Any:
    return open_engine(*demo(), batching=batching, **kwargs)  # type: ignore[arg-type]


def small_cache(**kwargs: Any) -> Any:
    return ContinuousBatchingConfig(**{"page_size": 16, "max_batch_tokens": 64, **kwargs})


def expected(prompt: str, tokens: int) -> tuple[int, ...]:
    """The ids that `generate()` makes of a prompt, all by itself."""
    at_least = next(each for each in (30, 120, 500, 2000) if each >= tokens)
    return _expected(prompt, at_least)[:tokens]


@cache
def _expected(prompt: str, tokens: int) -> tuple[int, ...]:
    model, tokenizer = demo()
    inputs = tokenizer(prompt, return_tensors="pt")
    output = model.generate(**inputs, max_new_tokens=tokens, do_sample=False)
    return tuple(output[0, inputs["input_ids"].shape[1] :].tolist())


NUMBERS = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
PROMPTS = [
    f"An {kind} sequence: {a}, {b},"
    for kind in ("increasing", "even")
    for a, b in itertools.pairwise(NUMBERS)
]


async def read(engine: Engine, prompt: Any = PROMPTS[0], **kwargs: Any) -> Any:
    async with engine.stream_text(prompt, **{"max_new_tokens": 20, **kwargs}) as stream:
        await stream.read()
    return stream


def is_clean(engine: Any) -> bool:
    """Whether nothing is left of any request, in the engine and in transformers' manager."""
    scheduler = engine.manager.batch_processor.scheduler
    return not (
        not is_idle(engine)
        or engine.active_requests
        or engine.queue.running
        or engine.queue.waiting
        or scheduler.active_requests
        or scheduler.waiting_requests
        or scheduler._requests_to_cancel
    )


# -- what it says


@pytest.mark.heavy
@pytest.mark.slow
@pytest.mark.parametrize("batching", BATCHING)
async def test_a_hundred_requests_of_which_ten_go(batching: str) -> None:
    """The shape of vLLM's abort test: the others' ids are exact, and no state is left."""
    rng = random.Random(2)
    gone = set(rng.sample(range(100), 10))
    told: dict[int, Any] = {}

    async def ask(number: int) -> None:
        prompt, tokens = PROMPTS[number % len(PROMPTS)], 5 + number % 20
        if number in gone:
            with anyio.move_on_after(rng.random() * 0.2):
                await read(engine, prompt, max_new_tokens=500)
        else:
            told[number] = await read(engine, prompt, max_new_tokens=tokens)

    async with engine_of(batching) as engine:
        async with create_task_group() as tasks:
            for number in range(100):
                tasks.start_soon(ask, number)
        if batching == "continuous":
            await until(lambda: is_clean(engine))
        assert is_idle(engine)
    assert told.keys() == set(range(100)) - gone
    for number, stream in told.items():
        ids = expected(PROMPTS[number % len(PROMPTS)], 5 + number % 20)
        assert tuple(stream.token_ids) == ids
        assert stream.finish_reason in (FinishReason.LENGTH, FinishReason.EOS)
        assert stream.usage.completion_tokens == stream.usage.computed_tokens == len(ids)


@pytest.mark.slow
@pytest.mark.parametrize("batching", BATCHING)
async def test_sixteen_questions_at_once_are_all_answered_right(batching: str) -> None:
    questions = [each for each in sequences.held_out_questions() if "chat" in each.kind][:16]
    answers: dict[int, str] = {}

    async def ask(number: int) -> None:
        stream = await read(engine, questions[number].prompt, max_new_tokens=300)
        answers[number] = stream.text

    async with engine_of(batching) as engine, create_task_group() as tasks:
        for number in range(16):
            tasks.start_soon(ask, number)
    assert answers == {number: question.answer for number, question in enumerate(questions)}


async def test_pieces_join_to_the_text_and_characters_stay_whole() -> None:
    _, tokenizer = demo()
    prompt = "递增数列: 一, 二,"
    async with engine_of() as engine:
        async with engine.stream_text(prompt, max_new_tokens=60) as stream:
            pieces = [piece async for piece in stream]
    assert "".join(pieces) == stream.text
    assert stream.text == tokenizer.decode(expected(prompt, 60), skip_special_tokens=True)
    assert len(pieces) > 1
    assert not any("\ufffd" in piece for piece in pieces[:-1])
    assert [each for piece in pieces for each in piece.token_ids] == stream.token_ids
    elapsed = [piece.elapsed for piece in pieces]
    assert elapsed == sorted(elapsed)


async def test_the_usage_says_what_the_manager_had_computed_before() -> None:
    config = small_cache(num_blocks=32)
    long = ", ".join([PROMPTS[0], *NUMBERS[2:], *NUMBERS])
    async with engine_of(continuous_batching_config=config) as engine:
        first, second = [await read(engine, long) for _ in range(2)]
        other = await read(engine, PROMPTS[1])
    tokens = first.usage.prompt_tokens
    assert first.usage.cached_tokens == other.usage.cached_tokens == 0
    assert second.usage.cached_tokens == (tokens - 1) // 16 * 16 > 0  # whole pages
    assert first.token_ids == second.token_ids == list(expected(long, 20))


async def test_a_stop_string_ends_the_request_in_the_engine() -> None:
    async with engine_of() as engine:
        stream = await read(engine, max_new_tokens=900, stop=[" six", "nothing"])
        assert stream.text == "".join(f" {each}," for each in NUMBERS[2:5])
        assert stream.finish_reason is FinishReason.STOP_STRING
        assert stream.stop_string == " six"
        assert stream.usage.computed_tokens == stream.usage.completion_tokens < 15
        await until(lambda: is_clean(engine))
        assert engine.statistics().computed_tokens < 100


async def test_the_end_of_the_sequence_and_special_tokens() -> None:
    question = [{"role": "user", "content": "Count from two to four."}]
    async with engine_of() as engine:
        stream = await read(engine, question)
        assert (stream.text, stream.finish_reason) == ("two, three, four.", FinishReason.EOS)
        shown = await read(engine, question, skip_special_tokens=False)
        assert shown.text == stream.text + demo()[1].eos_token
        other = demo()[1](",")["input_ids"][-1]
        cut = await read(engine, question, eos_token_id=other)
        assert (cut.text, cut.finish_reason) == ("two", FinishReason.EOS)


async def test_each_may_choose_how_to_sample() -> None:
    torch.manual_seed(0)
    async with engine_of() as engine:
        greedy, cold, hot, wide = [
            await read(engine, max_new_tokens=40, **kwargs)
            for kwargs in (
                {},
                {"do_sample": True, "temperature": 0.01},
                {"do_sample": True, "temperature": 50.0, "top_k": 0},
                {"do_sample": True, "temperature": 50.0, "top_k": 2, "top_p": 1.0},
            )
        ]
    assert tuple(greedy.token_ids) == tuple(cold.token_ids) == expected(PROMPTS[0], 40)
    assert tuple(hot.token_ids) != expected(PROMPTS[0], 40)
    assert len(set(hot.token_ids)) > len(set(wide.token_ids)) // 2


async def test_nothing_is_sorted_for_who_does_not_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    sort, sorts = torch.sort, []

    def counted(*args: Any, **kwargs: Any) -> Any:
        sorts.append(1)
        return sort(*args, **kwargs)

    async with engine_of() as engine:
        monkeypatch.setattr(torch, "sort", counted)
        greedy = await read(engine, max_new_tokens=10)
        assert not sorts
        async with create_task_group() as tasks:  # a batch with both
            tasks.start_soon(lambda: read(engine, max_new_tokens=40, do_sample=True, top_p=0.5))
            beside = await read(engine, max_new_tokens=40)
        assert sorts
    assert tuple(greedy.token_ids) == expected(PROMPTS[0], 10)
    assert tuple(beside.token_ids) == expected(PROMPTS[0], 40)


async def test_the_model_s_own_generation_config_is_left_alone() -> None:
    model, _ = demo()
    before = copy.deepcopy(model.generation_config)
    async with engine_of() as engine:
        await read(engine)
        await read(engine, do_sample=True, temperature=0.5)
    assert model.generation_config.to_dict() == before.to_dict()


# -- stops


@pytest.mark.slow
@pytest.mark.parametrize("way", ["scope", "leaving", "aclose", "stop", "timeout", "between"])
async def test_one_that_goes_frees_its_pages_and_the_others_go_on(
    way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = DeadlineClock(monkeypatch)
    ways = {"timeout": Timeouts(total=1e6), "between": Timeouts(between_tokens=1e6)}
    async with engine_of() as engine, create_task_group() as tasks:
        others: list[Any] = []

        async def other(prompt: str) -> None:
            others.append(await read(engine, prompt, max_new_tokens=60))

        for prompt in PROMPTS[:4]:
            tasks.start_soon(other, prompt)
        with CancelScope() as scope:
            async with engine.stream_text(
                PROMPTS[5], max_new_tokens=1900, timeout=ways.get(way)
            ) as stream:
                text = str(await stream.receive())
                if way == "scope":
                    scope.cancel()
                    await stream.read()
                if way == "aclose":
                    await stream.aclose()
                if way == "stop":
                    stream.stop()
                    text += await stream.read()
                    assert text == stream.text
                if way in ways:
                    clock.pass_all()
                    with pytest.raises(GenerationTimeout):
                        text += await stream.read()
        assert stream.finish_reason is {
            "stop": FinishReason.STOPPED,
            "timeout": FinishReason.TIMEOUT,
            "between": FinishReason.TIMEOUT,
        }.get(way, FinishReason.CANCELLED)
        assert len(stream.token_ids) < 1900
        assert tuple(stream.token_ids) == expected(PROMPTS[5], len(stream.token_ids))
        await until(lambda: len(others) == 4)
        await until(lambda: is_clean(engine))
        assert engine.statistics().cache_used == 0.0
    assert {tuple(each.token_ids) for each in others} == {
        expected(prompt, 60) for prompt in PROMPTS[:4]
    }


async def test_who_waits_is_not_handed_to_the_model() -> None:
    async with engine_of(max_running=1) as engine:
        async with engine.stream_text(PROMPTS[0], max_new_tokens=1900) as first:
            await first.receive()
            async with engine.stream_text(PROMPTS[1]) as second:
                assert second.queue_position == 0
                with pytest.raises(GenerationTimeout, match="queued"):
                    await read(engine, timeout=Timeouts(queued=0.01))
                with CancelScope() as scope:
                    scope.cancel()
                    await second.read()
            assert second.usage is not None
            assert second.usage.computed_tokens == 0
            assert len(engine.active_requests) == 1
        assert (await read(engine, PROMPTS[2])).token_ids == list(expected(PROMPTS[2], 20))


async def test_all_are_cancelled_at_once() -> None:
    async with engine_of() as engine:
        for pause in (0, 0.002, 0.02, 0.1):
            with anyio.move_on_after(pause):
                async with create_task_group() as tasks:
                    for prompt in PROMPTS * 4:
                        tasks.start_soon(
                            lambda each: read(engine, each, max_new_tokens=500), prompt
                        )
            await until(lambda: is_clean(engine))
        assert (await read(engine)).token_ids == list(expected(PROMPTS[0], 20))


@pytest.mark.heavy
@pytest.mark.slow
async def test_a_thousand_short_requests_through_eight_slots() -> None:
    done: list[int] = []
    most = 0

    async def ask(number: int) -> None:
        nonlocal most
        prompt = PROMPTS[number % len(PROMPTS)]
        async with engine.stream_text(prompt, max_new_tokens=1 + number % 3) as stream:
            await stream.read()
            most = max(most, engine.statistics().running)
        assert tuple(stream.token_ids) == expected(prompt, 1 + number % 3)
        done.append(number)

    async with engine_of(max_running=8) as engine:
        async with create_task_group() as tasks:
            for number in range(1000):
                tasks.start_soon(ask, number)
        await until(lambda: is_clean(engine))
    assert len(done) == 1000
    assert 1 < most <= 8


async def test_few_results_become_text_between_two_crossings(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # The thread that does it has the GIL meanwhile, and the loop waits.
    monkeypatch.setattr(continuous, "STREAMS_AT_ONCE", 2)
    process = ActiveRequest.process_result
    processed, most = 0, 0

    def counted(self: ActiveRequest, result: Any, now: float) -> bool:
        nonlocal processed, most
        is_changed = process(self, result, now)
        processed += is_changed
        most = max(most, processed)
        return is_changed

    def crossing(changed: list[ActiveRequest]) -> None:
        nonlocal processed
        processed = 0
        publish(changed)

    monkeypatch.setattr(ActiveRequest, "process_result", counted)
    monkeypatch.setattr(continuous, "publish", crossing)
    async with engine_of() as engine, create_task_group() as tasks:

        async def ask() -> None:
            async with engine.stream_text("one, two,", max_new_tokens=20) as stream:
                await stream.read()
                assert tuple(stream.token_ids) == expected("one, two,", 20)

        for _ in range(6):
            tasks.start_soon(ask)
    assert 0 < most <= 2


async def test_the_line_has_an_end() -> None:
    async with engine_of(max_running=2, max_waiting=1) as engine, create_task_group() as tasks:
        for _ in range(3):
            tasks.start_soon(lambda: read(engine, max_new_tokens=1000))
        await until(lambda: engine.statistics().waiting == 1 and engine.statistics().running == 2)
        with pytest.raises(EngineBusy):
            await read(engine)
        tasks.cancel_scope.cancel()


async def test_the_line_has_an_end_where_the_cache_has() -> None:
    config = small_cache(num_blocks=8)
    async with (
        engine_of(continuous_batching_config=config, max_waiting=0) as engine,
        create_task_group() as tasks,
    ):
        tasks.start_soon(lambda: read(engine, max_new_tokens=110))  # all pages
        await until(lambda: engine.statistics().running)
        with pytest.raises(EngineBusy, match="0 requests"):
            await read(engine)
        assert engine.statistics().waiting == 0
        tasks.cancel_scope.cancel()


async def test_closing_does_not_wait_for_prompts_of_others(monkeypatch: pytest.MonkeyPatch) -> None:
    encode, encoded, may_go_on = GenerationRequest.encode, [], threading.Event()

    def held(self: Any, prompts: Any, *args: Any) -> Any:
        encoded.append(prompts)
        while not (may_go_on.is_set() or engine.is_closed):
            time.sleep(0.001)
        return encode(self, prompts, *args)

    monkeypatch.setattr(GenerationRequest, "encode", held)

    async def ask() -> None:
        with contextlib.suppress(EngineClosed):
            await read(engine)

    async with create_task_group() as tasks:
        async with engine_of() as engine:
            for _ in range(40):
                tasks.start_soon(ask)
            await until(lambda: encoded)
    assert len(encoded) == 1
    async with engine_of() as engine:
        encoded.clear()
        async with create_task_group() as tasks:
            for _ in range(40):
                tasks.start_soon(ask)
            await until(lambda: encoded)
            tasks.cancel_scope.cancel()
            with CancelScope(shield=True):
                await until(lambda: all(state.abandoned for state in open_states(engine)))
            may_go_on.set()
        assert len(encoded) == 1
        monkeypatch.undo()
        assert (await read(engine)).token_ids == list(expected(PROMPTS[0], 20))


def test_a_model_of_two_kinds_of_attention_has_fewer_pages_than_its_blocks() -> None:
    """Each sector of the cache is dealt to one kind."""
    kinds = {
        "full": SimpleNamespace(blocks_per_sector=3),
        "s": SimpleNamespace(blocks_per_sector=2),
    }
    cache = SimpleNamespace(num_blocks=7, num_sectors=6, cache_allocators=kinds)
    assert whole_pages(cache) == 6
    del cache.cache_allocators
    assert whole_pages(cache) == 7


# -- faults of one


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kwargs", "words"),
    [
        ({"max_new_tokens": 2000}, "cache of 128 tokens"),
        ({"prompt": "one, " * 100}, "cache of 128 tokens"),
        ({"max_new_tokens": 0}, "max_new_tokens"),
        ({"prompt": {"input_ids": torch.zeros((1, 0), dtype=torch.long)}}, "empty"),
    ],
)
async def test_what_does_not_fit_is_refused_and_the_others_undisturbed(
    kwargs: dict[str, Any], words: str
) -> None:
    async with engine_of(continuous_batching_config=small_cache(num_blocks=8)) as engine:
        async with engine.stream_text(PROMPTS[1], max_new_tokens=60) as stream:
            await stream.receive()
            with pytest.raises(ValueError, match=words):
                await read(engine, **kwargs)
            await stream.read()
        assert tuple(stream.token_ids) == expected(PROMPTS[1], 60)


@pytest.mark.heavy
@pytest.mark.slow
@pytest.mark.parametrize("blocks", [8, pytest.param(9, marks=pytest.mark.variant), 12])
async def test_a_cache_too_small_for_all_makes_some_wait(blocks: int) -> None:
    """The manager takes pages from one for another, and computes what it had again."""
    told: dict[str, Any] = {}

    async def ask(prompt: str) -> None:
        told[prompt] = await read(engine, prompt, max_new_tokens=100)

    config = small_cache(num_blocks=blocks)
    async with engine_of(continuous_batching_config=config) as engine:
        async with create_task_group() as tasks:  # the limit is the test's own: it is slow
            for prompt in PROMPTS[:12]:
                tasks.start_soon(ask, prompt)
        await until(lambda: is_clean(engine))
    assert {prompt: tuple(stream.token_ids) for prompt, stream in told.items()} == {
        prompt: expected(prompt, 100) for prompt in PROMPTS[:12]
    }


@pytest.mark.slow
async def test_a_full_cache_whose_requests_are_all_cancelled_serves_the_next() -> None:
    """Left to itself the manager would wait for one of those to end."""
    async with engine_of(continuous_batching_config=small_cache(num_blocks=8)) as engine:
        for pause in (0.005, 0.02, 0.05):
            with anyio.move_on_after(pause):
                async with create_task_group() as tasks:
                    for prompt in PROMPTS[:12]:
                        tasks.start_soon(
                            lambda each: read(engine, each, max_new_tokens=100), prompt
                        )
            with fail_after(PATIENCE):
                stream = await read(engine, max_new_tokens=100)
            assert tuple(stream.token_ids) == expected(PROMPTS[0], 100)


async def test_one_that_goes_while_it_is_handed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """The manager forgets a cancellation of what it does not know yet."""
    async with engine_of() as engine:
        add = engine.manager.add_request

        def slow(*args: Any, **kwargs: Any) -> Any:
            (active,) = engine.active_requests.values()
            active.state.stop_requested = True
            while engine.active_requests:  # until the drain has seen it
                wake_drain(engine)
            return add(*args, **kwargs)

        monkeypatch.setattr(engine.manager, "add_request", slow)
        stream = await read(engine, max_new_tokens=1000)
        monkeypatch.undo()
        assert (stream.text, stream.finish_reason) == ("", FinishReason.STOPPED)
        await until(lambda: is_clean(engine))
        assert (await read(engine)).token_ids == list(expected(PROMPTS[0], 20))


async def test_a_request_that_fills_the_whole_cache() -> None:
    prompt = len(demo()[1](PROMPTS[0])["input_ids"])
    config = small_cache(num_blocks=4)
    async with engine_of(continuous_batching_config=config) as engine:
        for _ in range(3):
            stream = await read(engine, max_new_tokens=64 - prompt)
            assert tuple(stream.token_ids) == expected(PROMPTS[0], 64 - prompt)


class Panic(BaseException):
    """What tokenizers raises where Rust panics is no Exception."""


@pytest.mark.parametrize("error", [ValueError("no such token"), Panic(), anyio.EndOfStream()])
async def test_a_decoder_that_raises_ends_one_request(
    error: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    row_detokenizer = GenerationRequest.row_detokenizer

    def failing(self: Any, number: int, row: Any) -> Any:
        text = row_detokenizer(self, number, row)
        if self.options.stop == "fails":
            decoder = decoder_of(text)
            monkeypatch.setattr(decoder, "decode", fail_at(3, decoder.decode))
        return text

    def fail_at(call: int, decode: Callable[..., str]) -> Callable[..., str]:
        calls = 0

        def wrapper(ids: Any) -> str:
            nonlocal calls
            calls += 1
            if calls == call:
                raise error
            return decode(ids)

        return wrapper

    monkeypatch.setattr(GenerationRequest, "row_detokenizer", failing)
    async with engine_of() as engine:
        async with engine.stream_text(PROMPTS[0], stop="fails", max_new_tokens=50) as stream:
            with pytest.raises((ValueError, Panic, RuntimeError)) as raised:
                await stream.read()
        seen = raised.value
        assert error is (seen.__cause__ if isinstance(error, anyio.EndOfStream) else seen)
        assert stream.text
        assert stream.finish_reason is FinishReason.ERROR
        assert (await read(engine)).token_ids == list(expected(PROMPTS[0], 20))
        await until(lambda: is_clean(engine))


@pytest.mark.parametrize(
    ("kwargs", "name"),
    [
        ({"worker_context": contextlib.nullcontext}, "worker_context"),
        ({"past_key_values": object()}, "past_key_values"),
        ({"logits_processor": [object()]}, "logits_processor"),
        ({"no_repeat_ngram_size": 2}, "no_repeat_ngram_size"),
        ({"logprobs": True, "top_logprobs": 2}, "top_logprobs"),
        ({"cancel_within": "layer"}, "cancel_within"),
        ({"max_buffer_size": 3}, "max_buffer_size"),
        ({"prompt": {"inputs_embeds": torch.zeros(1, 3, 128)}}, "inputs_embeds"),
        (
            {
                "prompt": {
                    "input_ids": torch.tensor([[5, 6]]),
                    "attention_mask": torch.tensor([[0, 1]]),
                }
            },
            "attention_mask",
        ),
    ],
)
async def test_what_it_cannot_do_is_refused_by_name(kwargs: dict[str, Any], name: str) -> None:
    engine = ContinuousBatchingEngine(*demo(), None, None, settings())
    with pytest.raises(ValueError, match=name):
        engine.stream_text(**{"prompt": PROMPTS[0], "max_new_tokens": 5, **kwargs})


def settings() -> Any:
    return validate_cb_config(demo()[0], None, None)


def test_a_model_that_it_cannot_serve_is_refused_at_once() -> None:
    model, demo_tokenizer = load_demo()
    with pytest.raises(ValueError, match="encoder"):
        open_engine(t5(), tokenizer(), batching="continuous")
    model.generation_config.no_repeat_ngram_size = 2
    with pytest.raises(ValueError, match="no_repeat_ngram_size"):
        open_engine(model, demo_tokenizer, batching="continuous")
    with pytest.raises(TypeError, match="ContinuousBatchingConfig"):
        engine_of(continuous_batching_config={"num_blocks": 4})


async def test_ids_as_a_prompt() -> None:
    inputs = demo()[1](PROMPTS[3], return_tensors="pt")
    async with engine_of() as engine:
        for prompt in (inputs, {"input_ids": inputs["input_ids"]}):
            stream = await read(engine, prompt)
            assert tuple(stream.token_ids) == expected(PROMPTS[3], 20)
            assert stream.prompt_token_ids == inputs["input_ids"][0].tolist()


# -- faults of all


class Gone(BaseException):
    """The manager's thread does not catch it, and fails none of its requests."""


@contextlib.contextmanager
def dies_at(
    step: int, error: BaseException, *, after: threading.Event | None = None
) -> Iterator[None]:
    """The manager's thread dies in that forward pass of the model. The first waits for *after*."""
    calls = 0

    def hook(*_: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 1 and after is not None:
            after.wait()
        if calls == step:
            raise error

    handle = demo()[0].register_forward_pre_hook(hook)
    try:
        yield
    finally:
        handle.remove()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("step", [1, 2, 30])
@pytest.mark.parametrize("error", [MemoryError("out of it"), Gone()])
async def test_when_the_manager_dies_every_stream_gets_its_error(
    step: int, error: BaseException
) -> None:
    told: list[Any] = []
    entered: list[Any] = []
    may_go = threading.Event()

    async def ask(prompt: str) -> None:
        async with engine.stream_text(prompt, max_new_tokens=200) as stream:
            entered.append(stream)
            with pytest.raises(EngineDied) as raised:
                await stream.read()
            told.append((raised.value, stream))

    async with engine_of(max_running=4) as engine:
        with dies_at(step, error, after=may_go):
            with fail_after(PATIENCE):
                async with create_task_group() as tasks:
                    for prompt in PROMPTS[:6]:  # four that run, two that wait
                        tasks.start_soon(ask, prompt)
                    try:
                        await until(lambda: len(entered) == 6)
                        await until(lambda: engine.statistics().running == 4)
                    finally:
                        may_go.set()
                causes = [died.__cause__ for died, _ in told]
                if isinstance(error, Gone):  # it keeps that to itself
                    assert [type(cause) for cause in causes] == [RuntimeError] * 6
                else:
                    assert causes == [error] * 6
                assert len({id(died) for died, _ in told}) == 6
                with pytest.raises(EngineDied) as raised:
                    await read(engine)
            assert raised.value.__cause__ is causes[0]
            assert "died" in repr(engine)
    for (_, stream), prompt in zip(told, PROMPTS, strict=False):
        del prompt
        assert stream.finish_reason is FinishReason.ERROR
    ids = sorted(len(stream.token_ids) for _, stream in told)
    assert ids[:2] == [0, 0]
    assert ids[-1] == (0 if step == 1 else ids[-1])
    assert step < 30 or ids[2] > 10  # the text already made


async def test_an_engine_that_cannot_start_says_why() -> None:
    config = small_cache(num_blocks=10**9)
    with pytest.raises(MemoryError):
        async with engine_of(continuous_batching_config=config):
            pass


# -- the end, and lifetimes


@pytest.mark.heavy
@pytest.mark.slow
@pytest.mark.parametrize("batching", BATCHING)
@pytest.mark.parametrize("way", ["leaving", "cancelling"])
async def test_leaving_the_engine_with_fifty_open_streams(batching: str, way: str) -> None:
    told: list[Any] = []
    entered: list[Any] = []

    async def ask(prompt: str) -> None:
        async with engine.stream_text(prompt, max_new_tokens=400) as stream:
            entered.append(stream)
            with pytest.raises(EngineClosed):
                await stream.read()
        told.append((prompt, stream))

    def hold() -> None:
        """Keep the model in one pass until the engine is closed: it must not come to its end."""
        while not engine.is_closed:
            time.sleep(0.001)

    async with create_task_group() as tasks:
        with CancelScope() as scope, steps_of(demo()[0], {60: hold}) as steps:
            async with engine_of(batching) as engine:
                steps.count = 0  # without those of the check at opening
                for number in range(50):
                    tasks.start_soon(ask, PROMPTS[number % len(PROMPTS)])
                await until(lambda: len(entered) == 50)
                await until(lambda: engine.statistics().computed_tokens > 10)
                if way == "cancelling":
                    scope.cancel()
                    await checkpoint()
    assert len(told) == 50
    for prompt, stream in told:
        ids = stream.token_ids
        assert len(ids) < 400
        assert tuple(ids) == expected(prompt, len(ids))
    if batching == "none":
        assert sum(bool(stream.token_ids) for _, stream in told) == 1


@pytest.mark.slow
@pytest.mark.parametrize("batching", BATCHING)
async def test_leaving_the_engine_at_any_time(batching: str) -> None:
    """While prompts are encoded, handed over, prefilled, and answered."""
    rng = random.Random(3)

    async def ask(engine: Engine, prompt: str) -> None:
        with contextlib.suppress(EngineClosed):
            await read(engine, prompt, max_new_tokens=300)

    with fail_after(PATIENCE):
        for _ in range(12):
            async with create_task_group() as tasks:
                async with engine_of(batching) as engine:
                    for prompt in PROMPTS:
                        tasks.start_soon(ask, engine, prompt)
                    await anyio.sleep(rng.random() * 0.03)
            assert repr(engine) == "<anystreamer.Engine closed, 0 running, 0 waiting>"


async def test_its_cache_is_freed() -> None:
    async with engine_of() as engine:
        await read(engine)
        cache = weakref.ref(engine.manager.batch_processor.cache.cache_tensor)
        assert cache() is not None
    del engine
    gc.collect()
    assert cache() is None


def test_the_cache_is_made_to_measure() -> None:
    """Not ten gigabytes for a model of half a million parameters."""
    model, _ = demo()
    config = settings().for_manager(model)
    token = 2 * model.config.num_hidden_layers * model.config.hidden_size * 4
    assert config.num_blocks * config.page_size * token < 100 * 2**20
    assert config.num_blocks * config.page_size >= model.config.max_position_embeddings


# trio says so to whoever drops a generator, whatever it holds.
@pytest.mark.filterwarnings("ignore:Async generator .* was garbage collected:ResourceWarning")
@pytest.mark.parametrize("batching", BATCHING)
async def test_streams_may_be_held_across_a_yield(batching: str) -> None:
    async with engine_of(batching) as engine:
        for way in ("dropped", "closed", "closed by another task", "forgotten"):
            held = Held(engine, PROMPTS[0], max_new_tokens=1900)
            tokens = held.tokens()
            with CancelScope() as scope:
                if way == "forgotten":
                    context = engine.stream_text(PROMPTS[0], max_new_tokens=1900)
                    stream = await context.__aenter__()
                    await stream.receive()
                    del context
                else:
                    assert await anext(tokens)
                    (stream,) = held.streams
                if way == "dropped":
                    del tokens
                if way == "closed":
                    await tokens.aclose()
                if way == "closed by another task":
                    async with create_task_group() as tasks:
                        tasks.start_soon(close, tokens)
                gc.collect()
                await until(lambda: is_idle(engine))
                await checkpoint()
            assert not scope.cancelled_caught
            assert state_of(stream).rows[0].computed_tokens < 1900
            stream = None
        if batching == "continuous":
            await until(lambda: is_clean(engine))
        assert (await read(engine)).token_ids == list(expected(PROMPTS[0], 20))


@pytest.mark.parametrize("native", NATIVE_LOOPS)
def test_a_loop_that_ends_under_an_open_engine(native: Native) -> None:
    async def ask(engine: Engine) -> None:
        await read(engine, max_new_tokens=1900)

    async def serve(opened: list[Engine]) -> None:
        async with engine_of() as engine:
            opened.append(engine)
            await asyncio.sleep(PATIENCE)

    async def main(pause: float) -> list[asyncio.Task[None]]:
        opened: list[Engine] = []
        tasks = [asyncio.create_task(serve(opened))]
        while not opened:
            await asyncio.sleep(0.001)
        tasks += [asyncio.create_task(ask(opened[0])) for _ in range(5)]
        await asyncio.sleep(pause)
        return tasks

    for pause in (0, 0.002, 0.05):
        tasks = native.run(lambda pause=pause: main(pause))  # type: ignore[misc]
        assert [task.cancelled() for task in tasks] == [True] * 6


@pytest.mark.slow
def test_two_engines_on_two_loops_do_not_touch_each_other() -> None:
    told: list[Any] = []

    async def main() -> None:
        model, demo_tokenizer = load_demo()
        async with open_engine(model, demo_tokenizer, batching="continuous") as engine:
            async with create_task_group() as tasks:
                for prompt in PROMPTS:
                    tasks.start_soon(ask, engine, prompt)

    async def ask(engine: Engine, prompt: str) -> None:
        stream = await read(engine, prompt, max_new_tokens=30)
        told.append(tuple(stream.token_ids) == expected(prompt, 30))

    for prompt in PROMPTS:
        expected(prompt, 30)
    threads = [
        threading.Thread(target=anyio.run, args=(main,), kwargs={"backend": backend})
        for backend in ("asyncio", "trio")
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert told == [True] * 2 * len(PROMPTS)


# -- fairness


@pytest.mark.slow
async def test_each_gets_its_tokens_in_turn_and_who_never_reads_slows_nobody() -> None:
    streams: dict[int, Any] = {}
    tokens_of_passes: list[int] = []
    all_are_there = threading.Event()

    async def ask(number: int) -> None:
        async with engine.stream_text(PROMPTS[number % 4], max_new_tokens=60) as stream:
            streams[number] = stream
            if number % 8:
                await stream.read()
            else:
                await state_of(stream).worker_exited.wait()

    def count(_: Any, args: Any, kwargs: Any) -> None:
        all_are_there.wait()
        tokens_of_passes.append(len(kwargs["logits_indices"]))

    async with engine_of() as engine:
        handle = demo()[0].register_forward_pre_hook(count, with_kwargs=True)
        async with create_task_group() as tasks:
            for number in range(64):
                tasks.start_soon(ask, number)
            await until(lambda: len(engine.active_requests) == 64)
            all_are_there.set()
        handle.remove()
    assert all(
        tuple(stream.token_ids) == expected(PROMPTS[number % 4], 60)
        for number, stream in streams.items()
        if number % 8
    )
    # Once all have begun, each pass makes a token for all that have not ended.
    with_all = tokens_of_passes.index(64)
    rest = tokens_of_passes[with_all:]
    assert rest == sorted(rest, reverse=True)


@pytest.mark.slow
async def test_what_an_engine_tells_of_itself() -> None:
    async with engine_of() as engine, create_task_group() as tasks:
        for prompt in PROMPTS[:4]:
            tasks.start_soon(lambda each: read(engine, each, max_new_tokens=400), prompt)
        await until(lambda: engine.statistics().running == 4)
        await until(lambda: engine.statistics().computed_tokens > 100)
        now = engine.statistics()
        assert now.cache_used is not None
        assert 0 < now.cache_used < 1
        await until(lambda: engine.statistics().total.count == 4, patience=4 * PATIENCE)
        now = engine.statistics()
        assert now.computed_tokens == sum(len(expected(each, 400)) for each in PROMPTS[:4])
        # The first result of a request has one token at least.
        assert 0 < now.between_tokens.count <= now.computed_tokens - 4
        assert now.queued.count == now.first_token.count == 4
        assert now.tokens_per_second > 0
