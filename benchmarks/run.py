"""Measure everything that this project claims, each beside its peers.

    python benchmarks/run.py [quick] [check] [PROGRAM ...]

records the results, and fills the tables and plots of the pages from them. ``quick`` takes few
rounds. ``check`` records nothing: it takes few rounds, compares each ratio with the recorded one,
and fails where one has become worse by more than both have spread.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from ratios import ratios
from tables import RESULTS

HERE = Path(__file__).resolve().parent
PROGRAMS = (
    *("footprint", "decoding", "overhead", "producers", "cancellation", "engines"),
    *("connections", "edge", "remote", "ray_serve"),
)


def run(program: str, folder: Path, *options: str) -> bool:
    if program == "ray_serve" and importlib.util.find_spec("ray") is None:
        print(f"{program}: skipped, for ray is not installed", flush=True)
        return True
    print(f"# {program}", flush=True)
    started = time.monotonic()
    command = [sys.executable, str(HERE / f"{program}.py"), *options]
    code = subprocess.run([*command, "--out", str(folder / f"{program}.json")]).returncode
    print(f"\n{program}: {time.monotonic() - started:.0f} s, exit code {code}\n", flush=True)
    return code == 0


def compared(program: str, folder: Path) -> bool:
    """Whether no ratio has become worse."""
    old, new = (
        ratios(program, json.loads(path.read_text(encoding="utf-8"))) if path.exists() else {}
        for path in (RESULTS / f"{program}.json", folder / f"{program}.json")
    )
    worse = [name for name in new if name in old and new[name].is_worse_than(old[name])]
    for name in worse:
        print(
            f"WORSE {program}, {name}: {new[name].median:.3f} "
            f"({new[name].q1:.3f}-{new[name].q3:.3f}), recorded was {old[name].median:.3f} "
            f"({old[name].q1:.3f}-{old[name].q3:.3f})"
        )
    print(f"{program}: {len(old.keys() & new.keys())} ratios compared, {len(worse)} worse")
    return not worse


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("what", nargs="*", help=f"quick, check, {', '.join(PROGRAMS)}")
    what = set(parser.parse_args().what)
    if unknown := what - {"quick", "check", *PROGRAMS}:
        parser.error(f"unknown: {', '.join(sorted(unknown))}")
    programs = [each for each in PROGRAMS if each in what] or list(PROGRAMS)
    quick = ("--quick",) if what & {"quick", "check"} else ()
    if "check" in what:
        with tempfile.TemporaryDirectory() as folder:
            ran = [run(program, Path(folder), *quick) for program in programs]
            return not all([*ran, *(compared(program, Path(folder)) for program in programs)])
    ran = [run(program, RESULTS, *quick) for program in programs]
    for made_from_them in ("tables", "plots"):
        subprocess.run([sys.executable, str(HERE / f"{made_from_them}.py")], check=True)
    return not all(ran)


if __name__ == "__main__":
    sys.exit(main())
