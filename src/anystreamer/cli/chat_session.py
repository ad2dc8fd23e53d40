"""The session of a chat: one engine, open from its first question to its last."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, wait
from contextlib import AbstractAsyncContextManager, ExitStack, contextmanager
from typing import Any, TypeVar, TypeVarTuple

from anyio.from_thread import BlockingPortal, start_blocking_portal

from .. import Engine, TextStream
from .._errors import message_of
from .chat_backends import ChatBackend
from .terminal import fail

__all__ = ["ChatSession", "open_session"]

T = TypeVar("T")
ArgsT = TypeVarTuple("ArgsT")

# How long the main thread waits at a time (seconds). Windows handles a Ctrl-C only between waits.
INTERRUPT_POLL = 0.1


class ChatSession:
    """Requests answers from an engine, whose event loop runs in another thread all the time.

    It is used in the main thread, where a Ctrl-C arrives.
    """

    def __init__(self, chat_backend: ChatBackend, engine: Engine, portal: BlockingPortal) -> None:
        self._chat_backend = chat_backend
        self._engine = engine
        self._portal = portal

    def answer(
        self, messages: Sequence[dict[str, Any]], settings: Mapping[str, Any]
    ) -> AbstractAsyncContextManager[TextStream]:
        """A block with the stream of an answer, for `call`.

        Raises:
            ValueError: the backend has no such setting.
        """
        arguments = self._chat_backend.arguments(settings)
        return self._engine.stream_text(messages, **arguments)

    def call(self, func: Callable[[*ArgsT], Awaitable[T]], *args: *ArgsT) -> T:
        """Call an async function in the event loop, and return its result. Raises its error."""
        task: Future[T] = self._portal.start_task_soon(func, *args)
        while not task.done():
            wait([task], INTERRUPT_POLL)
        return task.result()


@contextmanager
def open_session(chat_backend: ChatBackend, backend: str) -> Iterator[ChatSession]:
    """Open the engine of a chat in an event loop of its own. Exits with a message if it fails.

    Args:
        chat_backend: what answers.
        backend: ``"asyncio"`` or ``"trio"``.
    """
    with start_blocking_portal(backend) as portal, ExitStack() as stack:
        try:
            block = portal.wrap_async_context_manager(chat_backend.open())
            engine = stack.enter_context(block)
        except Exception as exc:
            fail(message_of(exc) or type(exc).__name__)
        yield ChatSession(chat_backend, engine, portal)
