"""`AsyncTextIteratorStreamer`: transformers' class of that name, on any loop, and stoppable."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from types import TracebackType
from typing import Any, Self

from anyio import NoEventLoopError, fail_after, from_thread, get_cancelled_exc_class
from anyio.lowlevel import checkpoint, current_token

from .._bridge import uninterrupted
from .._errors import GenerationStopped
from .._generation import row_of, stopping_criteria
from .._text import SupportsDecode, text_decoder
from .generate_calls import watch_generate_calls
from .text_queue import TextQueue

__all__ = ["AsyncTextIteratorStreamer"]


class AsyncTextIteratorStreamer:
    """A streamer for ``generate(streamer=...)``: iterate over it to receive the text.

    The signature, the defaults and the use are those of `transformers.AsyncTextIteratorStreamer`:
    change the import, and code that runs ``generate()`` in a thread of its own runs on trio as
    well. Text comes as soon as it can no longer change, and no chunk is empty.

    It can also stop the model. Pass `stopping_criteria` along, and use it as a context manager:

        async with AsyncTextIteratorStreamer(tokenizer, skip_prompt=True) as streamer:
            kwargs = dict(inputs, streamer=streamer, stopping_criteria=streamer.stopping_criteria)
            threading.Thread(target=model.generate, kwargs=kwargs).start()
            async for text in streamer:
                ...

    Leaving the block, `aclose`, `stop`, or cancelling the scope of an anyio worker thread makes
    ``generate()`` return within a step. If the criteria were not passed, the next ``put()`` raises
    an exception to end it: the cancellation in a cancelled anyio worker thread, otherwise
    `GenerationStopped`. The thread belongs to the caller, and the block does not wait for it;
    `stream_text` does.

    If ``generate()`` raises an exception, or never ends the text, the iteration raises
    RuntimeError, with the exception as its cause. For this, ``generate()`` of transformers is
    wrapped. If code on the event loop puts the text (a typewriter effect, for example), the
    iteration waits for its end, and *timeout* is the only limit.

    Subclasses can override `put`, `end` and `on_finalized_text`, and use ``text_queue``,
    ``stop_signal``, ``loop``, ``token_cache``, ``print_len`` and ``next_tokens_are_prompt``, as
    with transformers' class.

    Args:
        tokenizer: decodes the tokens.
        skip_prompt: leave the prompt out of the text.
        timeout: seconds that one wait for text can take. It ends that wait and stops nothing.
        decode_kwargs: for ``tokenizer.decode``, such as ``skip_special_tokens=True``.

    Raises:
        RuntimeError: no event loop is running: it has to be made inside of an async function. From
            the iteration: ``generate()`` raised, or returned without ending the text.
        TypeError: *tokenizer* has no ``decode``.
        TimeoutError: from the iteration, when nothing came within *timeout*.
    """

    def __init__(
        self,
        tokenizer: SupportsDecode,
        skip_prompt: bool = False,
        timeout: float | None = None,
        **decode_kwargs: Any,
    ) -> None:
        try:
            current_token()
        except RuntimeError:  # NoEventLoopError, or sniffio's, up to anyio 4.11
            raise RuntimeError(
                "AsyncTextIteratorStreamer must be made inside of an async function: "
                "no event loop is running"
            ) from None
        self.tokenizer = tokenizer
        self.skip_prompt = skip_prompt
        self.timeout = timeout
        self.decode_kwargs = decode_kwargs
        self.stop_signal: Any = None  # the item that ends the iteration
        self.token_cache: list[int] = []  # of this text
        self.print_len: int = 0  # how many of its characters have been passed on
        self.next_tokens_are_prompt: bool = True
        self.loop: Any = _native_loop()
        self._decoder = text_decoder(tokenizer, **decode_kwargs)
        self._has_decoded = False  # since the text began
        self._queue = TextQueue(self._is_stop_signal)
        self.text_queue: Any = self._queue
        self._cancellation = get_cancelled_exc_class()
        self._loop_thread = threading.get_ident()
        self._criteria: list[Any] | None = None
        self._criteria_called = False
        self._puts_after_stop = 0
        watch_generate_calls(AsyncTextIteratorStreamer._watch)

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "_is_chinese_char" in vars(cls) and cls.put is AsyncTextIteratorStreamer.put:
            raise TypeError(
                f"{cls.__name__} overrides _is_chinese_char(), which put() does not call here: "
                "text is passed on as soon as it cannot change; override put() or "
                "on_finalized_text()"
            )
        for name in ("put", "end", "on_finalized_text"):
            if inspect.iscoroutinefunction(vars(cls).get(name)):
                raise TypeError(
                    f"{cls.__name__}.{name}() is async, but generate() calls it in its thread and "
                    "awaits nothing; make it a plain function"
                )

    # -- for the consumer

    def __aiter__(self) -> Self:
        # Again: transformers can have been imported since.
        watch_generate_calls(AsyncTextIteratorStreamer._watch)
        return self

    @uninterrupted
    async def __anext__(self) -> str:
        with fail_after(self.timeout):
            item = await self.text_queue.get()
        if self._is_stop_signal(item):
            raise StopAsyncIteration
        return item  # type: ignore[no-any-return]  # a subclass can put anything

    def stop(self) -> None:
        """Ask the model to end after the current step; what it has made can still be received.

        Safe from any task or thread and from a signal handler.
        """
        self._queue.stop()

    async def aclose(self) -> None:
        """Stop the model, and drop what was not received. Does not wait for the caller's thread."""
        self._queue.close()
        await checkpoint()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._queue.close()

    def __del__(self) -> None:
        if hasattr(self, "_queue"):
            self._queue.close()

    @property
    def stopping_criteria(self) -> list[Any]:
        """To be passed to ``generate()`` with the streamer: the clean way to stop the model."""
        if self._criteria is None:
            self._criteria = stopping_criteria(self._rows_end)
        return self._criteria

    # -- for generate(), in the worker thread

    def put(self, value: Any) -> None:
        """Take the prompt, then the tokens of each step: a tensor of shape ``(1, T)`` or ``(T,)``.

        Raises:
            ValueError: more than one row.
            GenerationStopped: stopped, and the criteria were not passed to ``generate()``.
        """
        token_ids = row_of(value, "AsyncTextIteratorStreamer")
        if self._queue.open():
            self._criteria_called = False
            self._puts_after_stop = 0
        if self.skip_prompt and self.next_tokens_are_prompt:
            self.next_tokens_are_prompt = False
        elif not self._queue.is_abandoned:
            self.on_finalized_text(self._decode(token_ids))
        if self._should_stop():
            self._stop_from_put()

    def end(self) -> None:
        """Take what the decoder still holds, and end the iteration."""
        text = self._decoder.flush()
        if self.token_cache and not self._has_decoded:  # by put() of a subclass alone
            text = self.tokenizer.decode(self.token_cache, **self.decode_kwargs)[self.print_len :]
        self._has_decoded = False
        self.token_cache = []
        self.print_len = 0
        self.next_tokens_are_prompt = True
        self.on_finalized_text(text, stream_end=True)

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """Pass text on to the consumer, and end the iteration if it is the last.

        To filter or change the text, override it and call it with what the consumer is to get.
        """
        if text:
            self._put_item(text)
        if stream_end:
            self._put_item(self.stop_signal)

    def _is_chinese_char(self, cp: int) -> bool:
        """Whether a code point is a Chinese character. For a put() copied from transformers."""
        return any(start <= cp <= end for start, end in _CHINESE)

    def _put_item(self, item: Any) -> None:
        if isinstance(self.text_queue, TextQueue):
            self.text_queue.put_nowait(item)
        else:  # a queue of a subclass, which knows of no threads
            self.loop.call_soon_threadsafe(self.text_queue.put_nowait, item)

    def _is_stop_signal(self, item: Any) -> bool:
        return bool(item is self.stop_signal or item == self.stop_signal)

    def _decode(self, token_ids: list[int]) -> str:
        if not self._has_decoded:
            self._decoder.flush()  # an overridden end() can have left something in it
            self._has_decoded = True
        self.token_cache.extend(token_ids)
        text = self._decoder.decode(token_ids)
        self.print_len += len(text)
        return text

    @classmethod
    def _watch(cls, streamer: object) -> AbstractContextManager[object]:
        """What is entered around a call of ``generate()``."""
        if not isinstance(streamer, AsyncTextIteratorStreamer):
            return nullcontext()
        return cls._watch_call(streamer)

    @contextmanager
    def _watch_call(self) -> Iterator[None]:
        texts_ended = self._queue.call_began()
        error: BaseException | None = None
        try:
            yield
        except BaseException as exc:
            error = exc
            raise
        finally:
            # In the thread of the loop the call itself raises, in place of the iteration.
            if threading.get_ident() != self._loop_thread:
                self._queue.call_ended(error, texts_ended)
            error = None  # its traceback leads back to this frame

    def _should_stop(self) -> bool:
        if self._queue.should_stop:
            return True
        try:
            from_thread.check_cancelled()
        except NoEventLoopError:
            pass  # not a worker thread of anyio's
        except self._cancellation:
            self._queue.abandon()
        return self._queue.is_abandoned

    def _rows_end(self, input_ids: Any) -> list[bool]:
        self._criteria_called = True
        return [self._should_stop() or self._queue.loop_closed]

    def _stop_from_put(self) -> None:
        if not self._queue.is_open or self._queue.loop_closed:
            return  # do not end a thread because its loop has ended
        self._puts_after_stop += 1
        # The criteria were taken, so generate() can have them. It does not call them before the
        # first step.
        if self._criteria_called or (self._criteria is not None and self._puts_after_stop <= 2):
            return
        self.end()
        with suppress(NoEventLoopError):
            from_thread.check_cancelled()
        raise GenerationStopped


# The blocks "CJK Unified Ideographs", their extensions A to E, and their compatibility forms.
_CHINESE = (
    (0x4E00, 0x9FFF),
    (0x3400, 0x4DBF),
    (0x20000, 0x2A6DF),
    (0x2A700, 0x2B73F),
    (0x2B740, 0x2B81F),
    (0x2B820, 0x2CEAF),
    (0xF900, 0xFAFF),
    (0x2F800, 0x2FA1F),
)


def _native_loop() -> Any:
    """The event loop, as transformers' class has it: with ``call_soon_threadsafe``."""
    native = current_token().native_token
    return native if hasattr(native, "call_soon_threadsafe") else _TrioLoop(native)


class _TrioLoop:
    """What subclasses use of asyncio's event loop, on trio."""

    def __init__(self, token: Any) -> None:
        self._token = token

    def call_soon_threadsafe(self, callback: Callable[..., object], *args: Any) -> None:
        """Call *callback* in the thread of the event loop, soon."""
        self._token.run_sync_soon(callback, *args)
