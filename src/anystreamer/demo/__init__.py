"""The embedded demo model: a tiny Llama that can count, and how to load it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from .._installing import to_install

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

__all__ = ["load_demo"]

_MODEL_DIR = Path(__file__).parent / "model"


def load_demo() -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    """Load the demo model and its tokenizer, without a network and in well under a second.

    The model has half a million parameters and can count: in English words, Chinese, Devanagari
    and clock faces, up and down, and in a chat up to the number in the question. It is for trying
    out this library and for its tests. It ends answers with an end-of-sequence token, and its
    Chinese, Devanagari and emoji characters take several tokens each.

        model, tokenizer = load_demo()
        async with stream_text(
            model, tokenizer, "An increasing sequence: one,", max_new_tokens=20
        ) as stream:
            async for text in stream:
                print(text, end="")  # two, three, four, ...

    Every call returns new objects: a model in float32 on the CPU, in evaluation mode, and a
    tokenizer with a chat template.

    Returns:
        The pair `(model, tokenizer)`, ready for `model.generate()` and `stream_text()`.

    Raises:
        ImportError: transformers or torch is not installed.
    """
    try:
        import torch

        # It takes the place of its own module while it is imported: of two threads that import
        # names from it for the first time at once, one would not find them.
        import transformers  # noqa: F401
        from safetensors.torch import load_file
        from transformers import (
            GenerationConfig,
            LlamaConfig,
            LlamaForCausalLM,
            PreTrainedTokenizerFast,
        )
        from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding
    except ImportError as error:
        raise ImportError(
            f"the demo model needs transformers and torch: {to_install('transformers')}"
        ) from error

    # Not from_pretrained(): its "Loading weights" bar can only be turned off for the whole process.
    # On "meta" no weights are drawn at random, so the caller's random numbers do not change.
    config = LlamaConfig.from_pretrained(_MODEL_DIR, local_files_only=True)
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    stored = load_file(_MODEL_DIR / "model.safetensors")
    weights = {name: weight.float() for name, weight in stored.items()}
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"]
    model.load_state_dict(weights, assign=True)
    model.tie_weights()
    model.model.rotary_emb = LlamaRotaryEmbedding(config)  # computed, and not in the file
    model.generation_config = GenerationConfig.from_pretrained(_MODEL_DIR, local_files_only=True)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(_MODEL_DIR, local_files_only=True)
    return model.eval(), tokenizer
