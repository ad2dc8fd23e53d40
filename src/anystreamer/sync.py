"""The same streams for callers with no event loop: Flask, Django, Gradio, notebooks, scripts."""

from __future__ import annotations

import atexit
import contextlib
import os
import threading
import weakref
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import Future
from functools import partial
from types import TracebackType
from typing import Any, Generic, ParamSpec, Self, TypeVar, cast, overload

import anyio
from anyio.from_thread import BlockingPortal
from anyio.lowlevel import current_token

from ._bridge import StreamContext, StreamState
from ._engine import Engine, EngineStatistics
from ._engine import open_engine as _open_engine
from ._errors import EngineClosed
from ._generation import stream_batch as _stream_batch
from ._generation import stream_text as _stream_text
from ._streams import BatchStream, GenerationStream, TextChunk, TextStream

__all__ = ["SyncEngine", "SyncStream", "open_engine", "stream_batch", "stream_text"]

P = ParamSpec("P")
T = TypeVar("T")
ResultT = TypeVar("ResultT")
StreamT = TypeVar("StreamT", bound=GenerationStream)

# Seconds that the interpreter's exit waits for streams that were left open.
_EXIT_PATIENCE = 5.0

# How often the loop looks whether an open stream has been forgotten (seconds).
_OWNER_POLL = 1.0


class _Portal:
    """The one event loop that all callers of a process share, in a daemon thread of its own.

    Shared, because one model runs one generation at a time in one event loop: a loop for each of a
    server's threads would mean nothing. Started on first use, and anew in a forked child.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._portal: BlockingPortal | None = None
        self._thread: threading.Thread
        self._pid = 0

    def get(self) -> BlockingPortal:
        with self._lock:
            if self._portal is None or self._pid != os.getpid():
                started: Future[BlockingPortal] = Future()
                self._thread = threading.Thread(
                    target=anyio.run,
                    args=(self._serve, started),
                    name="anystreamer portal",
                    daemon=True,  # its workers inherit it: an open stream must not keep a process
                )
                self._thread.start()
                self._portal, self._pid = started.result(), os.getpid()
            return self._portal

    async def _serve(self, started: Future[BlockingPortal]) -> None:
        async with BlockingPortal() as portal:
            started.set_result(portal)
            await portal.sleep_until_stopped()

    def close(self) -> None:
        """Stop what is open, so that no thread is inside of a model when the interpreter goes."""
        portal, self._portal = self._portal, None
        if portal is not None and self._pid == os.getpid():
            with contextlib.suppress(RuntimeError):
                portal.start_task_soon(portal.stop, True)
            self._thread.join(_EXIT_PATIENCE)


_portal = _Portal()
atexit.register(_portal.close)


class SyncStream(Generic[StreamT]):
    """A `TextStream` or `BatchStream` for a ``with`` block and a ``for`` loop.

    It may be opened in one thread and advanced or closed in others. All that tells of the text,
    such as ``text``, ``finish_reason`` and ``usage``, is there under the same names. A second
    ``for`` loop goes on where the first was left. One that is forgotten stops its model when it is
    collected.
    """

    def __init__(self, name: str, open_stream: Callable[[], StreamContext[StreamT]]) -> None:
        self._name = name
        self._context = open_stream()
        self._portal: BlockingPortal
        self._stream: StreamT
        self._done: Future[BaseException | None] | None = None
        self._error_seen = False

    def __enter__(self) -> Self:
        if self._done is not None:
            raise RuntimeError(f"this {self._name}() has been opened before; call it again")
        self._portal = _portal.get()
        self._done, (self._stream, self._close_requested) = self._portal.start_task(
            _own_stream, self._context, weakref.ref(self)
        )
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            self.close()
        except BaseException as error:
            if exc is None or isinstance(error, KeyboardInterrupt):
                raise
            if error is not exc:
                exc.add_note(f"The worker of {self._name}() failed as well: {error!r}")

    def __iter__(self) -> Iterator[TextChunk]:
        self._opened()
        return self

    def __next__(self) -> TextChunk:
        """Return the next piece; block until there is one.

        Raises:
            BaseException: what ``generate()`` raised, after all text that came before it.
        """
        self._opened()
        try:
            return self._call(self._stream.receive)
        except (anyio.EndOfStream, anyio.ClosedResourceError):  # closed: from another thread
            pass
        raise StopIteration

    @overload
    def read(self: SyncStream[TextStream]) -> str: ...
    @overload
    def read(self: SyncStream[BatchStream]) -> list[str]: ...
    def read(self) -> Any:
        """Return all the rest: a `str`, or a list of them from a batch.

        Raises:
            BaseException: what ``generate()`` raised; ``text`` has what came before.
        """
        self._opened()
        return self._call(self._stream.read)  # type: ignore[attr-defined]

    def stop(self, *row: int) -> None:
        """Ask the model to end after the current step, as `TextStream.stop` does."""
        self._opened()
        self._stream.stop(*row)

    def close(self) -> None:
        """Stop the model, and wait until its thread has left it. Called by the end of the block.

        Raises:
            BaseException: what ``generate()`` raised, if nobody has seen it.
        """
        if self._done is None:
            return
        seen = self._error_seen
        self._state.abandon()
        with contextlib.suppress(RuntimeError):  # the portal has been closed, and with it this
            self._portal.call(self._close_requested.set)
        error, self._error_seen = self._done.result(), True
        if error is not None and not seen:
            raise error

    def __del__(self) -> None:
        # Any thread may be collecting, the loop's own too. So ask only; the worker looks.
        if getattr(self, "_done", None) is not None:
            self._state.abandon()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        self._opened()
        return getattr(self._stream, name)

    @property
    def _state(self) -> StreamState[Any]:
        task = self._context.task
        assert task is not None
        return task.state

    def _call(self, func: Callable[[], Awaitable[T]]) -> T:
        value, error = self._portal.call(_outcome, func)
        if error is not None:
            raise error
        return cast("T", value)

    def _opened(self) -> None:
        if self._done is None:
            raise TypeError(
                f"{self._name}() must be opened first: "
                f"'with {self._name}(...) as stream:', then 'for text in stream:'"
            )


class SyncEngine:
    """An engine for callers with no event loop, in any number of threads at once.

    `open_engine` gives one. One that is open in an event loop can be used from other threads as
    ``SyncEngine(engine)``: from the ``def`` routes of an async application, say.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def stream_text(self, prompt: Any, **arguments: Any) -> SyncStream[TextStream]:
        """As `Engine.stream_text`, with the same arguments, for ``with`` and ``for``."""
        return _EngineStream(self._engine, lambda: self._engine.stream_text(prompt, **arguments))

    def statistics(self) -> EngineStatistics:
        """As `Engine.statistics`."""
        return self._engine.statistics()


class _EngineGone(EngineClosed):
    """The engine's block has been left: its event loop may be gone."""


class _EngineStream(SyncStream[TextStream]):
    """A stream of an engine needs no task to hold it: any call may open, read and close it."""

    def __init__(self, engine: Any, open_stream: Callable[[], StreamContext[TextStream]]) -> None:
        super().__init__("stream_text", open_stream)
        self._engine = engine
        self._lock = threading.Lock()
        self._is_closing = False

    def __enter__(self) -> Self:
        if self._done is not None:
            raise RuntimeError(f"this {self._name}() has been opened before; call it again")
        self._stream = self._call(self._context.__aenter__)
        self._done = Future()
        return self

    def close(self) -> None:
        if self._done is None:
            return
        with self._lock:
            is_first, self._is_closing = not self._is_closing, True
        if not is_first:
            self._done.result()
            return
        try:
            self._state.abandon()
            self._call(partial(self._context.__aexit__, None, None, None))
        except _EngineGone:
            if (error := self._state.close_and_take_error()) is not None:
                raise error from None
        finally:
            self._done.set_result(None)

    def __next__(self) -> TextChunk:
        try:
            return super().__next__()
        except _EngineGone:  # nobody but us touches the stream any more
            pass
        try:
            return self._stream.receive_nowait()
        except (anyio.WouldBlock, anyio.EndOfStream, anyio.ClosedResourceError):
            raise StopIteration from None

    def read(self) -> str:
        self._opened()
        return "".join(self)

    def _call(self, func: Callable[[], Awaitable[T]]) -> T:
        """Call *func* in a task of the engine.

        Not by `from_thread.run`: on asyncio that puts it into the scopes around this thread, and
        one of them that is cancelled would keep it from ever ending.
        """
        with contextlib.suppress(RuntimeError):  # no event loop here: good
            if current_token() == self._engine.token:
                raise BlockingIOError("this would wait for its own event loop: use the engine")
        done: Future[tuple[T | None, BaseException | None]] = Future()

        async def call() -> None:
            try:
                done.set_result(await _outcome(func))
            finally:
                if not done.done():  # the engine is being cancelled
                    done.set_result((None, _EngineGone()))

        with self._engine.allow_cross_thread_call() as may_cross:
            if not may_cross:
                raise _EngineGone
            try:
                anyio.from_thread.run_sync(
                    lambda: self._engine.start(call()), token=self._engine.token
                )
            except RuntimeError as exc:  # its task group has ended
                raise _EngineGone from exc
            value, error = done.result()
        if error is not None:
            raise error
        return cast("T", value)


async def _own_stream(
    context: StreamContext[StreamT],
    owner: weakref.ref[SyncStream[StreamT]],
    *,
    task_status: anyio.abc.TaskStatus[Any],
) -> BaseException | None:
    """Own a stream's block in a task of the portal, for as long as its owner keeps it open."""
    close_requested = anyio.Event()
    is_open = False
    try:
        async with context as stream:
            is_open = True
            task_status.started((stream, close_requested))
            while owner() is not None and not close_requested.is_set():
                with anyio.move_on_after(_OWNER_POLL):
                    await close_requested.wait()
    except anyio.get_cancelled_exc_class():
        raise
    except BaseException as error:
        if not is_open:
            raise
        return error  # one that is no Exception would take the portal down
    return None


async def _outcome(func: Callable[[], Awaitable[T]]) -> tuple[T | None, BaseException | None]:
    try:
        return await func(), None
    except anyio.get_cancelled_exc_class():
        raise
    except BaseException as error:
        return None, error


def _copy_signature(
    _: Callable[P, object],
) -> Callable[[Callable[..., ResultT]], Callable[P, ResultT]]:
    """Let type checkers check a function's arguments as they check those of another one."""
    return lambda function: function


@_copy_signature(_stream_text)
def stream_text(*args: Any, **kwargs: Any) -> SyncStream[TextStream]:
    """As `anystreamer.stream_text`, with the same arguments, for ``with`` and ``for``."""
    return SyncStream("stream_text", lambda: _stream_text(*args, **kwargs))


@_copy_signature(_stream_batch)
def stream_batch(*args: Any, **kwargs: Any) -> SyncStream[BatchStream]:
    """As `anystreamer.stream_batch`, with the same arguments, for ``with`` and ``for``."""
    return SyncStream("stream_batch", lambda: _stream_batch(*args, **kwargs))


@_copy_signature(_open_engine)
def open_engine(*args: Any, **kwargs: Any) -> contextlib.AbstractContextManager[SyncEngine]:
    """As `anystreamer.open_engine`, with the same arguments, for ``with`` and many threads."""
    return _owned(_open_engine(*args, **kwargs))


@contextlib.contextmanager
def _owned(context: contextlib.AbstractAsyncContextManager[Engine]) -> Iterator[SyncEngine]:
    with _portal.get().wrap_async_context_manager(context) as engine:
        yield SyncEngine(engine)
