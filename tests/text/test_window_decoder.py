"""Tokenizers of which only `decode` is known: nothing is lost, and nothing is shown twice."""

from __future__ import annotations

import logging
import re
import unicodedata
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from anystreamer import text_decoder


class Pieces:
    """A tokenizer that is known by its `decode` alone: ids are the places of its pieces."""

    def __init__(self, pieces: Sequence[str], special: Sequence[str] = ()) -> None:
        self.pieces = [*special, *pieces]
        self.all_special_ids = [*range(len(special))]

    def ids(self, *pieces: str) -> list[int]:
        return [self.pieces.index(piece) for piece in pieces]

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = False) -> str:
        if skip_special_tokens:
            ids = [token_id for token_id in ids if token_id not in self.all_special_ids]
        return self.join([self.pieces[token_id] for token_id in ids], skip_special_tokens)

    def join(self, pieces: list[str], skip_special_tokens: bool) -> str:
        return "".join(pieces)


class Mistral(Pieces):
    """As Mistral's: SentencePiece drops the first space, unless special tokens are kept."""

    def __init__(self) -> None:
        special = ["<unk>", "<s>", "</s>", "[INST]", "[/INST]"]
        super().__init__(["▁", "▁▁", "▁a", "a", "1", ",", "é"], special)

    def join(self, pieces: list[str], skip_special_tokens: bool) -> str:
        text = super().join(pieces, skip_special_tokens)
        return text.replace("▁", " ").removeprefix(" ") if skip_special_tokens else text


def streamed(
    tokenizer: Any, ids: Sequence[int], sizes: Sequence[int] = (1,), **kwargs: Any
) -> tuple[str, bool | None]:
    """The texts joined, the ids coming in chunks of these sizes, and whether they are exact."""
    decoder = text_decoder(tokenizer, **kwargs)
    text, at = "", 0
    while at < len(ids):
        for size in sizes:
            text += decoder.decode(ids[at : at + size])
            at += size
    return text + decoder.flush(), decoder.exact


chunkings = st.lists(st.integers(1, 20), min_size=1, max_size=4)


@given(ids=st.lists(st.integers(0, 11), max_size=60), sizes=chunkings, skip=st.booleans())
def test_a_lone_word_boundary_is_not_a_special_token(
    ids: list[int], sizes: list[int], skip: bool
) -> None:
    """It decodes to nothing by itself, and is a space elsewhere."""
    tokenizer = Mistral()
    text, is_exact = streamed(tokenizer, ids, sizes, skip_special_tokens=skip)
    assert text == tokenizer.decode(ids, skip_special_tokens=skip)
    assert is_exact


def test_a_word_boundary_among_special_tokens() -> None:
    tokenizer = Mistral()
    ids = tokenizer.ids("<s>", "▁a", "[INST]", "▁", "1", "[/INST]", "▁", "1", "</s>")
    assert streamed(tokenizer, ids, skip_special_tokens=True) == ("a 1 1", True)


def test_special_tokens_that_decode_shows_are_shown() -> None:
    """Whether a special token is skipped is for `decode` to say."""

    class Showing(Pieces):
        def decode(self, ids: Sequence[int], skip_special_tokens: bool = False) -> str:
            return super().decode(ids)

    tokenizer = Showing(["a"], special=["<tool>"])
    assert streamed(tokenizer, [1, 0, 1], skip_special_tokens=True) == ("a<tool>a", True)


def shouting(text: str) -> str:
    return text.upper() if "!" in text else text


def swinging(text: str) -> str:
    """Changes with every token, from the first character on."""
    return text.upper() if len(text) % 2 else text


def forgetful(text: str) -> str:
    """Hides an old part for good."""
    return text.replace("ab", "")


REWRITING: dict[str, Callable[[str], str]] = {
    "all of it, once": shouting,
    "all of it, always": swinging,
    "composed": lambda text: unicodedata.normalize("NFC", text),
    "before a mark": lambda text: re.sub(" (?=[.!])", "", text),
}


class Rewriting(Pieces):
    """Changes text that it has decoded before."""

    def __init__(self, rewrite: Callable[[str], str]) -> None:
        super().__init__([" ", ".", "!", "ab", "b", "c", "e", "\u0301", "é", "</s>"], ["<s>"])
        self._rewrite = rewrite

    def join(self, pieces: list[str], skip_special_tokens: bool) -> str:
        return self._rewrite(super().join(pieces, skip_special_tokens))


@pytest.mark.parametrize("kind", REWRITING)
@given(ids=st.lists(st.integers(0, 10), max_size=80), sizes=chunkings)
def test_each_token_is_shown_once_where_decode_changes_old_text(
    kind: str, ids: list[int], sizes: list[int]
) -> None:
    """The old text stays, and neither comes again nor takes new text with it."""
    tokenizer = Rewriting(REWRITING[kind])
    text, is_exact = streamed(tokenizer, ids, sizes)
    reference = tokenizer.decode(ids)
    assert is_exact is (text == reference)
    plain = "".join(tokenizer.pieces[token_id] for token_id in ids)

    def compared(text: str) -> str:
        return unicodedata.normalize("NFD", text).casefold().replace(" ", "")

    assert compared(text) == compared(plain)


@given(ids=st.lists(st.integers(0, 10), max_size=80), sizes=chunkings)
def test_no_more_is_shown_than_the_tokens_have(ids: list[int], sizes: list[int]) -> None:
    """Not even where `decode` makes old text vanish."""
    tokenizer = Rewriting(forgetful)
    text, is_exact = streamed(tokenizer, ids, sizes)
    assert is_exact is (text == tokenizer.decode(ids))
    for token_id in set(ids):
        piece = tokenizer.pieces[token_id]
        plain = "".join(tokenizer.pieces[each] for each in ids)
        assert text.count(piece) <= plain.count(piece)


def test_a_change_of_old_text_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    """It is the exception, and never silent."""
    tokenizer = Rewriting(shouting)
    ids = tokenizer.ids("b", "c", "!", "b", ".")
    assert streamed(tokenizer, ids) == ("bc!B.", False)
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "Rewriting" in record.message


class ByteFallback(Pieces):
    """A run of byte tokens is a text, or a U+FFFD for each byte: as in Llama 2."""

    def __init__(self) -> None:
        super().__init__([f"<0x{byte:02X}>" for byte in range(256)] + ["▁a", "b"])

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = False) -> str:
        text, run = "", b""
        for token_id in [*ids, -1]:
            if 0 <= token_id < 256:
                run += bytes([token_id])
                continue
            try:
                text += run.decode()
            except UnicodeDecodeError:
                text += "\ufffd" * len(run)
            run = b""
            text += self.pieces[token_id].replace("▁", " ") if token_id >= 0 else ""
        return text


@given(st.lists(st.sampled_from([*"\n3é京👍", "▁a", "b"]), max_size=30), chunkings)
@example([*"\n" * 10, "é", *"👍" * 3, "▁a", "\n", "👍", "👍", "\n"], [1])
@example([*"\n" * 20, *"👍" * 8, "\n"], [1])
def test_a_character_after_ascii_in_one_run_of_bytes(parts: list[str], sizes: list[int]) -> None:
    """While it is incomplete the run decodes to U+FFFD, shown text included: that is no change."""
    tokenizer = ByteFallback()
    ids = [
        token_id
        for part in parts
        for token_id in (tokenizer.ids(part) if part in "▁ab" else part.encode())
    ]
    assert streamed(tokenizer, ids, sizes) == (tokenizer.decode(ids), True)
