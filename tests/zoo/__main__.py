"""Write docs/models.md: `python -m tests.zoo`. It takes about ten minutes of one core."""

from __future__ import annotations

import gc
import logging
import sys
import warnings

import torch
import transformers

from .build import listed
from .outcomes import is_wrong, outcome_of
from .page import PAGE, page_of


def main() -> None:
    warnings.simplefilter("ignore")  # of configs that were made small
    transformers.logging.set_verbosity_error()
    logging.disable(logging.CRITICAL)  # what a refused model's manager logs
    torch.set_num_threads(1)
    outcomes = {}
    for class_name in listed():
        outcomes[class_name] = outcome = outcome_of(class_name)
        for mode, reason in outcome.items():
            if is_wrong(reason):
                print(f"{class_name}, {mode}: {reason}")
        gc.collect()
    PAGE.write_text(page_of(outcomes), encoding="utf-8")
    sys.exit(any(is_wrong(reason) for each in outcomes.values() for reason in each.values()))


if __name__ == "__main__":
    main()
