"""What an application sees of its streams: numbers, the log, spans."""

from __future__ import annotations

import logging
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from functools import partial
from typing import Any

import anyio
import pytest
from anyio import CapacityLimiter

import anystreamer
from anystreamer import (
    Statistics,
    stream_batch,
    stream_from_thread,
    stream_iterable,
    stream_text,
)
from anystreamer.testing import Gate, ScriptedModel

from ..helpers.inside import state_of
from ..helpers.logged import logged_by_us
from ..helpers.scripted import Scripted, until


def change(before: Statistics) -> dict[str, int]:
    now = anystreamer.statistics()
    return {name: getattr(now, name) - getattr(before, name) for name in Statistics.__slots__}


async def test_statistics_follow_streams_through_their_states() -> None:
    gate = Gate()
    model = ScriptedModel(["a", "b", gate, "c"])
    before = anystreamer.statistics()

    def said(waiting: int, running: int, threads: int, computed: int, delivered: int) -> None:
        assert change(before) == {
            "waiting": waiting,
            "running": running,
            "threads": threads,
            "computed_tokens": computed,
            "delivered_tokens": delivered,
        }

    async with stream_text(model, model.tokenizer, "hi") as first:
        await gate.reached()
        said(0, 1, 1, 2, 0)
        async with stream_text(model, model.tokenizer, "hi") as second:
            said(1, 1, 1, 2, 0)
            assert await first.receive() == "ab"
            said(1, 1, 1, 2, 2)
            gate.open()
            assert await first.read() == "c"
            assert await second.read() == "abc"
            said(0, 0, 0, 8, 8)
    said(0, 0, 0, 8, 8)


async def test_statistics_know_a_bare_producer_too() -> None:
    before = anystreamer.statistics()
    limiter = CapacityLimiter(1)
    async with stream_from_thread(Scripted(allowed=1), limiter=limiter) as running:
        assert await running.receive() == 0
        async with stream_from_thread(Scripted(1), limiter=limiter):
            await anyio.wait_all_tasks_blocked()
            assert change(before)["running"] == change(before)["waiting"] == 1
            assert change(before)["threads"] == 1
    assert not any(change(before).values())


async def test_what_was_computed_and_not_delivered_counts_when_it_has_ended() -> None:
    before = anystreamer.statistics()
    model = ScriptedModel(["a", "b", "c"])
    async with stream_text(model, model.tokenizer, "hi") as stream:
        await until(lambda: model.steps == 4)
        stream.stop()
    assert change(before)["computed_tokens"] == 4
    assert change(before)["delivered_tokens"] == 0


async def test_the_log_tells_of_each_stream(caplog: pytest.LogCaptureFixture) -> None:
    model = ScriptedModel(["a", "b"])
    caplog.set_level(logging.DEBUG, logger="anystreamer")
    async with stream_text(model, model.tokenizer, "hi") as stream:
        await stream.read()
    with pytest.raises(OSError, match="no memory"):
        async with stream_from_thread(Scripted(fails={0: OSError("no memory")})) as failing:
            await failing.receive()
    waits, runs, ended, *others = logged_by_us(caplog, logging.DEBUG)
    number = f"stream_text #{state_of(stream).number} "
    assert waits == f"{number}waits for its turn"
    assert runs == f"{number}runs"
    assert ended.startswith(f"{number}ended: eos; 3 of 3 tokens delivered; Timing(queued=")
    assert others[-1] == f"Scripted #{state_of(stream).number + 1} ended: OSError: no memory"


class Rows:
    """A callable object, and one with a method that is a producer."""

    def __call__(self, *args: Any) -> list[int]:
        return []

    def all(self, *args: Any) -> list[int]:
        return []


def rows(*args: Any) -> list[int]:
    return []


NAMES: dict[str, Any] = {
    "rows": rows,
    "Rows": Rows(),
    "Rows.all": Rows().all,
    "list": list,
}


@pytest.mark.parametrize("name", NAMES)
async def test_a_stream_has_the_name_of_its_producer(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    producer = NAMES[name]
    caplog.set_level(logging.DEBUG, logger="anystreamer")
    contexts = [stream_iterable(partial(partial(producer)))]
    if producer is not list:
        contexts += [stream_iterable(producer), stream_from_thread(producer)]
        contexts += [stream_from_thread(partial(producer))]
    for context in contexts:
        async with context as stream:
            async for _ in stream:
                pass
    ours = logged_by_us(caplog, logging.DEBUG)
    assert len(ours) == 3 * len(contexts)
    assert all(message.startswith(f"{name} #") for message in ours)


@pytest.mark.parametrize("opener", [stream_from_thread, stream_iterable])
async def test_a_stream_can_be_given_a_name(opener: Any, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, logger="anystreamer")
    async with opener(rows, name="the nightly export") as stream:
        async for _ in stream:
            pass
    ours = logged_by_us(caplog, logging.DEBUG)
    assert len(ours) == 3
    assert all(message.startswith("the nightly export #") for message in ours)


async def test_its_thread_and_its_tasks_have_the_name_while_it_runs() -> None:
    """Debuggers and profilers show both, and the log the thread's."""
    threads = [threading.current_thread()]

    def produce(emit: Any, should_stop: Any) -> None:
        threads.append(threading.current_thread())
        emit(threading.current_thread().name)

    async with stream_from_thread(produce, name="export") as stream:
        label = f"export #{state_of(stream).number}"
        tasks = [task.name for task in anyio.get_running_tasks()]
        assert await stream.receive() == label
    assert label in tasks
    _, worker = threads
    assert worker.name != label


async def test_a_message_to_the_producer_has_the_name() -> None:
    late: list[Any] = []

    def export(emit: Any, should_stop: Any) -> None:
        late.append(emit)

    async with stream_from_thread(export) as stream:
        async for _ in stream:
            pass
        with pytest.raises(RuntimeError, match=r"export had returned"):
            late[0](1)


async def test_nothing_is_logged_by_default(caplog: pytest.LogCaptureFixture) -> None:
    model = ScriptedModel(["a"])
    async with stream_text(model, model.tokenizer, "hi") as stream:
        await stream.read()
    assert not logged_by_us(caplog, logging.INFO)


# -- spans


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A real exporter's memory of the spans that have ended."""
    pytest.importorskip("opentelemetry.sdk")
    from opentelemetry import trace
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", provider)
    yield exporter
    provider.shutdown()


async def test_a_span_tells_of_a_generation(spans: Any) -> None:
    from opentelemetry import trace

    model = ScriptedModel(["a", "b"])
    chat = [{"role": "user", "content": "hi"}]
    with trace.get_tracer("test").start_as_current_span("request") as parent:
        kwargs: dict[str, Any] = {
            "max_new_tokens": 7,
            "temperature": 0.5,
            "do_sample": True,
            "stop": ["x"],
        }
        async with stream_text(model, model.tokenizer, chat, **kwargs) as stream:
            assert not spans.get_finished_spans()
            await stream.read()
        (span,) = spans.get_finished_spans()
    assert span.name == "chat ScriptedModel"
    assert span.parent.span_id == parent.get_span_context().span_id
    assert span.status.is_ok or span.status.is_unset
    attributes = dict(span.attributes)
    assert attributes.pop("anystreamer.timing.queued") >= 0
    first_token = attributes.pop("anystreamer.timing.first_token")
    assert first_token > 0
    assert attributes.pop("gen_ai.response.time_to_first_chunk") >= first_token
    assert attributes == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "transformers",
        "gen_ai.output.type": "text",
        "gen_ai.request.model": "ScriptedModel",
        "gen_ai.request.max_tokens": 7,
        "gen_ai.request.stop_sequences": ("x",),
        "gen_ai.request.temperature": 0.5,
        "gen_ai.response.finish_reasons": ("eos",),
        "gen_ai.usage.input_tokens": len(stream.prompt_token_ids),
        "gen_ai.usage.output_tokens": 3,
        "anystreamer.usage.computed_tokens": 3,
    }


async def test_a_span_tells_of_a_failure(spans: Any) -> None:
    model = ScriptedModel(["a", OSError("no memory")])
    with pytest.raises(OSError, match="no memory"):
        async with stream_text(model, model.tokenizer, "hi") as stream:
            await stream.read()
    (span,) = spans.get_finished_spans()
    assert span.name == "text_completion ScriptedModel"
    assert not span.status.is_ok
    assert span.attributes["error.type"] == "OSError"
    assert span.attributes["gen_ai.response.finish_reasons"] == ("error",)
    assert [event.name for event in span.events] == ["exception"]


async def test_a_cancelled_generation_is_no_failure(spans: Any) -> None:
    model = ScriptedModel(["a"] * 100_000, delay=0.001)
    async with stream_text(model, model.tokenizer, "hi") as stream:
        await stream.receive()
    (span,) = spans.get_finished_spans()
    assert span.status.is_unset
    assert span.attributes["gen_ai.response.finish_reasons"] == ("cancelled",)


async def test_the_rows_of_a_batch_share_a_span(spans: Any) -> None:
    model = ScriptedModel(["a"])
    async with stream_batch(model, model.tokenizer, ["hi"]) as stream:
        await stream.read()
    (span,) = spans.get_finished_spans()
    assert span.attributes["gen_ai.response.finish_reasons"] == ("eos",)
    assert span.attributes["gen_ai.usage.output_tokens"] == 2


def test_who_does_not_use_opentelemetry_does_not_load_it() -> None:
    program = """
        import sys, anyio
        from anystreamer import stream_text
        from anystreamer.testing import ScriptedModel

        async def main():
            model = ScriptedModel(["a"])
            async with stream_text(model, model.tokenizer, "hi") as stream:
                assert await stream.read() == "a"
                assert stream._state.span is None

        anyio.run(main)
        assert not [name for name in sys.modules if name.startswith("opentelemetry")]
    """
    subprocess.run([sys.executable, "-W", "error", "-c", textwrap.dedent(program)], check=True)
