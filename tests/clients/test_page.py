"""The page about clients is what was recorded, and that is what the programs try."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from .page import PAGE, page_of, read_recorded
from .table import CLIENTS, WAYS, Client, is_wrong

PROGRAMS = Path(__file__).parent / "programs"


def test_the_page_is_what_was_recorded() -> None:
    recorded = read_recorded()
    assert page_of(recorded) == PAGE.read_text(encoding="utf-8")
    assert list(recorded) == [each.name for each in CLIENTS]
    for client in recorded.values():
        assert list(client["ways"]) == list(WAYS)
        assert not any(is_wrong(way["outcome"]) for way in client["ways"].values())


@pytest.mark.parametrize("client", CLIENTS, ids=lambda each: each.name)
def test_what_is_recorded_is_what_the_program_uses(client: Client) -> None:
    """A program that was changed has to be recorded again."""
    program = " ".join((PROGRAMS / client.program).read_text(encoding="utf-8").split())
    for name, way in read_recorded()[client.name]["ways"].items():
        said = way["uses"] or way["outcome"]
        assert said.replace("'", "\\'") in program or said in program, (name, said)


def test_each_program_is_of_a_client() -> None:
    programs = {each.name for each in PROGRAMS.iterdir() if re.search(r"\.(mjs|py)$", each.name)}
    assert programs - {"checks.py", "checks.mjs"} == {each.program for each in CLIENTS}
