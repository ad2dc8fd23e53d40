"""``batching="auto"``: what the manager serves goes into the batch, the rest runs beside it."""

from __future__ import annotations

import contextlib
import gc
import logging
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import cache, partial
from itertools import pairwise
from typing import Any

import pytest
import torch
from anyio import CancelScope, create_task_group, fail_after
from transformers import ContinuousBatchingConfig

from anystreamer import (
    EngineBusy,
    EngineClosed,
    EngineDied,
    FinishReason,
    GenerationTimeout,
    Timeouts,
    open_engine,
)
from anystreamer.demo import load_demo
from anystreamer.sync import SyncEngine

from ..helpers.held import Held, each_way_to_let_go, let_go
from ..helpers.inside import is_idle, threads_before_a_pass
from ..helpers.scripted import PATIENCE, until
from ..helpers.tiny_models import new_llama, seeded, t5, tokenizer
from ..helpers.ways_out import (
    BodyError,
    WayOut,
    cancelled_from_outside,
    closed,
    deadline_expired,
    each_of,
    leaving,
    raising,
    stopped,
)

pytestmark = [
    pytest.mark.torch,
    pytest.mark.usefixtures("asyncio_complains_of_nothing", "one_thread_for_the_model"),
]

PROMPT = "An increasing sequence: one,"
OTHER = "A decreasing sequence: nine,"
LONG = 1900  # tokens: longer than any test takes


@cache
def model_with(attention: str) -> Any:
    model, _ = load_demo()
    model.set_attn_implementation(attention)
    return model


@cache
def encoder() -> Any:
    return load_demo()[1]


def engine_of(attention: str = "sdpa", **kwargs: Any) -> Any:
    return open_engine(model_with(attention), encoder(), batching="auto", **kwargs)


def ids_alone(prompt: str, attention: str = "sdpa", **kwargs: Any) -> list[int]:
    """What plain `generate()` makes of a prompt."""
    inputs = encoder()(prompt, return_tensors="pt")
    output = model_with(attention).generate(**inputs, **{"do_sample": False, **kwargs})
    ids: list[int] = output[0, inputs["input_ids"].shape[1] :].tolist()
    return ids


async def read(engine: Any, prompt: Any = PROMPT, **kwargs: Any) -> Any:
    async with engine.stream_text(prompt, **{"max_new_tokens": 20, **kwargs}) as stream:
        await stream.read()
    return stream


ALONE: dict[str, Any] = {"worker_context": contextlib.nullcontext}
each_lane = pytest.mark.parametrize("lane", [{}, ALONE], ids=["batch", "alone"])


@asynccontextmanager
async def busy(engine: Any, *lanes: dict[str, Any], prompt: str = OTHER) -> AsyncIterator[Any]:
    """Streams that run until the block is left. Yields them."""
    streams: list[Any] = []

    async def ask(arguments: dict[str, Any]) -> None:
        async with engine.stream_text(prompt, max_new_tokens=LONG, **arguments) as stream:
            streams.append(stream)
            async for _ in stream:
                pass

    async with create_task_group() as tasks:
        for arguments in lanes:
            tasks.start_soon(ask, arguments)
        await until(lambda: len(streams) == len(lanes) and all(each.text for each in streams))
        yield streams
        tasks.cancel_scope.cancel()


def _waiting_ready(engine: Any) -> int:
    """How many wait whose prompt has been encoded."""
    return sum(each.is_ready for each in engine.queue.waiting)


def _has(found: dict[str, Any], count: int) -> bool:
    return len(found) == count


def is_at_rest(engine: Any) -> bool:
    scheduler = engine.manager.batch_processor.scheduler
    return (
        is_idle(engine)
        and not engine.statistics().running
        and not (engine.active_requests or scheduler.active_requests or scheduler.waiting_requests)
    )


# -- each request in its lane


class Ban:
    """A processor of the caller's: it takes a word away."""

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        scores = scores.clone()
        scores[:, encoder()(" three")["input_ids"][-1]] = -torch.inf
        return scores


REQUESTS: dict[str, dict[str, Any]] = {
    "no repetition": {"no_repeat_ngram_size": 2},
    "a processor": {"logits_processor": [Ban()]},
    "assisted decoding": {"prompt_lookup_num_tokens": 3},
    "min_p": {"do_sample": True, "min_p": 0.9, "temperature": 0.1},
    "max_time": {"max_time": 3600.0},
    "a static cache": {"cache_implementation": "static", "disable_compile": True},
}


@pytest.mark.slow
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
async def test_both_lanes_have_the_ids_of_generate_while_both_are_busy(attention: str) -> None:
    """With eager attention, the passes of the manager need another one, which others must not."""
    beside = {
        name: ids_alone(PROMPT, attention, max_new_tokens=30, **kwargs)
        for name, kwargs in REQUESTS.items()
    }
    with seeded(7):
        sampled = ids_alone(PROMPT, attention, max_new_tokens=30, do_sample=True, temperature=3.0)
    before = model_with(attention).config._attn_implementation
    async with engine_of(attention) as engine, busy(engine, {}, {}, {}) as streams:
        for name, kwargs in REQUESTS.items():
            assert (await read(engine, max_new_tokens=30, **kwargs)).token_ids == beside[name], name
        kwargs = {"do_sample": True, "temperature": 3.0, "worker_context": partial(seeded, 7)}
        # Others sample in the batch meanwhile: with a generator of their own.
        async with busy(engine, {"do_sample": True, "temperature": 2.0}):
            assert (await read(engine, max_new_tokens=30, **kwargs)).token_ids == sampled
        tops = await read(engine, max_new_tokens=30, logprobs=True, top_logprobs=2)
        assert tops.token_ids == ids_alone(PROMPT, attention, max_new_tokens=30)
        assert all(each.finish_reason is None for each in streams), "the batch was not busy"
        right = ids_alone(OTHER, attention, max_new_tokens=900)
        for each in streams:
            ids = each.token_ids[:900]
            assert ids == right[: len(ids)]
    assert before == attention == model_with(attention).config._attn_implementation
    assert ids_alone(PROMPT, attention, max_new_tokens=30, **REQUESTS["no repetition"]) == next(
        iter(beside.values())
    )


async def test_what_the_manager_serves_goes_into_the_batch() -> None:
    kinds: list[dict[str, Any]] = [
        {},
        {"do_sample": True, "temperature": 0.5, "top_k": 5, "top_p": 0.9},
        {"logprobs": True},
        {"repetition_penalty": 1.3},
        {"presence_penalty": 0.1},
        {"stop": "never"},
        {"eos_token_id": 3},
        {"timeout": 100},
        {"response_format": {"type": "array", "items": {"type": "integer"}}},
    ]
    async with engine_of() as engine, busy(engine, *kinds):
        assert engine.statistics().running == len(kinds)
        assert engine.statistics().running_alone == 0
        async with busy(engine, ALONE):
            assert engine.statistics().running == len(kinds) + 1
            assert engine.statistics().running_alone == 1


async def test_what_the_manager_cannot_take_at_last_runs_alone() -> None:
    """What is known only when the prompt has been encoded."""
    config = ContinuousBatchingConfig(page_size=16, max_batch_tokens=64, num_blocks=8)
    long = "one, two, " * 60
    async with engine_of(continuous_batching_config=config) as engine:
        # Longer than the engine's cache.
        assert (await read(engine, max_new_tokens=300)).token_ids == ids_alone(
            PROMPT, max_new_tokens=300
        )
        assert (await read(engine, long)).token_ids == ids_alone(long, max_new_tokens=20)
        with pytest.raises(ValueError, match="max_new_tokens"):  # as generate() says it
            await read(engine, max_new_tokens=0)
    model, ids = model_with("sdpa"), encoder()(PROMPT, return_tensors="pt")["input_ids"]
    padded = {
        "input_ids": torch.cat([torch.full((1, 2), 5), ids], dim=1),
        "attention_mask": torch.tensor([[0, 0] + [1] * ids.shape[1]]),
    }
    expected = model.generate(**padded, max_new_tokens=20, do_sample=False)
    async with engine_of() as engine:
        stream = await read(engine, padded)
        assert stream.token_ids == expected[0, ids.shape[1] + 2 :].tolist()
        embedded = {"inputs_embeds": model.get_input_embeddings()(ids).detach()}
        assert (await read(engine, embedded)).token_ids == ids_alone(PROMPT, max_new_tokens=20)


# -- models that the manager does not serve


@pytest.fixture
def warnings(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    return lambda: [
        each.getMessage()
        for each in caplog.records
        if each.name == "anystreamer" and each.levelno == logging.WARNING
    ]


async def all_alone(engine: Any, expected: list[int], **kwargs: Any) -> None:
    async with create_task_group() as tasks:

        async def ask() -> None:
            assert (await read(engine, max_new_tokens=10, **kwargs)).token_ids == expected

        for _ in range(3):
            tasks.start_soon(ask)
        await until(lambda: engine.statistics().running_alone)
        assert engine.statistics().running == 1


async def test_a_model_with_an_encoder_is_served_alone(warnings: Any) -> None:
    inputs = tokenizer()(PROMPT, return_tensors="pt")
    expected = t5().generate(**inputs, max_new_tokens=10, do_sample=False)[0, 1:].tolist()
    async with open_engine(t5(), tokenizer(), batching="auto") as engine:
        await all_alone(engine, expected)
    (warning,) = warnings()
    assert "one request at a time: ValueError" in warning
    assert "encoder" in warning


async def test_a_model_whose_own_settings_are_ignored_is_served_alone(warnings: Any) -> None:
    model = new_llama()
    model.generation_config.no_repeat_ngram_size = 2
    inputs = tokenizer()(PROMPT, return_tensors="pt")
    expected = model.generate(**inputs, max_new_tokens=10)[0, inputs["input_ids"].shape[1] :]
    async with open_engine(model, tokenizer(), batching="auto") as engine:
        await all_alone(engine, expected.tolist())
    assert "no_repeat_ngram_size" in warnings()[0]


async def test_a_model_that_is_refused_when_the_engine_opens_is_served_alone(
    warnings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = new_llama()
    expected = ids_of(model)

    def fail(*_: Any, **__: Any) -> Any:
        raise RuntimeError("no pages")

    monkeypatch.setattr(model, "init_continuous_batching", fail)
    async with open_engine(model, tokenizer(), batching="auto", max_waiting=2) as engine:
        await all_alone(engine, expected)
        assert engine.statistics().cache_used is None
        async with busy(engine, {}, prompt=PROMPT), create_task_group() as tasks:
            for _ in range(2):
                tasks.start_soon(partial(read, engine, max_new_tokens=LONG))
            await until(lambda: engine.statistics().waiting_alone == 2)
            await until(lambda: _waiting_ready(engine) == 2)
            with pytest.raises(EngineBusy):
                await read(engine)
            tasks.cancel_scope.cancel()
    assert "no pages" in warnings()[0]
    assert "forward" not in vars(model)


async def test_a_model_for_which_the_memory_is_too_small_is_served_alone(warnings: Any) -> None:
    model = new_llama()
    expected = ids_of(model)
    config = ContinuousBatchingConfig(page_size=16, max_batch_tokens=64, num_blocks=10**9)
    async with open_engine(
        model, tokenizer(), batching="auto", continuous_batching_config=config
    ) as engine:
        await all_alone(engine, expected)
    assert "MemoryError" in warnings()[0]


def ids_of(model: Any) -> list[int]:
    inputs = tokenizer()(PROMPT, return_tensors="pt")
    output = model.generate(**inputs, max_new_tokens=10, do_sample=False)
    ids: list[int] = output[0, inputs["input_ids"].shape[1] :].tolist()
    return ids


def test_what_cannot_be_opened() -> None:
    with pytest.raises(TypeError, match="ContinuousBatchingConfig"):
        engine_of(continuous_batching_config={"num_blocks": 4})
    with pytest.raises(ValueError, match=r"compile.*batching='continuous'"):
        engine_of(continuous_batching_config=ContinuousBatchingConfig(default_compile_level=1))


# -- neither lane starves the other


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
async def test_the_passes_of_the_lanes_alternate(
    attention: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each pass lasts until the other lane waits for the next one: then it must get it.

    With eager attention, `generate()` has the model to itself for its masks as well, until the
    other lane waits. Its pass must still be the next one.
    """
    passes: list[str] = []
    model = model_with(attention)
    prepare = model.prepare_inputs_for_generation

    def hold(_: Any, args: Any, kwargs: Any) -> None:
        lane = "batch" if kwargs.get("cache") is not None else "alone"
        if set(passes) == {lane}:  # the thread of the other one has not come yet
            passes.clear()
        passes.append(lane)
        wait_for_the_other()

    def prepare_and_hold(*args: Any, **kwargs: Any) -> Any:
        wait_for_the_other()
        return prepare(*args, **kwargs)

    def wait_for_the_other() -> None:
        deadline = time.monotonic() + PATIENCE
        while is_contended() and not threads_before_a_pass(model):
            assert time.monotonic() < deadline
            time.sleep(0.0001)

    def is_contended() -> bool:
        return len(passes) < 60 and {"batch", "alone"} <= set(passes)

    if attention == "eager":
        monkeypatch.setattr(model, "prepare_inputs_for_generation", prepare_and_hold)
    async with engine_of(attention) as engine, busy(engine, {}, {}, {}, ALONE) as streams:
        handle = model.model.register_forward_pre_hook(hold, with_kwargs=True)
        try:
            await until(lambda: len(passes) > 60)
        finally:
            handle.remove()
        assert all(each.finish_reason is None for each in streams)
    contended = passes[1:58]
    assert all(a != b for a, b in pairwise(contended)), passes


@pytest.mark.slow
async def test_each_request_gets_its_tokens_at_the_same_pace() -> None:
    """Those of the batch and the one beside it. Counted over many steps: no machine is that odd."""
    async with engine_of() as engine, busy(engine, {}, {}, {}, ALONE) as streams:
        counts = [len(each.token_ids) for each in streams]
        await until(
            lambda: any(
                len(each.token_ids) > n + 400 for each, n in zip(streams, counts, strict=True)
            )
        )
        made = [len(each.token_ids) - n for each, n in zip(streams, counts, strict=True)]
        assert min(made) > max(made) / 4, made


# -- one queue


class HoldsLane:
    """A `worker_context` that holds the lane of those that are served alone."""

    def __init__(self) -> None:
        self.entered, self.may_go = threading.Event(), threading.Event()

    @contextmanager
    def __call__(self) -> Iterator[None]:
        self.entered.set()
        assert self.may_go.wait(PATIENCE)
        yield


async def test_statistics_positions_and_the_limit_count_both_lanes() -> None:
    gate, positions = HoldsLane(), dict[str, Any]()
    async with engine_of(max_running=1, max_waiting=2) as engine, busy(engine, {}):
        try:
            async with create_task_group() as tasks:

                async def wait(name: str, arguments: dict[str, Any]) -> None:
                    async with engine.stream_text(PROMPT, max_new_tokens=5, **arguments) as stream:
                        positions[name] = stream
                        await stream.read()

                tasks.start_soon(wait, "running", {"worker_context": gate})
                await until(gate.entered.is_set)
                # Full is the queue of those that wait. Whose lane has room does not wait.
                for number, lane in enumerate((ALONE, {}), 1):
                    tasks.start_soon(wait, f"waiting {number}", lane)
                    await until(partial(_has, positions, number + 1))
                now = engine.statistics()
                assert (now.running, now.running_alone) == (2, 1)
                assert (now.waiting, now.waiting_alone) == (2, 1)
                assert "2 running, 2 waiting" in repr(engine)
                assert [each.queue_position for each in positions.values()] == [None, 0, 1]
                for lane in ({}, ALONE):
                    with pytest.raises(EngineBusy) as busy_error:
                        await read(engine, **lane)
                    assert busy_error.value.waiting == 2
                gate.may_go.set()
                await until(lambda: positions["waiting 1"].finish_reason is not None)
                assert engine.statistics().waiting == 1
                positions["waiting 2"].stop()
        finally:
            gate.may_go.set()
        await read(engine, **ALONE)  # beside one that runs and none that waits


async def test_who_need_not_wait_is_not_refused_because_others_do() -> None:
    async with (
        engine_of(max_running=1, max_waiting=1) as engine,
        busy(engine, {}),
        create_task_group() as tasks,
    ):
        tasks.start_soon(partial(read, engine))
        await until(lambda: _waiting_ready(engine) == 1)
        with pytest.raises(EngineBusy):
            await read(engine)
        assert (await read(engine, **ALONE)).token_ids == ids_alone(PROMPT, max_new_tokens=20)
        tasks.cancel_scope.cancel()


async def test_a_timeout_in_the_queue() -> None:
    gate = HoldsLane()
    async with engine_of(max_running=1) as engine, busy(engine, {}), create_task_group() as tasks:
        tasks.start_soon(partial(read, engine, worker_context=gate))
        try:
            await until(gate.entered.is_set)
            for lane in ({}, ALONE):
                with pytest.raises(GenerationTimeout) as late:
                    await read(engine, timeout=Timeouts(queued=0.01), **lane)
                assert late.value.phase == "queued"
        finally:
            gate.may_go.set()
        tasks.cancel_scope.cancel()


# -- the promises


@each_lane
@each_of(cancelled_from_outside, deadline_expired, closed, stopped, leaving, raising)
async def test_any_way_out_stops_one_and_leaves_the_other_lane_alone(
    lane: dict[str, Any], way: WayOut
) -> None:
    other = {} if lane else ALONE
    async with engine_of() as engine:
        async with busy(engine, other, prompt=OTHER) as (beside,):
            before = len(beside.token_ids)
            with contextlib.suppress(BodyError), CancelScope() as scope:
                async with engine.stream_text(PROMPT, max_new_tokens=LONG, **lane) as stream:
                    await stream.receive()
                    await way(stream, scope)
            await until(lambda: engine.statistics().running == 1)
            assert stream.usage.computed_tokens < LONG - 100
            await until(lambda: len(beside.token_ids) > before + 20)
            assert beside.finish_reason is None
        await until(lambda: is_at_rest(engine))
        assert (await read(engine, **lane)).token_ids == ids_alone(PROMPT, max_new_tokens=20)
    ids = list(stream.token_ids)
    assert ids == ids_alone(PROMPT, max_new_tokens=len(ids))


@pytest.mark.parametrize("way", ["leaving", "cancelling"])
async def test_leaving_the_engine_ends_both_lanes(way: str) -> None:
    told: list[Any] = []

    async def ask(arguments: dict[str, Any]) -> None:
        async with engine.stream_text(PROMPT, max_new_tokens=LONG, **arguments) as stream:
            with pytest.raises(EngineClosed):
                await stream.read()
        told.append(stream)

    async with create_task_group() as tasks:
        with CancelScope() as scope:
            async with engine_of(max_running=2) as engine:
                for arguments in (ALONE, {}) * 4:
                    tasks.start_soon(ask, arguments)
                # One of the batch fills the cache.
                await until(lambda: engine.statistics().running == 2)
                await until(lambda: engine.statistics().waiting == 6)
                await until(lambda: engine.statistics().computed_tokens > 30)
                if way == "cancelling":
                    scope.cancel()
    assert len(told) == 8
    assert sum(bool(stream.token_ids) for stream in told) == 2
    assert repr(engine) == "<anystreamer.Engine closed, 0 running, 0 waiting>"
    assert "forward" not in vars(model_with("sdpa"))


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
async def test_when_the_manager_dies_both_lanes_get_its_error() -> None:
    error, told = MemoryError("out of it"), list[Any]()
    is_to_fail = threading.Event()

    def fail(_: Any, args: Any, kwargs: Any) -> None:
        if is_to_fail.is_set() and kwargs.get("cache") is not None:
            raise error

    async def ask(arguments: dict[str, Any]) -> None:
        async with engine.stream_text(PROMPT, max_new_tokens=LONG, **arguments) as stream:
            with pytest.raises(EngineDied) as died:
                await stream.read()
        told.append((stream, died.value.__cause__))

    handle = model_with("sdpa").model.register_forward_pre_hook(fail, with_kwargs=True)
    try:
        async with engine_of() as engine:
            with fail_after(PATIENCE):
                async with create_task_group() as tasks:
                    for arguments in ({}, {}, ALONE, ALONE):
                        tasks.start_soon(ask, arguments)
                    await until(lambda: engine.statistics().computed_tokens > 20)
                    await until(lambda: engine.statistics().waiting == 1)
                    is_to_fail.set()
            with pytest.raises(EngineDied):
                await read(engine, **ALONE)
    finally:
        handle.remove()
    assert [cause for _, cause in told] == [error] * 4
    assert {stream.finish_reason for stream, _ in told} == {FinishReason.ERROR}


async def test_an_error_alone_is_its_own() -> None:
    error = KeyError("of this request")

    def fail(*_: Any) -> Any:
        raise error

    async with engine_of() as engine, busy(engine, {}) as (beside,):
        before = len(beside.token_ids)
        with pytest.raises(KeyError) as raised:
            await read(engine, logits_processor=[fail])
        assert raised.value is error
        assert (await read(engine, **ALONE)).token_ids == ids_alone(PROMPT, max_new_tokens=20)
        await until(lambda: len(beside.token_ids) > before + 20)


@pytest.mark.parametrize("where", ["masks", "before the pass", "pass"])
async def test_a_pass_that_fails_leaves_the_model_to_the_other_lane(
    where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the pass, `generate()` has the model already: it has made its masks."""
    model = model_with("eager")
    prepare = model.prepare_inputs_for_generation
    failing: list[Any] = []

    def fail(place: str, is_batch: bool) -> None:
        if failing and place == where and not is_batch and (error := failing.pop(0)) is not None:
            raise error

    def prepare_or_fail(*args: Any, **kwargs: Any) -> Any:
        fail("masks", is_batch=False)
        return prepare(*args, **kwargs)

    def before_pass(module: Any, args: Any, kwargs: Any) -> None:
        place = "before the pass" if module is model else "pass"
        fail(place, is_batch=kwargs.get("cache") is not None)

    monkeypatch.setattr(model, "prepare_inputs_for_generation", prepare_or_fail)
    async with engine_of("eager") as engine, busy(engine, {}) as (beside,):
        hooks = [
            each.register_forward_pre_hook(before_pass, with_kwargs=True)
            for each in (model, model.model)
        ]
        failing += [None, None, KeyError()]
        try:
            with pytest.raises(KeyError):
                await read(engine, **ALONE)
        finally:
            for each in hooks:
                each.remove()
        before = len(beside.token_ids)
        await until(lambda: len(beside.token_ids) > before + 20)
        ids = list(beside.token_ids)
    assert ids == ids_alone(OTHER, "eager", max_new_tokens=len(ids))


# trio says so to whoever drops a generator, whatever it holds.
@pytest.mark.filterwarnings("ignore:Async generator .* was garbage collected:ResourceWarning")
@each_lane
@each_way_to_let_go
async def test_streams_may_be_held_across_a_yield(lane: dict[str, Any], way: str) -> None:
    async with engine_of() as engine:
        held = Held(engine, PROMPT, max_new_tokens=LONG, **lane)
        generators = [held.tokens()]
        with CancelScope() as scope:
            assert await anext(generators[0])
            held.streams.clear()
            await let_go(generators, way)
            gc.collect()
            await until(lambda: is_at_rest(engine))
        assert not scope.cancelled_caught
        assert (await read(engine, **lane)).token_ids == ids_alone(PROMPT, max_new_tokens=20)


@each_lane
async def test_a_callback_asks_its_own_engine(lane: dict[str, Any]) -> None:
    """The batch goes on beside it. The one thread of the other lane is the callback's own."""
    seen: list[object] = []

    def ask(*_: object) -> bool:
        try:
            with SyncEngine(engine).stream_text(PROMPT, max_new_tokens=4, **lane) as stream:
                seen.append(stream.read())
        except RuntimeError as exc:
            seen.append(str(exc))
        return True

    with fail_after(PATIENCE):
        async with engine_of() as engine:
            await read(engine, OTHER, stopping_criteria=[ask])
            assert (await read(engine, **lane)).text.startswith(" two, three,")
    if lane:
        assert "would wait for itself" in str(seen[0])
    else:
        assert seen == [" two, three,"]
