"""The promises of a stream, of an engine of this process and of the same behind servers. No torch.

In the order of docs/promises.md. What a network cannot keep is left out, and what it keeps in
another way is said in `Kind`.
"""

from __future__ import annotations

import contextlib
import gc
import inspect
import random
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import anyio
import openai
import pytest
from anyio import (
    BusyResourceError,
    CancelScope,
    EndOfStream,
    create_task_group,
    fail_after,
    move_on_after,
)
from anyio.lowlevel import checkpoint

from anystreamer import (
    Engine,
    EngineBusy,
    EngineClosed,
    FinishReason,
    GenerationTimeout,
    Timeouts,
    open_engine,
)
from anystreamer.testing import Gate, ScriptedModel

from ..conftest import installed
from ..helpers.held import Held, each_way_to_let_go, let_go
from ..helpers.inside import is_idle, is_receiving, open_states, state_of, worker_left
from ..helpers.linked_model import linked
from ..helpers.remote_engines import behind_a_server, remote_engine
from ..helpers.scripted import CLUSTER_TIMEOUT, PATIENCE, until
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

pytestmark = pytest.mark.usefixtures("asyncio_complains_of_nothing")

ENDLESS = ["word "] * 20_000


@dataclass(frozen=True)
class Kind:
    name: str
    tells_usage_of_a_stop: bool = True
    error: type[Exception] = ValueError  # as which a ValueError of the model arrives
    replica: tuple[str, str] = ("", "")  # its address, and the path of its link to a model

    @asynccontextmanager
    async def open(self, model: ScriptedModel, **kwargs: Any) -> AsyncIterator[tuple[Engine, Any]]:
        """The engine to use, and the one that has the model."""
        if self.name == "ray serve":
            if "max_waiting" in kwargs:
                pytest.skip("the queue is Serve's: tests/test_ray.py")
            url, path = self.replica
            async with linked(model, path) as there, remote_engine(url) as remote:
                yield remote, there
            return
        async with open_engine(model, model.tokenizer, **kwargs) as local:
            if self.name == "local":
                yield local, local
            else:
                async with behind_a_server(local) as remote:
                    yield remote, local


LOCAL = Kind("local")
REMOTE = Kind("remote", tells_usage_of_a_stop=False, error=openai.APIError)
RAY_SERVE = replace(REMOTE, name="ray serve")


# The cluster starts within the time of the first test.
RAY = (
    [pytest.param(RAY_SERVE, marks=pytest.mark.timeout(CLUSTER_TIMEOUT))]
    if installed("ray")
    else []
)


@pytest.fixture(params=[LOCAL, REMOTE, *RAY], ids=lambda kind: kind.name)
def kind(request: pytest.FixtureRequest) -> Kind:
    kind: Kind = request.param
    if kind is RAY_SERVE:
        return replace(kind, replica=request.getfixturevalue("replica"))
    return kind


@pytest.fixture(scope="module")
def replica(cluster: Any) -> Iterator[tuple[str, str]]:
    """One under Ray Serve, whose model is that of each test."""
    path = f"{cluster.folder}/link"
    cluster.do("link", path=path)
    yield f"{cluster.url}/linked/v1", path
    cluster.do("delete", name="linked")


async def read(engine: Engine, prompt: Any = "hi", **kwargs: Any) -> str:
    async with engine.stream_text(prompt, **kwargs) as stream:
        return await stream.read()


def is_at_rest(local: Any) -> bool:
    return is_idle(local) and not local.statistics().running


async def test_notebooks_show_the_arguments_of_its_streams(kind: Kind) -> None:
    async with kind.open(ScriptedModel(["a"])) as (engine, _):
        shown = inspect.signature(engine.stream_text)
        _, *parameters = inspect.signature(Engine.stream_text).parameters.values()
        assert list(shown.parameters.values()) == parameters
        assert inspect.getdoc(engine.stream_text) == inspect.getdoc(Engine.stream_text)


# -- 1, 2: the join and the stop


@each_of(cancelled_from_outside, deadline_expired, closed, stopped, leaving, raising)
async def test_any_way_out_stops_the_model_within_a_step(kind: Kind, way: WayOut) -> None:
    gate = Gate()
    model = ScriptedModel(["a", "b", gate, *ENDLESS])
    async with kind.open(model) as (engine, local), create_task_group() as tasks:

        @tasks.start_soon
        async def open_the_gate() -> None:
            """In the middle of a step, once the engine that has the model knows."""
            try:
                await gate.reached()
                (state,) = open_states(local)
                await until(lambda: state.should_end)
            finally:
                gate.open()

        with contextlib.suppress(BodyError), CancelScope() as scope:
            async with engine.stream_text("hi") as stream:
                async for _ in stream:
                    if stream.text == "ab":
                        break
                await gate.reached()
                await way(stream, scope)
        assert stream.text in (("ab", "abword ") if way is stopped else ("ab",))
        assert scope.cancelled_caught == (way in (cancelled_from_outside, deadline_expired))
        reason = FinishReason.STOPPED if way is stopped else FinishReason.CANCELLED
        assert stream.finish_reason is reason
        assert (stream.usage is None) == (not kind.tells_usage_of_a_stop)
        await until(lambda: is_at_rest(local))
        assert not model.is_generating
        assert model.steps <= 3
        assert await read(engine, max_new_tokens=2) == "ab"


# -- 3: queued work never runs


@each_of(cancelled_from_outside, closed, stopped, leaving)
async def test_a_request_that_leaves_while_waiting_never_runs(kind: Kind, way: WayOut) -> None:
    gate = Gate()
    model = ScriptedModel([gate, "a"])
    async with kind.open(model) as (engine, local):
        async with engine.stream_text("first") as first:
            await gate.reached()
            with CancelScope() as scope:
                async with engine.stream_text("second") as second:
                    await way(second, scope)
            assert second.text == ""
            await until(lambda: local.statistics().waiting == 0)
            gate.open()
            assert await first.read() == "a"
        assert await read(engine, "third") == "a"
    asked = ["".join(map(chr, call["input_ids"][0])) for call in model.calls]
    assert asked == ["first", "third"]


async def test_the_line_has_an_end_and_says_so(kind: Kind) -> None:
    gate = Gate()
    model = ScriptedModel([gate, "a"])
    async with kind.open(model, max_waiting=0) as (engine, local):
        async with engine.stream_text("hi") as stream:
            with pytest.raises(EngineBusy):
                await read(engine)
            gate.open()
            assert await stream.read() == "a"
        await until(lambda: is_at_rest(local))
        assert await read(engine) == "a"


# -- 4: errors arrive


async def test_an_error_of_the_model_arrives_after_the_text(kind: Kind) -> None:
    model = ScriptedModel(["a", "b", ValueError("no")])
    async with kind.open(model) as (engine, _):
        for _ in range(3):
            async with engine.stream_text("hi") as stream:
                with pytest.raises(kind.error):
                    await stream.read()
                assert stream.text == "ab"
                assert stream.finish_reason is FinishReason.ERROR


async def test_an_error_that_nobody_received_is_raised_at_the_block_s_end(kind: Kind) -> None:
    model = ScriptedModel(["a", ValueError("no")])
    async with kind.open(model) as (engine, _):
        with pytest.raises(kind.error):
            async with engine.stream_text("hi") as stream:
                await until(lambda: worker_left(stream))


async def test_the_body_s_error_wins_and_comes_out_bare(kind: Kind) -> None:
    error = KeyError("mine")
    model = ScriptedModel(["a", ValueError("no")])
    async with kind.open(model) as (engine, _):
        with pytest.raises(KeyError) as raised:
            async with engine.stream_text("hi") as stream:
                await until(lambda: worker_left(stream))
                raise error
    assert raised.value is error
    assert "failed as well" in error.__notes__[0]


async def test_what_the_model_refuses_is_raised_at_the_entry(kind: Kind) -> None:
    async with kind.open(ScriptedModel(["a"])) as (engine, _):
        with pytest.raises(ValueError, match="empty"):
            engine.stream_text("")
        with pytest.raises(ValueError, match="num_beams"):
            engine.stream_text("hi", num_beams=2)
        with pytest.raises(ValueError, match="num_return_sequences"):
            engine.stream_text("hi", num_return_sequences=2)
        with pytest.raises(TypeError, match="max_new_tokens"):
            engine.stream_text("hi", max_tokens=2)
        assert await read(engine) == "a"


# -- 5: nothing hangs


async def test_consumers_that_never_read_read_slowly_or_leave(kind: Kind) -> None:
    model = ScriptedModel(["a", "b", "c"])
    async with kind.open(model) as (engine, local):
        async with engine.stream_text("hi"):
            pass
        async with engine.stream_text("hi") as stream:
            await until(lambda: worker_left(stream))
            assert await stream.receive() == "abc"  # what was ready is one piece
            with pytest.raises(EndOfStream):
                await stream.receive()
        await until(lambda: is_at_rest(local))


async def test_leaving_the_engine_ends_all_that_is_open(kind: Kind) -> None:
    model = ScriptedModel(ENDLESS, delay=0.001)
    entered: list[Any] = []
    raised: list[BaseException] = []

    async def ask() -> None:
        try:
            async with engine.stream_text("hi") as stream:
                entered.append(stream)
                await stream.read()
        except (EngineClosed, openai.APIError) as exc:
            raised.append(exc)

    async with create_task_group() as tasks:
        async with kind.open(model) as (engine, local):
            for _ in range(5):
                tasks.start_soon(ask)
            await until(lambda: (each := local.statistics()).running + each.waiting == 5)
            await until(lambda: model.steps > 3 and entered)
        assert not model.is_generating
    assert len(raised) == 5
    assert [stream.finish_reason for stream in entered] == [FinishReason.ERROR] * len(entered)
    with pytest.raises(EngineClosed):
        await read(engine)


async def test_many_requests_of_which_some_go(kind: Kind) -> None:
    """The shape of vLLM's abort test."""
    rng = random.Random(1)
    model = ScriptedModel(["a", "b", "c", "d", "e"])
    gone = set(rng.sample(range(30), 6))
    texts: dict[int, str] = {}

    async def ask(number: int) -> None:
        if number in gone:
            with move_on_after(rng.random() * 0.02):
                async with engine.stream_text(str(number)) as stream:
                    await stream.read()
                    await anyio.sleep_forever()
        else:
            texts[number] = await read(engine, str(number))

    async with kind.open(model) as (engine, local):
        async with create_task_group() as tasks:
            for number in range(30):
                tasks.start_soon(ask, number)
        await until(lambda: is_at_rest(local))
        assert engine.statistics().running == engine.statistics().waiting == 0
        assert is_idle(engine)
    assert texts == dict.fromkeys(set(range(30)) - gone, "abcde")


# -- 6: bounded, by choice


async def test_a_bounded_stream_loses_nothing(kind: Kind) -> None:
    script = [f"{number} " for number in range(300)]
    async with kind.open(ScriptedModel(script)) as (engine, _):
        async with engine.stream_text("hi", max_buffer_size=2) as stream:
            pieces = []
            async for piece in stream:
                pieces.append(piece)
                await checkpoint()
        assert "".join(pieces) == "".join(script)
        assert stream.finish_reason is FinishReason.EOS


# -- 7, 8: the text is exact, and stop strings never leak

TOKENS = [
    "é",
    "🙂",
    "\u2028",
    "\r\n",
    '"',
    "\\",
    "\0",
    "日本",
    " ",
    "data: [DONE]\n\n",
    "\ufeff",
    "न",
]


async def test_the_text_is_exact(kind: Kind) -> None:
    model = ScriptedModel([*TOKENS, "x", *TOKENS])
    async with kind.open(model) as (engine, _):
        for prompt in ("hi", [{"role": "user", "content": "".join(TOKENS)}]):
            async with engine.stream_text(prompt) as stream:
                pieces = [piece async for piece in stream]
            assert "".join(pieces) == stream.text == "".join([*TOKENS, "x", *TOKENS])
            assert all(pieces)
            elapsed = [piece.elapsed for piece in pieces]
            assert elapsed == sorted(elapsed)
            assert stream.finish_reason is FinishReason.EOS
            assert stream.usage is not None
            assert (
                stream.usage.completion_tokens
                == stream.usage.computed_tokens
                == 2 * len(TOKENS) + 2
            )
            assert stream.usage.prompt_tokens == len(model.calls[-1]["input_ids"][0])
    asked = ["".join(map(chr, call["input_ids"][0])) for call in model.calls]
    assert asked == ["hi", f"user: {''.join(TOKENS)}\nassistant: "]


@pytest.mark.parametrize(
    "script", [["one S", "TO", "P two"], ["one ", "STOPSTOP", "x"], ["one ST", "OP"]]
)
async def test_stop_strings_never_leak(kind: Kind, script: list[str]) -> None:
    async with kind.open(ScriptedModel(script)) as (engine, _):
        async with engine.stream_text("hi", stop=["STOP", "never"]) as stream:
            pieces = [piece async for piece in stream]
        assert "".join(pieces) == "one "
        assert stream.finish_reason is FinishReason.STOP_STRING
        assert stream.stop_string == "STOP"
        assert stream.usage is not None


async def test_what_only_looked_like_a_stop_string_is_delivered(kind: Kind) -> None:
    async with kind.open(ScriptedModel(["one ", "STO"])) as (engine, _):
        async with engine.stream_text("hi", stop="STOP") as stream:
            assert await stream.read() == "one STO"
        assert stream.finish_reason is FinishReason.EOS
        assert stream.stop_string is None


async def test_a_number_of_tokens(kind: Kind) -> None:
    async with kind.open(ScriptedModel(ENDLESS)) as (engine, _):
        async with engine.stream_text("hi", max_new_tokens=3) as stream:
            assert await stream.read() == "word word word "
        assert stream.finish_reason is FinishReason.LENGTH
        assert stream.usage is not None
        assert stream.usage.completion_tokens == 3


# -- deadlines


async def test_a_model_that_falls_silent_is_late(kind: Kind) -> None:
    model = ScriptedModel(["a", "b", 1.0, "c"])
    async with kind.open(model) as (engine, local):
        timeout = Timeouts(between_tokens=0.5)
        async with engine.stream_text("hi", timeout=timeout) as stream:
            with pytest.raises(GenerationTimeout, match="between_tokens"):
                await stream.read()
            # An engine of this process finds out with its next step; and on a busy machine "b" can
            # be late already.
            assert stream.text.startswith("a")
        assert stream.finish_reason is FinishReason.TIMEOUT
        await until(lambda: is_at_rest(local))


# -- 10: every receive is a checkpoint


async def test_every_receive_is_a_checkpoint_and_there_is_one_at_a_time(kind: Kind) -> None:
    gate = Gate()
    model = ScriptedModel(["a", gate, "b"])
    async with kind.open(model) as (engine, _):
        async with engine.stream_text("hi") as stream:
            await until(lambda: state_of(stream).has_item)
            with CancelScope() as scope:
                scope.cancel()
                await stream.receive()
            assert scope.cancelled_caught
            assert await stream.receive() == "a"
            async with create_task_group() as tasks:
                tasks.start_soon(stream.receive)
                await until(lambda: is_receiving(stream))
                with pytest.raises(BusyResourceError):
                    await stream.receive()
                gate.open()
            with pytest.raises(EndOfStream):
                await stream.receive()


# -- 12: held across a yield


# trio says so to whoever drops a generator, whatever it holds.
@pytest.mark.filterwarnings("ignore:Async generator .*Held.tokens:ResourceWarning")
@each_way_to_let_go
async def test_a_stream_may_be_held_across_a_yield(kind: Kind, way: str) -> None:
    model = ScriptedModel(ENDLESS)
    async with kind.open(model) as (engine, local):
        for _ in range(5):
            held = Held(engine)
            generators = [held.tokens()]
            with CancelScope() as scope:  # the consumer's task stays sound
                assert await anext(generators[0])
                await let_go(generators, way)
                await until(lambda: is_at_rest(local))
                await checkpoint()
            assert not scope.cancelled_caught
            (stream,) = held.streams
            await until(partial(getattr, stream, "finish_reason"))
            assert stream.finish_reason is FinishReason.CANCELLED
        await until(lambda: not engine.statistics().running)
        with fail_after(PATIENCE):
            assert await read(engine, max_new_tokens=2) == "word word "


async def test_a_block_that_nobody_can_leave_any_more_stops_its_model(kind: Kind) -> None:
    model = ScriptedModel(ENDLESS)
    async with kind.open(model) as (engine, local):
        context = engine.stream_text("hi")
        stream = await context.__aenter__()
        assert await stream.receive()
        del context
        gc.collect()
        await until(lambda: is_at_rest(local))
        assert await read(engine, max_new_tokens=1) == "word "
