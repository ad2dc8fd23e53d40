"""The pages have the recorded results of the benchmarks, and a loss of speed is noticed."""

from __future__ import annotations

import ast
import importlib
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
RESULTS = sorted((ROOT / "benchmarks" / "results").glob("*.json"))
each_result = pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.stem)


@pytest.fixture
def report(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(ROOT)
    return importlib.import_module("benchmarks.report")


def pages() -> dict[Path, str]:
    return {path: path.read_text(encoding="utf-8") for path in (ROOT / "docs").rglob("*.md")}


def test_tables_are_those_of_the_results(report: Any) -> None:
    """After a change of either: `python -m benchmarks.report`."""
    filled = 0
    for path, page in pages().items():
        filled += len(report.MARKED.findall(page))
        assert report.filled(page) == page, path.name
    assert filled > 10


@each_result
def test_every_result_is_on_a_page(path: Path, report: Any) -> None:
    """None is left out because it looks bad."""
    shown = {found["name"] for page in pages().values() for found in report.MARKED.finditer(page)}
    made = report.tables(path.stem, report.read(path))
    assert {f"{path.stem}, {name}" for name in made} <= shown


def programs() -> set[str]:
    """Modules that have the function that the command line calls."""
    return {
        path.stem
        for path in (ROOT / "benchmarks").glob("*.py")
        if any(
            isinstance(node, ast.FunctionDef) and node.name == "measure"
            for node in ast.parse(path.read_text(encoding="utf-8")).body
        )
    }


def test_every_result_has_its_program_and_its_command_on_a_page() -> None:
    commands = re.findall(r"`python -m benchmarks (\w+)`", "".join(pages().values()))
    assert {path.stem for path in RESULTS} == programs() == set(commands)


def test_every_plot_is_on_a_page(report: Any) -> None:
    """The build of the site makes them, and fails if a page has another one."""
    shown = re.findall(r"images/measured/(\w+)\.svg", "".join(pages().values()))
    assert sorted(shown) == sorted(report.PLOTS)


@each_result
def test_recorded_ratios_are_not_worse_than_themselves(path: Path, report: Any) -> None:
    ratios = report.ratios(report.read(path))
    assert ratios or path.stem in ("connections", "ray_serve")  # they have no peer
    for ratio in ratios.values():
        assert ratio.q1 <= ratio.median <= ratio.q3
        assert not ratio.is_worse_than(ratio)


def test_a_loss_beyond_the_spread_is_worse(report: Any) -> None:
    cost, speed = report.Ratio(1.2, 1.15, 1.25), report.Ratio(0.9, 0.88, 0.92, more_is_better=True)
    assert report.Ratio(1.5, 1.45, 1.55).is_worse_than(cost)
    assert not report.Ratio(1.3, 1.25, 1.35).is_worse_than(cost)
    assert not report.Ratio(0.5, 0.45, 0.55).is_worse_than(cost)
    assert report.Ratio(0.7, 0.68, 0.72, more_is_better=True).is_worse_than(speed)
    assert not report.Ratio(1.4, 1.38, 1.42, more_is_better=True).is_worse_than(speed)


@pytest.mark.parametrize("figure", ["ms", "tokens_per_second"])
def test_the_way_that_is_better_has_the_better_ratio(figure: str, report: Any) -> None:
    """Of a speed more is better, and of a time less: in a flood, and in the second turn too."""
    method = importlib.import_module("benchmarks.method")
    rounds = {"stream_text": [1.0, 2.0, 4.0], "peer": [2.0, 4.0, 8.0]}
    runs = {name: [{figure: each} for each in values] for name, values in rounds.items()}
    ((name, ratio),) = report.ratios(method.compared(runs, figure, peer="peer")).items()
    assert ratio.median == 0.5
    assert ratio.more_is_better == (figure != "ms"), name
    worse = report.Ratio(2.0, 2.0, 2.0, ratio.more_is_better)
    assert worse.is_worse_than(ratio) == (figure == "ms")


@pytest.mark.parametrize(
    ("program", "path"),
    [
        ("producers", "flood, unbounded, stream_from_thread on trio, speed_to_culsans"),
        ("producers", "flood, unbounded, receive_many on trio, speed_to_culsans"),
        ("engines", 'second_turn, open_engine, "none", ratio_to_continuous'),
        ("decoding", "speed, byte level, anystreamer, 8000, ratio_to_text_streamer"),
        ("cancellation", "costs, small, `timeout=`, ratio_to_none"),
    ],
)
def test_a_ratio_of_ours_is_compared(program: str, path: str, report: Any) -> None:
    found = report.ratios(report.read(program))[path]
    assert found.more_is_better == ("speed_to" in path)


def test_a_peers_ratio_is_not_compared(report: Any) -> None:
    for program, peer in (("overhead", "threadpool"), ("edge", "transformers, default")):
        assert not [name for name in report.ratios(report.read(program)) if peer in name]


def test_parts_are_recorded_at_their_places_and_shown(
    report: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    program, each = ModuleType("benchmarks.engines"), {"mib": 103.4, "seconds_to_answer": 0.1}
    parts = [("opening", "trio", each), ("speed", "ours", "1", {}), ("speed", "ours", "4", {})]
    program.measure = lambda is_quick: iter(parts)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, program.__name__, program)
    importlib.import_module("benchmarks.method").record("engines", True, tmp_path / "engines.json")
    found = report.read(tmp_path / "engines.json")
    assert found.pop("environment")["is_quick"]
    assert found == {"opening": {"trio": each}, "speed": {"ours": {"1": {}, "4": {}}}}
    assert "| trio | 103 | – | 0.10 |" in capsys.readouterr().out


def test_a_part_that_no_table_shows_is_an_error(report: Any) -> None:
    results = report.read("decoding")
    with pytest.raises(LookupError, match="no table shows 'speeds' of decoding"):
        report.tables("decoding", {"speeds": results["speed"]} | results)
