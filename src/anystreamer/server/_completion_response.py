"""The response to a request for text, in OpenAI's format: in chunks, or whole."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from anyio.lowlevel import checkpoint
from starlette.responses import Response

from .._engine import Engine
from .._streams import TextChunk, TextStream
from ._asgi import run_all
from ._body_sender import BodySender
from ._engine_response import EngineResponse, Limits
from ._errors import APIError
from ._open_streams import OpenStreams
from ._openai_choices import Token
from ._openai_format import DONE, CompletionBuilder, event, usage_of
from ._request_models import TextRequest
from ._stream_response import ReadyItems

__all__ = ["CompletionResponse"]


class CompletionResponse(EngineResponse):
    """Answers a request for a chat completion, or for a completion."""

    def __init__(
        self,
        engine: Engine,
        request: TextRequest,
        builder: CompletionBuilder,
        limits: Limits,
        on_end: Callable[[str, list[TextStream]], None],
    ) -> None:
        super().__init__(engine, request, limits, builder.origin, on_end)
        self._builder = builder

    async def _open(self, streams: OpenStreams) -> None:
        await super()._open(streams)
        for stream in self._choices:
            self._builder.add_choice(len(stream.prompt_token_ids))

    async def _send_body(self, sender: BodySender) -> None:
        works: list[Callable[[], Any]]
        if not self._request.stream:
            works = [partial(self._collect, *each) for each in enumerate(self._choices)]
            return await run_all(works)
        works = [partial(self._send_choice, sender, *each) for each in enumerate(self._choices)]
        await sender.within(self._limits.sending, self._unsent_tokens, partial(run_all, works))

    async def _send_choice(self, sender: BodySender, index: int, stream: TextStream) -> None:
        # No event before the first text: an error can still have a status, with which clients know
        # whether to try again. And they measure the time to the first chunk.
        async for chunks in ReadyItems(stream):
            await self._send_parts(sender, index, chunks)
        if index in self._echoes:  # nothing has come after the prompt
            await self._send_parts(sender, index, ())
        end = self._end_of(stream)
        tokens = list(self._tokens(index, end))
        self._builder.count(index, 0 if end is None else len(end.token_ids))
        last = self._builder.last(index, self._reason(stream), stream.stop_string, tokens)
        await sender.send(last)

    async def _send_parts(
        self, sender: BodySender, index: int, chunks: Sequence[TextChunk]
    ) -> None:
        parts = self._parts(index, chunks)
        if not self._token_texts:
            return await sender.send("".join([self._builder.chunk(*each) for each in parts]))
        for part in parts:
            await sender.send(self._builder.chunk(*part))
            await checkpoint()

    async def _collect(self, index: int, stream: TextStream) -> None:
        async for chunks in ReadyItems(stream):
            await self._keep_parts(index, chunks)
        await self._keep_parts(index, ())
        self._builder.keep(index, None, list(self._tokens(index, self._end_of(stream))))

    async def _keep_parts(self, index: int, chunks: Sequence[TextChunk]) -> None:
        for part in self._parts(index, chunks):
            self._builder.keep(*part)
            if self._token_texts:
                await checkpoint()

    def _parts(
        self, index: int, chunks: Sequence[TextChunk]
    ) -> Iterator[tuple[int, TextChunk | None, Sequence[Token]]]:
        """Chunks and their tokens, as the builder takes them, after the prompt if it is echoed.

        The prompt comes with the first chunk, not earlier: its tokens are scored by then.
        """
        if (echo := self._echoes.pop(index, None)) is not None:
            stream = self._choices[index]
            texts = self._token_texts
            tokens = echo.tokens(stream, texts[index]) if texts else ()
            prompt = echo.chunk(stream, skip_special_tokens=self._skips_special_tokens)
            for part in self._listed(prompt, tokens):
                yield index, *part
        for chunk in () if self._is_prompt_only else chunks:
            self._builder.count(index, len(chunk.token_ids))
            for part in self._listed(chunk, self._tokens(index, chunk)):
                yield index, *part

    def _end_of(self, stream: TextStream) -> TextChunk | None:
        return None if self._is_prompt_only else stream.textless_end

    def _end(self) -> str | Response:
        usages = self._usages()
        if self._is_prompt_only:
            usages = [replace(each, completion_tokens=0) for each in usages]
        usage = usage_of(usages, self._request.n or 1)
        if self._request.stream:
            return (self._builder.usage(usage) if self._request.includes_usage else "") + DONE
        reasons = [self._reason(stream) for stream in self._choices]
        whole = self._builder.full_response(reasons, usage)
        return Response(whole, media_type="application/json")

    def _error_end(self, error: APIError) -> str:
        return event(error.object) + DONE
