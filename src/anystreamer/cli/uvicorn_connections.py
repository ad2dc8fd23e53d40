"""uvicorn's connections, with limits.

uvicorn does not limit their number, the time until a request's head has arrived, or the time in
which a client receives nothing. While bytes of a next request wait, it stops reading, and does not
notice that the client disconnects.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import h11
from uvicorn import Config
from uvicorn.protocols.http.h11_impl import H11Protocol

from .connection_extensions import with_extensions
from .connection_limits import (
    MAX_HEAD_LINES,
    PARSED_AT_ONCE,
    REFUSAL,
    TLS_END_TIMEOUT,
    ConnectionLimits,
    lines_of_head,
)

__all__ = ["LimitedConfig"]


class LimitedConfig(Config):
    """A configuration of uvicorn with limits for connections."""

    def __init__(self, app: Any, limits: ConnectionLimits, **options: Any) -> None:
        self.connection_limits = limits
        super().__init__(
            app,
            http=_Connection,
            ws="none",
            h11_max_incomplete_event_size=limits.max_head_bytes,
            timeout_keep_alive=round(limits.head_timeout) or 1,
            **options,
        )


class _Connection(H11Protocol):
    """h11 parses: unlike httptools, it has a limit for what is incomplete."""

    config: LimitedConfig
    _head_timer: Any = None
    _abort_timer: Any = None

    @property
    def _limits(self) -> ConnectionLimits:
        return self.config.connection_limits

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        # Unsent bytes pause writing, and the time of the pause is measured. With a limit of 0, a
        # transport with TLS would also pause without unsent bytes.
        transport.set_write_buffer_limits(high=1)
        limit = self._limits.max_connections
        self.app = with_extensions(self.app, self._abort, lambda: len(self.connections), limit)
        if len(self.connections) > limit:
            transport.write(REFUSAL)
            transport.close()
        else:
            self._start_head_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_head_timer()
        self._stop_abort_timer()
        super().connection_lost(exc)

    # -- what a client sends

    def data_received(self, data: bytes) -> None:
        for start in range(0, len(data), PARSED_AT_ONCE):
            if self.transport.is_closing():
                break
            super().data_received(data[start : start + PARSED_AT_ONCE])
            waiting, _ = self.conn.trailing_data
            if lines_of_head(waiting) > MAX_HEAD_LINES and not self.transport.is_closing():
                self.send_400_response("Too many lines in a request's head.")
        self._update_head_timer()

    def handle_events(self) -> None:
        super().handle_events()
        # uvicorn has stopped reading if it has bytes of a next request. Without reading it would
        # not notice that the client disconnects.
        if self.conn.their_state not in (h11.IDLE, h11.SEND_BODY):
            waiting, _ = self.conn.trailing_data
            if len(waiting) > self._limits.max_head_bytes:
                self.transport.abort()
            elif not self.transport.is_closing():
                self.flow.resume_reading()

    def send_400_response(self, msg: str) -> None:
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            super().send_400_response(msg)
        else:  # a response has begun: uvicorn would fail
            self.transport.close()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._update_head_timer()

    def _update_head_timer(self) -> None:
        """Run the timer while the rest of a request is due, and no task waits for it."""
        state = self.conn.their_state
        is_answered = self.cycle is not None and self.cycle.response_complete
        if state is h11.IDLE or (state is h11.SEND_BODY and is_answered):
            # After a response, uvicorn's own timer for idle connections runs until the next byte.
            if self.timeout_keep_alive_task is None:
                self._start_head_timer()
        else:
            self._stop_head_timer()

    def _start_head_timer(self) -> None:
        if self._head_timer is None:
            timeout = self._limits.head_timeout
            self._head_timer = self.loop.call_later(timeout, self._close)

    def _stop_head_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _close(self) -> None:
        if not self.transport.is_closing():
            self.transport.close()

    # -- what a client takes

    def pause_writing(self) -> None:
        super().pause_writing()
        timeout = self._limits.abort_timeout
        if timeout is not None and self._abort_timer is None:
            self._abort_timer = self.loop.call_later(timeout, self.transport.abort)

    def resume_writing(self) -> None:
        self._stop_abort_timer()
        super().resume_writing()

    async def _abort(self) -> None:
        self.transport.abort()

    def _stop_abort_timer(self) -> None:
        if self._abort_timer is not None:
            self._abort_timer.cancel()
            self._abort_timer = None

    # -- the end of the server

    def shutdown(self) -> None:
        # At a second close(), asyncio's TLS transport forgets its connection. It can then neither
        # be aborted nor asked for its buffer.
        if not self.transport.is_closing():
            super().shutdown()
        if self.transport.is_closing() and self.scheme == "https":
            self.loop.call_later(TLS_END_TIMEOUT, self._end_tls)

    def _end_tls(self) -> None:
        with suppress(AttributeError):  # uvicorn has closed it twice
            if not self.transport.get_write_buffer_size():
                self.transport.abort()
