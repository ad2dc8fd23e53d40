"""The ratios that this library is held to, and which of them have become worse."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from common import Table

# Of a ratio: what two quick runs on a shared machine may differ by beside their quartiles.
FLOOR = 0.05

OURS = (
    *("stream_text", "stream_iterable", "AsyncTextIteratorStreamer (ours)", "open_engine"),
    "anystreamer",
)


def is_ours(way: str) -> bool:
    """Whether it is this library's, and no peer's."""
    return way.startswith(OURS)


@dataclass(frozen=True)
class Ratio:
    """To a peer in the same round: the median, and the quartiles."""

    median: float
    q1: float
    q3: float
    more_is_better: bool = False

    def is_worse_than(self, other: Ratio) -> bool:
        """By more than both have spread."""
        spread = (self.q3 - self.q1) + (other.q3 - other.q1) + FLOOR * other.median
        loss = self.median - other.median
        return (-loss if self.more_is_better else loss) > spread


def ratios(program: str, results: Table) -> dict[str, Ratio]:
    return dict(_ratios(program, results))


def _ratios(program: str, results: Table) -> Iterator[tuple[str, Ratio]]:
    if program in ("overhead", "producers"):
        for scenario, rows in results.items():
            for way, row in rows.items():
                if is_ours(way):
                    yield f"{scenario}, {way}", Ratio(**row["ratio_to_silent"])
    if program == "cancellation":
        for name, rows in results.items():
            if name.startswith("cost"):
                for control, row in rows.items():
                    yield f"{name}, {control}", Ratio(**row["ratio"])
    if program == "decoding":
        for family, ways in results["microseconds per token"].items():
            for size, ours in ways["anystreamer"].items():
                theirs = ways.get("TextStreamer", {}).get(size)
                if theirs and "median" in theirs:
                    yield (
                        f"{family}, {size} tokens, to TextStreamer",
                        Ratio(
                            ours["median"] / theirs["median"],
                            ours["min"] / theirs["max"],
                            ours["max"] / theirs["min"],
                        ),
                    )
    if program == "engines":
        for streams, rows in results["speed"].items():
            for way, row in rows.items():
                if is_ours(way):
                    yield (
                        f"{streams} streams, {way}",
                        Ratio(**row["ratio_to_limit"], more_is_better=True),
                    )
    if program == "edge":
        for clients, rows in results["load"].items():
            for way, row in rows.items():
                if is_ours(way):
                    for what in ("tokens_per_second", "ttft_of_the_last"):
                        yield (
                            f"{clients} clients, {way}, {what.replace('_', ' ')}",
                            Ratio(**row[f"{what}_to_transformers"], more_is_better=True),
                        )
    if program == "remote":
        for loop, each in results["loops"].items():
            for streams, row in each.items():
                yield f"{streams} streams on {loop}", Ratio(**row["ratio"], more_is_better=True)
    if program == "footprint":
        for statement, row in results["import"].items():
            if "anystreamer" in statement:
                yield statement, Ratio(**row["ratio"])
