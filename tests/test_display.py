"""What `anystreamer.display` shows of a stream: its progress in a terminal, and its speed."""

from __future__ import annotations

import io
import itertools
import re
from typing import Any

import pytest

from anystreamer import TextChunk, stream_text, sync
from anystreamer.testing import ScriptedModel

pytest.importorskip("rich")

from rich.console import Console

from anystreamer.display import plot_tokens_per_second, show_progress

LINES = 16  # at the most: of larger batches one line shows the sum


def terminal() -> tuple[Console, io.StringIO]:
    shown = io.StringIO()
    return Console(file=shown, force_terminal=True, width=120, color_system=None), shown


def last_lines(shown: io.StringIO, count: int = 1) -> list[str]:
    """What the terminal shows at the end."""
    text = re.sub(r"\x1b\[[?\d;]*\w", "", shown.getvalue())  # without what moves the cursor
    return text.rstrip().splitlines()[-count:]


async def test_it_shows_the_tokens_and_how_the_stream_ended() -> None:
    console, shown = terminal()
    model = ScriptedModel(["one ", "two ", "three "])
    async with stream_text(model, model.tokenizer, "Count") as stream:
        with show_progress(stream, max_new_tokens=20, console=console):
            async for _ in stream:
                pass
    (line,) = last_lines(shown)
    assert line.split()[0] == "text"
    assert f"{len(stream.token_ids)} tokens" in line
    assert line.rstrip().endswith("eos")


@pytest.mark.torch
@pytest.mark.parametrize("rows", [2, LINES + 1], ids=["lines", "sum"])
def test_each_row_of_a_batch_has_a_line_and_many_rows_have_one(rows: int) -> None:
    from anystreamer.demo import load_demo

    console, shown = terminal()
    prompts = ["An increasing sequence: one,"] * rows
    with sync.stream_batch(*load_demo(), prompts, max_new_tokens=5) as stream:
        with show_progress(stream, max_new_tokens=5, console=console):
            stream.read()
    if rows > LINES:
        (line,) = last_lines(shown)
        assert line.startswith(f"{rows} rows")
        assert f"{5 * rows} tokens" in line
    else:
        for number, line in enumerate(last_lines(shown, rows)):
            assert f"row {number}" in line
            assert "5 tokens" in line
            assert line.rstrip().endswith("length")


async def test_a_body_that_fails_leaves_the_display_and_the_stream() -> None:
    console, shown = terminal()
    model = ScriptedModel(["one "] * 1_000)
    with pytest.raises(OSError, match="the body's"):
        async with stream_text(model, model.tokenizer, "Count") as stream:
            with show_progress(stream, console=console):
                await stream.receive()
                raise OSError("the body's")
    assert not model.is_generating
    assert "\x1b[?25h" in shown.getvalue()  # the cursor is back


@pytest.fixture
def pyplot() -> Any:
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("agg")
    from matplotlib import pyplot

    yield pyplot
    pyplot.close("all")


def test_the_plot_has_each_token_once_and_a_line_for_each_row(pyplot: Any) -> None:
    chunks = [
        TextChunk("a", [1, 2], row=row, elapsed=0.5 * number)
        for number in range(1, 101)
        for row in (0, 3)
    ]
    axes = plot_tokens_per_second(chunks)
    assert [each.get_label() for each in axes.patches] == ["row 0", "row 3"]
    lines: list[Any] = list(axes.patches)
    for line in lines:
        speeds, edges, _ = line.get_data()
        widths = [end - start for start, end in itertools.pairwise(edges)]
        tokens = sum(speed * width for speed, width in zip(speeds, widths, strict=True))
        assert tokens == pytest.approx(200)
        assert edges[-1] == pytest.approx(50)
        assert max(speeds) == pytest.approx(4, rel=0.25)


@pytest.mark.parametrize("chunk", [TextChunk("a", [1]), TextChunk("a", [1], elapsed=2)])
def test_one_chunk_is_enough_for_a_plot(pyplot: Any, chunk: TextChunk) -> None:
    _, axes = pyplot.subplots()
    assert plot_tokens_per_second([chunk], axes=axes) is axes
    line: Any = axes.patches[0]
    assert sum(line.get_data().values) > 0


@pytest.mark.parametrize("chunks", [["one"], "one", [1]], ids=repr)
def test_what_is_no_chunk_is_refused_before_a_figure_is_made(pyplot: Any, chunks: Any) -> None:
    with pytest.raises(TypeError, match="has no time of its own"):
        plot_tokens_per_second(chunks)
    assert not pyplot.get_fignums()


def test_no_chunks_are_refused(pyplot: Any) -> None:
    with pytest.raises(ValueError, match="chunks is empty"):
        plot_tokens_per_second(iter([]))
