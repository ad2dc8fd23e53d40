"""Continuous batching serves a model correctly or refuses it: every class for generating text.

Run as a program it prints the table of the documentation: `python -m tests.engine.test_cb_models`.
"""

from __future__ import annotations

import gc
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import anyio
import pytest
import torch
import transformers
from anyio import create_task_group

from anystreamer import open_engine

from ..helpers.tiny_models import tokenizer
from .tiny_zoo import VOCABULARY, build, listed

pytestmark = [pytest.mark.torch, pytest.mark.nightly]

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "continuous-batching.md"

PROMPTS = [[50, 60, 70], [250, 240, 230, 220, 210, 200, 190], [99] * 5, [111, 122, 133, 144]]
TOKENS = 8
# Two tokens whose logits are closer than this part of their spread are both right.
TIE = 1e-3

SERVED, REFUSED, NOT_BUILT = "served", "refused", "not built"


async def answers(model: Any, prompts: Sequence[Sequence[int]]) -> list[list[int]]:
    """The ids that an engine with continuous batching makes of several prompts at once."""
    token_ids: dict[int, list[int]] = {}

    async def ask(engine: Any, number: int) -> None:
        prompt = {"input_ids": torch.tensor([prompts[number]])}
        async with engine.stream_text(prompt, max_new_tokens=TOKENS) as stream:
            await stream.read()
        token_ids[number] = stream.token_ids

    async with open_engine(model, tokenizer(), batching="continuous") as engine:
        async with create_task_group() as tasks:
            for number in range(len(prompts)):
                tasks.start_soon(ask, engine, number)
    return [token_ids[number] for number in range(len(prompts))]


def check_answer(model: Any, prompt: Sequence[int], token_ids: Sequence[int]) -> None:
    """Compare an answer with that of `generate()`, up to the first tie of two tokens."""
    output = model.generate(
        torch.tensor([prompt]),
        max_new_tokens=TOKENS,
        do_sample=False,
        output_logits=True,
        return_dict_in_generate=True,
    )
    alone = output.sequences[0, len(prompt) :].tolist()
    for token_id, right, logits in zip(token_ids, alone, output.logits, strict=True):
        if token_id != right:
            gap = float(logits[0, right] - logits[0, token_id])
            assert gap <= TIE * float(logits[0].std()), (token_ids, alone)
            return


def outcome(model_type: str, class_name: str) -> tuple[str, str]:
    """What comes of one class, and why. AssertionError where an answer is wrong."""
    try:
        model = build(model_type, class_name)
    except RuntimeError as exc:
        return NOT_BUILT, exc.__notes__[0]
    try:
        token_ids = anyio.run(answers, model, PROMPTS)
    except ValueError as exc:
        message = str(exc)
        if "use batching='none'" not in message:
            raise
        return REFUSED, reason_of(message)
    for prompt, answer in zip(PROMPTS, token_ids, strict=True):
        check_answer(model, prompt, answer)
    return SERVED, ""


def reason_of(message: str) -> str:
    """The reason of a refusal, in the words of the table."""
    reasons = {
        "has no paged cache": "it has an encoder",
        "do not use the manager's cache": "attention without transformers' attention interface",
        "Invalid layer type": "layers without a paged cache",
        "config asks for": "its generation config asks for what the manager ignores",
        "are not those of generate()": "its answers would be wrong",
    }
    found = (reason for words, reason in reasons.items() if words in message)
    return next(found, "transformers' manager fails with it")


def table() -> str:
    """The outcomes of all classes, as text for the page."""
    found: dict[tuple[str, str], set[str]] = {}
    for model_type, class_name in listed():
        found.setdefault(outcome(model_type, class_name), set()).add(class_name)
        gc.collect()
    served = found.pop((SERVED, ""), set())
    refused: dict[str, set[str]] = {}
    not_built: set[str] = set()
    for (kind, reason), names in found.items():
        if kind == REFUSED:
            refused[reason] = names - served
        else:
            not_built |= names
    for names in refused.values():
        not_built -= names
    count = sum(map(len, refused.values()))
    return "\n".join(
        [
            f"With transformers {transformers.__version__}: {len(served)} classes are served, "
            f"{count} are refused, and of {len(not_built - served)} no tiny model could be built.",
            "",
            "| | classes |",
            "|---|---|",
            f"| served | {_names(served)} |",
            *(f"| refused: {why} | {_names(names)} |" for why, names in sorted(refused.items())),
            f"| not tried | {_names(not_built - served)} |",
        ]
    )


def _names(names: set[str]) -> str:
    return ", ".join(f"`{name}`" for name in sorted(names))


@pytest.mark.parametrize(("model_type", "class_name"), listed())
def test_each_model_is_served_correctly_or_refused(model_type: str, class_name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of configs that were made small
        kind, reason = outcome(model_type, class_name)
    if kind == NOT_BUILT:
        pytest.skip(reason)
    if f"transformers {transformers.__version__}" in PAGE.read_text(encoding="utf-8"):
        row = next(
            line
            for line in PAGE.read_text(encoding="utf-8").splitlines()
            if f"`{class_name}`" in line
        )
        assert row.startswith(f"| {kind}")


def test_a_wrong_answer_would_be_seen() -> None:
    model = build("llama", "LlamaForCausalLM")
    (right,) = anyio.run(answers, model, PROMPTS[:1])
    check_answer(model, PROMPTS[0], right)
    with pytest.raises(AssertionError):
        check_answer(model, PROMPTS[0], [(each + 1) % VOCABULARY for each in right])


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    print(table())
