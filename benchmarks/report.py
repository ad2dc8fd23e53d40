"""From recorded results to a report: the tables and plots of the pages, and ratios to compare.

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
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
MARKED = re.compile(r"(<!-- table: (?P<name>[^>]+) -->\n).*?(<!-- end -->)", re.DOTALL)

Part = dict[str, Any]  # of the results
Cell = Callable[[Part], object]


def read(results: str | Path) -> Part:
    """Results, by the name of a recorded program or from a file."""
    path = RESULTS / f"{results}.json" if isinstance(results, str) else results
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else {}


def rows(part: Part, levels: int) -> Iterator[tuple[str, ...]]:
    """The parts that many levels down, each after its keys."""
    for key, value in part.items():
        if levels == 1:
            yield key, value
        else:
            yield from ((key, *row) for row in rows(value, levels - 1))


def is_ours(name: str) -> bool:
    """Whether a way, or a statement, is this library's and not a peer's."""
    ours = ("stream_text", "stream_iterable", "AsyncTextIteratorStreamer (ours)", "open_engine")
    return name.startswith(ours) or "anystreamer" in name


# -- cells of tables


def number(value: float) -> str:
    """With about three significant figures."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.{1 if abs(value) >= 10 else 2}f}"


def spread(figure: dict[str, float], digits: int = 2) -> str:
    """The median, and the quartiles in parentheses."""
    median, first, third = (f"{figure[name]:,.{digits}f}" for name in ("median", "q1", "q3"))
    return median if first == third else f"{median} ({first}-{third})"


def field(path: str, text: Callable[[Any], object] = number) -> Cell:
    """A cell with a part of the row, and a dash if the row does not have it."""

    def cell(row: Part) -> object:
        value: Any = row
        for name in path.split("."):
            value = value.get(name) if value else None
        return "–" if value is None else text(value)

    return cell


def pair(path: str, first: str = "median", second: str = "p95") -> Cell:
    return field(path, lambda value: f"{number(value[first])} / {number(value[second])}")


def table(keys: Iterable[str], columns: dict[str, Cell], body: Iterable[Any]) -> str:
    """A table in Markdown. Each row of the body is its keys and a part of the results."""
    head = [*keys, *columns]
    lines = [head, ["---"] * len(head)]
    lines += [[*names, *(cell(part) for cell in columns.values())] for *names, part in body]
    return "".join(f"| {' | '.join(map(str, line))} |\n" for line in lines)


# -- tables, by program


def decoding(results: Part) -> dict[str, str]:
    speed, mismatches = results["microseconds per token"], results["mismatches"]
    sizes = list(next(iter(speed.values()))["anystreamer"])
    columns = {f"{int(n) // 1000}k tokens": field(f"anystreamer.{n}.median") for n in sizes}
    columns["TextStreamer, 8k"] = field("TextStreamer.8000.median")
    columns["DecodeStream"] = field(f"DecodeStream.{sizes[-1]}.median")
    wrong = {name: row for name, row in mismatches.items() if name != "of"}
    ways = {way: field(way, str) for way in next(iter(wrong.values()))}
    return {
        "speed": table(["tokenizer"], columns, rows(speed, 1)),
        "mismatches": table(["tokenizer"], ways, rows(wrong, 1)),
    }


def per_item(results: Part) -> dict[str, str]:
    columns = {
        "ratio (quartiles)": field("ratio_to_silent", spread),
        "of the best": field("ratio_of_best", "{:.2f}".format),
        "latency, ms: median": field("latency_ms.median"),
        "p99": field("latency_ms.p99"),
    }
    return {
        scenario: table([""], columns, (row for row in rows(ways, 1) if row[0] != "silent"))
        for scenario, ways in results.items()
        if scenario != "environment"
    }


def phases(results: Part) -> Part:
    """The phases that a generation was cancelled in."""
    return {name: part for name, part in results.items() if "ms_until_joined" in str(part)}


def cancellation(results: Part) -> dict[str, str]:
    costs = (
        (f"`{control}`", name.removeprefix("cost of controls, "), row)
        for name, controls in results.items()
        if name.startswith("cost of controls")
        for control, row in controls.items()
        if control != "none"
    )
    columns = {
        "times": field("times", str),
        "passes after, max": field("passes_after.max", str),
        "ms, median": field("ms_until_joined.median"),
        "p99": field("ms_until_joined.p99"),
    }
    cost_columns = {
        "ratio (quartiles)": field("ratio", spread),
        "of the best": field("ratio_of_best", "{:.2f}".format),
    }
    return {
        "phases": table(["phase", "loop"], columns, rows(phases(results), 2)),
        "costs": table(["control", "model"], cost_columns, costs),
    }


def engines(results: Part) -> dict[str, str]:
    speed = results["speed"]
    ways = by_way(speed)

    def by_streams(path: str, text: Callable[[str], Cell]) -> dict[str, Cell]:
        return {f"{n} stream{'s' if n != '1' else ''}": text(f"{n}.{path}") for n in speed}

    late = {
        "token late, ms: median": field("token_late_ms.median"),
        "p99": field("token_late_ms.p99"),
        "max": field("token_late_ms.max"),
        "loop late, ms: p99": field("loop_late_ms.p99"),
        "apart": field("tokens_apart.max", "{:.0f}".format),
        "in the manager": field("tokens_apart.max_in_manager", str),
    }
    opening = {
        "MiB": field("mib.median"),
        "seconds to the first piece": field("seconds_to_first_piece.median"),
        "to the answer": field("seconds_to_answer.median"),
    }
    shares = by_streams("ratio_to_limit", lambda path: field(path, spread))
    streaming = (
        (name, row) for name, row in ways.items() if not name.startswith("manager, silent")
    )
    watched = (
        (streams, name.removeprefix("open_engine, "), row)
        for streams, name, row in rows(results["watched"], 2)
        if "token_late_ms" in row
    )
    return {
        "share": table([""], shares, rows(ways, 1)),
        "first tokens": table([""], by_streams("first_token_ms", pair), streaming),
        "late": table(["streams", ""], late, watched),
        "opening": table(["loop"], opening, rows(results["opening"], 1)),
        "goals": goals(results),
    }


def goals(results: Part) -> str:
    columns: dict[str, Cell] = {
        "target": lambda row: f"{row['sign']} {row['limit']:g}",
        "measured": field("measured"),
        "": lambda row: "met" if row["is_met"] else "**missed**",
    }
    named = (
        (": ".join(filter(None, (row.get("way"), row["goal"]))), row) for row in results["goals"]
    )
    return table(["goal"], columns, named)


def edge(results: Part) -> dict[str, str]:
    load = {
        "tokens/s": field("tokens_per_second", lambda figure: spread(figure, 0)),
        "ratio": field("tokens_per_second_to_transformers.median", "{:.2f}".format),
        "TTFT, ms": pair("ttft_ms"),
        "ITL, ms": pair("itl_ms"),
        "TPOT, ms": pair("tpot_ms"),
        "tokens in a chunk": field("tokens_per_chunk.median", "{:.1f}".format),
        "last first token, ms": field("ttft_of_the_last_ms.median"),
        "ratio of it": field("ttft_of_the_last_to_transformers.median", "{:.1f}".format),
    }
    leaving = {
        "ms, median": field("ms.median"),
        "ms, max": field("ms.max"),
        "steps, median": field("steps.median", str),
        "steps, max": field("steps.max", str),
    }
    return {
        "load": table(["clients", "server"], load, rows(results["load"], 2)),
        "leaving": table(["server", "answer"], leaving, rows(results["leaving"], 2)),
        "goals": goals(results),
    }


def connections(results: Part) -> dict[str, str]:
    loops = {name: row for name, row in results.items() if "cpu_us_of_each_token" in row}
    prompts = next(iter(loops.values()))["kib_of_each_stream"]
    columns = {f"KiB of a stream, {each}": field(f"kib_of_each_stream.{each}") for each in prompts}
    columns["µs of CPU for a token"] = field("cpu_us_of_each_token")
    columns["tokens in a chunk"] = field("tokens_per_chunk")
    return {"each": table(["loop"], columns, rows(loops, 1))}


def remote(results: Part) -> dict[str, str]:
    firsts = [field(f"{way}.first_token_ms.median") for way in ("local", "remote")]
    columns = {
        "local, tokens/s": field("local.tokens_per_second.median"),
        "remote": field("remote.tokens_per_second.median"),
        "ratio (quartiles)": field("ratio", spread),
        "more per token, µs": field("more_per_token_us", lambda figure: spread(figure, 0)),
        "first token, ms": lambda row: " / ".join(str(first(row)) for first in firsts),
    }
    return {"wire": table(["loop", "streams"], columns, rows(results["loops"], 2))}


def ray_serve(results: Part) -> dict[str, str]:
    ways = {name: row for name, row in results.items() if "load" in row}

    def load(clients: str) -> Cell:
        def cell(row: Part) -> str:
            figures = row["load"][clients]
            speed, first = figures["tokens_per_second"]["median"], figures["ttft_ms"]["median"]
            return f"{number(speed)}, {number(first)} ms"

        return cell

    columns = {
        f"{clients} client{'s' if clients != '1' else ''}": load(clients)
        for clients in next(iter(ways.values()))["load"]
    }
    columns["a client leaves: ms until the model stops"] = field("leaving.ms.median")
    columns["max"] = field("leaving.ms.max")
    return {"load": table([""], columns, rows(ways, 1))}


def footprint(results: Part) -> dict[str, str]:
    imports = {
        "ms (quartiles)": field("ms", lambda figure: spread(figure, 0)),
        "ratio to anyio": field("ratio", spread),
    }
    memory = {
        "KiB of each (quartiles)": field("kib", lambda figure: spread(figure, 0)),
        "threads of each": field("threads"),
    }
    statements = ((f"`{statement}`", row) for statement, row in results["import"].items())
    return {
        "import": table(["program"], imports, statements),
        "memory": table(["streams that wait"], memory, rows(results["memory"], 1)),
    }


def runs() -> str:
    """When each program was run, and with what."""
    columns: dict[str, Cell] = {
        "day": field("date", str),
        "rounds": lambda row: "few (`quick`)" if row["is_quick"] else "all",
        "load before": field("load_average", str),
        "Python": field("python", str),
    }
    columns |= {name: field(f"versions.{name}", str) for name in ("torch", "transformers", "anyio")}
    recorded = ((f"`{path.stem}.py`", read(path)["environment"]) for path in all_results())
    return table(["program"], columns, recorded)


TABLES: dict[str, Callable[[Part], dict[str, str]]] = {
    each.__name__: each
    for each in (decoding, cancellation, engines, edge, connections, remote, ray_serve, footprint)
} | {"overhead": per_item, "producers": per_item}


def tables(program: str, results: Part) -> dict[str, str]:
    return TABLES[program](results)


def all_results() -> list[Path]:
    return sorted(RESULTS.glob("*.json"))


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

MORE_IS_BETTER = ("engines", "edge", "remote")
WITHOUT_PEERS_RATIOS = ("cancellation", "remote")  # each ratio there is this library's


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


def ratios(program: str, results: Part) -> dict[str, Ratio]:
    """The ratios of this library to peers, each by its path in the results."""
    if program == "decoding":
        return dict(_ratios_to_text_streamer(results))
    return {
        ", ".join(path): Ratio(**figure, more_is_better=program in MORE_IS_BETTER)
        for *path, figure in _ratios(results)
        if program in WITHOUT_PEERS_RATIOS or any(map(is_ours, path))
    }


def _ratios(part: Part) -> Iterator[tuple[Any, ...]]:
    for name, value in part.items():
        if name.startswith("ratio") or name.endswith("_to_transformers"):
            if isinstance(value, dict):
                yield name, value
        elif isinstance(value, dict):
            yield from ((name, *found) for found in _ratios(value))


def _ratios_to_text_streamer(results: Part) -> Iterator[tuple[str, Ratio]]:
    for name, ways in results.get("microseconds per token", {}).items():
        for size, ours in ways["anystreamer"].items():
            theirs = ways.get("TextStreamer", {}).get(size)
            if theirs and "median" in theirs:
                least, most = ours["min"] / theirs["max"], ours["max"] / theirs["min"]
                yield f"{name}, {size}", Ratio(ours["median"] / theirs["median"], least, most)


# -- plots

# Colours by their role, on light and on dark pages: Okabe and Ito's, which most people with colour
# blindness can tell apart. The SVG follows the reader's system.
INK, OURS, PEER, LIMIT = "#1f2328", "#0072b2", "#d55e00", "#7f7f7f"
ON_DARK = {INK: "#d1d7e0", OURS: "#56b4e9", PEER: "#e69f00"}


def colour_of(name: str) -> str:
    if name.startswith("manager, s"):
        return LIMIT
    return OURS if is_ours(name) else PEER


def new_axes(width: float, height: float, columns: int = 1) -> list[Any]:
    from matplotlib.figure import Figure

    axes = Figure(figsize=(width, height)).subplots(1, columns, sharey=columns > 2, squeeze=False)
    for each in axes[0]:
        each.grid(alpha=0.25)
    return list(axes[0])


def intervals(axes: Any, figures: Part, first: str, last: str) -> None:
    """Medians, each on a line from one figure to another, one below the other."""
    names = list(reversed(figures))
    for y, name in enumerate(names):
        figure, colour = figures[name], colour_of(name)
        axes.plot([figure[first], figure[last]], [y, y], color=colour, linewidth=2)
        axes.plot(figure["median"], y, "o", color=colour, markersize=5)
    axes.set_yticks(range(len(names)), [name.replace("`", "") for name in names])
    axes.grid(visible=False, axis="y")


def curves(axes: Any, lines: dict[str, Part], what: str) -> None:
    """A curve for each way: a figure by a number, each about twice the one before."""
    styles = {OURS: ["o-", "o--"], PEER: ["o-", "o--"], LIMIT: ["o-"]}
    for name, row in lines.items():
        points = {int(n): figure[what]["median"] for n, figure in row.items() if figure}
        colour = colour_of(name)
        axes.plot(
            list(points), list(points.values()), styles[colour].pop(0), color=colour, label=name
        )
    numbers = sorted({int(n) for row in lines.values() for n in row})
    axes.set_xscale("log", base=2)
    axes.set_xticks(numbers, map(str, numbers))


def by_way(results: Part) -> dict[str, Part]:
    """Results by way and number instead of by number and way."""
    names = dict.fromkeys(name for ways in results.values() for name in ways)
    return {name: {n: ways.get(name) for n, ways in results.items()} for name in names}


def plot_per_item(program: str, *scenarios: str) -> list[Any]:
    results = read(program)
    all_axes = new_axes(3.1 * len(scenarios) + 2.4, 4, len(scenarios))
    for axes, scenario in zip(all_axes, scenarios, strict=True):
        ways = {name: row["ratio_to_silent"] for name, row in results[scenario].items()}
        del ways["silent"]
        intervals(axes, ways, "q1", "q3")
        axes.axvline(1, color=LIMIT, linestyle=":")
        axes.set_title(scenario, fontsize=10)
        axes.set_xlabel("time per item, to silence")
    return all_axes


def plot_decoding() -> list[Any]:
    (axes,) = new_axes(6, 3.6)
    ways = read("decoding")["microseconds per token"]["byte level"]
    figures = {way: {n: row and {"us": row} for n, row in ns.items()} for way, ns in ways.items()}
    curves(axes, figures, "us")
    axes.set(xlabel="tokens in the text", ylabel="µs of CPU time per token", yscale="log")
    axes.legend(frameon=False)
    return [axes]


def plot_engines() -> list[Any]:
    (axes,) = new_axes(6, 3.6)
    all_ways = by_way(read("engines")["speed"])
    names = ("manager, streaming (no loop)", 'open_engine, "continuous" on asyncio')
    names += ("stream_text each on asyncio", "as transformers serve on asyncio")
    curves(axes, {name: all_ways[name] for name in names}, "tokens_per_second")
    axes.set(xlabel="streams at once", ylabel="tokens per second, of all")
    axes.legend(frameon=False)
    return [axes]


def plot_edge() -> list[Any]:
    both = new_axes(9, 3.8, 2)
    for axes, what, text in (
        (both[0], "tokens_per_second", "tokens per second, of all"),
        (both[1], "ttft_of_the_last_ms", "ms to the last first token"),
    ):
        curves(axes, by_way(read("edge")["load"]), what)
        axes.set(xlabel="clients at once", ylabel=text)
    both[0].legend(frameon=False)
    both[1].set_yscale("log")
    return both


def plot_cancellation() -> list[Any]:
    (axes,) = new_axes(8, 3.6)
    results = phases(read("cancellation"))
    figures = {name: loops["asyncio"]["ms_until_joined"] for name, loops in results.items()}
    intervals(axes, figures, "median", "p99")
    axes.set(xscale="log", xlabel="ms from the cancel until the thread has left: median, and p99")
    return [axes]


PLOTS: dict[str, Callable[[], list[Any]]] = {
    "overhead": lambda: plot_per_item(
        "overhead", *(f"{size} model, idle loop" for size in ("small", "middle", "large"))
    ),
    "producers": lambda: plot_per_item(
        "producers", "one, idle loop", "one, loop busy half the time", "8 at once"
    ),
    "decoding": plot_decoding,
    "engines": plot_engines,
    "edge": plot_edge,
    "cancellation": plot_cancellation,
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
