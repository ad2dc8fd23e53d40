"""The report of recorded results: the tables and plots of the pages, and the ratios to compare.

``python -m benchmarks.report`` fills the tables of ``docs/`` again: the text between
``<!-- table: PROGRAM, NAME -->`` and ``<!-- end -->``. tables.toml declares them. The build of the
documentation makes the plots: mkdocs calls `on_files`. This module needs neither torch nor this
package.
"""

from __future__ import annotations

import io
import json
import re
import tomllib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import reduce
from operator import getitem
from pathlib import Path
from string import Formatter
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
MARKED = re.compile(r"(<!-- table: (?P<name>[^>]+) -->\n).*?(<!-- end -->)", re.DOTALL)

Part = dict[str, Any]  # of the results


def read(results: str | Path) -> Part:
    """Results, by the name of a recorded program or from a file."""
    path = RESULTS / f"{results}.json" if isinstance(results, str) else results
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else {}


def all_results() -> list[Path]:
    return sorted(RESULTS.glob("*.json"))


# -- tables

TABLES = tomllib.loads(Path(__file__).with_name("tables.toml").read_text(encoding="utf-8"))


def tables(program: str, results: Part) -> dict[str, str]:
    """The tables of the results by their names, as tables.toml declares them."""
    made: dict[str, str] = {}
    for part in results.keys() - {"environment"}:
        if not any(fnmatchcase(part, name.partition(":")[0]) for name in TABLES[program]):
            raise LookupError(f"no table shows {part!r} of {program}")
    for pattern, head in TABLES[program].items():
        part, _, more = pattern.partition(":")
        for name in results:
            if fnmatchcase(name, part) and name != "environment":
                made.setdefault(f"{name}:{more}" if more else name, table(head, results[name]))
    return made


def table(head: str, part: Part) -> str:
    """A table in Markdown, of the rows below as many keys as *head* has columns without a cell."""
    columns = [column.partition("=") for column in head.split("|")]
    names = [name.strip() for name, *_ in columns]
    cells = [cell.strip() for _, is_cell, cell in columns if is_cell]
    lines: list[Iterable[Any]] = [names, ["---"] * len(names)]
    for *keys, row in rows(part, len(columns) - len(cells)):
        lines.append([*keys, *(filled_in(cell, row) for cell in cells)])
    return "".join(f"| {' | '.join(map(str, line))} |\n" for line in lines)


def rows(part: Part, levels: int) -> Iterator[tuple[Any, ...]]:
    """The parts that many levels down, each after its keys."""
    for key, value in part.items():
        if levels == 1:
            yield key, value
        else:
            yield from ((key, *row) for row in rows(value, levels - 1))


class Figures(Formatter):
    """Fills a cell with a row's figures: each has a path in the row, and a format of `shown`."""

    def get_field(self, field_name: str, args: Any, kwargs: Any) -> tuple[Any, str]:
        return reduce(getitem, field_name.split("."), kwargs), field_name

    def format_field(self, value: Any, format_spec: str) -> str:
        return shown(value, format_spec)


def filled_in(cell: str, row: Part) -> str:
    """The cell with the row's figures, or a dash if the row does not have one."""
    try:
        return Figures().vformat(cell, (), row)
    except (LookupError, TypeError):
        return "–"


def shown(value: Any, form: str) -> str:
    """A number, or the median of some, with about three significant figures or in a format."""
    if form.endswith("quartiles"):
        digits = 0 if form.startswith("whole") else 2
        median, q1, q3 = (f"{value[name]:,.{digits}f}" for name in ("median", "q1", "q3"))
        return median if q1 == q3 else f"{median} ({q1}-{q3})"
    number = value["median"] if isinstance(value, dict) else value
    if not form and isinstance(number, float):
        digits = 0 if abs(number) >= 100 else 1 if abs(number) >= 10 else 2
        return f"{number:,.{digits}f}"
    return format(number, form)


def runs() -> str:
    """When each program was run, and with what."""
    each = {f"`{path.stem}`": read(path)["environment"] for path in all_results()}
    for run in each.values():
        run["rounds"] = "few (`--quick`)" if run["is_quick"] else "all"
    return table(TABLES["runs"]["environment"], each)


def filled(page: str) -> str:
    """The page with its tables as the recorded results have them. A name must be known."""
    known = {"runs": runs()} | {
        f"{path.stem}, {name}": text
        for path in all_results()
        for name, text in tables(path.stem, read(path)).items()
    }
    return MARKED.sub(lambda found: f"{found[1]}\n{known[found['name']]}\n{found[3]}", page)


def fill_pages() -> None:
    for path in sorted((ROOT / "docs").rglob("*.md")):
        page = path.read_text(encoding="utf-8")
        if (new := filled(page)) != page:
            path.write_text(new, encoding="utf-8")
            print(path.relative_to(ROOT), flush=True)


# -- ratios to peers

# Two quick runs on a shared machine can differ by this share beside their quartiles.
FLOOR = 0.05

OURS = re.compile(
    r"anystreamer|stream_(text|iterable|from_thread)|receive_many|open_engine|remote$|"
    r"AsyncTextIteratorStreamer \(ours\)|`(timeout|max_buffer_size|cancel_within)"
)


def is_ours(name: str) -> bool:
    """Whether a way is this library's and not a peer's."""
    return OURS.search(name) is not None


@dataclass(frozen=True)
class Ratio:
    """The ratio to a peer in the same rounds: the median, and the quartiles."""

    median: float
    q1: float
    q3: float
    more_is_better: bool = False

    def __str__(self) -> str:
        return f"{self.median:.3f} ({self.q1:.3f}-{self.q3:.3f})"

    def is_worse_than(self, other: Ratio) -> bool:
        """Whether it is worse by more than both have spread."""
        allowed = (self.q3 - self.q1) + (other.q3 - other.q1) + FLOOR * other.median
        loss = self.median - other.median
        return (-loss if self.more_is_better else loss) > allowed


def ratios(part: Part, *path: str) -> dict[str, Ratio]:
    """The ratios of this library to peers, each by its path in the results."""
    found: dict[str, Ratio] = {}
    for name, value in part.items():
        if name.startswith(("ratio_to", "speed_to", "speed_of")):
            if any(map(is_ours, path)):
                quartiles = {each: value[each] for each in ("median", "q1", "q3")}
                is_speed = name.startswith("speed")
                found[", ".join((*path, name))] = Ratio(**quartiles, more_is_better=is_speed)
        elif isinstance(value, dict):
            found |= ratios(value, *path, name)
    return found


# -- plots

# Colours by their role: Okabe and Ito's, which most people with colour blindness can tell apart.
# docs/styles.css inverts the lightness of the plots on dark pages.
OUR_COLOUR, PEER, LIMIT = "#0072b2", "#d55e00", "#7f7f7f"
WIDTH = 4.3  # inches: a phone shows nearly all of it, so that its words can be read there


def new_axes(height: float, rows: int = 1) -> list[Any]:
    """One below the other, each with this height in inches."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, height * rows), layout="constrained")
    axes = figure.subplots(rows, 1, squeeze=False)[:, 0]
    for each in axes:
        each.grid(alpha=0.25)
    return list(axes)


def intervals(axes: Any, figures: Part, first: str, last: str, peers: str) -> None:
    """Medians, each on a line from one figure to another, one below the other, under its name."""
    for y, (name, figure) in enumerate(reversed(figures.items())):
        colour = PEER if re.search(peers, name) else OUR_COLOUR
        axes.plot([figure[first], figure[last]], [y, y], color=colour, linewidth=2)
        axes.plot(figure["median"], y, "o", color=colour, markersize=5)
        place = axes.get_yaxis_transform()
        axes.text(0.02, y + 0.25, name.replace("`", ""), transform=place)
    axes.set_yticks([])
    axes.set_ylim(-0.5, len(figures))


def plot_overhead() -> list[Any]:
    scenarios = [f"{size} model, idle loop" for size in ("small", "middle", "large")]
    all_axes = new_axes(5, len(scenarios))
    for axes, scenario in zip(all_axes, scenarios, strict=True):
        ways = {name: row["ratio_to_silent"] for name, row in read("overhead")[scenario].items()}
        intervals(axes, ways, "q1", "q3", peers="transformers|^Text")
        axes.axvline(1, color=LIMIT, linestyle=":")
        axes.set_title(scenario, fontsize=10)
        axes.set_xlabel("time per item, to silence")
    return all_axes


def plot_cancellation() -> list[Any]:
    (axes,) = new_axes(4.2)
    phases = read("cancellation")["phases"]
    figures = {name: loops["asyncio"]["ms_until_joined"] for name, loops in phases.items()}
    intervals(axes, figures, "median", "p99", peers="transformers|raises")
    axes.set(xscale="log", xlabel="ms from the cancel until the thread has left: median, and p99")
    return [axes]


def plot_edge() -> list[Any]:
    """Curves of each server: a figure by the number of clients, each about twice the one before."""
    both, load = new_axes(3.2, 2), read("edge")["load"]
    whats = ("tokens_per_second", "ttft_of_the_last_ms")
    texts = ("tokens per second, of all", "ms to the last first token")
    for axes, what, text in zip(both, whats, texts, strict=True):
        for name in next(iter(load.values())):
            points = {int(n): servers[name][what]["median"] for n, servers in load.items()}
            style = "o--" if "continuous" in name else "o-"
            colour = OUR_COLOUR if is_ours(name) else PEER
            axes.plot(list(points), list(points.values()), style, color=colour, label=name)
        axes.set_xscale("log", base=2)
        axes.set_xticks(list(points), map(str, points))
        axes.set(xlabel="clients at once", ylabel=text)
    both[0].legend(frameon=False)
    both[1].set_yscale("log")
    return both


PLOTS: dict[str, Callable[[], list[Any]]] = {
    "overhead": plot_overhead,
    "cancellation": plot_cancellation,
    "edge": plot_edge,
}


def svg(plot: Callable[[], list[Any]]) -> str:
    """A plot as SVG. Its words are text."""
    import matplotlib as mpl

    with mpl.rc_context({"svg.fonttype": "none", "font.size": 9}):
        file = io.StringIO()
        figure = plot()[0].figure
        figure.savefig(file, format="svg", transparent=True, bbox_inches="tight")
    return file.getvalue()


def on_files(files: Any, config: Any) -> None:
    """Add the plots to the site: a hook that mkdocs calls."""
    from mkdocs.structure.files import File

    for name, plot in PLOTS.items():
        files.append(File.generated(config, f"images/measured/{name}.svg", content=svg(plot)))


if __name__ == "__main__":
    fill_pages()
