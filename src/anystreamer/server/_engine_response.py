"""Opens the streams of a request, within the limits that all requests of an application share."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from .._engine import Engine
from .._generation import UpTo, continues_prompt, effective_setting, eos_ids
from .._model import room_for_answer, uses_torch
from .._prompts import Prompt, TokenIds, UntrustedMessages
from .._streams import (
    PHASES,
    TextChunk,
    TextStream,
    Timeouts,
    Usage,
    answering,
    validate_timeouts,
)
from ._asgi import EVENT_STREAM
from ._body_sender import SendLimits
from ._echo import Echo
from ._errors import APIError, in_clients_terms
from ._open_streams import OpenStreams
from ._openai_choices import Token
from ._request_models import TextRequest
from ._stream_response import StreamResponse, unread_tokens
from ._tokens import KnownTokens, TokenTexts

__all__ = ["EngineResponse", "Limits"]

# How many entries are listed at once, with those of the likeliest tokens. It takes about 5 ms, in
# which nothing else is sent.
ENTRIES_AT_ONCE = 200


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What all requests of an application share: its limits, and the model's response template."""

    default_max_tokens: int
    max_tokens: int | None
    context: int | None  # tokens, prompt and answer together; None where it is not known
    sending: SendLimits
    timeout: float | Timeouts | None
    allow_special_tokens: bool  # in the text of messages
    allow_media_from: tuple[str, ...]  # hosts
    response_template: Mapping[str, Any] | None  # of the model's tokenizer

    def by_name(self) -> dict[str, float | None]:
        """Those that are numbers, for the metrics. Times are in seconds."""
        timeouts = validate_timeouts(self.timeout)
        return {
            "default_max_tokens": self.default_max_tokens,
            "max_tokens": self.max_tokens,
            "context_length": self.context,
            **{f"timeout_{phase}": getattr(timeouts, phase) for phase in PHASES},
        }


class EngineResponse(StreamResponse):
    """Opens the streams of one request, and leaves them when its client disconnects.

    Subclasses send them in their format.
    """

    def __init__(
        self,
        engine: Engine,
        request: TextRequest,
        limits: Limits,
        origin: tuple[str, str],
        on_end: Callable[[str, list[TextStream]], None],
    ) -> None:
        super().__init__(limits.sending, media_type=EVENT_STREAM)
        self._engine = engine
        # Engines of other kinds need not have a model.
        self._model: Any = getattr(engine, "model", None)
        self._request = request
        self._limits = limits
        self._origin = origin  # the response's id, and the model's name in it
        self._on_end = on_end
        self._choices: list[TextStream] = []
        self._token_texts: list[TokenTexts] = []  # of each choice, if log-probabilities are sent
        self._known_tokens: KnownTokens = {}  # all choices list much the same ones
        self._echoes: dict[int, Echo] = {}  # by choice, until they have been sent
        _, requested = request.token_limit
        self._is_prompt_only = requested == 0  # the answers are left out

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it. Called by Starlette."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._on_end(self._outcome, self._choices if self._is_accepted else [])

    # -- opening

    async def _open(self, streams: OpenStreams) -> None:
        limit = self._token_limit()
        # The default gives way to the context. A limit that the client sends does not.
        is_default = self._request.token_limit[1] is None
        choice = 0
        for name, given in self._request.prompts:
            prompt = self._prompt(given)
            echo = None
            if self._request.echoes:
                echo = Echo(prompt, self._engine, self._request.requested_top_logprobs)
            for _ in range(self._request.n or 1):
                fitting = UpTo(limit, self._limits.context if is_default else None)
                stream = await self._open_choice(streams, choice, prompt, fitting, echo)
                room = self._room(stream, name, limit)
                if room < limit and not fitting.was_fitted:
                    # The engine is not one of ours, and has not fitted the limit to the context.
                    await stream.aclose()
                    stream = await self._open_choice(streams, choice, prompt, room, echo)
                self._choices.append(stream)
                if echo is not None:
                    self._echoes[choice] = echo
                if self._request.requested_top_logprobs is not None:
                    self._token_texts.append(self._new_token_texts(stream, prompt))
                choice += 1
        self._is_accepted = True

    def _prompt(self, given: Prompt) -> Prompt:
        if isinstance(given, str | TokenIds | Mapping):
            return given
        return UntrustedMessages(
            given,
            allow_media_from=self._limits.allow_media_from,
            allow_special_tokens=self._limits.allow_special_tokens,
        )

    def _token_limit(self) -> int:
        """Token limit of each answer. Raises APIError if the request asks for too many."""
        limit = self._requested_limit()
        if limit < (self._request.min_tokens or 0):
            raise APIError(
                f"min_tokens must be at most {limit}, the limit of an answer: send max_tokens too",
                param="min_tokens",
                code="invalid_value",
            )
        return limit

    def _requested_limit(self) -> int:
        param, requested = self._request.token_limit
        highest = self._limits.max_tokens
        if highest is None:
            return self._limits.default_max_tokens if requested is None else requested
        if requested is None:
            return min(self._limits.default_max_tokens, highest)
        if requested > highest:
            raise APIError(f"{param} must be at most {highest}", param=param, code="invalid_value")
        return requested

    def _room(self, stream: TextStream, name: str, limit: int) -> int:
        """How many tokens the model's context has left for an answer, *limit* at the most.

        Raises:
            APIError: none, or fewer than the request asks for.
        """
        context = self._limits.context
        if context is None:
            return limit
        param, requested = self._request.token_limit
        length = len(stream.prompt_token_ids)
        room = room_for_answer(self._model, length, context)
        minimum = self._request.min_tokens or 0
        if room >= (requested or 0) and room < minimum:
            param = "min_tokens"
        if room < 1 or room < max(requested or 0, minimum):
            raise APIError(
                f"the model takes {context} tokens, prompt and answer together; the prompt has "
                f"{length}"
                + (f", and {param} asks for {requested}" if requested else "")
                + (f", and min_tokens asks for {minimum}" if minimum else ""),
                param=name if room < 1 else param,
                code="context_length_exceeded",
            )
        return min(room, limit)

    def _new_token_texts(self, stream: TextStream, prompt: Prompt) -> TokenTexts:
        request = self._request
        template_kwargs = {"continue_final_message": request.continues_message}
        is_continued = not request.echoes and continues_prompt(self._model, prompt, template_kwargs)
        return TokenTexts(
            getattr(self._engine, "tokenizer", None),
            stream.prompt_token_ids if is_continued else (),
            skip_special_tokens=self._skips_special_tokens,
            known=self._known_tokens,
        )

    @property
    def _skips_special_tokens(self) -> bool:
        return self._request.skip_special_tokens is not False

    async def _open_choice(
        self, streams: OpenStreams, choice: int, prompt: Prompt, limit: int, echo: Echo | None
    ) -> TextStream:
        arguments: dict[str, Any] = self._request.arguments(choice, self._limits.response_template)
        if self._request.seed is not None and not uses_torch(self._model):
            raise APIError("seed is not supported by this model", param="seed")
        arguments |= self._ending_ids()
        if echo is not None and echo.scores is not None:
            processors = arguments.get("logits_processor", ())
            arguments["logits_processor"] = [echo.scores, *processors]
        arguments["max_new_tokens"] = limit or 1  # 0: only the prompt is echoed
        with answering(*self._origin):
            return await streams.open(
                self._engine.stream_text(prompt, timeout=self._limits.timeout, **arguments)
            )

    def _ending_ids(self) -> dict[str, Any]:
        """The argument with the tokens that end an answer, if they are not the model's own."""
        more = self._request.stop_token_ids or []
        if self._request.ignore_eos:
            return {"eos_token_id": more or None}
        if not more:
            return {}
        own = eos_ids(effective_setting(self._model, {}, "eos_token_id"))
        return {"eos_token_id": [*own, *more]}

    # -- the body

    def _unsent_tokens(self) -> int:
        return sum(map(unread_tokens, self._choices))

    def _listed(
        self, chunk: TextChunk, tokens: Iterable[Token]
    ) -> Iterator[tuple[TextChunk | None, Sequence[Token]]]:
        """A chunk with the first of its tokens, and then the others: a few at once.

        The chunk of a slow client, and the prompt, can have thousands.
        """
        if not tokens:
            yield chunk, ()
            return
        limit = max(1, ENTRIES_AT_ONCE // (1 + (self._request.requested_top_logprobs or 0)))
        rest = iter(tokens)
        yield chunk, list(islice(rest, limit))
        while more := list(islice(rest, limit)):
            yield None, more

    def _tokens(self, index: int, chunk: TextChunk | None) -> Iterable[Token]:
        """The tokens to list: as in vLLM, each that counts in the usage, also one without text."""
        if not self._token_texts or chunk is None:
            return ()
        return self._token_texts[index].of(chunk)

    # -- the end

    def _reason(self, stream: TextStream) -> str:
        """OpenAI's name of the reason why a stream has ended."""
        if self._is_prompt_only:
            return "length"
        reason = stream.finish_reason
        return (reason and reason.openai) or "stop"

    def _usages(self) -> list[Usage]:
        usages = [stream.usage for stream in self._choices]
        return [usage for usage in usages if usage is not None]

    def _refusal(self, exc: Exception) -> APIError:
        request = self._request
        names = {
            "logits_processor": "logprobs" if request.seed is None else "seed",
            "eos_token_id": "ignore_eos" if request.ignore_eos else "stop_token_ids",
            # Of text completions, logprobs is a number.
            "top_logprobs": "top_logprobs" if hasattr(request, "top_logprobs") else "logprobs",
        }
        return in_clients_terms(exc, request.prompts[0][0], names)

    def _error_response(self, error: APIError) -> Response:
        return error.response()
