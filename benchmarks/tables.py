"""From results to the tables of the pages, in Markdown.

    python benchmarks/tables.py

fills every table of ``docs/`` again: what is between ``<!-- table: NAME -->`` and ``<!-- end -->``.
A name is that of a program, and of one of its tables.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from common import Table

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
MARKED = re.compile(r"(<!-- table: (?P<name>[^>]+) -->\n).*?(<!-- end -->)", re.DOTALL)

TABLES: dict[str, Callable[[Table], dict[str, str]]] = {}  # by program


def tables_of(program: str) -> Callable[[Callable[[Table], dict[str, str]]], Any]:
    def keep(make: Callable[[Table], dict[str, str]]) -> Any:
        TABLES[program] = make
        return make

    return keep


def table(head: Iterable[object], rows: Iterable[Iterable[object]]) -> str:
    head = list(head)
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(map(str, line))} |\n" for line in lines)


def quartiles(figure: dict[str, float] | None, digits: int = 2) -> str:
    if figure is None:
        return "–"
    median, first, third = (f"{figure[name]:,.{digits}f}" for name in ("median", "q1", "q3"))
    return median if first == third else f"{median} ({first}-{third})"


def number(value: float) -> str:
    """With three figures, more or less."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.{1 if abs(value) >= 10 else 2}f}"


def pair(figure: dict[str, float], second: str = "p95") -> str:
    return f"{number(figure['median'])} / {number(figure[second])}"


def ways_of(results: Table) -> Table:
    """Without what is said of the run itself."""
    return {name: rows for name, rows in results.items() if name not in ("environment", "requests")}


@tables_of("decoding")
def decoding(results: Table) -> dict[str, str]:
    speed = results["microseconds per token"]
    sizes = list(next(iter(speed.values()))["anystreamer"])

    def cell(entry: dict[str, Any] | None) -> str:
        return number(entry["median"]) if entry and "median" in entry else "–"

    wrong = {name: row for name, row in results["mismatches"].items() if name != "of"}
    ways = list(next(iter(wrong.values())))
    return {
        "speed": table(
            [
                "tokenizer",
                *(f"{int(size) // 1000}k tokens" for size in sizes),
                "TextStreamer, 8k",
                "DecodeStream",
            ],
            (
                [
                    name,
                    *(cell(row["anystreamer"][size]) for size in sizes),
                    cell(row.get("TextStreamer", {}).get("8000")),
                    cell(row.get("DecodeStream", {}).get(sizes[-1])),
                ]
                for name, row in speed.items()
            ),
        ),
        "mismatches": table(
            ["tokenizer", *ways],
            (
                [name, *("–" if row[way] is None else row[way] for way in ways)]
                for name, row in wrong.items()
            ),
        ),
    }


def per_item(rows: dict[str, Any]) -> str:
    """Of programs that compare a time per item with that of nobody listening."""
    return table(
        ["", "ratio (quartiles)", "of the best", "latency, ms: median", "p99"],
        (
            [name, quartiles(row["ratio_to_silent"]), f"{row['ratio_of_best']:.2f}"]
            + ([number(late["median"]), number(late["p99"])] if late else ["–", "–"])
            for name, row in rows.items()
            for late in [row["latency_ms"]]
            if not name.startswith("silent")
        ),
    )


@tables_of("overhead")
def overhead(results: Table) -> dict[str, str]:
    return {name: per_item(rows) for name, rows in ways_of(results).items()}


@tables_of("producers")
def producers(results: Table) -> dict[str, str]:
    return overhead(results)


def phases_of(results: Table) -> Table:
    """What is recorded of each phase that a generation was cancelled in."""
    others = ("cost", "asking")
    return {name: rows for name, rows in ways_of(results).items() if not name.startswith(others)}


@tables_of("cancellation")
def cancellation(results: Table) -> dict[str, str]:
    costs = [
        (name.removeprefix("cost of controls, "), control, row)
        for name, rows in results.items()
        if name.startswith("cost")
        for control, row in rows.items()
        if control != "none"
    ]
    return {
        "phases": table(
            ["phase", "loop", "times", "passes after, at most", "ms, median", "p99"],
            (
                [phase, loop, row["times"], row["passes_after"]["max"]]
                + [number(row["ms_until_joined"][each]) for each in ("median", "p99")]
                for phase, rows in phases_of(results).items()
                for loop, row in rows.items()
            ),
        ),
        "costs": table(
            ["control", "model", "ratio (quartiles)", "of the best"],
            (
                [f"`{control}`", model, quartiles(row["ratio"]), f"{row['ratio_of_best']:.2f}"]
                for model, control, row in costs
            ),
        ),
    }


@tables_of("engines")
def engines(results: Table) -> dict[str, str]:
    speed, watched = results["speed"], results["watched"]
    streams = list(speed)
    names = list(dict.fromkeys(name for each in speed.values() for name in each))
    late_of = "open_engine, "

    def across(cell: Callable[[dict[str, Any]], str], but: str = "") -> str:
        return table(
            ["", *(f"{each} stream{'s' if each != '1' else ''}" for each in streams)],
            (
                [name]
                + [cell(speed[each][name]) if name in speed[each] else "–" for each in streams]
                for name in names
                if not but or not name.startswith(but)
            ),
        )

    return {
        "share": across(lambda row: quartiles(row["ratio_to_limit"])),
        "first tokens": across(lambda row: pair(row["first_token_ms"]), but="manager, silent"),
        "late": table(
            [
                "streams",
                "",
                "token late, ms: median",
                "p99",
                "most",
                "loop late, ms: p99",
                "apart",
                "in the manager",
            ],
            (
                [each, name.removeprefix(late_of)]
                + [number(row["token_late_ms"][key]) for key in ("median", "p99", "max")]
                + [number(row["loop_late_ms"]["p99"])]
                + [f"{row['tokens_apart'][key]:.0f}" for key in ("max", "max_in_manager")]
                for each, rows in watched.items()
                for name, row in rows.items()
                if "token_late_ms" in row
            ),
        ),
        "opening": table(
            ["loop", "MiB", "seconds to the first piece", "to the answer"],
            (
                [loop]
                + [
                    number(row[key]["median"])
                    for key in ("mib", "seconds_to_first_piece", "seconds_to_answer")
                ]
                for loop, row in results["opening"].items()
            ),
        ),
        "goals": goals(results),
    }


def goals(results: Table) -> str:
    return table(
        ["goal", "asked", "measured", ""],
        (
            [
                f"{row['way']}: {row['goal']}" if "way" in row else row["goal"],
                f"{row['sign']} {row['limit']:g}",
                number(row["measured"]),
                "met" if row["is_met"] else "**missed**",
            ]
            for row in results["goals"]
        ),
    )


@tables_of("edge")
def edge(results: Table) -> dict[str, str]:
    def clients() -> Iterable[Iterable[object]]:
        for each, rows in results["load"].items():
            for name, row in rows.items():
                yield [
                    *(each, name, quartiles(row["tokens_per_second"], 0)),
                    f"{row['tokens_per_second_to_transformers']['median']:.2f}",
                    *(pair(row[f"{key}_ms"]) for key in ("ttft", "itl", "tpot")),
                    f"{row['tokens_per_chunk']['median']:.1f}",
                    number(row["ttft_of_the_last_ms"]["median"]),
                    f"{row['ttft_of_the_last_to_transformers']['median']:.1f}",
                ]

    return {
        "load": table(
            [
                "clients",
                "server",
                "tokens/s",
                "x",
                "TTFT, ms",
                "ITL, ms",
                "TPOT, ms",
                "tokens in a chunk",
                "last first token, ms",
                "x",
            ],
            clients(),
        ),
        "leaving": table(
            ["server", "answer", "ms, median", "most", "steps, median", "most"],
            (
                [name, kind, *(number(row["ms"][key]) for key in ("median", "max"))]
                + [row["steps"][key] for key in ("median", "max")]
                for name, kinds in results["leaving"].items()
                for kind, row in kinds.items()
            ),
        ),
        "goals": goals(results),
    }


@tables_of("connections")
def connections(results: Table) -> dict[str, str]:
    loops = ways_of(results)
    prompts = list(next(iter(loops.values()))["kib_of_each_stream"])
    return {
        "each": table(
            [
                "loop",
                *(f"KiB of a stream, {each}" for each in prompts),
                "µs of CPU for a token",
                "tokens in a chunk",
            ],
            (
                [
                    loop,
                    *(number(row["kib_of_each_stream"][each]) for each in prompts),
                    number(row["cpu_us_of_each_token"]),
                    number(row["tokens_per_chunk"]),
                ]
                for loop, row in loops.items()
            ),
        )
    }


@tables_of("remote")
def remote(results: Table) -> dict[str, str]:
    def rows() -> Iterable[Iterable[object]]:
        for loop, each in results["loops"].items():
            for streams, row in each.items():
                ways = [row["local"], row["remote"]]
                yield [
                    *(loop, streams),
                    *(number(way["tokens_per_second"]["median"]) for way in ways),
                    quartiles(row["ratio"]),
                    quartiles(row["more_per_token_us"], 0),
                    " / ".join(number(way["first_token_ms"]["median"]) for way in ways),
                ]

    return {
        "wire": table(
            [
                "loop",
                "streams",
                "local, tokens/s",
                "remote",
                "ratio (quartiles)",
                "more per token, µs",
                "first token, ms",
            ],
            rows(),
        )
    }


@tables_of("ray_serve")
def ray_serve(results: Table) -> dict[str, str]:
    ways = ways_of(results)
    clients = list(next(iter(ways.values()))["load"])
    return {
        "load": table(
            [
                "",
                *(f"{each} client{'s' if each != '1' else ''}" for each in clients),
                "a client leaves: ms until the model stops",
                "most",
            ],
            (
                [name]
                + [
                    f"{number(row['load'][each]['tokens_per_second']['median'])}, "
                    f"{number(row['load'][each]['ttft_ms']['median'])} ms"
                    for each in clients
                ]
                + [number(row["leaving"]["ms"][key]) for key in ("median", "max")]
                for name, row in ways.items()
            ),
        )
    }


@tables_of("footprint")
def footprint(results: Table) -> dict[str, str]:
    return {
        "import": table(
            ["program", "ms (quartiles)", "ratio to anyio"],
            (
                [f"`{name}`", quartiles(row["ms"], 0), quartiles(row["ratio"])]
                for name, row in results["import"].items()
            ),
        ),
        "memory": table(
            ["streams that wait", "KiB of each (quartiles)", "threads of each"],
            (
                [name, quartiles(row["kib"], 0), number(row["threads"])]
                for name, row in results["memory"].items()
            ),
        ),
    }


def runs(folder: Path) -> str:
    """What was measured when, and with what."""
    every = {
        path.stem: json.loads(path.read_text(encoding="utf-8"))["environment"]
        for path in sorted(folder.glob("*.json"))
    }
    return table(
        ["program", "day", "rounds", "load before", "Python", "torch", "transformers", "anyio"],
        (
            [f"`{program}.py`", run["date"], "few (`quick`)" if run["is_quick"] else "all"]
            + ["–" if (load := run["load_average"]) is None else load, run["python"]]
            + [run["versions"].get(each, "–") for each in ("torch", "transformers", "anyio")]
            for program, run in every.items()
        ),
    )


def show(program: str, results: Table) -> None:
    for name, text in TABLES[program](results).items():
        print(f"\n{program}: {name}\n\n{text}", end="", flush=True)


def filled(page: str, folder: Path = RESULTS) -> str:
    """The page with its tables as the results in *folder* have them."""

    def fill(found: re.Match[str]) -> str:
        if found["name"] == "runs":
            return f"{found[1]}\n{runs(folder)}\n{found[3]}"
        program, _, name = found["name"].partition(", ")
        results = json.loads((folder / f"{program}.json").read_text(encoding="utf-8"))
        made = TABLES[program](results)
        if name not in made:
            raise SystemExit(f"no table {found['name']!r}: {program} has {sorted(made)}")
        return f"{found[1]}\n{made[name]}\n{found[3]}"

    return MARKED.sub(fill, page)


def main() -> None:
    for path in sorted((ROOT / "docs").rglob("*.md")):
        page = path.read_text(encoding="utf-8")
        if (new := filled(page)) != page:
            path.write_text(new, encoding="utf-8")
            print(path.relative_to(ROOT), file=sys.stderr)


if __name__ == "__main__":
    main()
