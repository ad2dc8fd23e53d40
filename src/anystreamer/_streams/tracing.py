"""A span of OpenTelemetry for each generation, in an application that uses OpenTelemetry.

The names are those of its conventions for generative AI, where there is one:
https://opentelemetry.io/docs/specs/semconv/gen-ai/gen-ai-spans/
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Any

from .types import Row, Timing

__all__ = ["GenerationSpan"]


class GenerationSpan:
    """From the call to the end of a generation. Its parent is what the caller's task is in."""

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
        """Start a span; None where nobody records them."""
        # An application that records spans has imported this. For others it is not loaded.
        trace = sys.modules.get("opentelemetry.trace")
        if trace is None:
            return None
        span = trace.get_tracer("anystreamer").start_span(f"{operation} {model}")
        if not span.is_recording():
            return None
        attributes = {
            "gen_ai.operation.name": operation,
            "gen_ai.provider.name": provider,
            "gen_ai.output.type": "text",
            "gen_ai.request.model": model,
            **{f"gen_ai.request.{name}": value for name, value in settings().items()},
        }
        span.set_attributes(
            {name: value for name, value in attributes.items() if value is not None}
        )
        return cls(span)

    def end(self, rows: list[Row], timing: Timing, error: BaseException | None) -> None:
        """End it with what came of the generation."""
        from opentelemetry.trace import Status, StatusCode

        usages = [row.usage for row in rows if row.usage is not None]
        attributes: dict[str, Any] = {
            "gen_ai.response.finish_reasons": [str(row.finish_reason) for row in rows],
            "anystreamer.timing.queued": timing.queued,
            "anystreamer.timing.first_token": timing.first_token,
        }
        if usages:
            attributes |= {
                "gen_ai.usage.input_tokens": sum(usage.prompt_tokens for usage in usages),
                "gen_ai.usage.output_tokens": sum(usage.completion_tokens for usage in usages),
                "anystreamer.usage.computed_tokens": sum(usage.computed_tokens for usage in usages),
            }
        if error is not None:
            attributes["error.type"] = type(error).__qualname__
            self._span.record_exception(error)
            self._span.set_status(Status(StatusCode.ERROR, str(error)))
        self._span.set_attributes(
            {name: value for name, value in attributes.items() if value is not None}
        )
        self._span.end()
