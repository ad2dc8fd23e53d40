"""Models of a size, whose weights are random, and a tokenizer that any streamer can follow."""

from __future__ import annotations

import common  # noqa: F401  # first: it keeps the hub out
import torch
from tokenizers import Tokenizer, decoders, models
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

# Two of torch's threads on two cores wait for each other whenever the loop takes one of them: the
# spread is then many times the effect. So the model has one core, and the loop another.
TORCH_THREADS = 1
VOCABULARY = 512


def make_model(layers: int, hidden: int) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=hidden,
        intermediate_size=hidden * 2,
        num_hidden_layers=layers,
        num_attention_heads=4,
        max_position_embeddings=4096,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=0,
    )
    model = LlamaForCausalLM(config).eval()
    model.generation_config.eos_token_id = None
    return model


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Every token is a word with its space: any streamer can show it as soon as it has come."""
    backend = Tokenizer(models.WordLevel({f"word{i}Ġ": i for i in range(VOCABULARY)}, "word0Ġ"))
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=backend)
