"""The form of an answer that is calls of tools, or keeps to a form of its own."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from .grammar_builder import GrammarBuilder
from .reasoning import Reasoning, reasoning_before
from .response_format import AnswerForm
from .tool_form import Calls, ToolForm

__all__ = ["CallOrAnswerForm"]


@dataclass(frozen=True, slots=True)
class CallOrAnswerForm:
    """Calls, or an answer without calls. The model chooses by how it begins."""

    calls: ToolForm
    within: AnswerForm  #: of the answer without calls

    @property
    def argument(self) -> str:
        """The argument that asks for it, for messages."""
        return self.within.argument

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
            ValueError: there is none.
        """
        try:
            calls = Calls(builder, self.calls.shape, self.calls.use)
            called = f"{calls.space} {calls.all()}"
            answer = builder.other("form", self.within.grammar)
            before = reasoning_before(builder, reasoning)
            if reasoning is not None:
                between = f"({builder.text(reasoning.between)})?" if reasoning.between else ""
                called = f"{calls.space} {between} {calls.all()}"
                answer = f"/\\s*/ {between} {builder.text(reasoning.content)} {answer}"
            return builder.grammars(f"{before} ({called} | {answer})")
        except ValueError as exc:
            raise ValueError(f"{self.calls.argument}: {exc}") from None
