"""Models of every kind that `stream_text` meets, of a few thousand weights, made in memory.

Their weights are random, with fixed seeds. Their text is chosen with `Say`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    LogitsProcessor,
    PreTrainedTokenizerFast,
    ProcessorMixin,
    T5Config,
    T5ForConditionalGeneration,
    WhisperConfig,
    WhisperForConditionalGeneration,
)

CHAT_TEMPLATE = """
{%- if system %}{{ system }}{% endif %}
{%- for message in messages %}
    {%- if message.role not in ["user", "assistant"] %}
        {{- raise_exception("who is that?") }}
    {%- endif %}
    {{- message.role[0] + ":" + message.content }}
    {%- if not loop.last or add_generation_prompt %}{{ "\\n" }}{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ "a:" }}{% endif %}
"""

_ALPHABET = sorted(pre_tokenizers.ByteLevel.alphabet())
EOS = len(_ALPHABET)  #: ends a text
MARK = EOS + 1  #: a special token with another purpose
VOCABULARY = EOS + 2


def new_tokenizer() -> Any:
    """A byte-level tokenizer: one token for each byte, so most characters have several."""
    vocabulary = {char: i for i, char in enumerate(_ALPHABET)} | {"<eos>": EOS, "<mark>": MARK}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["<eos>", "<mark>"])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token="<eos>",
        pad_token="<eos>",
        model_input_names=["input_ids", "attention_mask"],
        chat_template=CHAT_TEMPLATE,
    )


@cache
def tokenizer() -> Any:
    """The tokenizer of all these models."""
    return new_tokenizer()


def ids_of(text: str) -> list[int]:
    ids: list[int] = tokenizer().encode(text, add_special_tokens=False)
    return ids


def new_llama(
    seed: int = 0,
    layers: int = 1,
    *,
    vocabulary: int = VOCABULARY,
    eos: int = EOS,
    never: Sequence[int] = (EOS, MARK),
) -> Any:
    """A decoder for a vocabulary of this size, which by itself makes none of the ids of *never*."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=vocabulary,
                hidden_size=16,
                intermediate_size=32,
                num_hidden_layers=layers,
                num_attention_heads=2,
                max_position_embeddings=1024,
                bos_token_id=None,
                eos_token_id=eos,
                pad_token_id=eos,
            )
        )
    # With random weights, the largest logit is more than 0, so these are never the largest.
    model.lm_head.weight.data[list(never)] = 0
    return model.eval()


@cache
def llama() -> Any:
    """A decoder. Its text is random and never ends by itself."""
    return new_llama()


@cache
def other_llama() -> Any:
    return new_llama(seed=1)


@cache
def assistant() -> Any:
    """A model that drafts for `llama`."""
    return drafting(new_llama(seed=2))


def drafting(model: Any) -> Any:
    """Let a model draft four tokens at a time."""
    model.generation_config.num_assistant_tokens = 4
    model.generation_config.num_assistant_tokens_schedule = "constant"
    model.generation_config.assistant_confidence_threshold = 0.0
    return model


@cache
def t5() -> Any:
    """An encoder-decoder."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model = T5ForConditionalGeneration(
            T5Config(
                vocab_size=VOCABULARY,
                d_model=16,
                d_kv=8,
                d_ff=32,
                num_layers=1,
                num_heads=2,
                eos_token_id=EOS,
                pad_token_id=EOS,
            )
        )
    model.generation_config.decoder_start_token_id = EOS
    return model.eval()


WHISPER_FRAMES = 40


@cache
def whisper() -> Any:
    """Speech to text, with its own `generate()` around the common one."""
    return new_whisper()


def new_whisper(
    seed: int = 4, *, vocabulary: int = VOCABULARY, start: int = MARK, eos: int = EOS
) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = WhisperConfig(
            vocab_size=vocabulary,
            num_mel_bins=4,
            d_model=16,
            encoder_layers=1,
            encoder_attention_heads=2,
            encoder_ffn_dim=32,
            decoder_layers=1,
            decoder_attention_heads=2,
            decoder_ffn_dim=32,
            max_source_positions=WHISPER_FRAMES // 2,
            max_target_positions=64,
            decoder_start_token_id=start,
            bos_token_id=eos,
            eos_token_id=eos,
            pad_token_id=eos,
            suppress_tokens=None,
            begin_suppress_tokens=None,
        )
        model = WhisperForConditionalGeneration(config)
    model.generation_config = GenerationConfig.from_model_config(config)
    return model.eval()


class TinyProcessor(ProcessorMixin):
    """A processor of text alone."""

    attributes = ["tokenizer"]  # noqa: RUF012
    tokenizer_class = "AutoTokenizer"

    def __init__(self, tokenizer: Any = None, **kwargs: Any) -> None:
        super().__init__(tokenizer, **kwargs)


class Say(LogitsProcessor):
    """Makes a model generate these tokens, one after another; after them it is free."""

    def __init__(self, *pieces: str | int) -> None:
        self.ids: list[int] = []
        for piece in pieces:
            self.ids += [piece] if isinstance(piece, int) else ids_of(piece)
        self._prompt_length: int | None = None

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        if self._prompt_length is None:
            self._prompt_length = input_ids.shape[1]
        position = input_ids.shape[1] - self._prompt_length
        if position >= len(self.ids):
            return scores
        scores = torch.full_like(scores, -torch.inf)
        scores[:, self.ids[position]] = 0.0
        return scores


class SayRows(LogitsProcessor):
    """Makes a model generate these tokens in each row, again and again, beside what fills it up."""

    def __init__(self, *rows: list[int]) -> None:
        self._rows = rows
        self._prompt_length: int | None = None

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        if self._prompt_length is None:
            self._prompt_length = input_ids.shape[1]
        step = input_ids.shape[1] - self._prompt_length
        scores = torch.full_like(scores, -torch.inf)
        for number, row in enumerate(self._rows):
            scores[number, row[step % len(row)]] = 0.0
        return scores


class Steps:
    """The forward passes of a model: how many there were, and what happens in which."""

    def __init__(self, at: Mapping[int, Callable[..., object]] | None = None) -> None:
        self.at = at or {}  # by number, from 1: called in the worker thread during that pass
        self.count = 0

    def _hook(self, *args: Any) -> None:
        self.count += 1
        if action := self.at.get(self.count):
            action()


@contextlib.contextmanager
def steps_of(model: Any, at: Mapping[int, Callable[..., object]] | None = None) -> Iterator[Steps]:
    """Count the forward passes of a model in this block; call ``at[n]`` during the n-th."""
    steps = Steps(at)
    handle = model.register_forward_hook(steps._hook)
    try:
        yield steps
    finally:
        handle.remove()


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def generated(model: Any, prompt: Any, **kwargs: Any) -> list[int]:
    """The new tokens that ``generate()`` makes of a prompt without us."""
    inputs = tokenizer()(prompt, return_tensors="pt") if isinstance(prompt, str) else prompt
    output = model.generate(**inputs, **kwargs)
    if model.config.is_encoder_decoder:
        length = 1
    else:
        length = inputs["input_ids"].shape[1] if "input_ids" in inputs else 0
    ids: list[int] = output[0, length:].tolist()
    return ids


def decoded(token_ids: Sequence[int], **kwargs: Any) -> str:
    return str(tokenizer().decode(token_ids, **{"skip_special_tokens": True, **kwargs}))


@cache
def load_all_of_torch() -> None:
    """Import what torch and transformers import only when they are first used."""
    generated(llama(), "Once upon", max_new_tokens=2)
    generated(llama(), "Once upon", max_new_tokens=2, prompt_lookup_num_tokens=2)
    torch.compile(llama(), backend="eager")


class Adapter(torch.nn.Module):
    """A wrapper like peft's: it has the attributes of the model inside."""

    def __init__(self, inner: Any) -> None:
        super().__init__()
        self.inner = inner
        self.eval()

    def get_base_model(self) -> Any:
        return self.inner

    @property
    def device(self) -> Any:
        return self.inner.device

    @property
    def generation_config(self) -> Any:
        return self.inner.generation_config

    def generate(self, **kwargs: Any) -> Any:
        return self.inner.generate(**kwargs)
