"""`finish_reasons()`, the pure function that says how the model ended each row by itself."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anystreamer import FinishReason
from anystreamer._generation.call import RowEnd, finish_reasons

EOS, STOP_STRING = FinishReason.EOS, FinishReason.STOP_STRING
LENGTH, TIME, CRITERIA = FinishReason.LENGTH, FinishReason.TIME, FinishReason.CRITERIA

# A row whose tokens have no end: neither an EOS nor a stop string.
OPEN = RowEnd(ended=None, stopped_by_criterion=False, finished_early=False)
AT_EOS = replace(OPEN, ended=EOS)
AT_STOP_STRING = replace(OPEN, ended=STOP_STRING)
BY_CRITERION = replace(OPEN, stopped_by_criterion=True)
EARLY = replace(OPEN, finished_early=True)

# What is known of the whole call; a case names those that hold.
FLAGS = (
    "is_cut",
    "reached_limit",
    "out_of_time",
    "criteria_met",
    "is_stopped",
)


def reasons(
    rows: list[RowEnd], holding: set[str] | frozenset[str], otherwise: FinishReason = EOS
) -> list[FinishReason | None]:
    flags: dict[str, Any] = {flag: flag in holding for flag in FLAGS}
    return finish_reasons(rows, **flags, otherwise=otherwise)


@dataclass(frozen=True)
class Case:
    expected: FinishReason | None
    row: RowEnd = OPEN
    holding: set[str] = field(default_factory=set)


CASES = {
    # The row's own end.
    "EOS": Case(EOS, AT_EOS),
    "stop string": Case(STOP_STRING, AT_STOP_STRING),
    "criterion": Case(CRITERIA, BY_CRITERION),
    "EOS, and a criterion": Case(EOS, replace(AT_EOS, stopped_by_criterion=True)),
    "EOS at the limit": Case(EOS, AT_EOS, {"reached_limit"}),
    "EOS out of time": Case(EOS, AT_EOS, {"out_of_time"}),
    "EOS and a stop": Case(EOS, AT_EOS, {"is_stopped"}),
    "EOS, then cut": Case(EOS, AT_EOS, {"is_cut"}),
    "EOS before other rows": Case(EOS, replace(AT_EOS, finished_early=True)),
    "criterion at the limit": Case(CRITERIA, BY_CRITERION, {"reached_limit"}),
    "criterion and a stop": Case(CRITERIA, BY_CRITERION, {"is_stopped"}),
    "criterion, then cut": Case(CRITERIA, BY_CRITERION, {"is_cut"}),
    "criterion before other rows": Case(CRITERIA, replace(BY_CRITERION, finished_early=True)),
    # The call's end.
    "limit": Case(LENGTH, OPEN, {"reached_limit"}),
    "limit, and out of time": Case(LENGTH, OPEN, {"reached_limit", "out_of_time"}),
    "limit, and criteria met": Case(LENGTH, OPEN, {"reached_limit", "criteria_met"}),
    "limit and a stop": Case(LENGTH, OPEN, {"reached_limit", "is_stopped"}),
    "out of time": Case(TIME, OPEN, {"out_of_time"}),
    "out of time, and criteria met": Case(TIME, OPEN, {"out_of_time", "criteria_met"}),
    "out of time and a stop": Case(TIME, OPEN, {"out_of_time", "is_stopped"}),
    "criteria met": Case(CRITERIA, OPEN, {"criteria_met"}),
    "criteria met and a stop": Case(CRITERIA, OPEN, {"criteria_met", "is_stopped"}),
    # Nothing is known to have ended it.
    "nothing known": Case(EOS),
    # The model has not ended it.
    "stop": Case(None, OPEN, {"is_stopped"}),
    "cut": Case(None, OPEN, {"is_cut"}),
    "cut at the limit": Case(None, OPEN, {"is_cut", "reached_limit"}),
    "stopped before other rows": Case(None, EARLY),
    "stopped before other rows, at the limit": Case(None, EARLY, {"reached_limit"}),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_each_case(case: Case) -> None:
    assert reasons([case.row], case.holding) == [case.expected]


def test_each_row_of_a_batch_has_its_own() -> None:
    rows = [OPEN, AT_EOS, AT_STOP_STRING, BY_CRITERION, EARLY]
    assert reasons(rows, {"reached_limit"}) == [LENGTH, EOS, STOP_STRING, CRITERIA, None]


# -- what is true of all

row_ends: Any = st.builds(
    RowEnd, st.sampled_from([None, None, EOS, STOP_STRING]), st.booleans(), st.booleans()
)
batches = st.lists(row_ends, max_size=5)
flags = st.frozensets(st.sampled_from(FLAGS))


def has_own_end(row: RowEnd) -> bool:
    return row.ended is not None or row.stopped_by_criterion


@given(batches, flags)
def test_there_is_one_for_each_row_and_no_row_depends_on_another(
    rows: list[RowEnd], holding: frozenset[str]
) -> None:
    assert reasons(rows, holding) == [reasons([row], holding)[0] for row in rows]


@given(row_ends.filter(has_own_end), flags)
def test_a_rows_own_end_wins_over_the_calls(row: RowEnd, holding: frozenset[str]) -> None:
    assert reasons([row], holding) == reasons([row], set()) == [row.ended or CRITERIA]


@given(row_ends.filter(lambda row: not has_own_end(row)), flags)
def test_a_row_without_an_end_of_its_own_has_none_where_the_call_was_cut(
    row: RowEnd, holding: frozenset[str]
) -> None:
    assert reasons([row], holding | {"is_cut"}) == [None]


@given(row_ends, flags)
def test_length_is_the_reason_only_where_the_limit_was_reached(
    row: RowEnd, holding: frozenset[str]
) -> None:
    if reasons([row], holding) == [LENGTH]:
        assert not has_own_end(row)
        assert "is_cut" not in holding
        assert "reached_limit" in holding


@pytest.mark.parametrize("otherwise", [EOS, STOP_STRING, CRITERIA])
def test_what_is_left_where_no_reason_is_known(otherwise: FinishReason) -> None:
    assert reasons([OPEN, EARLY], set(), otherwise) == [otherwise, None]


@given(row_ends, flags)
def test_time_is_the_reason_only_where_it_was_up(row: RowEnd, holding: frozenset[str]) -> None:
    if reasons([row], holding) == [TIME]:
        assert "out_of_time" in holding
        assert "reached_limit" not in holding


@given(row_ends, flags)
def test_a_stop_changes_nothing_but_that_the_rest_is_no_reason(
    row: RowEnd, holding: frozenset[str]
) -> None:
    """Where something did end the row, a stop in the same step does not hide it."""
    unstopped = reasons([row], holding - {"is_stopped"})
    assert reasons([row], holding | {"is_stopped"}) in ([None], unstopped)
    if holding & {"reached_limit", "out_of_time", "criteria_met"}:
        assert reasons([row], holding | {"is_stopped"}) == unstopped
