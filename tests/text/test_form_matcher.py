"""The matcher of a form: what it allows next, and going back from drafts."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

llguidance = pytest.importorskip("llguidance")
tokenizers = pytest.importorskip("tokenizers")
jsonschema = pytest.importorskip("jsonschema")

from anystreamer import Choice, Grammar, Regex  # noqa: E402
from anystreamer._text import (  # noqa: E402
    FormMatcher,
    FormTooComplex,
    form_matcher,
    new_matcher,
    validate_response_format,
)

_ALPHABET = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
MERGED = ["ab", "abc", "12", '{"', '":', "}}"]
EOS, START = len(_ALPHABET) + len(MERGED), len(_ALPHABET) + len(MERGED) + 1


def new_tokenizer() -> Any:
    vocabulary = {text: i for i, text in enumerate([*_ALPHABET, *MERGED])}
    backend = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(False, use_regex=False)
    backend.decoder = tokenizers.decoders.ByteLevel()
    backend.add_special_tokens(["<eos>", "<start>"])
    return backend


TOKENIZER = new_tokenizer()


class Wrapped:
    """As transformers', around one of tokenizers', which cannot be referred to weakly."""

    def __init__(self) -> None:
        self.backend_tokenizer = new_tokenizer()


def matcher_of(response_format: Any) -> FormMatcher:
    form = validate_response_format(response_format)
    assert form is not None
    return new_matcher(TOKENIZER, form, [EOS])


AS_TEXT = new_tokenizer()
AS_TEXT.encode_special_tokens = True  # "<eos>" in a text is five characters


def ids_of(text: str) -> list[int]:
    return list(AS_TEXT.encode(text).ids)


def allowed(matcher: FormMatcher) -> set[int] | None:
    bits = matcher.allowed_bits()
    if bits is None:
        return None
    return {n for n in range(8 * len(bits)) if bits[n // 8] >> n % 8 & 1}


texts = st.text(min_size=1, max_size=8)


@given(st.lists(texts, min_size=1, max_size=4), texts)
@example(["<eos>"], "<start>")
def test_a_choice_is_of_its_texts_and_nothing_else(options: list[str], other: str) -> None:
    form = Choice(options)
    for text in [*options, other]:
        matcher = matcher_of(form)
        is_one = text in options
        matcher.advance([*ids_of(text), EOS])
        assert matcher.is_complete is is_one


SLASHES = "/[]\\"


@given(st.text(SLASHES, min_size=1, max_size=6))
def test_an_expression_can_have_slashes(text: str) -> None:
    escaped = "".join(f"\\{character}" if character != "/" else "/" for character in text)
    matcher = matcher_of(Regex(escaped))
    matcher.advance([*ids_of(text), EOS])
    assert matcher.is_complete


FORMS = [
    Regex("(ab|abc|12)*x"),
    Choice(["abab", "abc12", "é🙂"]),
    Grammar('start: "{" start? "}" | "ab"+'),
    {"type": "object", "properties": {"ab": {"type": "integer"}}},
    {"type": "array", "items": {"enum": ["ab", None, "é"]}},
]


@pytest.mark.parametrize("form", FORMS, ids=lambda form: type(form).__name__)
@given(data=st.data())
def test_going_back_from_a_draft_leaves_nothing_of_it(form: Any, data: st.DataObject) -> None:
    """Drafts that the form allows, that it does not, ends and special tokens in between."""
    matcher, ids = matcher_of(form), list[int]()
    for _ in range(data.draw(st.integers(1, 6))):
        ids = ids[: data.draw(st.integers(0, len(ids)))]
        for _ in range(data.draw(st.integers(0, 4))):
            fresh = matcher_of(form)
            fresh.advance(ids)
            can_be = sorted(allowed(fresh) or {EOS})
            ids.append(data.draw(st.sampled_from(can_be) | st.sampled_from([EOS, START, 0, 70])))
        matcher.seek(ids)
        fresh = matcher_of(form)
        fresh.advance(ids)
        assert matcher.length == len(ids)
        assert allowed(matcher) == allowed(fresh)
        assert matcher.is_complete is fresh.is_complete


# Its rows have more items than llguidance takes.
WIDE = {"anyOf": [{"type": "object", "properties": {f"p{n}": {}}} for n in range(1000)]}


@pytest.mark.parametrize("form", [WIDE, Regex("(a{1000}){1000}"), {"enum": ["v" * 900_000]}])
def test_a_form_that_is_too_complex_from_the_beginning_is_refused(form: Any) -> None:
    with pytest.raises(FormTooComplex, match=r"^response_format is too complex: [^\n]+$"):
        matcher_of(form)


def test_a_form_that_becomes_too_complex_says_so() -> None:
    """What llguidance allows then is the end alone, as if the answer were whole."""
    form = {"type": "object", "properties": {"ab": WIDE}, "required": ["ab"]}
    matcher = matcher_of(form)
    assert matcher.advance(ids_of('{"ab": '))
    assert matcher.failure is None
    assert not matcher.advance(ids_of("{"))
    assert "too complex" in str(matcher.failure)
    assert matcher.allowed_bits() is None
    assert not matcher.is_complete


RECURSIVE = {
    "$ref": "#/$defs/node",
    "$defs": {
        "node": {
            "type": "object",
            "properties": {
                "value": {"type": "integer"},
                "rest": {"type": "array", "items": {"$ref": "#/$defs/node"}, "maxItems": 2},
            },
            "required": ["value"],
            "additionalProperties": False,
        }
    },
}
ADVERSARIAL: dict[str, Any] = {
    "recursive": RECURSIVE,
    "a large enum": {"enum": [f"option {number:04}" for number in range(3000)]},
    "unicode": {
        "type": "object",
        "properties": {"é\u2028🙂": {"enum": ["ß", "\u0000", "\ud7ff", "漢字", '"\\/', ""]}},
        "required": ["é\u2028🙂"],
        "additionalProperties": False,
    },
    "bounds": {
        "type": "array",
        "items": {"type": "number", "exclusiveMinimum": -1.5, "maximum": 1e3},
        "maxItems": 4,
    },
    "integers": {"type": "integer", "minimum": -7, "maximum": 12345},
    "an empty object": {"type": "object", "additionalProperties": False},
    "any object": {"type": "object", "maxProperties": 0},
    "nothing required": {
        "type": "object",
        "properties": {"a": {"type": "null"}, "b": {"type": "boolean"}, "": {"const": 1}},
        "additionalProperties": False,
    },
    "a pattern": {"type": "string", "pattern": "^[a-c\\n]{2,5}$"},
}


def test_no_carriage_return_is_written_between_tokens() -> None:
    """After one, llguidance has wrong masks for some vocabularies: it takes no token of them."""
    matcher = matcher_of(RECURSIVE)
    for text in ("{", '"value":', "1", ","):
        assert matcher.advance(ids_of(text))
        assert not {*ids_of("\r")} & (allowed(matcher) or {*()})


@pytest.mark.parametrize("schema", ADVERSARIAL.values(), ids=ADVERSARIAL)
@given(rng=st.randoms(use_true_random=False))
def test_each_token_that_a_mask_allows_is_taken(schema: Any, rng: random.Random) -> None:
    """Whichever it is. What is complete then, is JSON that keeps to the schema."""
    matcher, ids = matcher_of(schema), list[int]()
    while not matcher.is_complete and len(ids) < 150:
        choices = sorted(allowed(matcher) or ())
        assert choices, ids
        ids.append(rng.choice(choices))
        assert matcher.advance(ids[-1:]), ids
    if matcher.is_complete:
        ends = [] if ids[-1] != EOS else [EOS]
        text = new_tokenizer().decode(ids[: len(ids) - len(ends)])
        jsonschema.validate(json.loads(text), schema)


def test_an_answer_is_complete_at_its_end_and_where_nothing_can_follow() -> None:
    number = matcher_of(Regex("[0-9]+"))
    number.advance(ids_of("12"))
    assert not number.is_complete  # another digit can come
    number.advance([EOS])
    assert number.is_complete
    closed = matcher_of({"type": "object", "additionalProperties": False})
    closed.advance(ids_of("{}"))
    assert closed.is_complete


def test_an_end_that_is_forced_cuts_the_answer() -> None:
    matcher = matcher_of(Choice(["abc"]))
    assert matcher.advance([*ids_of("a"), EOS, 5])
    assert not matcher.is_complete
    assert allowed(matcher) is None


def test_special_tokens_that_are_forced_are_no_text() -> None:
    matcher = matcher_of(Choice(["abc"]))
    assert matcher.advance([START, *ids_of("abc"), EOS])
    assert matcher.is_complete


def test_a_copy_is_another_matcher_of_the_same_answer() -> None:
    matcher = matcher_of(Choice(["abc", "xyz"]))
    copied = matcher.copy_unused()
    assert matcher.advance([*ids_of("abc"), EOS])
    assert copied.length == 0
    assert copied.advance([START, *ids_of("xyz"), EOS])
    assert matcher.is_complete
    assert copied.is_complete


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The grammars that llguidance has compiled."""
    grammars = []
    original = llguidance.LLMatcher

    def counted(tokenizer: Any, grammar: str, **kwargs: Any) -> Any:
        grammars.append(grammar)
        return original(tokenizer, grammar, **kwargs)

    monkeypatch.setattr(llguidance, "LLMatcher", counted)
    return grammars


def test_a_grammar_is_compiled_once(compiled: list[str]) -> None:
    form, tokenizer = validate_response_format(Choice(["only this", "and that"])), Wrapped()
    assert form is not None
    for _ in range(3):
        new_matcher(tokenizer, form, [EOS])
    assert len(compiled) == 1


def test_large_forms_are_kept_as_far_as_there_is_room(
    compiled: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(form_matcher, "KEPT_CHARACTERS", 2500)
    tokenizer = Wrapped()

    def times(letter: str, length: int) -> int:
        """How often this one is compiled."""
        form, before = validate_response_format({"const": letter * length}), len(compiled)
        assert form is not None
        new_matcher(tokenizer, form, [EOS])
        return len(compiled) - before

    assert [times(letter, 1000) for letter in "abab"] == [1, 1, 0, 0]
    assert [times("c", 1000), times("b", 1000), times("a", 1000)] == [1, 0, 1]
    assert [times("d", 3000), times("d", 3000)] == [1, 1]  # larger than all that is kept


def test_a_tokenizer_that_was_given_tokens_is_another() -> None:
    tokenizer = new_tokenizer()
    form = validate_response_format(Choice(["qqq"]))
    assert form is not None
    before = new_matcher(tokenizer, form, [EOS])
    tokenizer.add_tokens(["qqq"])
    new = tokenizer.token_to_id("qqq")
    assert new not in (allowed(before) or ())
    assert new in (allowed(new_matcher(tokenizer, form, [EOS])) or ())


@pytest.mark.parametrize(
    ("form", "reason"),
    [
        ({"type": "foo"}, "Invalid type"),
        ({"type": "string", "minLength": 5, "maxLength": 2}, "Unsatisfiable"),
        ({"dependentRequired": {"a": ["b"]}}, "dependentRequired"),
        ({"$ref": "#/nowhere"}, "nowhere"),
        (Regex("("), "unclosed group"),
        (Regex("(?=a)b"), "look-around"),
        (Grammar('rule: "a"'), "start"),
        (Grammar("start: other"), "other"),
    ],
    ids=str,
)
def test_what_cannot_be_compiled_is_refused_with_the_reason(form: Any, reason: str) -> None:
    with pytest.raises(ValueError, match=f"(?s)response_format is not valid: .*{reason}"):
        matcher_of(form)


@pytest.mark.parametrize(
    ("value", "error"),
    [
        ("xml", ValueError),
        ("", ValueError),
        (3, TypeError),
        (True, TypeError),
        (int, TypeError),
        ([{"type": "object"}], TypeError),
        ({"type": "json_schema", "json_schema": {"schema": {}}}, ValueError),
        ({"a": float("nan")}, ValueError),
        ({"a": b"b"}, ValueError),
    ],
    ids=str,
)
def test_what_is_no_form_is_refused(value: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="response_format"):
        validate_response_format(value)


@pytest.mark.parametrize(
    ("make", "error"),
    [
        (lambda: Choice([]), ValueError),
        (lambda: Choice(["a", ""]), ValueError),
        (lambda: Choice("yes"), TypeError),
        (lambda: Choice([1]), TypeError),  # type: ignore[list-item]
        (lambda: Regex(None), TypeError),  # type: ignore[arg-type]
        (lambda: Grammar(b"start: 'a'"), TypeError),  # type: ignore[arg-type]
    ],
)
def test_forms_are_checked_when_they_are_made(make: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        make()


def test_a_schema_that_changes_later_is_as_it_was() -> None:
    schema: dict[str, Any] = {"enum": ["ab"]}
    form = validate_response_format(schema)
    schema["enum"].append("cd")
    assert form is not None
    matcher = new_matcher(TOKENIZER, form, [EOS])
    assert matcher.advance(ids_of('"ab"'))
    assert matcher.is_complete
