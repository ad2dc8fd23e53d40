"""A scripted model refuses the arguments that generate() of transformers refuses, and no others."""

from __future__ import annotations

import inspect
import logging
import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from transformers import GenerationConfig
from transformers.utils.generic import TransformersKwargs

from anystreamer.demo import load_demo
from anystreamer.testing import ScriptedModel
from anystreamer.testing._generate_arguments import NAMES

pytestmark = [
    pytest.mark.torch,
    # Both are asked for arguments that make no sense together.
    pytest.mark.filterwarnings("ignore::UserWarning"),
]


def each_alone(values: dict[str, list[Any]]) -> list[dict[str, Any]]:
    return [{name: value} for name, several in values.items() for value in several]


SAMPLING = each_alone(
    {
        "temperature": [0.0, 0, -1.0, 2, "1", math.nan, 1, 1.0, 0.5, 9.0],
        "top_k": [-1, 0, 2.5, 1, 10**6],
        "top_p": [-1, "x", 0, 0.5, 1.0, 7],
        "min_p": [2, -0.1, 0, 0.5, 1],
        "typical_p": [0.0, -1, 0.5, 2.0],
        "top_h": [2.0, 0.0, 0.5],
        "epsilon_cutoff": [1.5, -1.0, 0.5],
        "eta_cutoff": [1.5, -1.0, 0.5],
    }
)
ARGUMENTS = [
    *SAMPLING,  # which are not read without do_sample=True
    *({"do_sample": True, **each} for each in SAMPLING),
    *each_alone(
        {
            "temprature": [1, None],
            "seed": [1],
            "stream": [True],
            "frequency_penalty": [0.5],
            "pixel_values": [3],
            "decoder_input_ids": [3],
            "max_new_tokens": [0, -3, "5", 2, True, None],
            "max_time": [-1, 5.0, "x"],
            "early_stopping": ["x", "never"],
            "repetition_penalty": [2, 0.0, -1.0, 1, "1", 1.5],
            "encoder_repetition_penalty": [-1.0, 1],
            "no_repeat_ngram_size": [-1, 2.5, 2],
            "min_length": [-1, 2.5, 1],
            "min_new_tokens": [-1, 1.5, 1],
            "cache_implementation": ["x", "dynamic"],
            "bad_words_ids": [[], [[-1]], 5, [[7]]],
            "prompt_lookup_num_tokens": [0, -1],
            "stopping_criteria": [5, [5]],
            "renormalize_logits": [True],
            "use_cache": [False],
            "output_scores": [True],
            "trust_remote_code": [True],
        }
    ),
]


@pytest.fixture(scope="module")
def real() -> Iterator[Any]:
    logging.disable(logging.WARNING)  # transformers would log most of these
    yield load_demo()[0]
    logging.disable(logging.NOTSET)


def refusal(model: Any, arguments: dict[str, Any]) -> type[BaseException] | None:
    ids = [[5, 6, 7]]
    inputs: Any = torch.tensor(ids) if model.__class__ is not ScriptedModel else ids
    try:
        model.generate(input_ids=inputs, **{"max_new_tokens": 3, **arguments})
    except (TypeError, ValueError) as exc:
        return type(exc)
    return None


@pytest.mark.parametrize("arguments", ARGUMENTS, ids=str)
def test_it_refuses_what_transformers_refuses(real: Any, arguments: dict[str, Any]) -> None:
    assert refusal(ScriptedModel(["a"] * 5), arguments) is refusal(real, arguments)


@pytest.mark.parametrize("length", [2, 3, 4, 5])
def test_a_total_length_counts_the_prompt(real: Any, length: int) -> None:
    arguments = {"max_new_tokens": None, "max_length": length}
    model = ScriptedModel(["a"] * 5)
    assert refusal(model, arguments) is refusal(real, arguments)
    if length > 3:
        assert len(model.generate(input_ids=[[5, 6, 7]], max_length=length)[0]) == length


def test_a_generation_config_counts() -> None:
    config = GenerationConfig(max_new_tokens=2, temperature=0.0)
    model = ScriptedModel(["a"] * 5)
    assert len(model.generate(input_ids=[[5]], generation_config=config)[0]) == 3
    assert len(model.generate(input_ids=[[5]], generation_config=config, max_new_tokens=1)[0]) == 2
    with pytest.raises(ValueError, match="temperature"):
        model.generate(input_ids=[[5]], generation_config=config, do_sample=True)


def test_it_knows_all_names(real: Any) -> None:
    functions = (real.generate, real.forward, real.prepare_inputs_for_generation)
    parameters = {name for each in functions for name in inspect.signature(each).parameters}
    settings = {name for name in vars(GenerationConfig()) if not name.startswith("_")}
    others = {"assistant_tokenizer", "tokenizer", "trust_remote_code"}  # it takes out of **kwargs
    known = parameters | settings | TransformersKwargs.__optional_keys__ | others
    assert known - {"kwargs", "transformers_version"} == NAMES
