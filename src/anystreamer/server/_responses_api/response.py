"""Answers requests of OpenAI's Responses API: as one object, or in events."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

from anyio.lowlevel import checkpoint
from starlette.responses import Response

from ..._engine import Engine
from ..._streams import TextChunk, TextStream
from .._body_sender import BodySender
from .._engine_response import EngineResponse, Limits
from .._errors import APIError
from .._openai_choices import Token
from .._stream_response import ReadyItems
from .format import ResponseBuilder
from .request import ResponsesRequest

__all__ = ["ResponsesResponse"]


class ResponsesResponse(EngineResponse):
    """Answers a request of the Responses API."""

    def __init__(
        self,
        engine: Engine,
        request: ResponsesRequest,
        builder: ResponseBuilder,
        limits: Limits,
        on_end: Callable[[str, list[TextStream]], None],
    ) -> None:
        super().__init__(engine, request.chat, limits, builder.origin, on_end)
        self._own_request = request
        self._builder = builder

    async def _send_body(self, sender: BodySender) -> None:
        (stream,) = self._choices
        if not self._own_request.streams:
            return await self._collect(stream)
        send = partial(self._send_events, sender, stream)
        await sender.within(self._limits.sending, self._unsent_tokens, send)

    async def _send_events(self, sender: BodySender, stream: TextStream) -> None:
        # As for chats, no event before the first text: an error can still have a status.
        async for chunks in ReadyItems(stream):
            if self._token_texts:
                for part in self._parts(chunks):
                    if event := self._builder.take(*part):
                        await sender.send(event)
                    await checkpoint()
            elif events := "".join([self._builder.take(*part) for part in self._parts(chunks)]):
                await sender.send(events)
        await sender.send(self._end_of(stream))

    async def _collect(self, stream: TextStream) -> None:
        async for chunks in ReadyItems(stream):
            for part in self._parts(chunks):
                self._builder.take(*part)
                if self._token_texts:
                    await checkpoint()
        self._end_of(stream)

    def _parts(
        self, chunks: Sequence[TextChunk]
    ) -> Iterator[tuple[TextChunk | None, Sequence[Token]]]:
        for chunk in chunks:
            yield from self._listed(chunk, self._tokens(0, chunk))

    def _end_of(self, stream: TextStream) -> str:
        tokens = list(self._tokens(0, stream.textless_end))
        return self._builder.take_end(self._reason(stream), tokens)

    def _end(self) -> str | Response:
        (stream,) = self._choices
        if self._own_request.streams:
            return self._builder.end(stream.usage)
        whole = self._builder.full_response(stream.usage)
        return Response(whole, media_type="application/json")

    def _error_of(self, exc: Exception, sender: BodySender) -> APIError:
        return self._own_request.in_own_terms(super()._error_of(exc, sender))

    def _error_end(self, error: APIError) -> str:
        return self._builder.failed(error)
