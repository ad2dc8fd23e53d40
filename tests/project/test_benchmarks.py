"""The measured page says what the recorded results say, and a loss of speed is noticed."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
RESULTS = sorted((ROOT / "benchmarks" / "results").glob("*.json"))


@pytest.fixture
def tables(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return importlib.import_module("tables")


@pytest.fixture
def ratios(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return importlib.import_module("ratios")


def test_tables_are_those_of_the_results(tables: Any) -> None:
    """After a change of either: `python benchmarks/tables.py`."""
    filled = 0
    for path in (ROOT / "docs").rglob("*.md"):
        page = path.read_text(encoding="utf-8")
        filled += len(tables.MARKED.findall(page))
        assert tables.filled(page) == page, path.name
    assert filled > 10


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.stem)
def test_every_result_is_on_a_page(path: Path, tables: Any) -> None:
    """None is kept back because it looks bad."""
    pages = "".join(each.read_text(encoding="utf-8") for each in (ROOT / "docs").rglob("*.md"))
    shown = {found["name"] for found in tables.MARKED.finditer(pages)}
    made = tables.TABLES[path.stem](json.loads(path.read_text(encoding="utf-8")))
    assert {f"{path.stem}, {name}" for name in made} <= shown


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.stem)
def test_recorded_ratios_are_not_worse_than_themselves(path: Path, ratios: Any) -> None:
    results = json.loads(path.read_text(encoding="utf-8"))
    for ratio in ratios.ratios(path.stem, results).values():
        assert ratio.q1 <= ratio.median <= ratio.q3
        assert not ratio.is_worse_than(ratio)


def test_a_loss_beyond_the_spread_is_worse(ratios: Any) -> None:
    cost, speed = ratios.Ratio(1.2, 1.15, 1.25), ratios.Ratio(0.9, 0.88, 0.92, more_is_better=True)
    assert ratios.Ratio(1.5, 1.45, 1.55).is_worse_than(cost)
    assert not ratios.Ratio(1.3, 1.25, 1.35).is_worse_than(cost)
    assert not ratios.Ratio(0.5, 0.45, 0.55).is_worse_than(cost)
    assert ratios.Ratio(0.7, 0.68, 0.72, more_is_better=True).is_worse_than(speed)
    assert not ratios.Ratio(1.4, 1.38, 1.42, more_is_better=True).is_worse_than(speed)
