"""The form of an answer with tool calls: a grammar from a response template and the tools."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .call_body import CallBody
from .call_shape import CallShape, Opening, shape_of_calls
from .grammar_builder import GrammarBuilder, escaped
from .marker_grammar import render
from .reasoning import ANY_TEXT, Reasoning, reasoning_before, reasoning_between, reasoning_rest
from .tools import Tool, ToolUse

__all__ = ["ToolForm", "new_tool_form"]


@dataclass(frozen=True, slots=True)
class ToolForm:
    """Which calls an answer has."""

    use: ToolUse
    shape: CallShape

    @property
    def argument(self) -> str:
        """The argument that asks for it, for messages."""
        return self.use.argument

    def grammars(
        self, builder: GrammarBuilder, reasoning: Reasoning | None
    ) -> list[dict[str, Any]]:
        """The grammar of the whole answer, as llguidance's list of grammars.

        Raises:
            ValueError: no such grammar can be made.
        """
        if self.use.mode == "required":
            before = reasoning_before(builder, reasoning)
            return builder.grammars(f"{before} {self.rule(builder, reasoning)}")
        try:
            calls = _Calls(builder, self.shape, self.use)
            return builder.grammars(_FreeText(builder, calls, self.use, reasoning).start())
        except ValueError as exc:
            raise ValueError(f"{self.argument}: {exc}") from None

    def rule(self, builder: GrammarBuilder, reasoning: Reasoning | None) -> str:
        """A Lark expression for one call or more, without a text, after the reasoning.

        Raises:
            ValueError: no such grammar can be made.
        """
        between = reasoning_between(builder, reasoning)
        try:
            calls = _Calls(builder, self.shape, self.use)
            return f"{calls.space} {between} {calls.all()}"
        except ValueError as exc:
            raise ValueError(f"{self.argument}: {exc}") from None


def new_tool_form(template: Mapping[str, Any] | None, use: ToolUse) -> ToolForm:
    """The form of answers with these tools.

    Raises:
        ValueError: there is no template, or no grammar can be made for its calls.
    """
    if template is None:
        raise ValueError(
            f"{use.argument}: calls cannot be enforced without a response template, which says how "
            "they are written; set tokenizer.response_template, or pass parse_response={...}"
        )
    try:
        shape = shape_of_calls(template)
    except ValueError as exc:
        raise ValueError(f"{use.argument}: {exc}") from None
    return ToolForm(use, shape)


class _Calls:
    """The rules of calls."""

    def __init__(self, builder: GrammarBuilder, shape: CallShape, use: ToolUse) -> None:
        self.builder = builder
        self.shape = shape
        self.space = builder.terminal(r"/[ \t\r\n]{0,4}/")
        # and whether nothing can follow a call
        self._close, self.is_last = self._closing()
        self.is_single = use.is_single or not shape.can_repeat or self.is_last
        self._use = use
        self._body = CallBody(builder, shape, is_free=use.mode == "auto", is_single=use.is_single)

    def all(self) -> str:
        """A Lark expression for a call, or several."""
        call = self.builder.rule(" | ".join(map(self._whole, self.shape.openings)))
        return call if self.is_single else f"{call} ({self.space} {call})*"

    def after(self, opening: Opening) -> str:
        """A rule for what follows a lead."""
        tools = self._use.tools
        group = self.shape.name_group
        if group:
            options = [self._rest(opening, {group: tool.name}, (tool,)) for tool in tools]
        else:
            options = [self._rest(opening, {}, tools)]
        return self.builder.rule(" | ".join(options))

    def _whole(self, opening: Opening) -> str:
        before = render(self.builder, opening.before, {})
        return f"{before} {self.builder.text(opening.lead)} {self.after(opening)}"

    def _rest(self, opening: Opening, names: Mapping[str, str], tools: Sequence[Tool]) -> str:
        rest = render(self.builder, opening.rest, names)
        body = self.builder.rule(self._body.of(tools))
        return f"{rest} {self.space} {body} {self.space} {self._close}"

    def _closing(self) -> tuple[str, bool]:
        """What closes a call, and whether the answer always ends with it.

        An end-of-sequence token closes a call, too, and ends the answer.
        """
        builder = self.builder
        options, ends = [], False
        for nodes in self.shape.closes:
            written = render(builder, nodes, {})
            if written in {f"<[{token_id}]>" for token_id in builder.eos}:
                ends = True
            elif written:
                options.append(written)
            elif not nodes:
                ends = True
            else:  # it is closed by what follows
                return "", False
        close = f"({' | '.join(dict.fromkeys(options))})" if options else ""
        return close, ends and not options


class _FreeText:
    """The rules of a text in which calls can begin, or cannot.

    A call is recognised by its lead. If the lead begins with a special token, this token is enough,
    unless it can begin something else: then the text after it decides. If the lead is a text, the
    text before it is one lexeme, which ends where the lead first comes.
    """

    def __init__(
        self,
        builder: GrammarBuilder,
        calls: _Calls,
        use: ToolUse,
        reasoning: Reasoning | None,
    ) -> None:
        self._builder = builder
        self._calls = calls
        self._allows_calls = use.mode == "auto"
        self._reasoning = reasoning
        self._texts: list[Opening] = []  # those whose lead is a text
        self._tokens: dict[int, list[tuple[str, Opening]]] = {}  # by token: the text after it
        for opening in calls.shape.openings:
            match builder.split(opening.lead):
                case [str()]:
                    self._texts.append(opening)
                case [int(token_id)]:
                    self._tokens.setdefault(token_id, []).append(("", opening))
                case [int(token_id), str(text)]:
                    self._tokens.setdefault(token_id, []).append((text, opening))
                case _:
                    raise ValueError(f"a call that begins with {opening.lead!r} cannot be followed")
        self._text = self._text_without([])

    def start(self) -> str:
        """A Lark expression for the answer."""
        free = self._free()
        if self._reasoning is not None and not self._reasoning.begin:
            return f"{reasoning_rest(self._builder, self._reasoning)} {free}"
        return free

    def _text_without(self, beginnings: Iterable[str]) -> str:
        """A terminal for text with no lead in it, and with none of these at its beginning."""
        leads = "|".join(escaped(each.lead) for each in self._texts)
        begins = "|".join(map(escaped, beginnings))
        definition = ANY_TEXT
        definition += rf" & ~/(?s:.*)({leads})(?s:.*)/" if leads else ""
        definition += rf" & ~/({begins})(?s:.*)/" if begins else ""
        return self._builder.terminal(definition)

    def _free(self) -> str:
        builder = self._builder
        options = [f"{self._text} r_tail"]
        if self._allows_calls:
            for opening in self._texts:
                until = builder.rule(self._text_before(), f"[suffix={json.dumps(opening.lead)}]")
                options.append(f"{until} {self._after_lead(opening)}")
        tail = ["", *self._special_tails(), *self._reasoning_tail()]
        begin = self._reasoning_begin()
        if begin and isinstance(begin[0], str):
            until = builder.rule(self._text_before(), f"[suffix={json.dumps(begin[0])}]")
            options.append(f"{until} {self._reasoning_after(begin[0])}")
        builder.define("r_tail", " | ".join(tail))
        builder.define("r_free", " | ".join(options))
        return "r_free"

    def _text_before(self) -> str:
        # Where calls can begin, the lead that comes first ends the lexeme.
        return self._builder.terminal(ANY_TEXT) if self._allows_calls else self._text

    def _after_lead(self, opening: Opening) -> str:
        calls = self._calls
        if calls.is_last:
            return calls.after(opening)
        return f"{calls.after(opening)} {calls.space if calls.is_single else 'r_free'}"

    def _special_tails(self) -> list[str]:
        """What can follow a text, beginning with a special token."""
        builder, tails = self._builder, []
        for token_id, openings in self._tokens.items():
            options = []
            if self._allows_calls:
                options = [
                    f"{json.dumps(text) if text else ''} {self._after_lead(each)}"
                    for text, each in openings
                ]
            if all(text for text, _ in openings):  # then it can begin something else
                options.append(f"{self._text_without(text for text, _ in openings)} r_tail")
            if options:
                tails.append(f"<[{token_id}]> {builder.rule(' | '.join(options))}")
        begin = self._reasoning_begin()
        taken = {*self._tokens, *builder.eos, *begin[:1]}
        if others := sorted(set(builder.special.values()) - taken):
            tails.append(f"<[{','.join(map(str, others))}]> r_free")
        return tails

    def _reasoning_begin(self) -> list[str | int]:
        reasoning = self._reasoning
        if reasoning is None or not reasoning.begin:
            return []
        begin = self._builder.split(reasoning.begin)
        # A channel of Harmony's: its text is like any other until its end.
        return [] if begin[0] in self._tokens else begin

    def _reasoning_tail(self) -> list[str]:
        begin = self._reasoning_begin()
        if not begin or isinstance(begin[0], str):
            return []
        return [self._reasoning_after("")]

    def _reasoning_after(self, taken: str) -> str:
        assert self._reasoning is not None
        rest = self._builder.text(self._reasoning.begin[len(taken) :])
        return f"{rest} {reasoning_rest(self._builder, self._reasoning)} r_free"
