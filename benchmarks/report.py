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
from itertools import product
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
MARKED = re.compile(r"(<!-- table: (?P<name>[^>]+) -->\n).*?(<!-- end -->)", re.DOTALL)

Part = dict[str, Any]  # of the results
Tables = dict[str, str]
Rows = Iterable[tuple[Any, ...]]  # each its keys, and then a part of the results


def read(results: str | Path) -> Part:
    """Results, by the name of a recorded program or from a file."""
    path = RESULTS / f"{results}.json" if isinstance(results, str) else results
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else {}


def rows(part: Part, levels: int = 1) -> Iterator[tuple[Any, ...]]:
    """The parts that many levels down, each after its keys."""
    for key, value in part.items():
        if levels == 1:
            yield key, value
        else:
            yield from ((key, *row) for row in rows(value, levels - 1))


def by_way(results: Part) -> dict[str, Part]:
    """Results by way and number instead of by number and way."""
    names = dict.fromkeys(name for ways in results.values() for name in ways)
    return {name: {n: ways.get(name) for n, ways in results.items()} for name in names}


def is_ours(name: str) -> bool:
    """Whether a way, or a statement, is this library's and not a peer's."""
    ours = ("stream_text", "stream_iterable", "AsyncTextIteratorStreamer (ours)", "open_engine")
    return name.startswith(ours) or "anystreamer" in name


# -- tables


def table(head: str, body: Rows) -> str:
    """A table in Markdown. In *head*, each column has a name and ``=`` a cell, without it a key.

    A cell is text with figures, such as ``{ms.p99:.1f}``: a path in the row, and a format.
    """
    columns = [column.partition("=") for column in head.split("|")]
    names = [name.strip() for name, *_ in columns]
    cells = [cell.strip() for _, is_cell, cell in columns if is_cell]
    lines: list[Iterable[Any]] = [names, ["---"] * len(names)]
    lines += [[*keys, *(filled_in(cell, part) for cell in cells)] for *keys, part in body]
    return "".join(f"| {' | '.join(map(str, line))} |\n" for line in lines)


def filled_in(cell: str, row: Part) -> str:
    """The cell with the row's figures, or a dash if the row does not have one."""
    figures = {found[0]: figure_at(found["path"], row) for found in FIGURE.finditer(cell)}
    if None in figures.values():
        return "–"
    return FIGURE.sub(lambda found: shown(figures[found[0]], found["format"]), cell)


FIGURE = re.compile(r"\{(?P<path>[^}:]+):?(?P<format>[^}]*)\}")


def figure_at(path: str, row: Part) -> Any:
    value: Any = row
    for name in path.split("."):
        value = value.get(name) if value else None
    return value


def shown(value: Any, form: str) -> str:
    """A number with about three significant figures, or in a format of Python's or one of these."""
    match form:
        case "" if isinstance(value, float):
            digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2
            return f"{value:,.{digits}f}"
        case "quartiles" | "whole quartiles":
            digits = 2 if form == "quartiles" else 0
            median, q1, q3 = (f"{value[name]:,.{digits}f}" for name in ("median", "q1", "q3"))
            return median if q1 == q3 else f"{median} ({q1}-{q3})"
    return format(value, form)


def plural(number: str, what: str) -> str:
    return f"{number} {what}{'s' if number != '1' else ''}"


def decoding(results: Part) -> Tables:
    speed = results["microseconds per token"]
    wrong = {name: row for name, row in results["mismatches"].items() if name != "of"}
    sizes, ways = speed["byte level"]["anystreamer"], wrong["byte level"]
    ours = " | ".join(f"{int(n) // 1000}k tokens = {{anystreamer.{n}.median}}" for n in sizes)
    theirs = f"DecodeStream = {{DecodeStream.{list(sizes)[-1]}.median}}"
    return {
        "speed": table(
            f"tokenizer | {ours} | TextStreamer, 8k = {{TextStreamer.8000.median}} | {theirs}",
            rows(speed),
        ),
        "mismatches": table(
            " | ".join(["tokenizer", *(f"{way} = {{{way}}}" for way in ways)]), rows(wrong)
        ),
    }


def per_item(results: Part) -> Tables:
    head = (
        "| ratio (quartiles) = {ratio_to_silent:quartiles} | of the best = {ratio_of_best:.2f}"
        "| latency, ms: median = {latency_ms.median} | p99 = {latency_ms.p99}"
    )
    return {
        scenario: table(head, (row for row in rows(ways) if row[0] != "silent"))
        for scenario, ways in results.items()
        if scenario != "environment"
    }


def producers(results: Part) -> Tables:
    apart = {name: ways for name, ways in results.items() if "flood" in name or "crowd" in name}
    others = {name: ways for name, ways in results.items() if name not in apart}
    rate = (
        "| ratio to culsans = {ratio_to_culsans:quartiles}"
        "| processor time, µs per item = {cpu_us_per_item:quartiles}"
        "| other tasks late, ms: median = {late_ms.median} | p99 = {late_ms.p99}"
        "| max = {late_ms.max}"
    )
    cost = "streams | % of a core = {percent_of_a_core} | threads = {threads} | MB = {mb}"
    return per_item(others) | {
        name: table(rate if "flood" in name else cost, rows(part)) for name, part in apart.items()
    }


PHASES = ("waiting", "decoding", "held", "prefill")  # how their names begin


def phases(results: Part) -> Part:
    """The phases that a generation was cancelled in."""
    return {name: part for name, part in results.items() if name.startswith(PHASES)}


def cancellation(results: Part) -> Tables:
    costs = (
        (f"`{control}`", name.removeprefix("cost of controls, "), row)
        for name, controls in results.items()
        if name.startswith("cost of controls")
        for control, row in controls.items()
        if control != "none"
    )
    return {
        "phases": table(
            "phase | loop | times = {times} | passes after, max = {passes_after.max}"
            "| ms, median = {ms_until_joined.median} | p99 = {ms_until_joined.p99}",
            rows(phases(results), 2),
        ),
        "costs": table(
            "control | model | ratio (quartiles) = {ratio:quartiles}"
            "| of the best = {ratio_of_best:.2f}",
            costs,
        ),
    }


def engines(results: Part) -> Tables:
    speed, watched = results["speed"], results["watched"]

    def by_streams(cell: str) -> str:
        columns = (f"{plural(n, 'stream')} = {cell.replace('*', n)}" for n in speed)
        return " | ".join(["", *columns])

    first = "{*.first_token_ms.median} / {*.first_token_ms.p95}"
    late = ((n, name.removeprefix("open_engine, "), row) for n, name, row in rows(watched, 2))
    return {
        "share": table(by_streams("{*.ratio_to_limit:quartiles}"), rows(by_way(speed))),
        "first tokens": table(
            by_streams(first),
            (row for row in rows(by_way(speed)) if not row[0].startswith("manager, silent")),
        ),
        "late": table(
            "streams | | token late, ms: median = {token_late_ms.median}"
            "| p99 = {token_late_ms.p99} | max = {token_late_ms.max}"
            "| loop late, ms: p99 = {loop_late_ms.p99} | apart = {tokens_apart.max:.0f}"
            "| in the manager = {tokens_apart.max_in_manager}",
            (row for row in late if "token_late_ms" in row[2]),
        ),
        "opening": table(
            "loop | MiB = {mib.median} | seconds to the first piece ="
            "{seconds_to_first_piece.median} | to the answer = {seconds_to_answer.median}",
            rows(results["opening"]),
        ),
        "second turn": table(
            "| ms to the first token = {first_token_ms:quartiles} | ratio = {ratio:quartiles}",
            rows(results["second_turn"]),
        ),
        "goals": goals(
            results,
            ENGINE_TARGETS,
            [
                {"loop": loop, "way": f'open_engine, "continuous" on {loop}'}
                for loop in ("asyncio", "trio")
            ],
        ),
    }


def simulated(results: Part) -> Tables:
    head = (
        "step, streams | | of the steps (quartiles) = {ratio_to_limit:quartiles}"
        "| % of a core = {percent_of_a_core:.0f} | token late, ms: median = {token_late_ms.median}"
        "| p99 = {token_late_ms.p99} | max = {token_late_ms.max}"
        "| loop late, ms: p99 = {loop_late_ms.p99} | max = {loop_late_ms.max}"
    )
    apart = {name: part for name, part in results.items() if name != "environment"}
    return {"streams": table(head, rows(apart, 2))}


# Targets: what is measured, its path in the results, and the limit.
ENGINE_TARGETS = {
    **{
        f"of the streaming manager's tokens per second, {n} streams on {{loop}}": (
            f"speed.{n}.{{way}}.ratio_to_limit.median >= 0.95"
        )
        for n in (16, 64)
    },
    **{
        f"times {peer}, 16 streams on {{loop}}": f"speed.16.{{way}}.ratio_to_{name}.median >= 5"
        for peer, name in (
            ("stream_text each", "stream_text_each"),
            ("transformers serve", "transformers_serve"),
        )
    },
    **{
        f"ms late at most, {n} streams on {{loop}}": f"watched.{n}.{{way}}.token_late_ms.max <= 10"
        for n in (1, 4, 16, 64)
    },
    "ms that the loop is late (p99), 64 streams on {loop}": (
        "watched.64.{way}.loop_late_ms.p99 <= 5"
    ),
    "MiB to open it, on {loop}": "opening.{loop}.mib.median <= 200",
    "seconds to its first answer, on {loop}": "opening.{loop}.seconds_to_answer.median <= 1",
}
EDGE_TARGETS = {
    "{way}: times sooner than transformers serve: the last first token of 4 clients": (
        "load.4.{way}.ttft_of_the_last_to_transformers.median >= 10"
    ),
    "{way}: times transformers serve's tokens per second, 16 clients": (
        "load.16.{way}.tokens_per_second_to_transformers.median >= 4"
    ),
}


def goals(results: Part, targets: dict[str, str], of: list[dict[str, str]]) -> str:
    """A table of targets, for each of some names, and whether they were reached."""
    body = []
    for names, (what, target) in product(of, targets.items()):
        path, sign, limit = target.format(**names).rsplit(" ", 2)
        value = figure_at(path, results)
        if value is None:
            state = "not measured"
        else:
            is_met = value >= float(limit) if sign == ">=" else value <= float(limit)
            state = "met" if is_met else "**missed**"
        body.append(
            (what.format(**names), {"limit": f"{sign} {limit}", "value": value, "state": state})
        )
    return table("goal | target = {limit} | measured = {value} | = {state}", body)


def edge(results: Part) -> Tables:
    latencies = " | ".join(
        f"{name.upper()}, ms = {{{name}_ms.median}} / {{{name}_ms.p95}}"
        for name in ("ttft", "itl", "tpot")
    )
    ours = [{"way": "anystreamer, none"}, {"way": "anystreamer, continuous"}]
    return {
        "load": table(
            "clients | server | tokens/s = {tokens_per_second:whole quartiles}"
            "| ratio = {tokens_per_second_to_transformers.median:.2f}"
            f"| {latencies} | tokens in a chunk = {{tokens_per_chunk.median:.1f}}"
            "| last first token, ms = {ttft_of_the_last_ms.median}"
            "| ratio of it = {ttft_of_the_last_to_transformers.median:.1f}",
            rows(results["load"], 2),
        ),
        "leaving": table(
            "server | answer | ms, median = {ms.median} | ms, max = {ms.max}"
            "| steps, median = {steps.median} | steps, max = {steps.max}",
            rows(results["leaving"], 2),
        ),
        # Results that were recorded before have no such part.
        "kept_alive": table(
            "server | requests = {times} | ms, median = {ms.median} | ms, p99 = {ms.p99}",
            rows(results.get("kept_alive", {})),
        ),
        "goals": goals(results, EDGE_TARGETS, ours),
    }


def connections(results: Part) -> Tables:
    loops = {name: row for name, row in results.items() if "cpu_us_of_each_token" in row}
    memory = " | ".join(
        f"KiB of a stream, {each} = {{kib_of_each_stream.{each}}}"
        for each in next(iter(loops.values()))["kib_of_each_stream"]
    )
    rest = "µs of CPU for a token = {cpu_us_of_each_token} | tokens in a chunk = {tokens_per_chunk}"
    return {"each": table(f"loop | {memory} | {rest}", rows(loops))}


def remote(results: Part) -> Tables:
    head = (
        "loop | streams | local, tokens/s = {local.tokens_per_second.median}"
        "| remote = {remote.tokens_per_second.median} | ratio (quartiles) = {ratio:quartiles}"
        "| more per token, µs = {more_per_token_us:whole quartiles}"
        "| first token, ms = {local.first_token_ms.median} / {remote.first_token_ms.median}"
    )
    return {"wire": table(head, rows(results["loops"], 2))}


def ray_serve(results: Part) -> Tables:
    ways = {name: row for name, row in results.items() if "load" in row}
    cell = "{load.*.tokens_per_second.median}, {load.*.ttft_ms.median} ms"
    load = " | ".join(
        f"{plural(n, 'client')} = {cell.replace('*', n)}" for n in next(iter(ways.values()))["load"]
    )
    left = "a client leaves: ms until the model stops = {leaving.ms.median}"
    return {"load": table(f"| {load} | {left} | max = {{leaving.ms.max}}", rows(ways))}


def forms(results: Part) -> Tables:
    head = (
        "| ratio to generate() = {ratio:quartiles} | ms per token = {ms_per_token.median}"
        "| a new schema: ms to the first token = {first_ms} | the very first = {opening_ms}"
    )
    sizes = {name: part for name, part in results.items() if name.endswith(" tokens")}
    return {name: table(head, rows(part)) for name, part in sizes.items()}


def footprint(results: Part) -> Tables:
    statements = ((f"`{statement}`", row) for statement, row in results["import"].items())
    return {
        "import": table(
            "program | ms (quartiles) = {ms:whole quartiles}| ratio to anyio = {ratio:quartiles}",
            statements,
        ),
        "memory": table(
            "streams that wait | KiB of each (quartiles) = {kib:whole quartiles}"
            "| threads of each = {threads}",
            rows(results["memory"]),
        ),
    }


def runs() -> str:
    """When each program was run, and with what."""
    body = []
    for path in all_results():
        run = read(path)["environment"]
        run["rounds"] = "few (`--quick`)" if run["is_quick"] else "all"
        body.append((f"`{path.stem}`", run))
    return table(
        "program | day = {date} | rounds = {rounds} | load before = {load_average}"
        "| Python = {python} | torch = {versions.torch}"
        "| transformers = {versions.transformers} | anyio = {versions.anyio}",
        body,
    )


TABLES: dict[str, Callable[[Part], Tables]] = {
    each.__name__: each
    for each in (
        *(decoding, forms, cancellation, engines, simulated, edge, connections, remote),
        *(ray_serve, footprint),
    )
} | {"overhead": per_item, "producers": producers}


def tables(program: str, results: Part) -> Tables:
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

MORE_IS_BETTER = ("engines", "simulated", "edge", "remote")
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
    is_peer = not is_ours(name) and not name.startswith(PHASES)
    return PEER if is_peer or "raises" in name or "transformers" in name else OURS


WIDTH = 4.3  # inches: a phone shows nearly all of it, so that its words can be read there


def new_axes(height: float, rows: int = 1) -> list[Any]:
    """One below the other, each with this height in inches."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, height * rows), layout="constrained")
    axes = figure.subplots(rows, 1, squeeze=False)[:, 0]
    for each in axes:
        each.grid(alpha=0.25)
    return list(axes)


def intervals(axes: Any, figures: Part, first: str, last: str) -> None:
    """Medians, each on a line from one figure to another, one below the other, under its name."""
    names = list(reversed(figures))
    for y, name in enumerate(names):
        figure, colour = figures[name], colour_of(name)
        axes.plot([figure[first], figure[last]], [y, y], color=colour, linewidth=2)
        axes.plot(figure["median"], y, "o", color=colour, markersize=5)
        place = axes.get_yaxis_transform()
        axes.text(0.02, y + 0.25, name.replace("`", ""), transform=place)
    axes.set_yticks([])
    axes.set_ylim(-0.5, len(names))


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


def plot_per_item(program: str, *scenarios: str) -> list[Any]:
    results = read(program)
    all_axes = new_axes(5, len(scenarios))
    for axes, scenario in zip(all_axes, scenarios, strict=True):
        ways = {name: row["ratio_to_silent"] for name, row in results[scenario].items()}
        del ways["silent"]
        intervals(axes, ways, "q1", "q3")
        axes.axvline(1, color=LIMIT, linestyle=":")
        axes.set_title(scenario, fontsize=10)
        axes.set_xlabel("time per item, to silence")
    return all_axes


def plot_decoding() -> list[Any]:
    (axes,) = new_axes(3.4)
    ways = read("decoding")["microseconds per token"]["byte level"]
    figures = {way: {n: row and {"us": row} for n, row in ns.items()} for way, ns in ways.items()}
    curves(axes, figures, "us")
    axes.set(xlabel="tokens in the text", ylabel="µs of CPU time per token", yscale="log")
    axes.legend(frameon=False)
    return [axes]


def plot_engines() -> list[Any]:
    (axes,) = new_axes(3.4)
    all_ways = by_way(read("engines")["speed"])
    names = ("manager, streaming (no loop)", 'open_engine, "continuous" on asyncio')
    names += ("stream_text each on asyncio", "as transformers serve on asyncio")
    curves(axes, {name: all_ways[name] for name in names}, "tokens_per_second")
    axes.set(xlabel="streams at once", ylabel="tokens per second, of all")
    axes.legend(frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.15))
    return [axes]


def plot_edge() -> list[Any]:
    both = new_axes(3.2, 2)
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
    (axes,) = new_axes(4.2)
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
