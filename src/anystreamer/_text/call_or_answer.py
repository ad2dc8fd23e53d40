"""The form of an answer that is either tool calls, or a text of the caller's form."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from .grammar_builder import GrammarBuilder
from .reasoning import Reasoning, reasoning_before
from .response_format import AnswerForm
from .tool_form import ToolForm

__all__ = ["CallOrAnswerForm"]


@dataclass(frozen=True, slots=True)
class CallOrAnswerForm:
    """Calls, or an answer without calls. The model chooses by how it begins."""

    calls: ToolForm
    answer: AnswerForm  #: of the answer without calls

    @property
    def argument(self) -> str:
        """The argument that asks for it, for messages."""
        return self.answer.argument

    def leads(self, builder: GrammarBuilder) -> Iterator[str]:
        """The texts that calls begin with, where they are not special tokens."""
        for opening in self.calls.shape.openings:
            match builder.split(opening.lead):
                case [str(text), *_]:
                    yield text

    def grammars(
        self, builder: GrammarBuilder, reasoning: Reasoning | None
    ) -> list[dict[str, Any]]:
        """The grammar of the whole answer, as llguidance's list of grammars.

        Raises:
            ValueError: no such grammar can be made.
        """
        answer = self.answer.rule(builder, reasoning)
        calls = self.calls.rule(builder, reasoning)
        return builder.grammars(f"{reasoning_before(builder, reasoning)} ({calls} | {answer})")
