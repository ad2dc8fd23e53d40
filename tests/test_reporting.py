"""A log, a tracer or a span that fails: the outcome and the release of a stream stay the same."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any, NoReturn

import pytest

import anystreamer
from anystreamer import open_engine, stream_batch, stream_from_thread, stream_text, sync
from anystreamer._reporting import SafeLogger, reporting
from anystreamer.testing import ScriptedModel

from .helpers.misbehaving import MISBEHAVING
from .helpers.scripted import Scripted

NO_MEMORY = OSError("no memory")


class Fails(BaseException):
    """What a part of the application raises. It is not an Exception, as SystemExit is not one."""


def fail(*_: object, **__: object) -> NoReturn:
    raise Fails


class FailingHandler(logging.Handler):
    emit = handle = fail


class FailingSpan:
    """A span in which everything fails but what says that it records."""

    def is_recording(self) -> bool:
        return True

    set_attributes = set_attribute = set_status = record_exception = add_event = end = fail


@pytest.fixture(params=["handler", "filter", "level", "tracer", "span"])
def failing(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The part of an application's reporting that fails."""
    logger = logging.getLogger("anystreamer")
    monkeypatch.setattr(logger, "level", logging.DEBUG)
    handler = FailingHandler()
    if request.param == "handler":
        logger.addHandler(handler)
    elif request.param == "filter":
        logger.addFilter(fail)
    elif request.param == "level":
        monkeypatch.setattr(logger, "isEnabledFor", fail)
    else:
        trace = pytest.importorskip("opentelemetry.trace")
        start = fail if request.param == "tracer" else lambda *_, **__: FailingSpan()
        monkeypatch.setattr(trace, "get_tracer", lambda _: type("", (), {"start_span": start})())
    yield request.param
    logger.removeHandler(handler)
    logger.removeFilter(fail)


@pytest.fixture(autouse=True)
def all_is_released() -> Iterator[None]:
    before = anystreamer.statistics()
    yield
    now = anystreamer.statistics()
    for name in ("waiting", "running", "threads"):
        assert getattr(now, name) == getattr(before, name), name


@pytest.mark.usefixtures("failing")
async def test_the_items_and_the_error_of_a_producer_arrive() -> None:
    producer = Scripted(fails={2: NO_MEMORY})
    items = []
    with pytest.raises(OSError, match="no memory") as caught:
        async with stream_from_thread(producer) as stream:
            async for item in stream:
                items.append(item)
    assert caught.value is NO_MEMORY
    assert items == [0, 1]
    assert producer.has_left


@pytest.mark.usefixtures("failing")
async def test_the_error_of_the_body_wins_over_the_producers() -> None:
    for kind in MISBEHAVING:
        body = kind()
        with pytest.raises(type(body)) as caught:
            async with stream_from_thread(Scripted(1, fails={0: NO_MEMORY})):
                raise body
        assert caught.value is body


@pytest.mark.usefixtures("failing")
async def test_a_generation_has_its_text_and_its_reason() -> None:
    model = ScriptedModel(["a", "b"])
    async with stream_text(model, model.tokenizer, "hi") as stream:
        assert await stream.read() == "ab"
        assert stream.finish_reason == "eos"
    async with stream_batch(model, model.tokenizer, ["hi"]) as batch:
        assert await batch.read() == ["ab"]
    async with open_engine(model, model.tokenizer) as engine:
        async with engine.stream_text("hi") as stream:
            assert await stream.read() == "ab"
    assert not model.is_generating


@pytest.mark.usefixtures("failing")
async def test_the_error_of_a_generation_arrives() -> None:
    for opened in (stream_text, stream_batch):
        model = ScriptedModel(["a", NO_MEMORY])
        prompt: Any = "hi" if opened is stream_text else ["hi"]
        with pytest.raises(OSError, match="no memory") as caught:
            async with opened(model, model.tokenizer, prompt) as stream:
                await stream.read()
        assert caught.value is NO_MEMORY


@pytest.mark.usefixtures("failing")
def test_a_stream_without_a_loop_has_its_text() -> None:
    model = ScriptedModel(["a", "b"])
    with sync.stream_text(model, model.tokenizer, "hi") as stream:
        assert stream.read() == "ab"


def test_a_failure_to_report_is_printed_as_logging_does_it(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with reporting:
        raise Fails
    assert capfd.readouterr().err.endswith("Fails\n")
    for kind in MISBEHAVING:
        with reporting:
            raise kind()
    monkeypatch.setattr("sys.stderr", None)
    with reporting:
        raise Fails
    monkeypatch.undo()
    capfd.readouterr()
    monkeypatch.setattr(logging, "raiseExceptions", False)
    with reporting:
        raise Fails
    assert capfd.readouterr().err == ""


def test_a_ctrl_c_while_something_is_reported_is_one() -> None:
    with pytest.raises(KeyboardInterrupt), reporting:
        raise KeyboardInterrupt


def test_a_record_names_the_line_that_wrote_it(caplog: pytest.LogCaptureFixture) -> None:
    SafeLogger().warning("%s", "here")
    (record,) = caplog.records
    assert record.funcName == "test_a_record_names_the_line_that_wrote_it"
