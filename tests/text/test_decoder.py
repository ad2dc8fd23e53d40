"""Incremental decoding: exact, without delay, at a flat cost, for every family of tokenizers."""

from __future__ import annotations

import gc
import itertools
import logging
import random
import re
import threading
import time
import tracemalloc
import weakref
from functools import cache
from typing import Any

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

pytest.importorskip("transformers")

from tokenizers import Tokenizer, decoders, models

from anystreamer._text import TextDecoder, text_decoder

from ..helpers import tokenizer_families as families
from ..helpers.tokenizer_families import FAMILIES, SAMPLE

REPLACEMENT = "\ufffd"
# Long enough for the nightly profile.
pytestmark = [pytest.mark.torch, pytest.mark.timeout(60 + settings().max_examples // 4)]

BY_NAME = {family.name: family for family in FAMILIES}

every_family = pytest.mark.parametrize("name", BY_NAME)
every_exact_way = pytest.mark.parametrize(
    "name", [family.name for family in FAMILIES if family.way != "WindowDecoder"]
)
every_window = pytest.mark.parametrize(
    "name", [family.name for family in FAMILIES if family.way == "WindowDecoder"]
)
every_byte_fallback = pytest.mark.parametrize(
    "name", [name for name in BY_NAME if name.startswith("byte fallback")]
)


@cache
def made(name: str) -> Any:
    return BY_NAME[name].make()


def is_raw(tokenizer: Any) -> bool:
    return isinstance(tokenizer, Tokenizer)


def size(tokenizer: Any) -> int:
    return tokenizer.get_vocab_size() if is_raw(tokenizer) else len(tokenizer)


@cache
def encoded(name: str, start: int, length: int) -> tuple[int, ...]:
    encoding = made(name).encode(SAMPLE[start : start + length])
    return tuple(encoding.ids if is_raw(made(name)) else encoding)


def pieces_of(decoder: TextDecoder, ids: list[int], cuts: list[int]) -> list[str]:
    """Feed the ids in chunks that end at the cuts, and flush."""
    edges = [0, *sorted(cut % (len(ids) + 1) for cut in cuts), len(ids)]
    chunks = [ids[a:b] for a, b in itertools.pairwise(edges)]
    return [*(decoder.decode(chunk) for chunk in chunks), decoder.flush()]


def one_by_one(decoder: TextDecoder, ids: list[int]) -> list[str]:
    return [*(decoder.decode([token_id]) for token_id in ids), decoder.flush()]


@st.composite
def id_lists(draw: st.DrawFn, name: str) -> list[int]:
    """Texts cut anywhere, any ids at all, few ids over and over, and mixtures of these."""
    count = size(made(name))
    any_id = st.integers(0, count + 1)  # the last two are unknown
    if draw(st.booleans()):
        few = st.sampled_from(draw(st.lists(any_id, min_size=1, max_size=6)))
        any_id = draw(st.sampled_from([any_id, few, st.integers(0, min(count, 256) - 1)]))
    parts = st.one_of(
        st.lists(any_id, max_size=40),
        st.builds(
            lambda start, length, cut: list(encoded(name, start, length))[: -cut or None],
            st.integers(0, len(SAMPLE)),
            st.integers(0, 40),
            st.integers(0, 3),
        ),
    )
    return [i for part in draw(st.lists(parts, max_size=3)) for i in part]


@st.composite
def decode_kwargs(draw: st.DrawFn, name: str) -> dict[str, Any]:
    choices: dict[str, Any] = {"skip_special_tokens": st.booleans()}
    if not is_raw(made(name)):
        choices["clean_up_tokenization_spaces"] = st.sampled_from([True, False, None])
        choices["spaces_between_special_tokens"] = st.booleans()
    return {key: draw(strategy) for key, strategy in choices.items() if draw(st.booleans())}


chunkings: st.SearchStrategy[list[int]] = st.one_of(
    st.just([]), st.lists(st.integers(0, 200), max_size=20)
)


# The text is exact.


@every_family
@given(data=st.data())
def test_pieces_joined_are_the_full_decode(name: str, data: st.DataObject) -> None:
    """Any ids, in any chunks, with any arguments: the text is the reference's, and said to be."""
    kwargs = data.draw(decode_kwargs(name))
    ids = data.draw(id_lists(name))
    cuts = data.draw(st.one_of(st.just(list(range(len(ids)))), chunkings))
    decoder = text_decoder(made(name), hold_byte_runs=True, **kwargs)
    text = "".join(pieces_of(decoder, ids, cuts))
    reference = made(name).decode(ids, **kwargs)
    assert decoder.exact is (text == reference)
    if BY_NAME[name].exact:
        assert text == reference


@every_family
def test_each_family_gets_its_way(name: str) -> None:
    """The way is chosen by the decoder: a tokenizer that has an exact one does not go without."""
    assert type(text_decoder(made(name))).__name__ == BY_NAME[name].way


@every_family
def test_texts_come_back(name: str) -> None:
    """A whole text, encoded, comes back as the full decode of it, by default too."""
    ids = list(encoded(name, 0, len(SAMPLE)))
    decoder = text_decoder(made(name))
    assert "".join(one_by_one(decoder, ids)) == made(name).decode(ids)
    assert decoder.exact is True


@every_byte_fallback
@given(data=st.data())
def test_byte_runs_by_default_show_whole_characters(name: str, data: st.DataObject) -> None:
    """A run's characters stay, its other bytes are one U+FFFD each; valid runs are exact."""
    known = size(made(name))
    ids = [token_id for token_id in data.draw(id_lists(name)) if token_id < known]
    decoder = text_decoder(made(name))
    text = "".join(one_by_one(decoder, ids))
    assert decoder.exact is (text == made(name).decode(ids))
    # The same with U+FFFD spelled out, in bytes, in the place of every byte outside a character:
    # then each run is valid, and the reference shows it.
    spelled: list[int] = []
    for is_byte, run in itertools.groupby(ids, lambda token_id: token_id < 256):
        if is_byte:
            characters = bytes(run).decode("utf-8", "surrogateescape")
            spelled += re.sub("[\udc80-\udcff]", REPLACEMENT, characters).encode()
        else:
            spelled += run
    assert text == made(name).decode(spelled)


def test_a_byte_run_cut_off() -> None:
    """What was shown stays; what the reference makes of it can be had by waiting."""
    tokenizer = made("byte fallback")
    ids = list("é👍".encode()[:-1])
    assert one_by_one(text_decoder(tokenizer), ids) == ["", "é", "", "", "", REPLACEMENT * 3]
    held = text_decoder(tokenizer, hold_byte_runs=True)
    assert one_by_one(held, ids) == ["", "", "", "", "", REPLACEMENT * 5]
    assert tokenizer.decode(ids) == REPLACEMENT * 5


@given(
    vocabulary=st.lists(st.text(max_size=8), min_size=1, max_size=12, unique=True),
    added=st.lists(st.text(min_size=1, max_size=6), max_size=4, unique=True),
    decoder=st.recursive(
        st.sampled_from(
            [
                decoders.ByteLevel(),
                decoders.ByteFallback(),
                decoders.Fuse(),
                decoders.Metaspace(),
                decoders.Metaspace(prepend_scheme="never"),
                decoders.WordPiece(),
                decoders.WordPiece(prefix="a", cleanup=False),
                decoders.Replace("▁", " "),
                decoders.Replace("a", "bb"),
                decoders.Replace("aa", ""),
                decoders.Replace("<", "0"),
                decoders.Replace("0", "<"),
                decoders.Strip(" ", 1, 0),
                decoders.Strip("a", 2, 0),
            ]
        ),
        lambda inner: st.lists(inner, max_size=4).map(decoders.Sequence),
        max_leaves=5,
    ),
    data=st.data(),
)
def test_random_vocabularies_and_decoders(
    vocabulary: list[str], added: list[str], decoder: Any, data: st.DataObject
) -> None:
    """Any nesting of decoders over any tokens: whatever way it gets, a difference is stated."""
    alphabet = "a▁ <0x41>#'.Ġ"
    extra = data.draw(st.lists(st.text(alphabet, max_size=6), max_size=8))
    pieces = dict.fromkeys([*vocabulary, *extra, "<0xC3>", "<0xA9>", "<0x41>", "▁", "aa", "##a"])
    tokenizer = Tokenizer(models.BPE({piece: n for n, piece in enumerate(pieces)}, []))
    tokenizer.decoder = decoder
    tokenizer.add_tokens([token for token in added[::2] if token])
    tokenizer.add_special_tokens([token for token in added[1::2] if token])
    ids = data.draw(st.lists(st.integers(0, tokenizer.get_vocab_size()), max_size=20))
    skip = data.draw(st.booleans())
    incremental = text_decoder(tokenizer, hold_byte_runs=True, skip_special_tokens=skip)
    text = "".join(one_by_one(incremental, ids))
    reference = tokenizer.decode(ids, skip_special_tokens=skip)
    assert incremental.exact is (text == reference)
    if type(incremental).__name__ != "WindowDecoder":
        assert text == reference


@pytest.mark.parametrize("unknown", [1, 2])
@pytest.mark.parametrize("size", [1, 2, 9])
def test_an_unknown_id_makes_no_text_final(unknown: int, size: int) -> None:
    """Repeated, it adds nothing: that does not show that the text before it stays as it is."""
    pieces = ["new</w>york</w>", "is</w>"]
    tokenizer = Tokenizer(models.BPE({piece: n for n, piece in enumerate(pieces)}, []))
    tokenizer.decoder = decoders.BPEDecoder()  # the last token has no space for its suffixes
    ids = [0, *[99] * unknown, 0, *[99] * unknown, 1]
    decoder = text_decoder(tokenizer)
    text = "".join(pieces_of(decoder, ids, list(range(0, len(ids), size))))
    assert (text, decoder.exact) == (tokenizer.decode(ids), True)
    assert text == "new york new york is"


def test_clean_up_is_left_out_where_transformers_leaves_it_out() -> None:
    """BPE models ignore the clean-up unless told not to; both are followed."""
    for forced in (False, True):
        name = "clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output"
        tokenizer = families.byte_level(clean_up_tokenization_spaces=True, **{name: forced})
        ids = [*b"stop ! n't ", *b"it 's 're"]
        assert "".join(one_by_one(text_decoder(tokenizer), ids)) == tokenizer.decode(ids)
        assert ("stop !" in tokenizer.decode(ids)) is not forced


def test_a_clean_up_of_its_own() -> None:
    """A tokenizer with its own clean-up goes through the window, if the clean-up is asked for."""

    class Shouting(type(made("unigram"))):  # type: ignore[misc]
        def clean_up_tokenization(self, text: str) -> str:
            return text.upper()

    tokenizer = Shouting(tokenizer_object=made("unigram")._tokenizer)
    ids = list(encoded("unigram", 0, 60))
    for clean_up, way in ((True, "WindowDecoder"), (False, "PieceDecoder")):
        decoder = text_decoder(tokenizer, clean_up_tokenization_spaces=clean_up)
        assert type(decoder).__name__ == way
        reference = tokenizer.decode(ids, clean_up_tokenization_spaces=clean_up)
        assert "".join(one_by_one(decoder, ids)) == reference


def test_a_patched_decode_is_used() -> None:
    """A decode() that was put onto the object counts, too."""
    tokenizer: Any = families.byte_level()
    tokenizer.decode = lambda ids, **kwargs: "x" * len(ids)
    assert one_by_one(text_decoder(tokenizer), [1, 2]) == ["x", "x", ""]


def test_a_python_decoder() -> None:
    """A decoder written in Python cannot be read: the window takes it."""

    class Joining:
        def decode_chain(self, tokens: list[str]) -> list[str]:
            return [f"{token}." for token in tokens]

    tokenizer = families.bpe(["a", "b"])
    tokenizer.decoder = decoders.Decoder.custom(Joining())
    decoder = text_decoder(tokenizer)
    assert type(decoder).__name__ == "WindowDecoder"
    assert one_by_one(decoder, [0, 1, 0]) == ["a.", "b.", "a.", ""]


# A difference is stated.


def test_a_difference_is_logged_and_kept(caplog: pytest.LogCaptureFixture) -> None:
    """A decode() that changes its mind about old text is found out at the end."""

    class Fickle:
        def decode(self, ids: list[int], **kwargs: Any) -> str:
            return "".join(map(str, ids)).upper() if 9 not in ids else "quite different"

    decoder = text_decoder(Fickle())
    assert decoder.exact is None
    pieces = one_by_one(decoder, [1, 2, 3, 9])
    assert "".join(pieces).startswith("123")
    assert decoder.exact is False
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert record.name == "anystreamer"
    assert "Fickle" in record.message


# Nothing is held back that can no longer change, and nothing is shown that still can.


def common(texts: list[str]) -> str:
    first, last = min(texts), max(texts)
    return first[: next((n for n, char in enumerate(first) if last[n : n + 1] != char), None)]


def assert_shown_at_once(
    make: Any, ids: list[int], continuations: list[list[int]], final: Any
) -> None:
    """What has been shown after each id is all that every continuation agrees on."""
    decoder, shown = make(), ""
    for n in range(1, len(ids) + 1):
        shown += decoder.decode([ids[n - 1]])
        agreed = common([final(ids[:n] + more) for more in continuations])
        assert shown == agreed, (ids[:n], shown, agreed)


UTF8_ENDS = [[], *([b] for b in range(256)), *([b, 0x80] for b in range(256))] + [
    [b, 0x80, 0x80] for b in range(0x80, 0xC0)
]


@settings(max_examples=max(10, settings().max_examples // 10))
@given(st.lists(st.sampled_from([*"é👍a� ".encode(), *b"\xff\xe0\xed\xf4\xf0\x80\x9f\xa0"])))
@example([0xED, 0xA9])  # the beginning of a surrogate
def test_bytes_are_shown_once_they_are_characters(data: list[int]) -> None:
    """Byte level: at most the beginning of one character is held, and no invalid byte."""
    tokenizer = made("byte level")
    ids = data[:8]
    assert_shown_at_once(lambda: text_decoder(tokenizer), ids, UTF8_ENDS, tokenizer.decode)


@settings(max_examples=max(10, settings().max_examples // 10))
@given(
    st.booleans(),
    st.lists(
        st.sampled_from([*"é👍 ".encode(), *b"\xff\xe0\xed\xf4\x80\xa0", "a", "▁", "▁▁", "</s>"])
    ),
)
def test_byte_runs_are_shown_as_soon_as_possible(hold: bool, tokens: list[Any]) -> None:
    """Byte fallback: characters at once; or, held, when the run has ended or is past saving."""
    tokenizer = made("byte fallback, strip")
    vocabulary = tokenizer.get_vocab()
    ids = [t if isinstance(t, int) else vocabulary[t] for t in tokens[:5]]
    a = vocabulary["a"]
    ends = [*UTF8_ENDS, [a], [0xFF, a], [0xFF, 0xFF]]

    def make() -> TextDecoder:
        return text_decoder(tokenizer, hold_byte_runs=hold)

    def final(ids: list[int]) -> str:
        return tokenizer.decode(ids) if hold else "".join(pieces_of(make(), ids, []))

    assert_shown_at_once(make, ids, ends, final)


@settings(max_examples=max(10, settings().max_examples // 10))
@given(st.text(" .'nmsvretx▁", max_size=10))
def test_clean_up_holds_only_what_it_may_remove(text: str) -> None:
    """A space before a mark, or what may become " n't": no more is held, and no longer."""
    pieces = ["▁", *" .'ntmsvrex"]
    tokenizer = Tokenizer(models.Unigram([(piece, -1.0) for piece in pieces], unk_id=0))
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="never")
    cleaning = families.fast(tokenizer, clean_up_tokenization_spaces=True)
    ids = [pieces.index(char) for char in text]
    ends = ["".join(end) for n in range(3) for end in itertools.product(pieces[1:], repeat=n)]
    ends += ["n't", "'ve", "'re", "' m", "' s", "' ve", "' re", "' t", " ' t", " ' m"]
    continuations = [[pieces.index(char) for char in end] for end in ends]
    assert_shown_at_once(lambda: text_decoder(cleaning), ids, continuations, cleaning.decode)


@every_exact_way
@settings(max_examples=max(10, settings().max_examples // 5))
@given(data=st.data())
def test_exact_ways_show_what_every_next_token_agrees_on(name: str, data: st.DataObject) -> None:
    """Every other family, against the tokens of its whole vocabulary as continuations."""
    tokenizer = made(name)
    ids = data.draw(id_lists(name))[:6]
    assume(ids)
    vocabulary = range(size(tokenizer))
    decoder = text_decoder(tokenizer, hold_byte_runs=True)
    shown = "".join(decoder.decode([token_id]) for token_id in ids)
    agreed = common([tokenizer.decode([*ids, more]) for more in vocabulary])
    assert agreed.startswith(shown)
    held = agreed[len(shown) :]
    # More than one token to come can still change these: incomplete characters, and clean-ups.
    assert held.strip(" n'vr" + REPLACEMENT) == "" or name == "replace after fuse"


@pytest.mark.parametrize(
    # The other one has byte fallback underneath: its runs are held until they end.
    "name",
    [f.name for f in FAMILIES if f.way == "WindowDecoder" and f.exact],
)
@settings(max_examples=max(10, settings().max_examples // 5))
@given(data=st.data())
def test_the_window_shows_ordinary_text_at_once(name: str, data: st.DataObject) -> None:
    """Of ordinary text, all is shown that the next token leaves as it is."""
    start, length = data.draw(st.tuples(st.integers(0, len(SAMPLE)), st.integers(0, 60)))
    ids = list(encoded(name, start, length))
    tokenizer = made(name)
    decoder, shown = text_decoder(tokenizer, clean_up_tokenization_spaces=False), ""
    for n in range(1, len(ids)):
        shown += decoder.decode([ids[n - 1]])
        now, then = (
            tokenizer.decode(ids[:k], clean_up_tokenization_spaces=False) for k in (n, n + 1)
        )
        assert shown.startswith(common([now, then]).rstrip(REPLACEMENT))


@every_family
@settings(max_examples=max(10, settings().max_examples // 10))  # it follows from the test above
@given(data=st.data())
def test_no_piece_ends_inside_a_character(name: str, data: st.DataObject) -> None:
    """After every id the text shown is a beginning of the final one, U+FFFD included."""
    ids = data.draw(id_lists(name))
    pieces = one_by_one(text_decoder(made(name), hold_byte_runs=True), ids)
    reference = made(name).decode(ids)
    if not BY_NAME[name].exact:
        assume("".join(pieces) == reference)
    shown = ""
    for piece in pieces:
        shown += piece
        assert reference.startswith(shown)


def test_an_emoji_sequence_by_bytes() -> None:
    """Every code point of an emoji sequence comes whole, and as soon as its bytes are there."""
    family = "👩‍👩‍👧‍👦"
    pieces = one_by_one(text_decoder(made("byte level")), list(family.encode()))
    assert [piece for piece in pieces if piece] == list(family)


# The cost of a token does not grow.


class Counting:
    """Counts the ids that go through a tokenizer's decode()."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.calls = self.decoded = 0

    def decode(self, ids: list[int], **kwargs: Any) -> str:
        self.calls += 1
        self.decoded += len(ids)
        return str(self.tokenizer.decode(ids, **kwargs))


def long_runs(name: str) -> dict[str, list[int]]:
    tokenizer = made(name)
    special = [
        i for i in range(size(tokenizer)) if not tokenizer.decode([i], skip_special_tokens=True)
    ]
    return {
        "text": list(encoded(name, 0, len(SAMPLE))),
        "one token": [size(tokenizer) // 2],
        "skipped specials": special[-1:] or [0],
        "invalid bytes": [0xFF],
        "beginnings of characters": [0xF0],
        "no spaces": [i for i in range(40, size(tokenizer)) if " " not in tokenizer.decode([0, i])],
    }


@pytest.mark.slow
@every_window
def test_the_window_is_bounded(name: str) -> None:
    """However long and dull the output, a token costs the decoding of a bounded number of ids."""
    for what, run in long_runs(name).items():
        per_token = []
        for length in (600, 1_800):
            counting = Counting(made(name))
            decoder = text_decoder(counting, skip_special_tokens=True)
            ids = list(itertools.islice(itertools.cycle(run or [0]), length))
            for token_id in ids:
                decoder.decode([token_id])
            per_token.append(counting.decoded / length)
            decoder.flush()
        assert per_token[1] < 700, what
        assert per_token[1] < 1.3 * per_token[0] + 5, what


@every_exact_way
def test_exact_ways_decode_each_id_once(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once an id is known, the tokenizer is not asked again: not by any decoder of it."""
    tokenizer = BY_NAME[name].make()
    ids = list(range(size(tokenizer)))
    one_by_one(text_decoder(tokenizer), ids)
    from anystreamer._text import decoder_plan

    def unexpected(*args: Any) -> Any:
        raise AssertionError("asked again")

    monkeypatch.setattr(decoder_plan.Vocabulary, "entry", unexpected)
    text_decoder(tokenizer).decode(ids * 3)


@pytest.mark.slow
@every_exact_way
def test_long_runs_are_linear(name: str) -> None:
    """100,000 tokens in one go take about a hundred times as long as 1,000: no hidden scan."""
    for what, run in long_runs(name).items():
        decoder = text_decoder(made(name), hold_byte_runs=True, skip_special_tokens=True)
        decoder.decode(run)
        ids = list(itertools.islice(itertools.cycle(run), 100_000))
        began = time.process_time()
        for start in range(0, len(ids), 10):
            decoder.decode(ids[start : start + 10])
        decoder.flush()
        assert time.process_time() - began < 10, what  # quadratic would be minutes


def test_making_a_decoder_builds_no_table() -> None:
    tokenizer: Any = families.fast(families.bpe([f"t{n}" for n in range(150_000)]))
    tokenizer._tokenizer.decoder = decoders.ByteLevel()
    text_decoder(tokenizer)  # reads what the tokenizer's decoder does
    tracemalloc.start()
    try:
        text_decoder(tokenizer)
        assert tracemalloc.get_traced_memory()[1] < 100_000  # a table has 150,000 entries
    finally:
        tracemalloc.stop()


# Use and misuse.


@every_family
def test_it_starts_afresh_after_flush(name: str) -> None:
    """flush() ends a text; what follows is the next one, and nothing of the first is in it."""
    decoder = text_decoder(made(name))
    ids = list(encoded(name, 0, 80))
    first, second = (one_by_one(decoder, ids[:n]) for n in (len(ids) - 1, len(ids)))
    assert "".join(first) == made(name).decode(ids[:-1])
    assert "".join(second) == made(name).decode(ids)
    assert decoder.flush() == ""
    assert decoder.exact is True


@every_family
@pytest.mark.parametrize("ids", [[[1, 2]], [[1], [2]], ["a"], [1.5], 5, [None]])
def test_a_batch_is_refused(name: str, ids: Any) -> None:
    """Only a flat list of ints is taken; a refused call changes nothing."""
    decoder = text_decoder(made(name))
    decoder.decode([70])
    with pytest.raises(TypeError, match="flat list of ints"):
        decoder.decode(ids)
    decoder.decode([71])
    assert decoder.flush() is not None
    assert decoder.exact is True


@pytest.mark.parametrize("tokenizer", [None, "gpt2", object()])
def test_what_is_no_tokenizer_is_refused_at_once(tokenizer: Any) -> None:
    """Not at the first token, in a worker thread."""
    with pytest.raises(TypeError, match=r"needs an object with decode\(\)"):
        text_decoder(tokenizer)


def test_a_decode_that_returns_no_text() -> None:
    """Whisper's output_offsets=True, for one, makes decode() return a dict."""

    class Structured:
        def decode(self, ids: list[int], **kwargs: Any) -> dict[str, str]:
            return {"text": "a"}

    with pytest.raises(TypeError, match="must return a str"):
        text_decoder(Structured()).decode([1])


@every_family
def test_integer_likes(name: str) -> None:
    """Tensors' and arrays' elements count as ints."""

    class Element:
        def __init__(self, value: int) -> None:
            self.value = value

        def __index__(self) -> int:
            return self.value

    decoder = text_decoder(made(name))
    ids: Any = [Element(i) for i in encoded(name, 0, 30)]
    assert "".join([decoder.decode(ids), decoder.flush()]) == made(name).decode(
        list(encoded(name, 0, 30))
    )


def test_a_tokenizer_is_not_kept_alive() -> None:
    """What is remembered of a tokenizer goes with it."""
    tokenizer: Any = families.byte_level()
    one_by_one(text_decoder(tokenizer), [1, 2, 3])
    gone = weakref.ref(tokenizer)
    del tokenizer
    gc.collect()
    assert gone() is None


def test_a_changed_tokenizer() -> None:
    """New tokens, newly special ones and another decoder are seen by the next decoder."""
    tokenizer: Any = families.byte_level()
    ids = list(range(60, 80))
    one_by_one(text_decoder(tokenizer, skip_special_tokens=True), ids)
    tokenizer.add_special_tokens({"eos_token": "A"})
    tokenizer.add_tokens(["quite new"])
    ids.append(len(tokenizer) - 1)
    reference = tokenizer.decode(ids, skip_special_tokens=True)
    assert "A" not in reference
    decoder = text_decoder(tokenizer, skip_special_tokens=True)
    assert "".join(one_by_one(decoder, ids)) == reference
    tokenizer._tokenizer.decoder = decoders.Replace("B", "-")
    assert "".join(one_by_one(text_decoder(tokenizer), ids)) == tokenizer.decode(ids)


@every_exact_way
def test_threads_share_a_tokenizer(name: str) -> None:
    """Decoders of one tokenizer, in many threads, learn its ids at once and agree."""
    tokenizer = BY_NAME[name].make()
    ids = list(range(size(tokenizer)))
    texts: list[str] = []

    def work(seed: int) -> None:
        text_decoder(tokenizer).decode(random.Random(seed).sample(ids, len(ids)))
        texts.append("".join(one_by_one(text_decoder(tokenizer, hold_byte_runs=True), ids)))

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (
        texts
        == [tokenizer.decode(ids, **({"skip_special_tokens": True} if is_raw(tokenizer) else {}))]
        * 6
    )
