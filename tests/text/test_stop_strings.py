"""Stop strings: what is shown, what is held back, which one matched, and at what cost."""

import gc
import sys
import tracemalloc
import weakref
from collections.abc import Callable, Iterable
from itertools import accumulate, pairwise, product
from types import FrameType
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from anystreamer._text import stop_strings
from anystreamer._text.stop_strings import StopStrings, validate_stop_strings

# Tiny alphabets: strings overlap, contain and complete each other in most examples.
ALPHABET = "ab"
LONGEST = 4
stop_lists = st.lists(st.text(ALPHABET, min_size=1, max_size=LONGEST), max_size=4)
texts = st.text(ALPHABET, max_size=12)
wider_stop_lists = st.lists(st.text("abcé👍", min_size=1, max_size=7), min_size=1, max_size=5)


def by_definition(stops: Iterable[str], text: str) -> tuple[str, str | None]:
    """Give what is shown of a finished text, and which string matched, by brute force."""
    for end in range(1, len(text) + 1):
        ending_here = [stop for stop in stops if text[:end].endswith(stop)]
        if ending_here:
            longest = max(ending_here, key=len)
            return text[: end - len(longest)], longest
    return text, None


def run(stops: Iterable[str], pieces: Iterable[str]) -> tuple[str, str | None]:
    """Feed all pieces and give the text shown, and which string matched."""
    stop_strings = StopStrings(stops)
    shown = "".join(stop_strings.feed(piece) for piece in pieces)
    return shown + stop_strings.flush(), stop_strings.matched


def cut(text: str, places: Iterable[int]) -> list[str]:
    """Cut a text at the given places; equal ones give empty pieces."""
    edges = [0, *sorted(min(place, len(text)) for place in places), len(text)]
    return [text[start:end] for start, end in pairwise(edges)]


# What is shown, and which one matched


@given(stop_lists, texts)
@example(["abb", "b"], "ab")
@example(["aab"], "aaab")
@example(["abab", "ba"], "abab")
def test_agrees_with_the_definition(stops: list[str], text: str) -> None:
    """Text shown and string told are what a search through the finished text gives."""
    assert run(stops, [text]) == by_definition(stops, text)
    assert run(stops, text) == by_definition(stops, text)


def test_agrees_with_the_definition_in_every_small_case() -> None:
    """Every one or two strings of up to three characters, in every text of up to six."""
    strings = ["".join(s) for length in (1, 2, 3) for s in product(ALPHABET, repeat=length)]
    every_text = ["".join(s) for s in product(ALPHABET, repeat=6)]  # shorter ones: its prefixes
    for first, second in product(strings, strings):
        if first <= second:
            for text in every_text:
                stop_strings = StopStrings([first, second])
                parts = [stop_strings.feed(character) for character in text]
                result = "".join(parts) + stop_strings.flush(), stop_strings.matched
                assert result == by_definition([first, second], text)


@given(stop_lists, texts, st.lists(st.integers(0, 12), max_size=6))
def test_the_cutting_does_not_matter(stops: list[str], text: str, places: list[int]) -> None:
    """The same text in other pieces, empty ones included, gives the same result."""
    assert run(stops, cut(text, places)) == run(stops, [text])


@given(wider_stop_lists, st.data())
def test_any_characters(stops: list[str], data: st.DataObject) -> None:
    """The same with longer strings, and texts made of parts of them."""
    parts = sorted({stop[start:] for stop in stops for start in range(len(stop))})
    text = "".join(data.draw(st.lists(st.sampled_from([*parts, "é", "x"]), max_size=8)))
    places = data.draw(st.lists(st.integers(0, len(text)), max_size=8))
    assert run(stops, cut(text, places)) == by_definition(stops, text)


@given(stop_lists, texts, st.randoms(use_true_random=False))
def test_the_order_does_not_matter(stops: list[str], text: str, random: Any) -> None:
    """Neither the order of the stop strings nor duplicates change anything."""
    shuffled = stops * 2
    random.shuffle(shuffled)
    assert run(shuffled, text) == run(stops, text)


@pytest.mark.parametrize(
    ("stops", "text", "shown", "matched"),
    [
        (["STOP"], "go on STOP here", "go on ", "STOP"),
        (["\n\n", "###"], "one\n###two\n\n", "one\n", "###"),
        (["abcd", "bc"], "xabcd", "xa", "bc"),  # ends first
        (["bc", "abc"], "xabcd", "x", "abc"),  # ends at the same character: the longest
        (["ab", "abc"], "xabcd", "x", "ab"),  # starts at the same character: ends first
        (["x"], "x", "", "x"),
        (["👍🏽"], "👍👍🏽", "👍", "👍🏽"),
        (["é"], "e\u0301", "e\u0301", None),  # equal only after normalisation
        (["STOP"], "stop", "stop", None),
        ("ab", "ba", "ba", None),  # one string, not its letters
    ],
)
def test_examples(stops: Any, text: str, shown: str, matched: str | None) -> None:
    """The rules in the docstring, one by one."""
    assert run(stops, [text]) == (shown, matched)
    assert run(stops, text) == (shown, matched)


# When


@given(stop_lists, texts)
def test_stops_in_the_step_that_completes_the_match(stops: list[str], text: str) -> None:
    """`matched` is set by the very character that completes a stop string."""
    stop_strings = StopStrings(stops)
    for character, so_far in zip(text, accumulate(text), strict=True):
        stop_strings.feed(character)
        assert stop_strings.matched == by_definition(stops, so_far)[1]


@given(stop_lists, texts, st.lists(st.integers(0, 12), max_size=4))
@example(["abbb", "bb"], "a", [])  # "abbb" can never match, so "a" is not held
def test_holds_back_what_is_needed_and_nothing_more(
    stops: list[str], text: str, places: list[int]
) -> None:
    """After each piece: held is exactly what some continuation makes part of a match."""
    continuations = [
        "".join(more) for length in range(LONGEST) for more in product(ALPHABET, repeat=length)
    ]
    stop_strings = StopStrings(stops)
    fed = shown = ""
    for piece in cut(text, places):
        fed += piece
        shown += stop_strings.feed(piece)
        if stop_strings.matched is not None:
            assert stop_strings.held == ""
            break
        assert shown + stop_strings.held == fed
        # What is sure to be shown, whatever comes: the least over all continuations.
        sure = min(len(by_definition(stops, fed + more)[0]) for more in continuations)
        assert shown == fed[:sure]


def test_after_a_match_nothing_comes() -> None:
    """What follows the stop string is dropped: in the same piece, in later ones, and at the end."""
    stop_strings = StopStrings(["##", "#a"])
    assert stop_strings.feed("one#") == "one"
    assert stop_strings.held == "#"
    assert stop_strings.matched is None
    assert stop_strings.feed("#two#") == ""
    assert stop_strings.matched == "##"
    assert stop_strings.held == ""
    assert stop_strings.feed("three#a") == ""
    assert stop_strings.matched == "##"
    assert stop_strings.flush() == ""


def test_flush_gives_back_what_was_held_once() -> None:
    """A suffix that never became a stop string is text like any other."""
    stop_strings = StopStrings("<end>")
    assert stop_strings.feed("a <en") == "a "
    assert stop_strings.flush() == "<en"
    assert stop_strings.held == stop_strings.flush() == ""
    assert stop_strings.matched is None


def test_without_stop_strings_everything_is_shown() -> None:
    """The default holds nothing back and is false."""
    stop_strings = StopStrings()
    assert not stop_strings
    assert stop_strings.feed("any text") == "any text"
    assert stop_strings.held == stop_strings.flush() == ""
    assert StopStrings("x")
    assert StopStrings(["aa", "a"])


# What is accepted


def test_any_iterable_of_strings_is_accepted() -> None:
    """A generator, which can be read only once, does as well as a list."""
    assert run((stop for stop in ("b", "c")), "abc") == ("a", "b")
    assert run({"b": 1}, "abc") == ("a", "b")


@pytest.mark.parametrize(
    ("stop", "error", "message"),
    [
        (None, TypeError, "stop must be a str or an iterable of str, not NoneType"),
        (7, TypeError, "stop must be a str or an iterable of str, not int"),
        (b"x", TypeError, "stop must be a str or an iterable of str, not bytes"),
        (bytearray(b"x"), TypeError, "stop must be a str or an iterable of str, not bytearray"),
        (["x", None], TypeError, "a stop string must be a str, not NoneType"),
        ([b"x"], TypeError, "a stop string must be a str, not bytes"),
        ([["x"]], TypeError, "a stop string must be a str, not list"),
        ("", ValueError, "a stop string must not be empty: it would match at once; leave it out"),
        (
            ["x", ""],
            ValueError,
            "a stop string must not be empty: it would match at once; leave it out",
        ),
    ],
)
def test_anything_else_is_refused(stop: Any, error: type[Exception], message: str) -> None:
    """The message says what was expected and what was given."""
    with pytest.raises(error, match=f"^{message}$"):
        StopStrings(stop)


# What it costs


def lines_executed(function: Callable[[], object]) -> int:
    """Count the lines that run in the module: a measure of work that no busy machine disturbs."""
    count = 0

    def trace(frame: FrameType, event: str, arg: object) -> Any:
        nonlocal count
        if frame.f_code.co_filename != stop_strings.__file__:
            return None
        count += event == "line"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        function()
    finally:
        sys.settrace(before)
    return count


def feed_all(stop_strings: StopStrings, pieces: Iterable[str]) -> None:
    """Feed every piece."""
    for piece in pieces:
        stop_strings.feed(piece)


MANY = [f"{number:03}" + "x" * 47 for number in range(1000)]


@pytest.mark.parametrize(
    ("stops", "text"),
    [
        (["aaaab"], "a" * 5_000),
        (["a" * 4_999 + "b"], "a" * 5_000),
        (["a" * 2_500 + "b"], ("a" * 2_500 + "c") * 2),
        (["a" * n + "b" for n in range(1, 100)], ("a" * 99 + "c") * 50),
        (["ab" * 500 + "c", "ba" * 700 + "c"], "ab" * 2_500),
        (MANY, "".join(stop[:-1] + "y" for stop in MANY[:100])),
    ],
    ids=["run", "long run", "broken runs", "nested", "periods", "many"],
)
@pytest.mark.parametrize("size", [1, 7, 5_000])
def test_feeding_is_linear(stops: list[str], text: str, size: int) -> None:
    """The work for a text does not depend on the stop strings, their number or their length."""
    stop_strings = StopStrings(stops)
    pieces = [text[start : start + size] for start in range(0, len(text), size)]
    lines = lines_executed(lambda: feed_all(stop_strings, pieces))
    assert lines <= 15 * len(text) + 20 * len(pieces)
    assert stop_strings.matched is None


@pytest.mark.parametrize(
    "stops",
    [["a" * 10_000], ["ab" * 2_500 + "c", "ba" * 2_500 + "c"], MANY[:300], ["x", *MANY[:300]]],
    ids=["long", "periods", "many", "many that cannot match"],
)
def test_setting_up_is_linear(stops: list[str]) -> None:
    """Nothing is made per token of a vocabulary, nor per pair of stop strings."""
    assert lines_executed(lambda: StopStrings(stops)) <= 40 * sum(map(len, stops))


@pytest.mark.parametrize(
    "stops",
    [["ab" * 50_000], ["".join(map(chr, range(n, n + 10_000))) for n in range(1, 10)], MANY * 2],
    ids=["long", "many characters", "many"],
)
def test_what_it_keeps_is_lean(stops: list[str]) -> None:
    """A few numbers for each character, and no object."""
    tracemalloc.start()
    try:
        stop_strings = StopStrings(stops)
        kept, highest = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    characters = sum(map(len, stops))
    assert kept < 40 * characters
    assert highest < 60 * characters
    assert stop_strings


def test_what_is_kept_is_shared_and_goes_with_the_last_of_its_users() -> None:
    """It is built once for each set, and needs no garbage collector."""
    stops = validate_stop_strings(["ab", "cd"])
    assert validate_stop_strings(stops) is stops
    built = weakref.ref(stops.automaton)
    users = [StopStrings(stops), StopStrings(stops)]
    assert stops.automaton is built()
    gc.disable()
    try:
        del stops
        users.pop()
        assert users.pop().feed("xab") == "x"
        assert built() is None
    finally:
        gc.enable()


def test_a_thousand_stop_strings() -> None:
    """Each of many is found, behind text that nearly was another of them."""
    for stop in MANY[::97]:
        assert run(MANY, ["0", "0", MANY[0][1:-1], stop[:20], stop[20:], "more"]) == (
            "00" + MANY[0][1:-1],
            stop,
        )


def test_a_very_long_stop_string() -> None:
    """Ten thousand characters are held back, and shown when the last one differs."""
    stop = "a" * 9_999 + "b"
    stop_strings = StopStrings(stop)
    assert stop_strings.feed("a" * 10_001) == "aa"
    assert stop_strings.feed("c") == "a" * 9_999 + "c"
    assert stop_strings.feed("a" * 9_999) == ""
    assert stop_strings.feed("b") == ""
    assert stop_strings.matched == stop
