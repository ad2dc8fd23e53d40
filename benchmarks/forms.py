"""Answers that keep to a JSON schema: what the mask costs, beside xgrammar and outlines.

The model is small, with random weights: it would write anything, so the form decides each token.
Vocabularies have 32,000 and 128,000 tokens. Each way writes an answer of the same schema, and the
ways take turns. Beside the time of a token in each way, there is the time until the first token of
a schema that has not been seen before, with compiling it.
"""

from __future__ import annotations

import json
import random
import string
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import anyio
import outlines
import torch
import xgrammar
import xgrammar.contrib.hf
from outlines.backends.outlines_core import OutlinesCoreBackend
from tests.helpers import tokenizer_families as families
from tokenizers import decoders
from transformers import LlamaForCausalLM, LogitsProcessor, PreTrainedTokenizerFast

import anystreamer

from .method import Table, quartiles, ratio, take_turns
from .models import make_model

SIZES = (32_000, 128_000)
LAYERS, HIDDEN = 4, 256
MOST = 200  # tokens; the answers are longer than that, or a little shorter

EOS = "<|end|>"
PROMPT = {"input_ids": torch.arange(10, 20)[None]}


def schema(number: int) -> dict[str, Any]:
    """A schema that no other call has returned, so that none has compiled it."""
    text = {"type": "string", "minLength": 300, "maxLength": 400 + number}
    return {
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 30},
            "kind": {"enum": ["first", "second", "third"]},
            "count": {"type": "integer"},
            "text": text,
        },
        "required": ["name", "kind", "count", "text"],
        "additionalProperties": False,
    }


def new_tokenizer(size: int) -> PreTrainedTokenizerFast:
    """A tokenizer with that many tokens: bytes, numbers, what JSON has, and words at random."""
    rng = random.Random(0)
    tokens = dict.fromkeys(families.to_byte_level(bytes([each])) for each in range(256))
    pieces = [*map(str, range(1000)), *'{" ": ":" ", "," "} }}'.split()]
    tokens |= dict.fromkeys(families.to_byte_level(each.encode()) for each in pieces)
    while len(tokens) < size - 1:
        word = "".join(rng.choices(string.ascii_letters, k=rng.randrange(2, 9)))
        tokens[families.to_byte_level(rng.choice(["", " "]).encode() + word.encode())] = None
    backend = families.bpe(list(tokens))
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=EOS)


class Peer:
    """generate() with the processor that one of the libraries makes of a schema."""

    def __init__(self, model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
        self.model, self.tokenizer = model, tokenizer

    def processor(self, form: dict[str, Any]) -> LogitsProcessor | None:
        """None is the model without a form."""

    def tokens(self, form: dict[str, Any], most: int) -> int:
        processor = self.processor(form)
        inputs = PROMPT
        more: dict[str, Any] = {} if processor is None else {"logits_processor": [processor]}
        with torch.inference_mode():
            ids = self.model.generate(**inputs, max_new_tokens=most, do_sample=False, **more)
        return int(ids.shape[1] - inputs["input_ids"].shape[1])


class XGrammar(Peer):
    def __init__(self, model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
        super().__init__(model, tokenizer)
        info = xgrammar.TokenizerInfo.from_huggingface(
            tokenizer, vocab_size=model.config.vocab_size
        )
        self.compiler = xgrammar.GrammarCompiler(info)

    def processor(self, form: dict[str, Any]) -> Any:
        compiled = self.compiler.compile_json_schema(json.dumps(form))
        return xgrammar.contrib.hf.LogitsProcessor(compiled)


class Outlines(Peer):
    """An index is kept for each schema, since outlines keeps none."""

    def __init__(self, model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
        super().__init__(model, tokenizer)
        self.backend = OutlinesCoreBackend(outlines.from_transformers(model, tokenizer))
        self.kept: dict[str, Any] = {}

    def processor(self, form: dict[str, Any]) -> Any:
        name = json.dumps(form)
        if name not in self.kept:
            self.kept[name] = self.backend.get_json_schema_logits_processor(name)
        self.kept[name].reset()
        return self.kept[name]


class Ours(Peer):
    def tokens(self, form: dict[str, Any], most: int) -> int:
        async def main() -> int:
            async with anystreamer.stream_text(
                self.model,
                self.tokenizer,
                PROMPT,
                response_format=form,
                max_new_tokens=most,
                do_sample=False,
            ) as stream:
                await stream.read()
            return len(stream.token_ids)

        return anyio.run(main)


class OursWithoutForm(Ours):
    def tokens(self, form: dict[str, Any], most: int) -> int:
        async def main() -> int:
            async with anystreamer.stream_text(
                self.model, self.tokenizer, PROMPT, max_new_tokens=most, do_sample=False
            ) as stream:
                await stream.read()
            return len(stream.token_ids)

        return anyio.run(main)


WAYS: dict[str, type[Peer]] = {
    "generate()": Peer,
    "stream_text": OursWithoutForm,
    "stream_text, response_format": Ours,
    "xgrammar": XGrammar,
    "outlines": Outlines,
}


def timed(call: Callable[[], int]) -> tuple[float, float]:
    """Milliseconds, and tokens."""
    began = time.perf_counter()
    tokens = call()
    return (time.perf_counter() - began) * 1e3, tokens


def measured(size: int, rounds: int) -> Table:
    tokenizer = new_tokenizer(size)
    model = make_model(LAYERS, HIDDEN, len(tokenizer))
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    ways = {name: way(model, tokenizer) for name, way in WAYS.items()}
    known = schema(0)
    first = {
        name: [timed(partial(way.tokens, schema(1 + round_), 1))[0] for round_ in range(3)]
        for name, way in ways.items()
    }
    runs = take_turns(
        {name: partial(timed, partial(way.tokens, known, MOST)) for name, way in ways.items()},
        rounds,
        warm_up=1,
    )
    each = {name: [ms / tokens for ms, tokens in results] for name, results in runs.items()}
    return {
        name: {
            "rounds": rounds,
            "ms_per_token": quartiles(values),
            "ratio": ratio(values, each["generate()"]),
            "tokens": quartiles([tokens for _, tokens in runs[name]])["median"],
            "first_ms": quartiles(first[name])["median"],
            "opening_ms": first[name][0],
        }
        for name, values in each.items()
    }


def measure(is_quick: bool) -> Iterator[Table]:
    for size in SIZES:
        yield {f"{size:,} tokens": measured(size, 3 if is_quick else 10)}
