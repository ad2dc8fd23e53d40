"""`AsyncTextIteratorStreamer`: transformers' class of that name, on any loop, and stoppable."""

from __future__ import annotations

import contextlib
import queue
import threading
from types import TracebackType
from typing import Any, Self

from anyio import NoEventLoopError, fail_after, from_thread, get_cancelled_exc_class
from anyio.lowlevel import checkpoint, current_token

from .._bridge import Crossing, Sink, StreamState, ThreadStream
from .._errors import GenerationStopped
from .._text import SupportsDecode, text_decoder
from .token_streamer import row_of

__all__ = ["AsyncTextIteratorStreamer"]

# How often a courier looks whether the thread that it serves is still alive (seconds).
LIFE_POLL = 0.1

Item = str | BaseException | None  # None: generate() has called end()


class AsyncTextIteratorStreamer:
    """A streamer for ``generate(streamer=...)`` whose text an async iteration receives.

    The signature, the defaults and the use are those of `transformers.AsyncTextIteratorStreamer`:
    change the import, and code that runs ``generate()`` in a thread of its own runs on trio as
    well. Text comes as soon as it can no longer change, and no piece is empty.

    It can also stop the model. Pass `stopping_criteria` along, and use it as a context manager:

        async with AsyncTextIteratorStreamer(tokenizer, skip_prompt=True) as streamer:
            kwargs = dict(inputs, streamer=streamer, stopping_criteria=streamer.stopping_criteria)
            threading.Thread(target=model.generate, kwargs=kwargs).start()
            async for text in streamer:
                ...

    Leaving the block, `aclose`, `stop`, or cancelling the scope of an anyio worker thread makes
    ``generate()`` return within a step. Where the criteria were not passed, the next ``put()``
    raises to end it: the cancellation in a cancelled anyio worker thread, `GenerationStopped`
    otherwise. The thread is the caller's own, and nothing here waits for it; `stream_text` does.

    Args:
        tokenizer: decodes the tokens.
        skip_prompt: leave the prompt out of the text.
        timeout: seconds that one wait for text may take. It ends that wait and stops nothing.
        decode_kwargs: for ``tokenizer.decode``, such as ``skip_special_tokens=True``.

    Raises:
        RuntimeError: no event loop is running: it has to be made inside of an async function.
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
        self._decoder = text_decoder(tokenizer, **decode_kwargs)
        self._state = StreamState[Item]()
        self._state.start()
        self._stream = ThreadStream(self._state)
        self._crossing = Crossing(Sink(self._state))
        self._cancellation = get_cancelled_exc_class()
        self._delivery_thread: DeliveryThread | None = None
        self._criteria: list[Any] | None = None
        self._criteria_asked = False
        self._puts_after_stop = 0

    # -- for the consumer

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> str:
        with fail_after(self.timeout):
            item = await self._stream.receive()
        if isinstance(item, BaseException):
            raise item
        if item is None:
            raise StopAsyncIteration
        return item

    def stop(self) -> None:
        """Ask the model to end after the current step; what it has made can still be received.

        Safe from any task or thread and from a signal handler.
        """
        self._stream.stop()

    async def aclose(self) -> None:
        """Stop the model, and drop what was not received. Does not wait for the caller's thread."""
        self._close()
        await checkpoint()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._close()

    def __del__(self) -> None:
        if hasattr(self, "_crossing"):
            self._close()

    def _close(self) -> None:
        self._state.close(cancel_worker=False)  # there is none of ours
        self._state.close_and_take_error()

    @property
    def stopping_criteria(self) -> list[Any]:
        """To be passed to ``generate()`` with the streamer: the clean way to stop the model."""
        if self._criteria is None:
            from .criteria import StopFlagCriteria

            self._criteria = [StopFlagCriteria(self._asked)]
        return self._criteria

    # -- for generate(), in the worker thread

    def put(self, value: Any) -> None:
        """Take the prompt, then the tokens of each step: a tensor of shape ``(1, T)`` or ``(T,)``.

        Raises:
            ValueError: more than one row.
            GenerationStopped: stopped, and the criteria were not passed to ``generate()``.
        """
        token_ids = row_of(value, "AsyncTextIteratorStreamer")
        if self._delivery_thread is None:
            self._delivery_thread = DeliveryThread(self._state, self._crossing)
            self._delivery_thread.start()
            self._criteria_asked = False
            self._puts_after_stop = 0
            if self.skip_prompt:
                token_ids = []
        if token_ids and not self._state.abandoned:
            self._delivery_thread.submit(self._decoder.decode(token_ids))
        if self._should_stop():
            self._stop_from_put()

    def end(self) -> None:
        """Take what the decoder still holds, and end the iteration."""
        if self._delivery_thread is not None:
            self._delivery_thread.submit(self._decoder.flush())
            self._delivery_thread.submit(None)
            self._delivery_thread = None  # a next generation may run in another thread

    def _should_stop(self) -> bool:
        if self._state.should_end:
            return True
        try:
            from_thread.check_cancelled()
        except NoEventLoopError:
            pass  # not a worker thread of anyio's
        except self._cancellation:
            self._state.abandon()
        return self._state.abandoned

    def _asked(self, input_ids: Any) -> list[bool]:
        self._criteria_asked = True
        loop_closed = self._delivery_thread is not None and self._delivery_thread.loop_closed
        return [self._should_stop() or loop_closed]

    def _stop_from_put(self) -> None:
        if self._delivery_thread is None or self._delivery_thread.loop_closed:
            return  # the thread is not to be killed for a loop that has gone
        self._puts_after_stop += 1
        # Criteria that were taken may have been passed on; before the first step they are not
        # asked.
        if self._criteria_asked or (self._criteria is not None and self._puts_after_stop <= 2):
            return
        self.end()
        with contextlib.suppress(NoEventLoopError):
            from_thread.check_cancelled()
        raise GenerationStopped


class DeliveryThread(threading.Thread):
    """Crosses to the loop in place of a thread that may outlive the loop, and must not wait for it.

    A crossing never returns from a loop that was closed under it. Then this thread is stuck, which
    is a daemon and holds nothing but the stream; the generating thread is not.
    """

    def __init__(self, state: StreamState[Item], crossing: Crossing) -> None:
        super().__init__(name="anystreamer courier", daemon=True)
        self._state = state
        self._crossing = crossing
        self._served = threading.current_thread()
        self._queue = queue.SimpleQueue[Item]()
        self.loop_closed = False

    def submit(self, item: Item) -> None:
        """Deliver *item* soon. Never waits."""
        if item != "":
            self._queue.put(item)

    def run(self) -> None:
        """Deliver items until the last, as seldom as the crossing budget asks."""
        crossing = self._crossing
        is_last = False
        while not is_last and not self._state.closed:
            items, is_last = self._next_items()
            crossing.sink.push(*items)
            try:
                if crossing.sink.has_pending:
                    crossing.flush()
            except KeyboardInterrupt as exc:  # it struck the loop just then; trio tells only us
                crossing.sink.push(exc)
                is_last = False
            except RuntimeError:
                self.loop_closed = True
                return
            crossing.sleep_until_due()

    def _next_items(self) -> tuple[list[Item], bool]:
        """Wait for items. Returns all that are there, and whether the last is among them."""
        items: list[Item] = []
        try:
            items.append(self._queue.get(timeout=LIFE_POLL))
            while items[-1] is not None:
                items.append(self._queue.get_nowait())
        except queue.Empty:
            if not items and not self._served.is_alive():
                return [
                    RuntimeError("generate() did not return: it raised, in a thread that has ended")
                ], True
            return items, False
        return items, True
