"""The response to a request for text: it opens the streams, and sends what they have."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from .._engine import Engine
from .._generation import Prompt, uses_torch
from .._streams import TextChunk, TextStream, Timeouts, Usage
from ._asgi import EVENT_STREAM, NO_CACHE_HEADERS, BodySender, cancel_on_disconnect, run_all
from ._errors import SHUTDOWN_ERROR, APIError, refusal_of
from ._openai_format import DONE, CompletionBuilder, Token, event, usage_of
from ._request_models import TextRequest
from ._tokens import TokenTexts

__all__ = ["CompletionResponse", "Limits"]


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What all requests share: what the server's owner allows, and how its model's answers read."""

    default_max_tokens: int
    max_tokens: int | None
    context: int | None  # tokens that the model takes in all; None where it is not known
    keep_alive: float | None
    timeout: float | Timeouts | None
    response_template: Mapping[str, Any] | None  # of the model's tokenizer


class CompletionResponse(Response):
    """Answers one request. The model works for it while its client listens, and no longer."""

    media_type = EVENT_STREAM

    def __init__(
        self,
        engine: Engine,
        request: TextRequest,
        answer: CompletionBuilder,
        limits: Limits,
        ended: Callable[[str, list[Usage]], None],
    ) -> None:
        self.status_code = 200
        self.background = None
        self.init_headers(NO_CACHE_HEADERS)
        self._engine = engine
        self._request = request
        self._answer = answer
        self._limits = limits
        self._ended = ended
        self._choices: list[TextStream] = []
        self._texts: list[TokenTexts] = []  # of each, if its tokens are told
        self._outcome = "disconnected"
        self._body: BodySender

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it. Called by Starlette."""
        self._body = BodySender(send)
        serve = partial(self._serve, scope, receive)
        try:
            await cancel_on_disconnect(
                receive, serve, partial(self._tell, SHUTDOWN_ERROR, scope, receive)
            )
        finally:
            usages = [stream.usage for stream in self._choices]
            self._ended(self._outcome, [usage for usage in usages if usage is not None])

    async def _serve(self, scope: Scope, receive: Receive) -> None:
        body = self._body
        is_open = False
        failure: APIError | None = None
        try:
            async with AsyncExitStack() as stack:
                await self._open(stack)
                is_open = True
                if self._request.stream:
                    await body.start(self.status_code, self.raw_headers)
                    await self._send_all(body)
                else:
                    await self._read_all()
        except Exception as exc:
            # Here, and not before: all streams have been left, so [DONE] is the truth.
            param = self._request.prompts[0][0]
            failure = refusal_of(exc, at_entry=not is_open, param=param)
        if failure is not None:
            return await self._tell(failure, scope, receive)
        self._outcome = "200"
        if body.takes_parts:
            return await body.end(self._usage() + DONE)
        await JSONResponse(self._whole())(scope, receive, body)

    async def _tell(self, failure: APIError, scope: Scope, receive: Receive) -> None:
        """End with an error: as an event, or as the response if there is none yet."""
        body = self._body
        if body.takes_parts:
            self._outcome = "failed"
            await body.end(event(failure.object) + DONE)
        elif not body.has_started:
            self._outcome = str(failure.status)
            await failure.response()(scope, receive, body)

    # -- opening

    async def _open(self, stack: AsyncExitStack) -> None:
        """Open a stream for each choice.

        Raises:
            Exception: what the engine refuses it with. Those opened before are left by *stack*.
        """
        request, limits = self._request, self._limits
        param, asked = request.most_tokens
        if asked is not None and limits.max_tokens is not None and asked > limits.max_tokens:
            raise APIError(
                f"{param} must be at most {limits.max_tokens}", param=param, code="invalid_value"
            )
        most = limits.default_max_tokens if asked is None else asked
        if limits.max_tokens is not None:
            most = min(most, limits.max_tokens)
        choice = 0
        for name, prompt in request.prompts:
            for _ in range(request.n or 1):
                stream = await self._open_one(stack, choice, prompt, most)
                length = len(stream.prompt_token_ids)
                room = limits.context - length if limits.context is not None else most
                if room < 1 or (asked is not None and room < asked):
                    raise APIError(
                        f"the model takes {limits.context} tokens in all; the prompt has {length}"
                        + (f", and {param} asks for {asked}" if asked else ""),
                        param=name if room < 1 else param,
                        code="context_length_exceeded",
                    )
                if room < most:  # nobody asked for so many: as many as there is room for
                    await stream.aclose()
                    stream = await self._open_one(stack, choice, prompt, room)
                self._choices.append(stream)
                self._answer.add_choice()
                choice += 1
        if request.top_logprobs_asked is not None:
            tokenizer = getattr(self._engine, "tokenizer", None)
            self._texts = [TokenTexts(tokenizer) for _ in self._choices]

    async def _open_one(
        self, stack: AsyncExitStack, choice: int, prompt: Prompt, most: int
    ) -> TextStream:
        arguments: dict[str, Any] = self._request.arguments(choice, self._limits.response_template)
        if self._request.seed is not None and not uses_torch(getattr(self._engine, "model", None)):
            raise APIError("seed is not supported by this model", param="seed")
        return await stack.enter_async_context(
            self._engine.stream_text(
                prompt, timeout=self._limits.timeout, max_new_tokens=most, **arguments
            )
        )

    # -- in chunks

    async def _send_all(self, body: BodySender) -> None:
        works = [partial(self._send, body, *each) for each in enumerate(self._choices)]
        await body.with_keep_alive(self._limits.keep_alive, partial(run_all, works))

    async def _send(self, body: BodySender, index: int, stream: TextStream) -> None:
        # Nothing is sent before the first text: clients time the first chunk.
        async for piece in stream:  # what is ready together is one piece
            await body.send(self._answer.piece(index, piece, self._tokens(index, piece)))
        await body.send(self._answer.last(index, _reason(stream), stream.stop_string))

    def _tokens(self, index: int, piece: TextChunk) -> Sequence[Token]:
        return self._texts[index].of(piece) if self._texts else ()

    # -- whole

    async def _read_all(self) -> None:
        async def read(index: int, stream: TextStream) -> None:
            async for piece in stream:
                self._answer.take(index, piece, self._tokens(index, piece))

        await run_all([partial(read, *each) for each in enumerate(self._choices)])

    def _whole(self) -> dict[str, Any]:
        return self._answer.full_response(
            [_reason(stream) for stream in self._choices], self._usages()
        )

    def _usages(self) -> dict[str, int]:
        usages = [stream.usage for stream in self._choices]
        return usage_of([usage for usage in usages if usage is not None], self._request.n or 1)

    def _usage(self) -> str:
        return self._answer.usage(self._usages()) if self._request.includes_usage else ""


def _reason(stream: TextStream) -> str:
    reason = stream.finish_reason
    return (reason and reason.openai) or "stop"
