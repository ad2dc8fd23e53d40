"""Streams for callers with no event loop: for a ``with`` block and a ``for`` loop."""

from __future__ import annotations

import contextlib
import itertools
import threading
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import Future
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, NoReturn, Self, TypeVar

import anyio

from .._bridge import Ending, LoopGone, StreamContext, ThreadStream
from .._errors import add_note, describe, is_kind, raise_preserving_context
from .._streams import (
    BatchStream,
    FinishReason,
    GenerationStream,
    TextChunk,
    TextStream,
    Timing,
    Usage,
)
from ._portal import Tasks

__all__ = ["SyncBatchStream", "SyncStream", "SyncTextStream", "SyncThreadStream"]

T = TypeVar("T")
ResultT = TypeVar("ResultT")
StreamT = TypeVar("StreamT", bound=ThreadStream[Any])
TextStreamT = TypeVar("TextStreamT", bound=GenerationStream)


class SyncStream(Generic[StreamT, T]):
    """A stream for a ``with`` block and a ``for`` loop.

    It can be opened in one thread, and read or closed in others. A second ``for`` loop goes on
    where the first one was left. A stream that is forgotten stops its producer, such as a model,
    when it is collected.

    Args:
        name: of the public function, for messages.
        new_context: returns the loop's tasks, and the stream's block on that loop.
    """

    _kept = ""  # says where the items still are once the stream has ended

    def __init__(
        self, name: str, new_context: Callable[[], tuple[Tasks, StreamContext[StreamT]]]
    ) -> None:
        self._name = name
        self._new_context = new_context
        self._tasks: Tasks
        self._context: StreamContext[StreamT] | None = None
        self._opened: StreamT | None = None
        self._lock = threading.Lock()
        self._closed: Future[None] | None = None  # set when it is being closed
        self._was_read_to_its_end = False
        self._was_stopped = False  # a loop over what is left can then find nothing

    def __enter__(self) -> Self:
        if self._context is not None:
            raise RuntimeError(f"this {self._name}() has been opened before; call it again")
        self._tasks, context = self._new_context()
        self._tasks.home.check_process()
        self._context = context
        is_wanted = True

        async def enter() -> StreamT:
            stream = await context.__aenter__()
            if not is_wanted and context.task is not None:
                context.task.state.abandon()
            return stream

        try:
            self._opened = self._call(enter)
        except BaseException:  # a Ctrl-C ends only this wait: the block stays open
            is_wanted = False  # first: either we see the task, or the loop sees this
            if context.task is not None:
                context.task.state.abandon()
            raise
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
            if exc is None or is_kind(error, KeyboardInterrupt):
                raise
            if error is not exc:
                add_note(exc, f"The worker of {self._label} failed as well: {describe(error)}")

    def __iter__(self) -> Iterator[T]:
        """Go on with the next item, also where an earlier loop has left off.

        Raises:
            RuntimeError: it has been read to its end before, or the block has ended, so that the
                loop would be empty.
        """
        self._check_opened()
        if self._was_read_to_its_end and not self._was_stopped:
            raise RuntimeError(f"this stream has been read to its end before{self._kept}")
        if self._closed is not None:
            raise RuntimeError(f"this stream is closed: read it before its block ends{self._kept}")
        return self

    def __next__(self) -> T:
        """Return the next item; block until there is one.

        Raises:
            BaseException: the exception of the producer, such as ``generate()``, after all items
                that came before it.
        """
        ended = (anyio.EndOfStream, anyio.ClosedResourceError)  # closed: from another thread
        try:
            item: T = self._call(self._stream.receive)
            return item
        except ended:
            pass
        except LoopGone:  # no other thread touches the stream any more
            with contextlib.suppress(anyio.WouldBlock, *ended):
                item = self._stream.receive_nowait()
                return item
        self._was_read_to_its_end = True
        raise StopIteration

    def receive_many(self, max_items: int | None = None) -> list[T]:
        """Return all items that are ready, in a list; block until there is one. Empty at the end.

        One call into the event loop for all of them, which takes less time than one for each.

        Args:
            max_items: leave what is more than this for the next call.

        Raises:
            BaseException: as from ``next()``.
            TypeError, ValueError: *max_items* is not a whole number, or less than 1.
        """
        try:
            items: list[T] = self._call(partial(self._stream.receive_many, max_items))
            return items
        except (anyio.EndOfStream, anyio.ClosedResourceError):
            return []
        except LoopGone:
            return list(itertools.islice(self._rest(), max_items))

    def _rest(self) -> Iterator[T]:
        with contextlib.suppress(StopIteration):
            while True:
                yield self.__next__()

    def stop(self) -> None:
        """Ask the producer to end after the current step, as `ThreadStream.stop` does."""
        self._was_stopped = True
        self._stream.stop()

    def close(self) -> None:
        """Stop the producer, and wait until its thread has left it. The end of the block calls it.

        In a forked child it does nothing: the producer runs in the parent.

        Raises:
            BaseException: the exception of the producer, if no one has seen it.
        """
        context = self._context
        if context is None or self._opened is None or self._tasks.home.is_in_parent:
            return
        with self._lock:
            closed, is_first = self._closed, self._closed is None
            if closed is None:
                self._closed = closed = Future()
        if not is_first:
            return closed.result()
        assert context.task is not None
        state = context.task.state
        try:
            state.abandon()
            self._call(partial(context.__aexit__, None, None, None))
        except LoopGone:
            if (error := state.close_and_take_error()) is not None:
                raise_preserving_context(error)
        finally:
            closed.set_result(None)

    def wait_until_held(self) -> None:
        """Block until the model waits for space, as `TextStream.wait_until_held`. For tests.

        Raises:
            RuntimeError: nothing holds it: it has ended, or the stream is unbounded.
        """
        self._call(self._stream.wait_until_held)

    def __repr__(self) -> str:
        if self._opened is None:
            shown = f"not opened: 'with {self._name}(...) as stream:'>"
        else:
            _, _, shown = repr(self._opened).partition(" ")
        return f"<anystreamer.sync.{type(self).__name__} {shown}"

    @property
    def result(self) -> Any:
        """As `ThreadStream.result`: what the producer returned; None until the end."""
        return self._stream.result

    @property
    def ending(self) -> Ending | None:
        """As `ThreadStream.ending`: how the producer ended; None until then."""
        return self._stream.ending

    @property
    def _label(self) -> str:
        assert self._context is not None
        assert self._context.task is not None
        return self._context.task.name

    @property
    def _stream(self) -> StreamT:
        self._check_opened()
        assert self._opened is not None
        return self._opened

    def _check_opened(self) -> None:
        if self._opened is None:
            raise TypeError(
                f"{self._name}() must be opened first: "
                f"'with {self._name}(...) as stream:', then 'for item in stream:'"
            )

    def _misused(self, *_: object) -> NoReturn:
        raise TypeError(
            f"{self._name}() of anystreamer.sync is for code without an event loop: "
            f"'with {self._name}(...) as stream:', then 'for item in stream:'. "
            "Async functions use the one of anystreamer"
        )

    if not TYPE_CHECKING:  # type checkers refuse the same before the program runs
        __aiter__ = __await__ = __aenter__ = __aexit__ = _misused

    def _call(self, func: Callable[[], Awaitable[ResultT]]) -> ResultT:
        return self._tasks.call_from_thread(func)


class SyncThreadStream(SyncStream[ThreadStream[T], T]):
    """A `ThreadStream` for a ``with`` block and a ``for`` loop.

    Made by `anystreamer.sync.stream_from_thread` and `anystreamer.sync.stream_iterable`, and by a
    `SyncWorker`.
    """


class SyncGenerationStream(SyncStream[TextStreamT, TextChunk]):
    """The part that streams of text of one sequence and of several have in common."""

    _kept = "; stream.text has what was delivered"

    @property
    def timing(self) -> Timing | None:
        """Seconds that it took; None until the end."""
        return self._stream.timing

    @property
    def queue_position(self) -> int | None:
        """As `TextStream.queue_position`."""
        return self._stream.queue_position

    @property
    def output(self) -> Any:
        """The return value of ``generate()``; None until the end, and where it did not return."""
        return self._stream.output

    def _receive_all(self) -> None:
        """Receive the rest of the stream. What it gives is in the stream's ``text``."""
        try:
            self._call(self._stream.read)  # type: ignore[attr-defined]
        except LoopGone:
            for _ in self._rest():
                pass


class SyncTextStream(SyncGenerationStream[TextStream]):
    """A `TextStream` for a ``with`` block and a ``for`` loop. Attributes have the same meaning."""

    def read(self) -> str:
        """Return the rest of the text, once it is complete.

        Raises:
            BaseException: the exception of ``generate()``; `text` has what came before.
        """
        start = len(self.text)
        self._receive_all()
        return self.text[start:]

    @property
    def text(self) -> str:
        """All the text delivered so far."""
        return self._stream.text

    @property
    def token_ids(self) -> list[int]:
        """The ids of all tokens delivered so far."""
        return self._stream.token_ids

    @property
    def unread_tokens(self) -> int:
        """How many tokens have been generated that this consumer has not received yet."""
        return self._stream.unread_tokens

    @property
    def textless_end(self) -> TextChunk | None:
        """The tokens after the last chunk, as a chunk without text; None if there are none."""
        return self._stream.textless_end

    @property
    def prompt_token_ids(self) -> list[int]:
        """The ids of the prompt's tokens."""
        return self._stream.prompt_token_ids

    @property
    def finish_reason(self) -> FinishReason | None:
        """Why it ended; None until the end."""
        return self._stream.finish_reason

    @property
    def stop_string(self) -> str | None:
        """The stop string that ended it."""
        return self._stream.stop_string

    @property
    def usage(self) -> Usage | None:
        """Numbers of tokens; None until the end."""
        return self._stream.usage

    @property
    def message(self) -> dict[str, Any] | None:
        """The answer as a chat message, with ``parse_response``; None until the end."""
        return self._stream.message

    @property
    def parsed(self) -> Any:
        """What the answer was parsed into, with ``response_format``; None if it was cut."""
        return self._stream.parsed


class SyncBatchStream(SyncGenerationStream[BatchStream]):
    """A `BatchStream` for a ``with`` block and a ``for`` loop. Attributes have the same meaning."""

    def read(self) -> list[str]:
        """Return the rest of each row's text, once all rows are complete.

        Raises:
            BaseException: the exception of ``generate()``; `text` has what came before.
        """
        starts = [len(text) for text in self.text]
        self._receive_all()
        return [text[start:] for text, start in zip(self.text, starts, strict=True)]

    def stop(self, row: int | None = None) -> None:
        """Ask one row to end after the current step, or all rows.

        Raises:
            IndexError: there is no such row.
        """
        self._was_stopped = True
        self._stream.stop(row)

    @property
    def text(self) -> list[str]:
        """All the text of each row delivered so far."""
        return self._stream.text

    @property
    def token_ids(self) -> list[list[int]]:
        """The ids of all tokens of each row delivered so far."""
        return self._stream.token_ids

    @property
    def unread_tokens(self) -> int:
        """How many tokens have been generated that this consumer has not received yet."""
        return self._stream.unread_tokens

    @property
    def textless_end(self) -> list[TextChunk | None]:
        """The tokens after the last chunk of each row, as a chunk without text."""
        return self._stream.textless_end

    @property
    def prompt_token_ids(self) -> list[list[int]]:
        """The ids of each row's prompt, without padding."""
        return self._stream.prompt_token_ids

    @property
    def finish_reason(self) -> list[FinishReason | None]:
        """Why each row ended; None until all rows have ended."""
        return self._stream.finish_reason

    @property
    def stop_string(self) -> list[str | None]:
        """The stop string that ended each row."""
        return self._stream.stop_string

    @property
    def usage(self) -> list[Usage | None]:
        """Numbers of tokens of each row; None until the end."""
        return self._stream.usage

    @property
    def message(self) -> list[dict[str, Any] | None]:
        """Each row's answer as a chat message, with ``parse_response``; None until the end."""
        return self._stream.message

    @property
    def parsed(self) -> list[Any]:
        """What each row's answer was parsed into; see `SyncTextStream.parsed`."""
        return self._stream.parsed
