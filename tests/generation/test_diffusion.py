"""Models that diffuse text: a block of tokens at a time, in many passes over it."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
import transformers
from anyio import CancelScope, from_thread

from anystreamer import FinishReason, stream_text

from ..helpers.tiny_models import EOS, VOCABULARY, tokenizer

pytestmark = [
    pytest.mark.torch,
    # torch's own, where its compiler is imported
    pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated"),
    pytest.mark.skipif(
        not hasattr(transformers, "DiffusionGemmaForBlockDiffusion"),
        reason="this transformers has no DiffusionGemma",
    ),
]

CANVAS = 8


def limit(tokens: int) -> dict[str, Any]:
    return {"max_new_tokens": tokens, "disable_compile": True}


def new_model() -> Any:
    text: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 8,
        "num_experts": 2,
        "top_k_experts": 1,
        "moe_intermediate_size": 8,
        "pad_token_id": EOS,
        "eos_token_id": None,
        "bos_token_id": EOS,
        "layer_types": ["sliding_attention", "full_attention"],
    }
    vision: dict[str, Any] = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "position_embedding_size": 16,
    }
    kind: Any = type(transformers.DiffusionGemmaConfig(text_config=text).vision_config)
    config = transformers.DiffusionGemmaConfig(
        text_config=text, vision_config=kind(**vision), canvas_length=CANVAS
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return transformers.DiffusionGemmaForBlockDiffusion(config).eval()


class Passes:
    """Counts the passes of a model over a block, and acts in one of them."""

    def __init__(self, model: Any) -> None:
        self.count = 0
        self.in_pass = 0
        self.action: Any = None
        model.model.decoder.register_forward_pre_hook(self._before)

    def _before(self, *_: Any) -> None:
        self.count += 1
        if self.count == self.in_pass:
            self.action()


async def test_blocks_are_what_generate_returns() -> None:
    model = new_model()
    inputs = tokenizer()("one", return_tensors="pt")
    with torch.inference_mode():
        torch.manual_seed(1)
        expected = model.generate(**inputs, **limit(2 * CANVAS)).sequences[0, 3:].tolist()
    torch.manual_seed(1)
    async with stream_text(model, tokenizer(), "one", **limit(2 * CANVAS)) as stream:
        chunks = [list(chunk.token_ids) async for chunk in stream]
    assert stream.token_ids == expected
    assert stream.finish_reason is FinishReason.LENGTH
    assert len(chunks) > 1


@pytest.mark.parametrize("way", ["stop", "cancel"])
async def test_a_block_is_left_between_two_passes(way: str) -> None:
    model = new_model()
    passes = Passes(model)
    with CancelScope() as scope:
        cancel = partial(from_thread.run_sync, scope.cancel)
        async with stream_text(model, tokenizer(), "one", **limit(4 * CANVAS)) as stream:
            passes.in_pass = 3
            passes.action = {"stop": stream.stop, "cancel": cancel}[way]
            await stream.read()
    assert passes.count == 3
    assert stream.finish_reason is (
        FinishReason.STOPPED if way == "stop" else FinishReason.CANCELLED
    )


async def test_the_callers_processors_are_asked() -> None:
    """They, and criteria, come in the list classes that the model's own `generate()` calls."""
    calls: list[int] = []

    class Recording(transformers.LogitsProcessor):
        def __call__(self, input_ids: Any, scores: Any) -> Any:
            calls.append(1)
            return scores

    async with stream_text(
        new_model(), tokenizer(), "one", **limit(CANVAS), logits_processor=[Recording()]
    ) as stream:
        await stream.read()
    assert calls
