"""From results to the plots of the pages, each for light and for dark pages.

``python benchmarks/plots.py`` makes all of them again.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from ratios import is_ours
from tables import RESULTS, ROOT, phases_of

IMAGES = ROOT / "docs" / "images" / "measured"

# Okabe and Ito's colours, which most who do not see all colours can tell apart: this library's in
# blue, peers in orange, limits in grey.
OURS, PEER, LIMIT = "#0072b2", "#d55e00", "#7f7f7f"
OURS_ON_DARK, PEER_ON_DARK = "#56b4e9", "#e69f00"
MODES = {"light": ("#1f2328", OURS, PEER), "dark": ("#d1d7e0", OURS_ON_DARK, PEER_ON_DARK)}


class Palette:
    def __init__(self, ours: str, peer: str) -> None:
        self.ours, self.peer, self.limit = ours, peer, LIMIT

    def of(self, name: str) -> str:
        if name.startswith(("manager, s", "silent")):
            return self.limit
        return self.ours if is_ours(name) else self.peer


def read(program: str) -> Any:
    return json.loads((RESULTS / f"{program}.json").read_text(encoding="utf-8"))


def dots(axes: Axes, rows: Iterable[tuple[str, dict[str, float]]], palette: Palette) -> None:
    """Medians with their quartiles, one below the other."""
    rows = list(rows)[::-1]
    for y, (name, figure) in enumerate(rows):
        axes.plot([figure["q1"], figure["q3"]], [y, y], color=palette.of(name), linewidth=2)
        axes.plot(figure["median"], y, "o", color=palette.of(name), markersize=5)
    axes.set_yticks(range(len(rows)), [name for name, _ in rows])
    axes.grid(axis="x", alpha=0.25)


def ratios_to_silent(program: str, scenarios: list[str], palette: Palette) -> Figure:
    results = read(program)
    shown = [each for each in scenarios if each in results]
    figure, all_axes = plt.subplots(
        1, len(shown), figsize=(3.1 * len(shown) + 2.4, 4), sharey=True, squeeze=False
    )
    for axes, scenario in zip(all_axes[0], shown, strict=True):
        rows = results[scenario].items()
        dots(
            axes,
            [(name, row["ratio_to_silent"]) for name, row in rows if name != "silent"],
            palette,
        )
        axes.axvline(1, color=palette.limit, linestyle=":")
        axes.set_title(scenario, fontsize=10)
        axes.set_xlabel("time per item, to silence")
    return figure


def overhead(palette: Palette) -> Figure:
    scenarios = [f"{size} model, idle loop" for size in ("small", "middle", "large")]
    return ratios_to_silent("overhead", scenarios, palette)


def producers(palette: Palette) -> Figure:
    scenarios = ["one, idle loop", "one, loop busy half the time", "8 at once"]
    return ratios_to_silent("producers", scenarios, palette)


def decoding(palette: Palette) -> Figure:
    figure, axes = plt.subplots(figsize=(6, 3.6))
    ways = read("decoding")["microseconds per token"]["byte level"]
    colours = {"anystreamer": palette.ours, "TextStreamer": palette.peer, "DecodeStream": LIMIT}
    for way, sizes in ways.items():
        points = [(int(size), each["median"]) for size, each in sizes.items() if each]
        axes.loglog(*zip(*points, strict=True), "o-", color=colours[way], label=way)
    axes.set_xlabel("tokens in the text")
    axes.set_ylabel("µs of CPU time per token")
    axes.legend(frameon=False)
    axes.grid(alpha=0.25)
    return figure


def by_number(axes: Axes, numbers: Iterable[str], of_what: str, label: str) -> None:
    """Across: how many there are at once, each twice as far as half as many."""
    numbers = list(numbers)
    axes.set_xscale("log", base=2)
    axes.set_xticks([int(each) for each in numbers], numbers)
    axes.set_xlabel(of_what)
    axes.set_ylabel(label)
    axes.grid(alpha=0.25)


def engines(palette: Palette) -> Figure:
    speed = read("engines")["speed"]
    figure, axes = plt.subplots(figsize=(6, 3.6))
    for way, label in {
        "manager, streaming (no loop)": "transformers' manager (the limit)",
        'open_engine, "continuous" on asyncio': "open_engine, continuous",
        "stream_text each on asyncio": "a stream_text for each",
        "as transformers serve on asyncio": "as transformers serve",
    }.items():
        points = [
            (int(streams), rows[way]["tokens_per_second"]["median"])
            for streams, rows in speed.items()
            if way in rows
        ]
        style = "o--" if way.startswith("stream_text") else "o-"
        axes.plot(*zip(*points, strict=True), style, color=palette.of(way), label=label)
    by_number(axes, speed, "streams at once", "tokens per second, of all")
    axes.legend(frameon=False)
    return figure


def edge(palette: Palette) -> Figure:
    load = read("edge")["load"]
    figure, both = plt.subplots(1, 2, figsize=(9, 3.8))
    for axes, what, label in (
        (both[0], "tokens_per_second", "tokens per second, of all"),
        (both[1], "ttft_of_the_last_ms", "ms to the last first token"),
    ):
        for way in next(iter(load.values())):
            points = [(int(clients), rows[way][what]["median"]) for clients, rows in load.items()]
            style = "o-" if way.endswith("continuous") else "o--"
            axes.plot(*zip(*points, strict=True), style, color=palette.of(way), label=way)
        axes.set_yscale("log" if what.endswith("ms") else "linear")
        by_number(axes, load, "clients at once", label)
    both[0].legend(frameon=False)
    return figure


def cancellation(palette: Palette) -> Figure:
    phases = phases_of(read("cancellation"))
    figure, axes = plt.subplots(figsize=(8, 3.6))
    for y, (name, loops) in enumerate(reversed(phases.items())):
        figures = loops["asyncio"]["ms_until_joined"]
        colour = palette.peer if "transformers" in name or "raises" in name else palette.ours
        axes.plot([figures["median"], figures["p99"]], [y, y], color=colour, linewidth=2)
        axes.plot(figures["median"], y, "o", color=colour)
    names = [name.replace("`", "") for name in reversed(phases)]
    axes.set_yticks(range(len(names)), names)
    axes.set_xscale("log")
    axes.set_xlabel("ms from the cancel until the thread has left: median, and p99")
    axes.grid(axis="x", alpha=0.25)
    return figure


PLOTS = (overhead, producers, decoding, engines, edge, cancellation)


def main() -> None:
    IMAGES.mkdir(parents=True, exist_ok=True)
    for mode, (ink, ours, peer) in MODES.items():
        settings = dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor"), ink)
        settings |= {"xtick.color": ink, "ytick.color": ink}
        # The same results make the same file, and its words are text.
        settings |= {"svg.hashsalt": "anystreamer", "svg.fonttype": "none"}
        with mpl.rc_context({**settings, "font.size": 9}):
            for plot in PLOTS:
                if not (RESULTS / f"{plot.__name__}.json").exists():
                    continue
                figure = plot(Palette(ours, peer))
                path = IMAGES / f"{plot.__name__}-{mode}.svg"
                figure.savefig(path, transparent=True, bbox_inches="tight", metadata={"Date": None})
                plt.close(figure)


if __name__ == "__main__":
    main()
