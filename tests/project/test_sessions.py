"""What a session of nox leaves to the night, one of the night runs; and workflows run both."""

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


def test_the_long_tests_and_the_examples_are_in_one_session_each() -> None:
    """In two of them, a night would do the same twice; in none, never."""
    long, examples = expression("LONG"), expression("EXAMPLES")
    for values in itertools.product([False, True], repeat=3):
        marks = dict(zip(("nightly", "hypothesis", "variant"), values, strict=True))
        runs = [bool(eval(each, {}, marks)) for each in (long, examples)]
        assert sum(runs) <= 1, marks
        needed = marks["nightly"] or (marks["hypothesis"] and not marks["variant"])
        assert any(runs) == needed, marks
    names = [node.value for node in ast.walk(NOXFILE) if isinstance(node, ast.Constant)]
    for soaked in ("tests/engine/test_soak.py", "tests/bridge/test_teardown.py"):
        assert names.count(soaked) == 1


@pytest.fixture
def workflows() -> dict[str, set[str]]:
    """The sessions that each workflow runs: those of its matrix, and those of its commands."""
    folder = ROOT / ".github" / "workflows"
    if not folder.exists():
        pytest.skip("there are no workflows here")
    found = {}
    for path in sorted(folder.glob("*.yml")):
        text = path.read_text(encoding="utf-8")
        listed = re.findall(r"^ +- (\w+)(?:-3\.\d+)?$", text, re.MULTILINE)
        if in_one_line := re.search(r"^ +session: \[(.*)\]$", text, re.MULTILINE):
            listed += in_one_line[1].split(", ")
        found[path.stem] = {*listed, *re.findall(r'nox -s "?(\w+)', text)}
    return found


def decorators(function: ast.FunctionDef | ast.AsyncFunctionDef) -> list[str]:
    return [ast.unparse(decorator) for decorator in function.decorator_list]


# The noxfile's sessions, and how each is declared.
SESSIONS = {
    each.name: "".join(decorators(each))
    for each in NOXFILE.body
    if isinstance(each, ast.FunctionDef) and "nox.session" in "".join(decorators(each))
}


def test_the_workflow_of_the_night_runs_each_session_of_it(workflows: dict[str, set[str]]) -> None:
    tagged = {name for name, declared in SESSIONS.items() if "tags=['night']" in declared}
    assert len(tagged) > 3
    assert workflows["nightly"] == tagged


def test_the_workflow_of_a_change_runs_what_nox_runs(workflows: dict[str, set[str]]) -> None:
    (lanes,) = (
        {name.value for name in ast.walk(each.value) if isinstance(name, ast.Constant)}
        for each in NOXFILE.body
        if isinstance(each, ast.Assign) and ast.unparse(each.targets[0]) == "LANES"
    )
    assert len(lanes) > 5
    assert workflows["tests"] == lanes


def test_each_session_of_a_workflow_exists(workflows: dict[str, set[str]]) -> None:
    assert sum(map(len, workflows.values())) > 20
    for name, sessions in workflows.items():
        assert sessions <= set(SESSIONS), name


def draws_examples(function: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    return any("given" in decorator for decorator in decorators(function))


def test_the_night_draws_more_examples_for_each_test_that_draws_some() -> None:
    """Hypothesis marks a test that it wraps. One that wraps a function inside has to say so."""
    found, unmarked = 0, []
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        for test in ast.parse(path.read_text(encoding="utf-8")).body:
            if not isinstance(test, FUNCTIONS) or draws_examples(test):
                continue
            if any(isinstance(each, FUNCTIONS) and draws_examples(each) for each in ast.walk(test)):
                found += 1
                if "pytest.mark.hypothesis" not in decorators(test):
                    unmarked.append(f"{path.relative_to(ROOT).as_posix()}::{test.name}")
    assert found
    assert not unmarked
