"""The text of a stream can be read from any thread, at any time, and nothing is lost by it."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator

import pytest

from anystreamer._streams import Row
from anystreamer._streams.delivered_text import CHUNKS_AT_MOST, DeliveredText

from ..helpers.scripted import PATIENCE


@pytest.fixture
def threads_switch_often() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def test_reading_from_other_threads_loses_no_text(threads_switch_often: None) -> None:
    """Each reader sees a beginning of the text, which only gets longer."""
    row, wrong, is_over = Row(), [], threading.Event()
    chunks = [f"{number} " for number in range(20_000)]
    whole = "".join(chunks)

    def read() -> None:
        length = 0
        while not is_over.is_set():
            text = row.text
            if len(text) < length or not whole.startswith(text):
                wrong.append((length, text))
            length = len(text)

    readers = [threading.Thread(target=read) for _ in range(2)]
    for reader in readers:
        reader.start()
    for chunk in chunks:
        row.delivered_text.append(chunk)
    is_over.set()
    for reader in readers:
        reader.join(PATIENCE)
    assert row.text == whole
    assert not wrong


def test_reading_puts_nothing_in_the_place_of_the_text() -> None:
    """What the loop appends to while another thread reads is what will be read later."""
    row = Row()
    for chunk in "abc":
        row.delivered_text.append(chunk)
    written_by_the_loop = row.delivered_text
    assert row.text == "abc"
    written_by_the_loop.append("d")
    assert row.text == "abcd"


@pytest.mark.parametrize(
    "count", [0, 1, CHUNKS_AT_MOST - 1, CHUNKS_AT_MOST, CHUNKS_AT_MOST + 1, 3 * CHUNKS_AT_MOST]
)
def test_the_text_is_all_that_was_appended(count: int) -> None:
    text = DeliveredText()
    for number in range(count):
        text.append(f"{number} ")
        if number % 100 == 0:
            assert str(text) == "".join(f"{each} " for each in range(number + 1))
    assert str(text) == "".join(f"{each} " for each in range(count))


def test_the_text_is_a_plain_str() -> None:
    text = DeliveredText()
    assert type(str(text)) is str
    text.append(type("Special", (str,), {})("a"))
    assert type(str(text)) is str
