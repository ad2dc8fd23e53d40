"""The command line: runs programs, records their results, and fills the tables of the pages."""

from __future__ import annotations

import importlib.util
import tempfile
import time
import traceback
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from . import report
from .method import in_new_process, record

Program = StrEnum(
    "Program",
    "footprint decoding overhead forms producers cancellation engines simulated connections edge "
    "remote ray_serve",
)


def succeeds(program: str, is_quick: bool, path: Path) -> bool:
    """Run one program in a process of its own. Returns whether it reached its end."""
    if program == "ray_serve" and importlib.util.find_spec("ray") is None:
        print(f"{program}: skipped, because ray is not installed", flush=True)
        return True
    print(f"# {program}", flush=True)
    started = time.monotonic()
    try:
        in_new_process(record, program, is_quick, path)
        result = "done"
    except Exception:
        traceback.print_exc()
        result = "FAILED"
    print(f"\n{program}: {result} after {time.monotonic() - started:.0f} s\n", flush=True)
    return result == "done"


def is_as_fast_as_recorded(program: str, path: Path) -> bool:
    """Compare the ratios with the recorded ones, and print those that have become worse."""
    old, new = (report.ratios(report.read(each)) for each in (program, path))
    worse = [name for name in new if name in old and new[name].is_worse_than(old[name])]
    for name in worse:
        print(f"WORSE {program}, {name}: {new[name]}, recorded {old[name]}")
    print(f"{program}: {len(old.keys() & new.keys())} ratios compared, {len(worse)} worse")
    return not worse


def main(
    programs: Annotated[
        list[Program] | None, typer.Argument(help="Programs to run; by default, all.")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Take few rounds.")] = False,
    check: Annotated[
        bool,
        typer.Option(
            "--check",
            help="Record nothing: take few rounds, and fail if a ratio to a peer is worse than the "
            "recorded one by more than both have spread.",
        ),
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(help="Write the results to this folder, and leave the pages as they are."),
    ] = None,
) -> None:
    """Measure what the documentation claims, beside peers, and record it in the pages."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) if check else out or report.RESULTS
        files = {each.value: folder / f"{each}.json" for each in programs or Program}
        good = [succeeds(name, quick or check, path) for name, path in files.items()]
        if check:
            good += [
                is_as_fast_as_recorded(name, path) for name, path in files.items() if path.exists()
            ]
    if folder == report.RESULTS:
        report.fill_pages()
    raise typer.Exit(0 if all(good) else 1)


if __name__ == "__main__":
    typer.run(main)
