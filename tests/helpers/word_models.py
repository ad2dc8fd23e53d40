"""Models and tokenizers whose vocabulary has whole words beside the bytes."""

from __future__ import annotations

from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from .tiny_models import new_llama

__all__ = ["ALPHABET", "new_word_llama", "new_word_tokenizer"]

ALPHABET = sorted(pre_tokenizers.ByteLevel.alphabet())


def new_word_tokenizer(*words: str) -> Any:
    """A byte-level tokenizer with tokens for these words, and for what they begin with."""
    vocabulary = {char: token_id for token_id, char in enumerate(ALPHABET)}
    merges = []
    for word in words:
        word = word.replace(" ", "Ġ")
        for end in range(1, len(word)):
            if word[: end + 1] not in vocabulary:
                vocabulary[word[: end + 1]] = len(vocabulary)
                merges.append((word[:end], word[end]))
    vocabulary |= {"<bos>": len(vocabulary), "<eos>": len(vocabulary) + 1}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["<bos>", "<eos>"])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<bos>",  # not healing without one
        eos_token="<eos>",
        pad_token="<eos>",
        model_input_names=["input_ids", "attention_mask"],
    )


def new_word_llama(own: Any, seed: int = 6) -> Any:
    never = [own.bos_token_id, own.eos_token_id]
    return new_llama(seed, vocabulary=len(own), eos=own.eos_token_id, never=never)
