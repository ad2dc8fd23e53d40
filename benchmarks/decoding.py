"""Incremental decoding: microseconds per token, and texts that came out wrong.

    python benchmarks/decoding.py [--quick] [--out benchmarks/results/decoding.json]

Compares `anystreamer.text_decoder` with transformers' `TextStreamer` and with tokenizers'
`DecodeStream`, family by family, on text without a newline (which would let TextStreamer forget
what it has). One id per call. The ways take turns in every round of one run, and CPU time is what
counts, so that other work on the machine disturbs little. TextStreamer decodes everything again at
every token, so it is run up to 8,000 tokens only.
"""

from __future__ import annotations

import importlib.util
import itertools
import logging
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import transformers
from common import environment, options_of, write
from tables import show
from tokenizers import decoders
from tokenizers.decoders import DecodeStream
from transformers import TextStreamer

from anystreamer._text.decoder import text_decoder

HERE = Path(__file__).parent


def load_families() -> Any:
    """The tests' tokenizers, from wherever this is run."""
    path = HERE.parent / "tests" / "helpers" / "tokenizer_families.py"
    spec = importlib.util.spec_from_file_location("tokenizer_families", path)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


families = load_families()

SIZES = [1_000, 8_000, 32_000, 128_000]
TEXT_STREAMER_LIMIT = 8_000
BUDGET = 4.0  # seconds after which a way gets no further round at a size
TEXT = families.SAMPLE.replace("\n", " ")


def large_byte_level() -> Any:
    """128,000 tokens in random order: an id is hardly ever met twice in a short text."""
    rng = random.Random(0)
    data = TEXT.encode()
    cuts = {data[i : i + n] + b"%d" % k for k in range(128_000) for i, n in [(k % len(data), 5)]}
    tokenizer = families.bpe(sorted(map(families.to_byte_level, cuts), key=lambda _: rng.random()))
    tokenizer.decoder = decoders.ByteLevel()
    return families.fast(tokenizer)


MAKERS: dict[str, Callable[[], Any]] = {
    family.name: family.make
    for family in families.FAMILIES
    if family.name
    in {
        "byte level",
        "byte fallback",
        "byte fallback, strip",
        "unigram",
        "word piece",
        "word piece, clean-up",
        "own decode",
        "python, sentencepiece",
        "python, word piece",
    }
}


class Collecting(TextStreamer):
    def __init__(self, tokenizer: Any, **kwargs: Any) -> None:
        super().__init__(tokenizer, **kwargs)
        self.pieces: list[str] = []

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        self.pieces.append(text)


# Each way takes the ids and a tokenizer, and gives the text's pieces.


def ours(tokenizer: Any, ids: list[int]) -> list[str]:
    decoder = text_decoder(tokenizer, skip_special_tokens=True)
    decode = decoder.decode
    return [*[decode([token_id]) for token_id in ids], decoder.flush()]


def ours_held(tokenizer: Any, ids: list[int]) -> list[str]:
    decoder = text_decoder(tokenizer, hold_byte_runs=True, skip_special_tokens=True)
    return [*[decoder.decode([token_id]) for token_id in ids], decoder.flush()]


def text_streamer(tokenizer: Any, ids: list[int]) -> list[str]:
    streamer = Collecting(tokenizer, skip_special_tokens=True)
    for value in np.array(ids).reshape(-1, 1):  # as a tensor would be, without torch's own cost
        streamer.put(value)
    streamer.end()
    return streamer.pieces


def decode_stream(tokenizer: Any, ids: list[int]) -> list[str]:
    stream, backend = DecodeStream(skip_special_tokens=True), tokenizer.backend_tokenizer
    return [stream.step(backend, token_id) or "" for token_id in ids]


WAYS: dict[str, Callable[[Any, list[int]], list[str]]] = {
    "anystreamer": ours,
    "TextStreamer": text_streamer,
    "DecodeStream": decode_stream,
}


def can(way: str, tokenizer: Any) -> bool:
    return way != "DecodeStream" or hasattr(tokenizer, "backend_tokenizer")


def timed(way: str, tokenizer: Any, ids: list[int]) -> float | str:
    began = time.process_time()
    try:
        WAYS[way](tokenizer, ids)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return (time.process_time() - began) / len(ids) * 1e6


def speed(sizes: list[int], rounds: int) -> dict[str, Any]:
    """Microseconds per token, by family, way and size."""
    made = {name: make() for name, make in MAKERS.items()}
    texts = {}
    for name, tokenizer in made.items():
        ids = list(tokenizer.encode(TEXT, add_special_tokens=False))
        texts[name] = list(itertools.islice(itertools.cycle(ids), max(sizes)))
        for way in WAYS:
            if can(way, tokenizer):
                timed(way, tokenizer, texts[name][: min(sizes)])  # warms caches, ours too
    taken: dict[tuple[str, str, int], list[Any]] = {}
    for _ in range(rounds):
        for (name, tokenizer), size, way in itertools.product(made.items(), sizes, WAYS):
            times = taken.setdefault((name, way, size), [])
            if way == "TextStreamer" and size > TEXT_STREAMER_LIMIT:
                continue
            if not can(way, tokenizer) or (times and isinstance(times[-1], str)):
                continue
            if sum(times) * size / 1e6 < BUDGET:
                times.append(timed(way, tokenizer, texts[name][:size]))
    cold = large_byte_level()
    rng = random.Random(1)
    ids = [rng.randrange(128_000) for _ in range(max(sizes))]
    name = "byte level, 128,000 ids at random, first use"
    for _, size in itertools.product(range(rounds), sizes):
        fresh = transformers.PreTrainedTokenizerFast(tokenizer_object=cold._tokenizer)
        taken.setdefault((name, "anystreamer", size), []).append(
            timed("anystreamer", fresh, ids[:size])
        )
    result: dict[str, Any] = {}
    for (name, way, size), times in taken.items():
        entry: Any = None
        if times and isinstance(times[-1], str):
            entry = {"error": times[-1]}
        elif times:
            entry = {
                "median": round(statistics.median(times), 3),
                "min": round(min(times), 3),
                "max": round(max(times), 3),
                "rounds": len(times),
            }
        result.setdefault(name, {}).setdefault(way, {})[str(size)] = entry
    return result


def cases(tokenizer: Any, count: int) -> Iterator[list[int]]:
    """Texts, texts cut off, and any ids at all."""
    rng = random.Random(2)
    for _ in range(count):
        start = rng.randrange(len(families.SAMPLE))
        ids = list(tokenizer.encode(families.SAMPLE[start : start + rng.randrange(80)]))
        kind = rng.randrange(3)
        if kind == 1:
            ids = ids[: rng.randrange(len(ids) + 1)]
        elif kind == 2:
            ids = [rng.randrange(len(tokenizer)) for _ in range(rng.randrange(1, 40))]
        yield ids


def mismatches(count: int) -> dict[str, Any]:
    """How many of `count` texts differ from the full decode, by family and way."""
    ways = {"anystreamer": ours, "anystreamer, runs held": ours_held} | {
        way: WAYS[way] for way in ("TextStreamer", "DecodeStream")
    }
    result: dict[str, Any] = {}
    for family in families.FAMILIES:
        if family.name == "raw tokenizer":
            continue
        tokenizer = family.make()
        wrong: dict[str, int | None] = {way: 0 if can(way, tokenizer) else None for way in ways}
        for ids in cases(tokenizer, count):
            reference = tokenizer.decode(ids, skip_special_tokens=True)
            for way, decode in ways.items():
                before = wrong[way]
                if before is None:
                    continue
                try:
                    right = "".join(decode(tokenizer, ids)) == reference
                except Exception:  # DecodeStream's "Invalid prefix": no text is no right text
                    right = False
                wrong[way] = before + (not right)
        result[family.name] = wrong
    return result


def main() -> None:
    options = options_of(__doc__).parse_args()
    logging.getLogger("anystreamer").setLevel(logging.CRITICAL)  # the mismatches are counted
    sizes, rounds, count = (SIZES[:2], 2, 100) if options.quick else (SIZES, 3, 1_000)
    results = {
        "environment": environment(options),
        "notes": [
            "microseconds of CPU time per token, one id per call, text without a newline",
            f"TextStreamer is quadratic: not run beyond {TEXT_STREAMER_LIMIT} tokens",
            f"no further round at a size after {BUDGET:g} s",
            "mismatches: texts that differ from tokenizer.decode of all ids; errors count",
            "anystreamer's with byte fallback are invalid or cut runs whose characters it shows;"
            " held runs do without; 'own _decode' has byte fallback behind a decode of its own",
        ],
        "microseconds per token": speed(sizes, rounds),
        "mismatches": {"of": count, **mismatches(count)},
    }
    write(results, options.out)
    show("decoding", results)


if __name__ == "__main__":
    main()
