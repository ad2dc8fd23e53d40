"""The page of the documentation about models: made from outcomes, and read again by the tests."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import transformers

from .modes import MODES
from .outcomes import NOT_BUILT, RIGHT

__all__ = ["PAGE", "names_of", "page_of", "rows_of"]

PAGE = Path(__file__).parents[2] / "docs" / "models.md"

_TEXT = """# Which models work, in which mode

`python -m tests.zoo` writes this page, in a clone of the repository. For each class that
transformers lists for making text, the program builds a tiny model: the default config made small,
with random weights. In each mode it compares the model's answers with those of plain `generate()`.
A test does the same every night, and fails if a class is wrong without an error.

- **`stream_text`**: ids, text, finish reason and usage; also if a stop string, one of
  `generate()`'s own `stop_strings`, or an end-of-sequence token ends the text.
- **cancel, `stop()`**: the model makes at most one more step.
- **`stream_batch`**: each row is the same as for its prompt alone, with prompts of the same length
  and of different length.
- **engine**: `open_engine(..., batching="none")`, with two requests at once.
- **continuous batching**: `open_engine(..., batching="continuous")`, with four requests at once.
  See [its page](how-to/continuous-batching.md).

If a cell is not "yes", the mode raises an error that says what to do instead. The cell has the
reason:

- "prompts of one length": the model answers a padded prompt wrongly, in plain `generate()` too.
  `stream_batch` tests this before the first padded batch of a model, and refuses prompts of
  different length with a `ValueError`.
- "one prompt alone": the model mixes up the rows of a batch, in plain `generate()` too.
- "one recording alone": the model continues a row after its recording has ended.
- "it makes audio": the model's tokens are not text.
- "`generate()` fails": with such a batch, or such an argument, plain `generate()` fails too.
- "one step only": the model makes its whole answer in one step, so there is nothing to stop.
- All reasons in the last column: use `batching="none"`. "Its generation config" has a setting that
  transformers' manager ignores.

"""


def page_of(outcomes: Mapping[str, Mapping[str, str]]) -> str:
    """The text of the page. *outcomes* has the outcome in each mode for each class."""
    others = {name for name, outcome in outcomes.items() if NOT_BUILT in outcome.values()}
    built = {name: outcome for name, outcome in outcomes.items() if name not in others}
    return "\n".join(
        [
            f"{_TEXT}With transformers {transformers.__version__}: {len(built)} classes were "
            f"tried. Of {len(others)} others no tiny model",
            "could be built: they are listed below the table.",
            "",
            f"| class | {' | '.join(MODES)} |",
            f"|---|{'---|' * len(MODES)}",
            *(
                f"| `{name}` | {' | '.join(built[name][mode] for mode in MODES)} |"
                for name in sorted(built)
            ),
            f"| right, of {len(built)} | {' | '.join(_count(built, mode) for mode in MODES)} |",
            "",
            "Not tried: " + ", ".join(f"`{name}`" for name in sorted(others)) + ".",
            "",
        ]
    )


def _count(built: Mapping[str, Mapping[str, str]], mode: str) -> str:
    return str(sum(outcome[mode] == RIGHT for outcome in built.values()))


def rows_of(page: str) -> dict[str, dict[str, str]]:
    """For each class in the table of a page, its outcome in each mode."""
    rows = (line.strip("| ").split(" | ") for line in page.splitlines() if line.startswith("| `"))
    return {name.strip("`"): dict(zip(MODES, cells, strict=True)) for name, *cells in rows}


def names_of(page: str) -> set[str]:
    """All classes that a page names: those in its table, and those that were not tried."""
    (others,) = (line for line in page.splitlines() if line.startswith("Not tried: "))
    return {*rows_of(page), *re.findall(r"`(\w+)`", others)}
