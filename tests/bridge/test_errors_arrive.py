"""Promise 4: what fails arrives as the same object, bare, once."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import anyio
import pytest
from anyio import CancelScope, create_task_group, from_thread
from anyio.lowlevel import checkpoint

from anystreamer import GenerationStopped, stream_from_thread

from ..helpers.errors import is_untouched, raised
from ..helpers.inside import state_of
from ..helpers.scripted import Emit, Latch, Scripted, ShouldStop, rest, until
from ..helpers.ways_out import BodyError


class Fatal(BaseException):
    pass


class Falsy(Exception):
    """Has a length of 0, so its truth value is false."""

    def __len__(self) -> int:
        return 0


class Unequal(Exception):
    """Cannot be compared, and has no repr."""

    def __eq__(self, other: object) -> bool:
        raise AssertionError

    __hash__ = None  # type: ignore[assignment]


ERRORS = {
    "Exception": lambda: ValueError("wrong"),
    "TimeoutError": TimeoutError,
    "SystemExit": lambda: SystemExit(3),
    "KeyboardInterrupt": KeyboardInterrupt,
    "BaseException": Fatal,
    "ExceptionGroup": lambda: ExceptionGroup("theirs", [ValueError(), TypeError()]),
    "BaseExceptionGroup": lambda: BaseExceptionGroup(
        "theirs", [Fatal(), ExceptionGroup("", [OSError()])]
    ),
    "ClosedResourceError": anyio.ClosedResourceError,
    "BusyResourceError": lambda: anyio.BusyResourceError("theirs"),
    "WouldBlock": anyio.WouldBlock,
    "RuntimeError": lambda: RuntimeError("theirs"),
    "GenerationStopped": GenerationStopped,
    "falsy": Falsy,
    "unequal": Unequal,
}


each_error = pytest.mark.parametrize("make", ERRORS.values(), ids=ERRORS)


@each_error
@pytest.mark.parametrize("position", [0, 3])
async def test_an_error_of_the_producer_is_raised_by_receive_after_the_items_before_it(
    make: Callable[[], BaseException], position: int
) -> None:
    """The very same object, bare, untouched."""
    error = raised(make())
    received: list[Any] = []
    with pytest.raises(BaseException) as caught:  # noqa: PT011
        async with stream_from_thread(Scripted(fails={position: error})) as stream:
            async for item in stream:
                received.append(item)
    assert caught.value is error
    assert is_untouched(error)
    assert received == list(range(position))


@each_error
async def test_an_error_that_was_not_received_is_raised_at_the_end_of_the_block(
    make: Callable[[], BaseException],
) -> None:
    error = raised(make())
    producer = Scripted(fails={2: error})
    with pytest.raises(BaseException) as caught:  # noqa: PT011
        async with stream_from_thread(producer):
            await until(lambda: producer.has_left)
    assert caught.value is error
    assert is_untouched(error)


@pytest.mark.parametrize(
    "make",
    # GenerationStopped is the normal end of a stopped producer.
    [make for make in ERRORS.values() if make is not GenerationStopped],
    ids=[name for name in ERRORS if name != "GenerationStopped"],
)
async def test_an_error_and_a_cancelled_scope_together_the_error_wins(
    make: Callable[[], BaseException],
) -> None:
    """It comes from the very step in which the scope is cancelled, by the thread itself."""
    error = raised(make())

    def produce(emit: Emit, should_stop: ShouldStop) -> None:
        emit(0)
        from_thread.run_sync(scope.cancel)
        raise error

    with CancelScope() as scope:
        with pytest.raises(BaseException) as caught:  # noqa: PT011
            async with stream_from_thread(produce) as stream:
                await rest(stream)
                await anyio.sleep_forever()
    assert caught.value is error
    assert isinstance(error.__cause__, LookupError)  # the context is up to CPython here


async def test_an_error_received_while_another_is_handled_keeps_its_own_context() -> None:
    error = raised(ValueError())
    async with stream_from_thread(Scripted(fails={0: error})) as stream:
        try:
            raise OSError
        except OSError:
            with pytest.raises(ValueError):  # noqa: PT011
                await stream.receive()
    assert is_untouched(error)


async def test_an_error_wins_at_the_end_of_a_block_that_is_left_by_cancellation() -> None:
    error = raised(ValueError())
    producer = Scripted(fails={0: error})
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        with CancelScope() as scope:
            async with stream_from_thread(producer):
                await until(lambda: producer.has_left)
                scope.cancel()
                await anyio.sleep_forever()
    assert caught.value is error
    assert isinstance(error.__cause__, LookupError)  # the context is up to CPython here


async def a_cancellation() -> BaseException:
    """Catch one that belongs to another scope."""
    with CancelScope() as scope:
        scope.cancel()
        try:
            await checkpoint()
        except anyio.get_cancelled_exc_class() as exc:
            foreign = exc
            raise
    return foreign


@pytest.mark.parametrize(
    "make", [StopIteration, StopAsyncIteration, GeneratorExit, anyio.EndOfStream, None]
)
@pytest.mark.parametrize("reading", [True, False])
async def test_an_error_that_looks_like_an_end_or_a_cancellation_is_wrapped(
    make: Callable[[], BaseException] | None, reading: bool
) -> None:
    error = make() if make else await a_cancellation()
    producer = Scripted(fails={1: error})
    received: list[Any] = []
    with pytest.raises(RuntimeError) as caught:
        async with stream_from_thread(producer) as stream:
            if reading:
                async for item in stream:
                    received.append(item)
            else:
                await until(lambda: producer.has_left)
    assert type(caught.value) is RuntimeError
    assert caught.value.__cause__ is error
    assert type(error).__name__ in str(caught.value)
    assert received == ([0] if reading else [])


async def test_a_cancellation_that_the_producer_lets_through_is_a_stop() -> None:
    """A producer that calls anyio's own check does not have to catch it."""

    def produce(emit: Emit, should_stop: ShouldStop) -> None:
        emit(0)
        while True:
            from_thread.check_cancelled()
            time.sleep(0.0002)

    with CancelScope() as scope:
        async with stream_from_thread(produce) as stream:
            assert await stream.receive() == 0
            scope.cancel()
            await stream.receive()
    assert scope.cancelled_caught

    async with stream_from_thread(produce) as stream:
        assert await stream.receive() == 0


async def test_of_two_errors_the_bodys_wins_and_the_producers_becomes_a_note() -> None:
    producer = Scripted(fails={0: ValueError("the worker's")})
    error = raised(BodyError())
    with pytest.raises(BodyError) as caught:
        async with stream_from_thread(producer):
            await until(lambda: producer.has_left)
            raise error
    assert caught.value is error
    assert caught.value.__cause__ is not None
    (note,) = caught.value.__notes__
    assert "ValueError" in note
    assert "the worker's" in note
    assert "Scripted" in note


async def test_an_error_while_stopping_becomes_a_note_too() -> None:
    def produce(emit: Emit, should_stop: ShouldStop) -> None:
        try:
            while True:
                emit(0)
        except GenerationStopped:
            raise ValueError("while cleaning up") from None

    with pytest.raises(BodyError) as caught:
        async with stream_from_thread(produce) as stream:
            await stream.receive()
            raise BodyError
    assert "while cleaning up" in caught.value.__notes__[0]

    with pytest.raises(ValueError, match="while cleaning up"):
        async with stream_from_thread(produce) as stream:
            await stream.receive()

    with pytest.raises(ValueError, match="while cleaning up"):
        async with stream_from_thread(produce) as stream:
            await stream.receive()
            await stream.aclose()


async def test_an_error_without_a_repr_hides_nothing() -> None:
    class Unspeakable(Exception):
        def __repr__(self) -> str:
            raise AssertionError

        __str__ = __repr__

    producer = Scripted(fails={0: Unspeakable()})
    with pytest.raises(BodyError) as caught:
        async with stream_from_thread(producer):
            await until(lambda: producer.has_left)
            raise BodyError
    assert "Unspeakable" in caught.value.__notes__[0]


@each_error
async def test_an_error_of_the_body_passes_as_the_same_object(
    make: Callable[[], BaseException],
) -> None:
    """On trio too, where a nursery would rebuild a group; and nothing is added to it."""
    error = raised(make())
    with pytest.raises(BaseException) as caught:  # noqa: PT011
        async with stream_from_thread(Scripted()) as stream:
            await stream.receive()
            raise error
    assert caught.value is error
    assert is_untouched(error)


async def test_a_received_error_that_leaves_the_body_gets_no_note() -> None:
    error = ValueError()
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        async with stream_from_thread(Scripted(fails={0: error})) as stream:
            await rest(stream)
    assert caught.value is error
    assert not hasattr(error, "__notes__")


async def test_an_error_that_was_received_and_handled_is_not_raised_again() -> None:
    async with stream_from_thread(Scripted(fails={0: ValueError()})) as stream:
        with pytest.raises(ValueError):  # noqa: PT011
            await stream.receive()

    with CancelScope() as scope:
        async with stream_from_thread(Scripted(fails={0: ValueError()})) as stream:
            with pytest.raises(ValueError):  # noqa: PT011
                await stream.receive()
            scope.cancel()
            await anyio.sleep_forever()

    with pytest.raises(BodyError) as caught:
        async with stream_from_thread(Scripted(fails={0: ValueError()})) as stream:
            with pytest.raises(ValueError):  # noqa: PT011
                await stream.receive()
            raise BodyError
    assert not hasattr(caught.value, "__notes__")


async def test_an_error_is_raised_out_of_a_block_whose_stream_was_closed() -> None:
    error = ValueError()
    producer = Scripted(fails={0: error})
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        async with stream_from_thread(producer) as stream:
            await until(lambda: producer.has_left)
            await stream.aclose()
            with pytest.raises(anyio.ClosedResourceError):
                await stream.receive()
    assert caught.value is error


async def test_a_bodys_error_survives_an_outer_cancellation_during_the_join() -> None:
    latch = Latch("item")

    async def cancel() -> None:
        outer.cancel()
        with CancelScope(shield=True):
            await anyio.wait_all_tasks_blocked()
            latch.let_go()

    async with create_task_group() as tg:
        with CancelScope() as outer:
            with pytest.raises(BodyError):
                async with stream_from_thread(latch) as stream:
                    await stream.receive()
                    await until(latch.holding.is_set)
                    tg.start_soon(cancel)
                    raise BodyError
            assert not latch.running
            await checkpoint()
        assert outer.cancelled_caught


async def test_a_group_of_the_users_own_nursery_passes_through() -> None:
    with pytest.raises(ExceptionGroup) as caught:
        async with stream_from_thread(Scripted()) as stream:
            async with create_task_group() as tg:

                async def fail() -> None:
                    raise BodyError

                tg.start_soon(fail)
                await rest(stream)
    assert [type(exc) for exc in caught.value.exceptions] == [BodyError]


@pytest.mark.parametrize("reading", [True, False])
async def test_an_error_leaves_no_reference_cycle(reading: bool) -> None:
    """A traceback leads to frames, these to the stream, which must not lead back to the error."""
    producer = Scripted(fails={0: ValueError()})
    with pytest.raises(ValueError):  # noqa: PT011
        async with stream_from_thread(producer) as stream:
            if reading:
                await stream.receive()
            else:
                await until(lambda: producer.has_left)
    assert state_of(stream).error is None
