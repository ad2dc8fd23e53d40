"""A tiny Whisper model in a folder, for `from_pretrained`: with languages and timestamps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tokenizers import AddedToken, pre_tokenizers
from transformers import (
    GenerationConfig,
    WhisperFeatureExtractor,
    WhisperProcessor,
    WhisperTokenizer,
)

from .tiny_models import WHISPER_FRAMES, new_whisper

__all__ = ["save_whisper"]

RATE = 16_000  # samples per second
SPECIAL = (
    "<|endoftext|> <|startoftranscript|> <|en|> <|translate|> <|transcribe|> <|startoflm|> "
    "<|startofprev|> <|nospeech|> <|notimestamps|>"
).split()


def save_whisper(folder: Path) -> None:
    """Write it. A window has `WHISPER_FRAMES` frames, which are one second here."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    stamps = [f"<|{time * 0.02:.2f}|>" for time in range(WHISPER_FRAMES // 2 + 1)]
    vocabulary = {token: number for number, token in enumerate([*alphabet, *SPECIAL, *stamps])}
    tokenizer: Any = WhisperTokenizer(vocab=vocabulary, merges=[], extra_special_tokens=SPECIAL[1:])
    tokenizer.add_tokens([AddedToken(each, special=False, normalized=False) for each in stamps])
    ids = {token: vocabulary[token] for token in SPECIAL}
    start, eos = ids["<|startoftranscript|>"], ids["<|endoftext|>"]
    model = new_whisper(vocabulary=len(vocabulary), start=start, eos=eos)
    # A new one: what was made from the model's config would be made from it again.
    model.generation_config = GenerationConfig(
        decoder_start_token_id=start,
        eos_token_id=eos,
        pad_token_id=eos,
        max_length=60,
        is_multilingual=True,
        lang_to_id={"<|en|>": ids["<|en|>"]},
        task_to_id={task: ids[f"<|{task}|>"] for task in ("transcribe", "translate")},
        no_timestamps_token_id=ids["<|notimestamps|>"],
        prev_sot_token_id=ids["<|startofprev|>"],
        return_timestamps=False,
    )
    features = WhisperFeatureExtractor(
        feature_size=model.config.num_mel_bins,
        sampling_rate=RATE,
        hop_length=RATE // WHISPER_FRAMES,
        n_fft=RATE // WHISPER_FRAMES,
        chunk_length=1,
    )
    model.save_pretrained(folder)
    WhisperProcessor(features, tokenizer).save_pretrained(folder)
