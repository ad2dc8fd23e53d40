"""In each mode, a model does what its own `generate()` does, or is refused.

`python -m tests.zoo` writes the table of the documentation.
"""

from __future__ import annotations

from typing import Any

import anyio
import pytest
import torch
import transformers

from .build import TinyModel, build, can_generate, listed, named
from .inputs import PROMPTS
from .modes import MODES, check_answer, check_batch, check_stop, check_text, generated
from .outcomes import NOT_BUILT, is_wrong, outcome_of
from .page import PAGE, names_of, page_of, rows_of
from .tokenizer import VOCABULARY

pytestmark = [
    pytest.mark.torch,
    pytest.mark.usefixtures("one_thread_for_the_model"),
    pytest.mark.filterwarnings("ignore"),  # of configs that were made small
]

# Of each kind one: what its inputs are, how it keeps what it has read, how it counts positions, and
# how it generates.
SOME = {
    "LlamaForCausalLM",
    "BloomForCausalLM",
    "BartForCausalLM",
    "MambaForCausalLM",
    "MixtralForCausalLM",
    "Gemma3ForConditionalGeneration",
    "T5ForConditionalGeneration",
    "BartForConditionalGeneration",
    "WhisperForConditionalGeneration",
    "VisionEncoderDecoderModel",
    "BlipForConditionalGeneration",
    "ParakeetForCTC",
    "ParakeetForTDT",
}


@pytest.mark.parametrize(
    "class_name",
    [
        pytest.param(each, marks=pytest.mark.slow if each in SOME else pytest.mark.nightly)
        for each in sorted(SOME | named().keys())
    ],
)
def test_a_model_is_right_in_each_mode_or_refused(class_name: str) -> None:
    if not can_generate(class_name):
        assert class_name not in SOME
        pytest.skip("it cannot generate")
    outcome = outcome_of(class_name)
    assert not any(map(is_wrong, outcome.values())), outcome
    if NOT_BUILT in outcome.values():
        assert class_name not in SOME
        pytest.skip(NOT_BUILT)
    page = PAGE.read_text(encoding="utf-8")
    if f"transformers {transformers.__version__}:" in page:
        assert rows_of(page)[class_name] == outcome


def test_the_page_is_what_the_program_writes() -> None:
    """Text and counts; its cells are compared one class at a time."""
    page = PAGE.read_text(encoding="utf-8")
    if f"transformers {transformers.__version__}:" not in page:
        pytest.skip("it was written with another release of transformers")
    assert names_of(page) <= named().keys()
    not_built = dict.fromkeys(MODES, NOT_BUILT)
    assert page_of({name: rows_of(page).get(name, not_built) for name in names_of(page)}) == page


@pytest.mark.nightly  # imports hundreds of models
def test_the_page_has_each_class() -> None:
    page = PAGE.read_text(encoding="utf-8")
    if f"transformers {transformers.__version__}:" not in page:
        pytest.skip("it was written with another release of transformers")
    assert names_of(page) == set(listed())


# -- what would be seen


def llama() -> TinyModel:
    return build("LlamaForCausalLM")


def test_a_wrong_answer_is_seen() -> None:
    model = llama().model
    inputs = {"input_ids": torch.tensor([PROMPTS[0]])}
    alone = generated(model, inputs)
    check_answer(model, inputs, alone, alone)
    with pytest.raises(AssertionError):
        check_answer(model, inputs, [(each + 1) % VOCABULARY for each in alone], alone)


class Wrong:
    """A model whose answers differ from those of plain ``generate()`` if they are streamed."""

    def __init__(self, model: Any) -> None:
        self._model = model

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def generate(self, **kwargs: Any) -> Any:
        if "streamer" in kwargs:
            kwargs["input_ids"] = (kwargs["input_ids"] + 1) % VOCABULARY
            kwargs.pop("stopping_criteria")
        return self._model.generate(**kwargs)


@pytest.mark.parametrize("check", [check_text, check_stop, check_batch])
def test_a_mode_that_is_wrong_is_seen(check: Any) -> None:
    tiny = llama()
    anyio.run(check, tiny)
    with pytest.raises(AssertionError):
        anyio.run(check, TinyModel(Wrong(tiny.model), tiny.inputs))
