"""The form of an answer that keeps to a form or, if the model chooses so, calls tools."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .grammar_builder import GrammarBuilder
from .reasoning import Reasoning, reasoning_before
from .response_format import AnswerForm
from .tool_form import ToolForm

__all__ = ["AnswerOrCalls"]


@dataclass(frozen=True, slots=True)
class AnswerOrCalls:
    """Either a whole text of a form, or one call or more and no text."""

    answer: AnswerForm
    calls: ToolForm

    @property
    def argument(self) -> str:
        """The argument that asks for it, for messages."""
        return self.answer.argument

    def grammars(
        self, builder: GrammarBuilder, reasoning: Reasoning | None
    ) -> list[dict[str, Any]]:
        """The grammar of the whole answer, as llguidance's list of grammars.

        Raises:
            ValueError: there is none.
        """
        answer = self.answer.rule(builder, reasoning)
        calls = self.calls.rule(builder, reasoning)
        return builder.grammars(f"{reasoning_before(builder, reasoning)} ({answer} | {calls})")
