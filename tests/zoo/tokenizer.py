"""The tokenizer of the tiny models: each token is one character, so that any ids have a text."""

from __future__ import annotations

from functools import cache
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

__all__ = ["VOCABULARY", "tokenizer"]

_CHARACTERS = [*map(chr, range(32, 127)), *map(chr, range(0x100, 0x1A0))]
_SPECIAL = ["<pad>", "<bos>"]
VOCABULARY = len(_CHARACTERS) + len(_SPECIAL)


@cache
def tokenizer() -> Any:
    vocabulary = {token: token_id for token_id, token in enumerate([*_CHARACTERS, *_SPECIAL])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="?"))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    backend.decoder = decoders.Fuse()
    backend.add_special_tokens(_SPECIAL)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        bos_token="<bos>",
        model_input_names=["input_ids", "attention_mask"],
    )
