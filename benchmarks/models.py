"""Models with random weights, on one thread, their tokenizers, and a streamer that does nothing."""

from __future__ import annotations

import random
import string
from typing import Any

import torch
from tests.helpers import tokenizer_families as families
from tokenizers import Tokenizer, decoders, models
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.generation.streamers import BaseStreamer

# With two threads on two cores, torch's threads wait for each other whenever the loop takes a core.
# The spread is then many times the effect. So the model has one core, and the loop the other.
torch.set_num_threads(1)

VOCABULARY = 512


def make_model(layers: int, hidden: int, vocabulary: int = VOCABULARY) -> Any:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary,
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
    """Each token is a word with its space, so that every streamer can show it at once."""
    backend = Tokenizer(models.WordLevel({f"word{i}Ġ": i for i in range(VOCABULARY)}, "word0Ġ"))
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=backend)


def large_tokenizer(size: int) -> PreTrainedTokenizerFast:
    """A tokenizer with that many tokens: bytes, numbers, what JSON has, and words at random."""
    rng = random.Random(0)
    tokens = dict.fromkeys(bytes([each]) for each in range(256))
    pieces = [*map(str, range(1000)), *'{" ": ":" ", "," "} }}'.split()]
    tokens |= dict.fromkeys(each.encode() for each in pieces)
    while len(tokens) < size - 1:
        word = "".join(rng.choices(string.ascii_letters, k=rng.randrange(2, 9)))
        tokens[(rng.choice(["", " "]) + word).encode()] = None
    backend = families.bpe(list(map(families.to_byte_level, tokens)))
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|end|>")


class Silent(BaseStreamer):
    """A streamer that does nothing."""

    def put(self, value: torch.Tensor) -> None:
        pass

    def end(self) -> None:
        pass
