"""The report of recorded results: the tables and plots of the pages, and the ratios to compare.

``python -m benchmarks.report`` fills the tables of ``docs/`` again: the text between
``<!-- table: PROGRAM, NAME -->`` and ``<!-- end -->``. The build of the documentation makes the
plots: mkdocs calls `on_files`. This module needs neither torch nor this package.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
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

PER_ITEM = (
    "| ratio (quartiles) = {ratio_to_silent:quartiles} | of the best = {ratio_to_silent.best:.2f}"
    "| latency, ms: median = {latency_ms} | p99 = {latency_ms.p99}"
)
FLOOD = (
    "| ratio to culsans = {speed_to_culsans:quartiles}"
    "| processor time, µs per item = {cpu_us_per_item:quartiles}"
    "| other tasks late, ms: median = {late_ms} | p99 = {late_ms.p99} | max = {late_ms.max}"
)
CROWD = "streams | % of a core = {percent_of_a_core} | threads = {threads} | MB = {mb}"
STREAMS = ("1 stream", "4 streams", "16 streams", "64 streams")
RAY = "{load.*.tokens_per_second}, {load.*.ttft_ms} ms"


def repeated(columns: Iterable[str], cell: str) -> str:
    """Columns with the same cell, in which ``*`` is the number in the name of the column."""
    return " | ".join(f"{name} = {cell.replace('*', name.split()[0])}" for name in columns)


# By program and table. A table shows the part of the results that its name begins with, up to a
# colon; the name can be a pattern. A column has a name and ``=`` a cell: text with figures, such as
# ``{ms.p99:.1f}``, a path in the row and a format. Without a last name it is the median. A column
# without a cell is a key of the part, and the rows are below as many keys.
TABLES = {
    "decoding": {
        "speed": "tokenizer | 1k tokens = {anystreamer.1000.us}"
        "| 8k tokens = {anystreamer.8000.us} | 32k tokens = {anystreamer.32000.us}"
        "| 128k tokens = {anystreamer.128000.us}"
        "| TextStreamer, 8k = {TextStreamer.8000.us}"
        "| DecodeStream = {DecodeStream.128000.us}",
        "mismatches": "tokenizer | anystreamer = {anystreamer}"
        "| anystreamer, runs held = {anystreamer, runs held}"
        "| TextStreamer = {TextStreamer} | DecodeStream = {DecodeStream}",
    },
    "overhead": {"*": PER_ITEM},
    "forms": {
        "*": "| ratio to generate() = {ratio_to_generate:quartiles}"
        "| ms per token = {ms_per_token}"
        "| a new schema: ms to the first token = {first_ms} | the very first = {opening_ms}"
    },
    "producers": {"flood*": FLOOD, "*crowd": CROWD, "*": PER_ITEM},
    "cancellation": {
        "phases": "phase | loop | times = {times} | passes after, max = {passes_after.max:.0f}"
        "| ms, median = {ms_until_joined} | p99 = {ms_until_joined.p99}",
        "costs": "model | control | ratio (quartiles) = {ratio_to_none:quartiles}"
        "| of the best = {ratio_to_none.best:.2f}",
    },
    "engines": {
        "speed": "|" + repeated(STREAMS, "{*.speed_to_limit:quartiles}"),
        "speed: first tokens": "|"
        + repeated(STREAMS, "{*.first_token_ms} / {*.first_token_ms.p95}"),
        "watched": "streams | | token late, ms: median = {token_late_ms}"
        "| p99 = {token_late_ms.p99} | max = {token_late_ms.max}"
        "| loop late, ms: p99 = {loop_late_ms.p99} | apart = {tokens_apart.max:.0f}"
        "| in the manager = {tokens_apart_in_manager.max:.0f}",
        "opening": "loop | MiB = {mib}"
        "| seconds to the first piece = {seconds_to_first_piece}"
        "| to the answer = {seconds_to_answer}",
        "second_turn": "| ms to the first token = {first_token_ms:quartiles}"
        "| ratio = {ratio_to_continuous:quartiles}",
    },
    "simulated": {
        "streams": "step, streams | | of the steps (quartiles) = {speed_to_limit:quartiles}"
        "| % of a core = {percent_of_a_core:.0f}"
        "| token late, ms: median = {token_late_ms.median}"
        "| p99 = {token_late_ms.p99} | max = {token_late_ms.max}"
        "| loop late, ms: p99 = {loop_late_ms.p99} | max = {loop_late_ms.max}"
    },
    "edge": {
        "load": "clients | server | tokens/s = {tokens_per_second:whole quartiles}"
        "| ratio = {speed_to_transformers:.2f}"
        "| TTFT, ms = {ttft_ms} / {ttft_ms.p95} | ITL, ms = {itl_ms} / {itl_ms.p95}"
        "| TPOT, ms = {tpot_ms} / {tpot_ms.p95}"
        "| tokens in a chunk = {tokens_per_chunk:.1f}"
        "| last first token, ms = {ttft_of_the_last_ms}"
        "| ratio of it = {speed_of_the_last_to_transformers:.1f}",
        "leaving": "server | answer | ms, median = {ms} | ms, max = {ms.max}"
        "| steps, median = {steps} | steps, max = {steps.max}",
        "kept_alive": "server | requests = {times} | ms, median = {ms} | ms, p99 = {ms.p99}",
    },
    "connections": {
        "each": "loop | KiB of a stream, prompt of 16 tokens = {kib_of_16}"
        "| KiB of a stream, prompt of 4000 tokens = {kib_of_4000}"
        "| µs of CPU for a token = {cpu_us_of_each_token}"
        "| tokens in a chunk = {tokens_per_chunk}"
    },
    "remote": {
        "wire": "loop | streams | local, tokens/s = {local.tokens_per_second}"
        "| remote = {remote.tokens_per_second}"
        "| ratio (quartiles) = {remote.speed_to_local:quartiles}"
        "| more per token, µs = {more_per_token_us:whole quartiles}"
        "| first token, ms = {local.first_token_ms} / {remote.first_token_ms}"
    },
    "ray_serve": {
        "load": "|"
        + repeated(("1 client", "8 clients", "32 clients"), RAY)
        + "| a client leaves: ms until the model stops = {leaving.ms}"
        "| max = {leaving.ms.max}"
    },
    "footprint": {
        "import": "program | ms (quartiles) = {ms:whole quartiles}"
        "| ratio to anyio = {ratio_to_anyio:quartiles}",
        "memory": "streams that wait | KiB of each (quartiles) = {kib:whole quartiles}"
        "| threads of each = {threads:.2f}",
    },
}
RUNS = (
    "program | day = {date} | rounds = {rounds} | load before = {load_average}"
    "| Python = {python} | torch = {versions.torch}"
    "| transformers = {versions.transformers} | anyio = {versions.anyio}"
)


def tables(program: str, results: Part) -> dict[str, str]:
    """The tables of the results by their names, each from the first pattern that it fits."""
    made: dict[str, str] = {}
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


FIGURE = re.compile(r"\{(?P<path>[^}:]+):?(?P<format>[^}]*)\}")


def filled_in(cell: str, row: Part) -> str:
    """The cell with the row's figures, or a dash if the row does not have one."""
    figures = {found[0]: figure_at(found["path"], row) for found in FIGURE.finditer(cell)}
    if None in figures.values():
        return "–"
    return FIGURE.sub(lambda found: shown(figures[found[0]], found["format"]), cell)


def figure_at(path: str, row: Part) -> Any:
    value: Any = row
    for name in path.split("."):
        value = value.get(name) if value else None
    return value


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
    return table(RUNS, each)


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
                quartiles = (value[each] for each in ("median", "q1", "q3"))
                found[", ".join((*path, name))] = Ratio(*quartiles, name.startswith("speed"))
        elif isinstance(value, dict):
            found |= ratios(value, *path, name)
    return found


# -- plots

# Colours by their role, on light and on dark pages: Okabe and Ito's, which most people with colour
# blindness can tell apart. The SVG follows the reader's system.
INK, OUR_COLOUR, PEER, LIMIT = "#1f2328", "#0072b2", "#d55e00", "#7f7f7f"
ON_DARK = {INK: "#d1d7e0", OUR_COLOUR: "#56b4e9", PEER: "#e69f00"}
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
    """A plot as SVG: its words are text, and its colours follow the reader's system."""
    import matplotlib as mpl

    inked = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color")
    settings: Any = dict.fromkeys(inked, INK) | {"svg.fonttype": "none", "font.size": 9}
    with mpl.rc_context(settings):
        file = io.StringIO()
        figure = plot()[0].figure
        figure.savefig(file, format="svg", transparent=True, bbox_inches="tight")
    image = file.getvalue()
    light = "".join(f"--c{colour[1:]}: {colour};" for colour in ON_DARK)
    dark = "".join(f"--c{colour[1:]}: {other};" for colour, other in ON_DARK.items())
    for colour in ON_DARK:
        image = image.replace(colour, f"var(--c{colour[1:]})")
    media = "@media (prefers-color-scheme: dark)"
    style = f"<style>:root {{{light}}} {media} {{:root {{{dark}}}}}</style>"
    return image.replace("<defs>", f"{style}<defs>", 1)


def on_files(files: Any, config: Any) -> None:
    """Add the plots to the site: a hook that mkdocs calls."""
    from mkdocs.structure.files import File

    for name, plot in PLOTS.items():
        files.append(File.generated(config, f"images/measured/{name}.svg", content=svg(plot)))


if __name__ == "__main__":
    fill_pages()
