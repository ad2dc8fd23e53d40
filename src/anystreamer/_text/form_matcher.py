"""Compiled forms: which tokens can come next in an answer. Needs llguidance."""

from __future__ import annotations

import json
import threading
import weakref
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from copy import copy
from typing import Any, NamedTuple, Protocol

from .._installing import NotInstalled
from .base import rust_backend, special_ids
from .call_or_answer import CallOrAnswerForm
from .grammar_builder import GrammarBuilder
from .reasoning import Reasoning
from .schema_costs import check_cost

__all__ = ["Form", "FormMatcher", "FormTooComplex", "new_matcher"]

# How many compiled grammars are kept for each tokenizer, and of how many characters together; those
# used last. A character takes some 120 bytes.
KEPT = 64
KEPT_CHARACTERS = 1024 * 1024

# Of an error's message: llguidance repeats what it cannot parse, and can add a stack of its own.
MAX_REASON = 500


class FormTooComplex(ValueError):
    """llguidance gives up on a form: following it exceeds a limit, for one token or in all."""

    def __init__(self, argument: str, reason: str) -> None:
        super().__init__(f"{argument} is too complex: {reason}")
        self._given = (argument, reason)

    def __reduce__(self) -> tuple[type[FormTooComplex], tuple[str, str]]:
        return type(self), self._given


class Form(Protocol):
    """What an answer keeps to."""

    @property
    def argument(self) -> str:
        """The argument that asks for it, for messages."""

    def grammars(
        self, builder: GrammarBuilder, reasoning: Reasoning | None
    ) -> list[dict[str, Any]]:
        """The grammar of the whole answer, as llguidance's list of grammars.

        Raises:
            ValueError: no such grammar can be made.
        """


class _State(NamedTuple):
    """What is known after a token."""

    is_taken: bool = False  # by llguidance's matcher
    has_ended: bool = False
    is_off: bool = False  # the form does not allow the token, or one before it


_START = _State()


class FormMatcher:
    """Follows one answer, token by token, and knows what it can go on with.

    It belongs to one thread at a time.

    Args:
        matcher: llguidance's.
        eos: the tokens that end an answer.
        special: the special tokens.
        argument: the argument that asks for the form, for messages.
        answer_matcher: the matcher of an answer without calls, if it can be tool calls instead.
    """

    def __init__(
        self,
        matcher: Any,
        eos: frozenset[int],
        special: frozenset[int],
        argument: str,
        answer_matcher: FormMatcher | None = None,
    ) -> None:
        self._matcher = matcher
        self._argument = argument
        #: why the form can no longer be followed; from then on any token is allowed
        self.failure: FormTooComplex | None = None
        self._answer_matcher = answer_matcher
        self._eos = eos
        self._special = special - eos
        self._ids: list[int] = []  # of the answer
        self._states: list[_State] = []  # after each of them

    def copy_unused(self) -> FormMatcher:
        """Another one for the same answer. Only before this one has taken a token."""
        answer_matcher = (
            None if self._answer_matcher is None else self._answer_matcher.copy_unused()
        )
        return FormMatcher(
            self._matcher.deep_copy(),
            self._eos,
            self._special | self._eos,
            self._argument,
            answer_matcher,
        )

    @property
    def length(self) -> int:
        """How many tokens of the answer it has seen."""
        return len(self._ids)

    @property
    def taken(self) -> list[bool]:
        """For each token that it has seen, whether llguidance's matcher has taken it."""
        return [state.is_taken for state in self._states]

    @property
    def is_complete(self) -> bool:
        """Whether the answer is a whole text of the form, and nothing can follow.

        Where an answer can be tool calls instead: whether it is a whole answer without calls.
        """
        if self._answer_matcher is not None:
            answer_matcher = self._answer_matcher.copy_unused()
            answer_matcher.advance(self._ids)
            # A special token that begins a call is taken here, and would only be skipped there.
            return answer_matcher.taken == self.taken and answer_matcher.is_complete
        if self._state.is_off or not self._matcher.is_accepting():
            return False
        return self._state.has_ended or bool(self._matcher.is_stopped())

    @property
    def _state(self) -> _State:
        return self._states[-1] if self._states else _START

    def advance(self, token_ids: Iterable[int]) -> bool:
        """Take the next tokens. Returns False if the form does not allow one of them."""
        for token_id in token_ids:
            self._states.append(self._take(token_id))
            self._ids.append(token_id)
        return not self._state.is_off

    def seek(self, token_ids: Sequence[int]) -> None:
        """Go on, or back, to an answer of these tokens: drafts are tried and dropped."""
        same = 0
        for old, new in zip(self._ids, token_ids, strict=False):
            if old != new:
                break
            same += 1
        dropped = sum(state.is_taken for state in self._states[same:])
        if dropped:
            self._matcher.rollback(dropped)
        del self._ids[same:], self._states[same:]
        self.advance(token_ids[same:])

    def _take(self, token_id: int) -> _State:
        """Let llguidance's matcher take a token, and return the state after it."""
        before = self._state
        if before.has_ended or before.is_off:
            return before._replace(is_taken=False)
        if self._matcher.try_consume_tokens([token_id]):
            return _State(is_taken=True, has_ended=token_id in self._eos)
        if self._has_failed():
            return _State(is_off=True)
        if token_id in self._eos:  # forced at a limit: the answer is cut there
            return _State(has_ended=True)
        # A special token is forced, too, as the first one of some models is. It has no text.
        return _State(is_off=token_id not in self._special)

    def allowed_bits(self) -> bytes | None:
        """A bit for each token of the vocabulary, lowest first: 1 if it can be next.

        None if any can: the answer has ended, or a draft is not of the form.
        """
        if self._state.has_ended or self._state.is_off:
            return None
        bits: bytes = self._matcher.compute_bitmask()
        # After a failure, the bits allow only the end, as if the answer were complete.
        return None if self._has_failed() else bits

    def _has_failed(self) -> bool:
        if self.failure is None:
            self.failure = _failure_of(self._matcher, self._argument)
        return self.failure is not None


def _failure_of(matcher: Any, argument: str) -> FormTooComplex | None:
    if not matcher.is_error():
        return None
    reason, _, _ = str(matcher.get_error()).partition("\n")  # its whole state follows
    return FormTooComplex(argument, reason[:MAX_REASON])


def new_matcher(
    tokenizer: Any, form: Form, eos: Sequence[int], reasoning: Reasoning | None = None
) -> FormMatcher:
    """Make a matcher for an answer. The first of a tokenizer or a form takes long.

    Args:
        tokenizer: of transformers or tokenizers.
        form: of the answer.
        eos: the tokens that end it.
        reasoning: what can stand before the form.

    Raises:
        ImportError: llguidance is not installed.
        ValueError: the form is not valid or too complex, or this tokenizer or model cannot keep to
            one.
    """
    if not eos:
        raise ValueError(
            f"{form.argument}: without an end-of-sequence token the answer would have no end; "
            "pass eos_token_id="
        )
    compiler = _compiler_of(tokenizer, tuple(eos), form.argument)
    ends, special = frozenset(eos), special_ids(tokenizer)
    answer_matcher = None
    if isinstance(form, CallOrAnswerForm):
        compiler.check_beginnings(form)
        answer_llmatcher = compiler.matcher(form.answer, reasoning)
        answer_matcher = FormMatcher(answer_llmatcher, ends, special, form.argument)
    return FormMatcher(
        compiler.matcher(form, reasoning), ends, special, form.argument, answer_matcher
    )


class _Compiler:
    """The grammars of one tokenizer, those used last."""

    def __init__(self, tokenizer: Any, eos: tuple[int, ...]) -> None:
        from llguidance import LLTokenizer

        backend = copy(rust_backend(tokenizer))
        backend.no_padding()
        backend.no_truncation()
        self._backend = backend
        self._tokenizer = LLTokenizer(backend.to_str(), eos_token=list(eos))
        self._eos = frozenset(eos)
        self._special = {
            added.content: token_id
            for token_id, added in backend.get_added_tokens_decoder().items()
            if self._tokenizer.is_special_token(token_id)
        }
        self._kept: OrderedDict[str, Any] = OrderedDict()
        self._lock = threading.Lock()

    def matcher(self, form: Form, reasoning: Reasoning | None) -> Any:
        """A new matcher of llguidance's."""
        builder = GrammarBuilder(self._special, self._eos)
        grammars = form.grammars(builder, reasoning)
        grammar = json.dumps({"grammars": grammars})
        with self._lock:
            kept = self._kept.get(grammar)
            if kept is not None:
                self._kept.move_to_end(grammar)
                return kept.deep_copy()
        for each in grammars:
            try:
                check_cost(each.get("json_schema", {}))
            except ValueError as exc:
                raise FormTooComplex(form.argument, str(exc)) from None
        # Outside of the lock, since it can take a second.
        compiled = self._compile(grammar, form.argument)
        with self._lock:
            self._kept[grammar] = compiled
            while len(self._kept) > KEPT or sum(map(len, self._kept)) > KEPT_CHARACTERS:
                self._kept.popitem(last=False)
            return compiled.deep_copy()

    def check_beginnings(self, form: CallOrAnswerForm) -> None:
        """Refuse a form if an answer can begin like a call: it would be read as one."""
        for lead in form.leads(GrammarBuilder(self._special, self._eos)):
            token_ids = self._tokenizer.tokenize_str(lead)
            if self.matcher(form.answer, None).try_consume_tokens(token_ids) == len(token_ids):
                raise ValueError(
                    f"{form.argument}: an answer in this format can begin with {lead!r}, as a call "
                    "does; pass tool_choice='none' or 'required'"
                )

    def _compile(self, grammar: str, argument: str) -> Any:
        from llguidance import LLMatcher

        matcher = LLMatcher(self._tokenizer, grammar, log_level=0)
        if matcher.is_error():
            reason = str(matcher.get_error())
            if reason.startswith("panic: "):  # a number that is too large for it
                raise FormTooComplex(argument, reason.partition("\n")[0][:MAX_REASON])
            if len(reason) > MAX_REASON:
                reason = f"{reason[:MAX_REASON]} ..."
            raise ValueError(f"{argument} is not valid: {reason}")
        # A form that exceeds a limit mostly does so at its first token: so it is refused here.
        trial = matcher.deep_copy()
        bits = int.from_bytes(trial.compute_bitmask(), "little")
        trial.try_consume_tokens([(bits & -bits).bit_length() - 1] if bits else [])
        if (failure := _failure_of(trial, argument)) is not None:
            raise failure
        return matcher


# By tokenizer, then by its size and its end ids: with more tokens, it needs a new compiler.
_compilers: weakref.WeakKeyDictionary[Any, dict[Any, _Compiler]] = weakref.WeakKeyDictionary()
_compilers_lock = threading.Lock()


def _compiler_of(tokenizer: Any, eos: tuple[int, ...], argument: str) -> _Compiler:
    try:
        import llguidance  # noqa: F401
    except ImportError as exc:
        raise NotInstalled(f"{argument}= needs llguidance", "structured", "llguidance") from exc
    backend = rust_backend(tokenizer)
    if backend is None:
        raise ValueError(
            f"{argument}: {type(tokenizer).__name__} is not a tokenizer of the tokenizers "
            "library (a fast one), whose vocabulary llguidance can read"
        )
    with _compilers_lock:  # building one takes up to a second, and other threads wait for it
        try:
            kept = _compilers.setdefault(tokenizer, {})
        except TypeError:  # no weak references to it, or no hash
            kept = {}
        key = (backend.get_vocab_size(), eos)
        if key not in kept:
            kept[key] = _Compiler(tokenizer, eos)
        return kept[key]
