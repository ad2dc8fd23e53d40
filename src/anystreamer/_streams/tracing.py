"""An OpenTelemetry span for each generation, in an application that uses OpenTelemetry.

Names are those of OpenTelemetry's conventions for generative AI, as far as these have one:
https://opentelemetry.io/docs/specs/semconv/gen-ai/gen-ai-spans/
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from .._errors import describe
from .._reporting import reporting
from .types import Row, Timing

__all__ = ["GenerationSpan", "answering"]

# The id and the model's name of the response that a generation is made for.
_response: ContextVar[tuple[str, str] | None] = ContextVar("anystreamer_response", default=None)


@contextmanager
def answering(response_id: str, model: str) -> Iterator[None]:
    """A block in which streams are opened for a response with this id and name of the model."""
    token = _response.set((response_id, model))
    try:
        yield
    finally:
        _response.reset(token)


class GenerationSpan:
    """The span of one generation, from the call to its end, in the current span of the caller."""

    def __init__(self, span: Any) -> None:
        self._span = span

    @classmethod
    def start(
        cls,
        operation: str,
        model: str,
        settings: Callable[[], Mapping[str, Any]],
        provider: str = "transformers",
    ) -> GenerationSpan | None:
        """Start a span; return None if the application records no spans, or cannot. Never fails."""
        # An application that records spans has imported this module. For others it is not loaded.
        trace = sys.modules.get("opentelemetry.trace")
        started: GenerationSpan | None = None
        if trace is None:
            return None
        with reporting:
            span = trace.get_tracer("anystreamer").start_span(f"{operation} {model}")
            if span.is_recording():
                started = cls(span)
                started._set_request(operation, provider, model, settings())
        return started

    def end(
        self,
        rows: list[Row],
        timing: Timing,
        first_chunk: float | None,
        error: BaseException | None,
    ) -> None:
        """End the span with the results of the generation. Never fails.

        *first_chunk* is the time until the first text, in seconds.
        """
        with reporting:
            self._set_results(rows, timing, first_chunk)
        if error is not None:
            with reporting:
                self._set_error(error)
        with reporting:
            self._span.end()

    def _set_request(
        self, operation: str, provider: str, model: str, settings: Mapping[str, Any]
    ) -> None:
        attributes = {
            "gen_ai.operation.name": operation,
            "gen_ai.provider.name": provider,
            "gen_ai.output.type": "text",
            "gen_ai.request.model": model,
            **{f"gen_ai.request.{name}": value for name, value in settings.items()},
        }
        if (response := _response.get()) is not None:
            attributes["gen_ai.response.id"], attributes["gen_ai.response.model"] = response
        self._set_known(attributes)

    def _set_results(self, rows: list[Row], timing: Timing, first_chunk: float | None) -> None:
        usages = [row.usage for row in rows if row.usage is not None]
        attributes: dict[str, Any] = {
            "gen_ai.response.finish_reasons": [str(row.finish_reason) for row in rows],
            # Of another server, if it has made the answer.
            "gen_ai.response.id": rows[0].response_id if rows else None,
            "gen_ai.response.model": rows[0].response_model if rows else None,
            "gen_ai.response.time_to_first_chunk": first_chunk,
            "anystreamer.timing.queued": timing.queued,
            "anystreamer.timing.first_token": timing.first_token,
        }
        if usages:
            attributes |= {
                "gen_ai.usage.input_tokens": sum(usage.prompt_tokens for usage in usages),
                "gen_ai.usage.output_tokens": sum(usage.completion_tokens for usage in usages),
                "anystreamer.usage.computed_tokens": sum(usage.computed_tokens for usage in usages),
            }
        self._set_known(attributes)

    def _set_known(self, attributes: Mapping[str, Any]) -> None:
        """Set the attributes that have a value."""
        self._span.set_attributes(
            {name: value for name, value in attributes.items() if value is not None}
        )

    def _set_error(self, error: BaseException) -> None:
        from opentelemetry.trace import Status, StatusCode

        kind, summary = type(error).__qualname__, describe(error)
        self._span.set_attribute("error.type", kind)
        self._span.set_status(Status(StatusCode.ERROR, summary))
        try:
            self._span.record_exception(error)
        except Exception:  # it formats the error by the error's own methods
            details = {"exception.type": kind, "exception.message": summary}
            self._span.add_event("exception", details)
