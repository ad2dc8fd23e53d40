"""Incremental decoding: microseconds of CPU time per token, and texts that came out wrong.

TextStreamer decodes everything again at each token, so it does not run beyond 8,000 tokens. An
error counts as a wrong text.
"""

from __future__ import annotations

import itertools
import logging
import random
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
from tests.helpers import tokenizer_families as families
from tokenizers.decoders import DecodeStream
from transformers import PreTrainedTokenizerFast, TextStreamer

import anystreamer

from .method import Parts, Table, compare
from .models import large_tokenizer

SIZES = [1_000, 8_000, 32_000, 128_000]
PEER, PEER_LIMIT = "TextStreamer", 8_000
TEXT = families.SAMPLE.replace("\n", " ")

TIMED_FAMILIES = (
    *("byte level", "byte fallback", "byte fallback, strip", "unigram", "word piece"),
    *("word piece, clean-up", "own decode", "python, sentencepiece", "python, word piece"),
)
COLD = "byte level, 128,000 ids at random, first use"


# Each way takes a tokenizer and ids, and returns the parts of the text.


def ours(tokenizer: Any, ids: list[int], hold_byte_runs: bool = False) -> list[str]:
    decoder = anystreamer.text_decoder(
        tokenizer, hold_byte_runs=hold_byte_runs, skip_special_tokens=True
    )
    decode = decoder.decode
    return [*[decode([token_id]) for token_id in ids], decoder.flush()]


def text_streamer(tokenizer: Any, ids: list[int]) -> list[str]:
    pieces: list[str] = []
    streamer: Any = TextStreamer(tokenizer, skip_special_tokens=True)
    streamer.on_finalized_text = lambda text, stream_end=False: pieces.append(text)
    for value in np.array(ids).reshape(-1, 1):  # like a tensor, without torch's own cost
        streamer.put(value)
    streamer.end()
    return pieces


def decode_stream(tokenizer: Any, ids: list[int]) -> list[str]:
    stream, backend = DecodeStream(skip_special_tokens=True), tokenizer.backend_tokenizer
    return [stream.step(backend, token_id) or "" for token_id in ids]


Way = Callable[[Any, list[int]], list[str]]
WAYS: dict[str, Way] = {
    "anystreamer": ours,
    PEER: text_streamer,
    "DecodeStream": decode_stream,
}


def supports(way: str, tokenizer: Any) -> bool:
    return way != "DecodeStream" or hasattr(tokenizer, "backend_tokenizer")


def cpu_time(way: str, new_tokenizer: Callable[[], Any], ids: list[int]) -> Table:
    tokenizer, began = new_tokenizer(), time.process_time()
    WAYS[way](tokenizer, ids)
    return {"us": (time.process_time() - began) / len(ids) * 1e6}


def speed(sizes: list[int], rounds: int) -> Table:
    """Microseconds per token, by family, way and size."""
    timed_families = [each for each in families.FAMILIES if each.name in TIMED_FAMILIES]
    result = {each.name: speed_of(each.make(), sizes, rounds) for each in timed_families}
    large, rng = large_tokenizer(128_000).backend_tokenizer, random.Random(1)
    new = partial(PreTrainedTokenizerFast, tokenizer_object=large)
    ids = [rng.randrange(128_000) for _ in range(max(sizes))]
    return result | {COLD: timed(["anystreamer"], new, sizes, ids, rounds)}


def speed_of(tokenizer: Any, sizes: list[int], rounds: int) -> Table:
    some = tokenizer.encode(TEXT, add_special_tokens=False)
    ids = list(itertools.islice(itertools.cycle(some), max(sizes)))
    ways = [way for way in WAYS if supports(way, tokenizer)]
    return timed(ways, lambda: tokenizer, sizes, ids, rounds)


def timed(
    ways: list[str], new: Callable[[], Any], sizes: list[int], ids: list[int], rounds: int
) -> Table:
    result: Table = {way: {} for way in ways}
    for size in sizes:
        jobs = {
            way: partial(cpu_time, way, new, ids[:size])
            for way in ways
            if way != PEER or size <= PEER_LIMIT
        }
        # The first round fills caches.
        for way, row in compare(jobs, rounds, "us", warm_up=1, text_streamer=PEER).items():
            result[way][str(size)] = row
    return result


def cases(tokenizer: Any, count: int) -> Iterator[list[int]]:
    """Ids of texts, of texts that are cut off, and random ids, a third of each."""
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


def is_wrong(decode: Way, tokenizer: Any, ids: list[int]) -> bool:
    try:
        text = "".join(decode(tokenizer, ids))
    except Exception:  # DecodeStream's "Invalid prefix"
        return True
    return bool(text != tokenizer.decode(ids, skip_special_tokens=True))


def mismatches(count: int) -> Table:
    """The number of wrong texts of *count*, by family and way."""
    held: dict[str, Way] = {"anystreamer, runs held": partial(ours, hold_byte_runs=True)}
    ways = {"anystreamer": ours} | held | WAYS
    result: Table = {}
    for family in families.FAMILIES:
        if family.name != "raw tokenizer":
            tokenizer = family.make()
            result[family.name] = {
                way: sum(is_wrong(decode, tokenizer, ids) for ids in cases(tokenizer, count))
                for way, decode in ways.items()
                if supports(way, tokenizer)
            }
    return result


def measure(is_quick: bool) -> Parts:
    logging.getLogger("anystreamer").setLevel(logging.CRITICAL)  # the mismatches are counted
    sizes, rounds, count = (SIZES[:2], 2, 100) if is_quick else (SIZES, 3, 1_000)
    yield "speed", speed(sizes, rounds)
    yield "mismatches", mismatches(count)
