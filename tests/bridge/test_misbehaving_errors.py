"""Exceptions that misbehave arrive as the very object that was raised, and so do those beside them.

Promise 4 says: the very same object. What decorates an exception on its way (a context, a note, the
log, a span) must not take its place.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest

from anystreamer import (
    open_engine,
    stream_batch,
    stream_from_thread,
    stream_iterable,
    stream_text,
    sync,
)
from anystreamer.testing import ScriptedModel

from ..helpers.logged import logged_by_us
from ..helpers.misbehaving import MISBEHAVING
from ..helpers.scripted import Emit, ShouldStop

every_kind = pytest.mark.parametrize("kind", MISBEHAVING)


@pytest.fixture(autouse=True)
def log_is_written(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, logger="anystreamer")


def failing(error: BaseException) -> Callable[[Emit, ShouldStop], None]:
    def produce(emit: Emit, should_stop: ShouldStop) -> None:
        emit(1)
        raise error

    return produce


class FailingModel(ScriptedModel):
    """Raises an exception after its text."""

    def __init__(self, error: BaseException) -> None:
        super().__init__(["a"])
        self.error = error
        self.has_failed = False

    def generate(self, **kwargs: Any) -> Any:
        super().generate(**kwargs)
        self.has_failed = True
        raise self.error


async def outcome(func: Callable[[], Awaitable[object]]) -> BaseException | None:
    try:
        await func()
    except BaseException as exc:
        return exc
    return None


@every_kind
async def test_from_a_receive(kind: Callable[[], BaseException]) -> None:
    error = kind()

    async def receive() -> None:
        async with stream_from_thread(failing(error)) as stream:
            async for _ in stream:
                pass

    assert await outcome(receive) is error


@every_kind
async def test_from_a_receive_while_another_exception_is_handled(
    kind: Callable[[], BaseException],
) -> None:
    error = kind()

    async def receive() -> None:
        async with stream_from_thread(failing(error)) as stream:
            try:
                raise KeyError
            except KeyError:
                async for _ in stream:
                    pass

    assert await outcome(receive) is error


@every_kind
async def test_from_the_end_of_the_block(kind: Callable[[], BaseException]) -> None:
    error = kind()

    async def leave() -> None:
        async with stream_from_thread(failing(error)) as stream:
            await stream.receive()

    assert await outcome(leave) is error


@every_kind
async def test_from_the_body_beside_a_failing_worker(
    kind: Callable[[], BaseException], caplog: pytest.LogCaptureFixture
) -> None:
    """The worker's error is a note, or is in the log where the body's error takes no notes."""
    error = kind()

    async def leave() -> None:
        async with stream_from_thread(failing(OSError("no memory"))) as stream:
            await stream.receive()
            raise error

    assert await outcome(leave) is error
    notes: list[str] = []
    with suppress(BaseException):
        notes = [*error.__notes__]
    (note,) = [*notes, *logged_by_us(caplog)]
    assert note == "The worker of failing.<locals>.produce failed as well: OSError: no memory"


@every_kind
async def test_from_the_worker_beside_a_failing_body(kind: Callable[[], BaseException]) -> None:
    error, bodys = kind(), ValueError("body")

    async def leave() -> None:
        async with stream_from_thread(failing(error)) as stream:
            await stream.receive()
            raise bodys

    assert await outcome(leave) is bodys
    (note,) = bodys.__notes__
    assert kind.__name__ in note


@every_kind
@pytest.mark.parametrize("where", ["making", "next", "close", "close of both"])
async def test_from_an_iterable(kind: Callable[[], BaseException], where: str) -> None:
    error = kind()

    class Items:
        def __iter__(self) -> Any:
            return Items() if where == "close of both" else self

        def __next__(self) -> int:
            if where == "next":
                raise error
            raise StopIteration

        def close(self) -> None:
            if where.startswith("close"):
                raise error

    def make() -> Items:
        if where == "making":
            raise error
        return Items()

    async def receive() -> None:
        async with stream_iterable(make) as stream:
            async for _ in stream:
                pass

    assert await outcome(receive) is error


@every_kind
async def test_from_generate(kind: Callable[[], BaseException]) -> None:
    error = kind()
    model = FailingModel(error)

    async def read() -> None:
        async with stream_text(model, model.tokenizer, "hi") as stream:
            await stream.read()

    assert await outcome(read) is error


@every_kind
@pytest.mark.parametrize("swallows", [False, True])
async def test_from_generate_in_a_worker_context(
    kind: Callable[[], BaseException], swallows: bool
) -> None:
    """`contextlib` sets the traceback of an exception, which its class can refuse."""
    error = kind()
    model = FailingModel(error)

    @contextmanager
    def context() -> Iterator[None]:
        with suppress(*([Exception] if swallows else [])):
            yield

    async def read() -> None:
        async with stream_text(model, model.tokenizer, "hi", worker_context=context) as stream:
            assert await stream.read() == "a"

    assert await outcome(read) is (None if swallows else error)


@every_kind
async def test_from_a_worker_context(kind: Callable[[], BaseException]) -> None:
    """Its own error, in place of that of `generate()`."""
    error = kind()
    model = FailingModel(OSError("no memory"))

    @contextmanager
    def context() -> Iterator[None]:
        try:
            yield
        finally:
            raise error

    async def read() -> None:
        async with stream_text(model, model.tokenizer, "hi", worker_context=context) as stream:
            await stream.read()

    assert await outcome(read) is error


@every_kind
async def test_from_a_scripted_model(kind: Callable[[], BaseException]) -> None:
    error = kind()
    model = ScriptedModel(["a", error])

    async def read() -> None:
        async with stream_text(model, model.tokenizer, "hi") as stream:
            await stream.read()

    assert await outcome(read) is error


@every_kind
async def test_from_generate_whose_text_cannot_be_finished_either(
    kind: Callable[[], BaseException],
) -> None:
    """What is held back is decoded after the error, and that fails in its own way."""
    error = kind()

    class Tokenizer(type(ScriptedModel([]).tokenizer)):  # type: ignore[misc]
        def decode(self, *args: Any, **kwargs: Any) -> str:
            if model.has_failed:
                raise BaseException("as a panic of Rust")
            return str(super().decode(*args, **kwargs))

    model = FailingModel(error)
    model.tokenizer.__class__ = Tokenizer

    async def read() -> None:
        async with stream_text(model, model.tokenizer, "hi", stop="ab") as stream:
            await stream.read()

    assert await outcome(read) is error


@every_kind
async def test_from_a_batch(kind: Callable[[], BaseException]) -> None:
    error = kind()
    model = FailingModel(error)

    async def read() -> None:
        async with stream_batch(model, model.tokenizer, ["hi"]) as stream:
            await stream.read()

    assert await outcome(read) is error


@every_kind
@pytest.mark.parametrize("in_an_engine", [False, True])
async def test_from_the_encoding(kind: Callable[[], BaseException], in_an_engine: bool) -> None:
    error = kind()
    model = ScriptedModel(["a"])

    class Tokenizer(type(model.tokenizer)):  # type: ignore[misc]
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            raise error

    model.tokenizer.__class__ = Tokenizer

    async def enter() -> None:
        if in_an_engine:
            async with open_engine(model, model.tokenizer) as engine:
                async with engine.stream_text("hi"):
                    pass
        else:
            async with stream_text(model, model.tokenizer, "hi"):
                pass

    assert await outcome(enter) is error


@every_kind
async def test_from_an_engine(kind: Callable[[], BaseException]) -> None:
    error = kind()
    model = FailingModel(error)

    async def read() -> None:
        async with open_engine(model, model.tokenizer) as engine:
            async with engine.stream_text("hi") as stream:
                await stream.read()

    assert await outcome(read) is error


@every_kind
@pytest.mark.parametrize("where", ["worker", "body", "body of an engine's stream"])
def test_from_a_stream_without_a_loop(kind: Callable[[], BaseException], where: str) -> None:
    error = kind()
    model = FailingModel(error if where == "worker" else OSError("no memory"))
    found: BaseException | None = None
    try:
        if where == "body of an engine's stream":
            with sync.open_engine(model, model.tokenizer) as engine:
                try:
                    with engine.stream_text("hi"):
                        raise error
                except BaseException as exc:
                    found = exc
        else:
            with sync.stream_text(model, model.tokenizer, "hi") as stream:
                if where == "body":
                    raise error
                stream.read()
    except BaseException as exc:
        found = exc
    assert found is error


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


@every_kind
async def test_from_a_generation_with_a_span(kind: Callable[[], BaseException], spans: Any) -> None:
    """The span ends, with the error's type in it."""
    error = kind()
    model = FailingModel(error)

    async def read() -> None:
        async with stream_text(model, model.tokenizer, "hi") as stream:
            await stream.read()

    assert await outcome(read) is error
    (span,) = spans.get_finished_spans()
    assert span.attributes["error.type"] == kind.__name__
    assert not span.status.is_ok
    assert [event.name for event in span.events] == ["exception"]
