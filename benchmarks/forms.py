"""Answers that keep to a JSON schema: what the mask costs, beside xgrammar and outlines.

The model is small, with random weights: it would write anything, so the form decides each token.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import anyio
import outlines
import torch
import xgrammar
import xgrammar.contrib.hf
from outlines.backends.outlines_core import OutlinesCoreBackend

import anystreamer

from .method import Parts, Table, compare, quartiles
from .models import large_tokenizer, make_model

SIZES = (32_000, 128_000)
LAYERS, HIDDEN = 4, 256
MOST = 200  # tokens; the answers are longer than that, or a little shorter

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


Write = Callable[[dict[str, Any], int], int]  # from a schema and a limit, how many tokens


def all_ways(model: Any, tokenizer: Any) -> dict[str, Write]:
    """The ways to write an answer. Without a form, they leave the schema alone."""
    info = xgrammar.TokenizerInfo.from_huggingface(tokenizer, vocab_size=model.config.vocab_size)
    compiler = xgrammar.GrammarCompiler(info)
    backend = OutlinesCoreBackend(outlines.from_transformers(model, tokenizer))

    def generate(most: int, *processors: Any) -> int:
        more = {"logits_processor": list(processors)} if processors else {}
        with torch.inference_mode():
            ids = model.generate(**PROMPT, max_new_tokens=most, do_sample=False, **more)
        return int(ids.shape[1] - PROMPT["input_ids"].shape[1])

    def stream(most: int, **form: Any) -> int:
        async def main() -> int:
            async with anystreamer.stream_text(
                model, tokenizer, PROMPT, max_new_tokens=most, do_sample=False, **form
            ) as stream:
                await stream.read()
            return len(stream.token_ids)

        return anyio.run(main)

    @cache
    def index(form: str) -> Any:
        """One for each schema, since outlines keeps none."""
        return backend.get_json_schema_logits_processor(form)

    def with_xgrammar(form: dict[str, Any], most: int) -> int:
        compiled = compiler.compile_json_schema(json.dumps(form))
        return generate(most, xgrammar.contrib.hf.LogitsProcessor(compiled))

    def with_outlines(form: dict[str, Any], most: int) -> int:
        processor = index(json.dumps(form))
        processor.reset()
        return generate(most, processor)

    return {
        "generate()": lambda form, most: generate(most),
        "stream_text": lambda form, most: stream(most),
        "stream_text, response_format": lambda form, most: stream(most, response_format=form),
        "xgrammar": with_xgrammar,
        "outlines": with_outlines,
    }


def timed(write: Write, form: dict[str, Any], most: int) -> Table:
    began = time.perf_counter()
    tokens = write(form, most)
    ms = (time.perf_counter() - began) * 1e3
    return {"ms": ms, "ms_per_token": ms / tokens}


def measured(size: int, rounds: int) -> Table:
    tokenizer = large_tokenizer(size)
    model = make_model(LAYERS, HIDDEN, len(tokenizer))
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    ways = all_ways(model, tokenizer)
    first = {
        name: [timed(write, schema(1 + each), 1)["ms"] for each in range(3)]
        for name, write in ways.items()
    }
    known = {name: partial(timed, write, schema(0), MOST) for name, write in ways.items()}
    table = compare(known, rounds, "ms_per_token", warm_up=1, generate="generate()")
    for name, row in table.items():
        row |= {"first_ms": quartiles(first[name]), "opening_ms": first[name][0]}
    return table


def measure(is_quick: bool) -> Parts:
    for size in SIZES:
        yield f"{size:,} tokens", measured(size, 3 if is_quick else 10)
