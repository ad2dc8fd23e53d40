"""What a session of nox leaves to the night, a session of the night runs."""

from __future__ import annotations

import ast
import itertools
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
NOXFILE = ast.parse((ROOT / "noxfile.py").read_text(encoding="utf-8"))


def expression(name: str) -> str:
    """One of the noxfile's expressions for pytest's `-m`. Python reads them as well."""
    (found,) = (
        ast.literal_eval(each.value)
        for each in NOXFILE.body
        if isinstance(each, ast.Assign) and ast.unparse(each.targets[0]) == name
    )
    return str(found)


@pytest.mark.parametrize(
    ("day", "night"), [("DAY", "NIGHT"), ("RAY_BY_DAY", "RAY_AT_NIGHT")], ids=["others", "ray"]
)
def test_each_test_runs_by_day_or_at_night(day: str, night: str) -> None:
    by_day, at_night = expression(day), expression(night)
    names = sorted(set(re.findall(r"\w+", by_day)) - {"not", "or", "and"})
    assert {"nightly", "variant"} <= set(names)
    for values in itertools.product([False, True], repeat=len(names)):
        marks = dict(zip(names, values, strict=True))
        runs = [bool(eval(each, {}, marks)) for each in (by_day, at_night)]
        assert sum(runs) == (not marks["nightly"]), marks


def test_the_workflow_of_the_night_runs_each_session_of_it() -> None:
    workflow = ROOT / ".github" / "workflows" / "nightly.yml"
    if not workflow.exists():
        pytest.skip("there are no workflows here")
    text = workflow.read_text(encoding="utf-8")
    listed = set(re.findall(r"^ +- (\w+)(?:-3\.\d+)?$", text, re.MULTILINE))
    tagged = {
        each.name
        for each in NOXFILE.body
        if isinstance(each, ast.FunctionDef)
        and any("tags=['night']" in ast.unparse(decorator) for decorator in each.decorator_list)
    }
    assert len(tagged) > 3
    assert listed == tagged


def draws_examples(function: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    return any("given" in ast.unparse(decorator) for decorator in function.decorator_list)


def test_the_night_draws_more_examples_for_each_test_that_draws_some() -> None:
    """Hypothesis marks a test that it wraps. One that wraps a function inside has to say so."""
    found, unmarked = 0, []
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        for test in ast.parse(path.read_text(encoding="utf-8")).body:
            if not isinstance(test, FUNCTIONS) or draws_examples(test):
                continue
            if any(isinstance(each, FUNCTIONS) and draws_examples(each) for each in ast.walk(test)):
                found += 1
                marks = [ast.unparse(decorator) for decorator in test.decorator_list]
                if "pytest.mark.hypothesis" not in marks:
                    unmarked.append(f"{path.relative_to(ROOT).as_posix()}::{test.name}")
    assert found
    assert not unmarked
