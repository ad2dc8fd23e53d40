"""The table of what continuous batching refuses: the page shows it, and both engines keep to it."""

from __future__ import annotations

import contextlib
import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from anystreamer import open_engine
from anystreamer._engine.cb_refusals import REFUSALS
from anystreamer.demo import load_demo

from ..helpers.scripted import until

pytestmark = [pytest.mark.torch, pytest.mark.usefixtures("one_thread_for_the_model")]

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "continuous-batching.md"
PROMPT = "An increasing sequence: one,"

demo = cache(load_demo)


def test_the_page_shows_the_table() -> None:
    text = PAGE.read_text(encoding="utf-8")
    table = text.partition("| refused | because |\n| --- | --- |\n")[2].partition("\n\n")[0]
    rows = re.findall(r"^\| (.*?) \| (.*?) \|$", table, re.MULTILINE)
    assert {name.replace("`", ""): reason for name, reason in rows} == REFUSALS


def masked() -> dict[str, Any]:
    return {"input_ids": torch.tensor([[5, 6, 7]]), "attention_mask": torch.tensor([[0, 1, 1]])}


def embedded() -> dict[str, Any]:
    return {"inputs_embeds": torch.zeros(1, 3, demo()[0].config.hidden_size)}


REQUESTS: dict[str, list[dict[str, Any]]] = {
    "top_logprobs": [{"logprobs": True, "top_logprobs": 1}],
    "repetition_penalty": [{"repetition_penalty": 1.1}],
    "frequency_penalty": [{"frequency_penalty": 0.5}],
    "presence_penalty": [{"presence_penalty": 0.5}],
    "logit_bias": [{"logit_bias": {5: 1.0}}],
    "worker_context": [{"worker_context": contextlib.nullcontext}],
    "cancel_within='layer'": [{"cancel_within": "layer"}],
    "max_buffer_size": [{"max_buffer_size": 5}],
    "logprobs": [{"logprobs": True}],
    "response_format": [{"response_format": "json"}],
    "prompt['attention_mask']": [{"prompt": masked}],
    "other inputs of a prompt": [{"prompt": embedded}],
    "other arguments of generate()": [
        {"no_repeat_ngram_size": 2},
        {"logits_processor": [lambda _, scores: scores]},
        {"min_new_tokens": 2},
        {"prompt_lookup_num_tokens": 2},
        {"max_time": 100.0},
        {"bad_words_ids": [[5]]},
    ],
}
# What another model is needed for: tests/prompts/test_media.py, tests/generation/test_tools.py.
ELSEWHERE = {"pictures, audio and video in a chat", "tool_choice"}
# Only where steps do not run in order, which no CPU does by itself.
NOT_IN_ORDER = {name for name, reason in REFUSALS.items() if "steps that run" in reason}


async def test_each_row_is_refused_by_one_and_runs_alone_in_the_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert REQUESTS.keys() | ELSEWHERE == REFUSALS.keys()
    async with (
        open_engine(*demo(), batching="continuous") as continuous,
        open_engine(*demo(), batching="auto") as auto,
    ):
        engines: list[Any] = [continuous, auto]
        for name, requests in REQUESTS.items():
            for given in requests:
                request = {"prompt": PROMPT, "max_new_tokens": 200, **given}
                if callable(request["prompt"]):
                    request["prompt"] = request["prompt"]()
                with monkeypatch.context() as patch:
                    if name in NOT_IN_ORDER:
                        for engine in engines:
                            config = engine.manager.continuous_batching_config
                            patch.setattr(config, "use_async_batching", True)
                    key = next(iter({**given} if "prompt" not in given else request["prompt"]))
                    with pytest.raises(
                        ValueError, match=r"use batching='none', or 'auto'"
                    ) as error:
                        continuous.stream_text(**request)
                    assert REFUSALS[name] in str(error.value)
                    assert key in str(error.value) or name in str(error.value)
                    async with auto.stream_text(**request) as stream:
                        await until(lambda: auto.statistics().running_alone or stream.finish_reason)
                        assert auto.statistics().running == auto.statistics().running_alone
                        stream.stop()
                        await stream.read()
        assert auto.statistics().total.count == sum(map(len, REQUESTS.values()))
