"""Shows a stream in a terminal or a notebook: its progress, and its speed as a plot."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

from ._installing import NotInstalled
from ._streams import FinishReason, TextChunk

try:
    from rich.console import Console, RenderableType
    from rich.progress import (
        BarColumn,
        Progress,
        ProgressColumn,
        Task,
        TextColumn,
        TimeElapsedColumn,
    )
    from rich.text import Text
except ImportError as _missing:
    raise NotInstalled("anystreamer.display needs rich", "notebook", "rich") from _missing

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["plot_tokens_per_second", "show_progress"]

# Of a batch with more rows, one line shows the sum.
_MAX_LINES = 16
# Intervals of a plot, at the most: with more of them, most would have one token or none.
_MAX_INTERVALS = 40


class _Shown(Protocol):
    """An open stream, of one text or of a batch, with an event loop or without."""

    @property
    def token_ids(self) -> list[int] | list[list[int]]: ...

    @property
    def finish_reason(self) -> FinishReason | list[FinishReason | None] | None: ...


@contextmanager
def show_progress(
    stream: _Shown, *, max_new_tokens: int | None = None, console: Console | None = None
) -> Iterator[None]:
    """Show how many tokens were delivered, and how fast, while a ``with`` block reads the stream.

    Each row of a batch has a line; with more than 16 rows, one line shows their sum. When the
    stream has ended, each line has its finish reason. A thread of rich looks at the stream ten
    times a second: how the block reads it makes no difference. Notebooks need ipywidgets, and what
    the block prints there can be lost.

    Args:
        stream: a `TextStream` or `BatchStream`, or one of `anystreamer.sync`, that is open.
        max_new_tokens: of one row, where the bar ends. None shows a bar without an end.
        console: of rich, where to show it. None shows it on standard output.
    """
    lines = _lines_of(stream)
    total = None if max_new_tokens is None else max_new_tokens * lines[0].rows
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed:.0f} tokens"),
        _SpeedColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[ending]}"),
    )
    with _StreamProgress(stream, *columns, console=console) as progress:
        for line in lines:
            progress.add_task(line.name, total=total, ending="")
        try:
            yield
        finally:
            progress.refresh()  # in a notebook, rich does not do it at the end


class _Line:
    """What a line shows of one row, or of all of them."""

    def __init__(self, name: str, token_ids: list[list[int]], reasons: list[Any]) -> None:
        self.name = name
        self.rows = len(token_ids)
        self.tokens = sum(map(len, token_ids))
        endings = dict.fromkeys(str(each) for each in reasons if each is not None)
        self.ending = ", ".join(endings)


def _lines_of(stream: _Shown) -> list[_Line]:
    token_ids: list[Any] = [*stream.token_ids]
    reasons = stream.finish_reason
    if not isinstance(reasons, list):
        return [_Line("text", [token_ids], [reasons])]
    if len(reasons) > _MAX_LINES:
        return [_Line(f"{len(reasons)} rows", token_ids, reasons)]
    rows = zip(token_ids, reasons, strict=True)
    return [_Line(f"row {number}", [ids], [reason]) for number, (ids, reason) in enumerate(rows)]


class _StreamProgress(Progress):
    """Looks at the stream each time that it is drawn."""

    def __init__(self, stream: _Shown, *columns: ProgressColumn, console: Console | None) -> None:
        self._stream = stream
        super().__init__(*columns, console=console)

    def get_renderables(self) -> Iterable[RenderableType]:
        for task, line in zip(self.tasks, _lines_of(self._stream), strict=False):
            self.update(task.id, completed=line.tokens, ending=line.ending)
        return super().get_renderables()


class _SpeedColumn(ProgressColumn):
    def render(self, task: Task) -> Text:
        """The tokens per second of the last half minute."""
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:.1f} tokens/s")


def plot_tokens_per_second(chunks: Iterable[TextChunk], *, axes: Axes | None = None) -> Axes:
    """Plot how many tokens the model made in each second, with one line for each row.

    ``plot_tokens_per_second([chunk async for chunk in stream])`` shows it in a notebook.

    Args:
        chunks: what was received from a stream, of one text or of a batch. Tokens at the very end
            that have no text are in no chunk.
        axes: of matplotlib, to draw on. None makes a new figure.

    Returns:
        The axes, to change or to save: ``axes.figure.savefig("speed.png")``.

    Raises:
        ImportError: matplotlib is not installed.
        TypeError: these are not chunks but plain text.
        ValueError: there are no chunks.
    """
    try:
        from matplotlib import pyplot
    except ImportError as exc:
        needs = "plot_tokens_per_second() needs matplotlib"
        raise NotInstalled(needs, "notebook", "matplotlib") from exc
    chunks = list(chunks)
    if not chunks:
        raise ValueError("chunks is empty: collect them, [chunk async for chunk in stream]")
    for chunk in chunks:
        if not isinstance(chunk, TextChunk):
            raise TypeError(
                f"chunks has a {type(chunk).__name__}, which has no time of its own: collect the "
                "chunks of a stream, [chunk async for chunk in stream]"
            )
    if axes is None:
        _, axes = pyplot.subplots()
    intervals = min(len(chunks), _MAX_INTERVALS)
    width = max(chunk.elapsed for chunk in chunks) / intervals or 1.0
    counts: dict[int, list[int]] = {}
    for chunk in chunks:
        interval = min(int(chunk.elapsed / width), intervals - 1)
        counts.setdefault(chunk.row, [0] * intervals)[interval] += len(chunk.token_ids)
    edges = [number * width for number in range(intervals + 1)]
    for row in sorted(counts):
        axes.stairs([count / width for count in counts[row]], edges, label=f"row {row}")
    if len(counts) > 1:
        axes.legend()
    axes.set(xlabel="seconds since the call", ylabel="tokens per second", ylim=(0, None))
    return axes
