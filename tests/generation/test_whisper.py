"""Long recordings: Whisper transcribes them in windows, each with a prompt of its own."""

from __future__ import annotations

import contextlib
import gc
import threading
from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial
from typing import Any

import pytest
import torch
from anyio import CancelScope, fail_after, from_thread
from tokenizers import pre_tokenizers
from transformers import (
    AddedToken,
    GenerationConfig,
    LogitsProcessor,
    MaxTimeCriteria,
    WhisperTokenizer,
)

from anystreamer import FinishReason, stream_batch, stream_text

from ..helpers import tiny_models
from ..helpers.llama_streams import PROMPT, finished
from ..helpers.tiny_models import (
    WHISPER_FRAMES,
    Say,
    generated,
    llama,
    seeded,
    steps_of,
)

pytestmark = pytest.mark.torch

_ALPHABET = sorted(pre_tokenizers.ByteLevel.alphabet())


@pytest.fixture(scope="module", autouse=True)
def torch_is_loaded_completely() -> None:
    """Else each test's collection looks through half of torch."""
    generated(llama(), PROMPT, max_new_tokens=2)
    hear(40)
    gc.collect()
    gc.freeze()


# As in Whisper's own vocabulary: text, then the special tokens, then the timestamps.
SPECIAL = (
    "<|endoftext|> <|startoftranscript|> <|startofprev|> <|nospeech|> <|notimestamps|>".split()
)
EOS, START, PREVIOUS, _, NO_TIMESTAMPS = range(len(_ALPHABET), len(_ALPHABET) + len(SPECIAL))
FIRST_TIMESTAMP = NO_TIMESTAMPS + 1
WINDOW = WHISPER_FRAMES  #: frames that the encoder takes at a time
LAST = WINDOW // 2  #: the last timestamp in a window


def at(time: int) -> int:
    """The timestamp of a time, from 0 to `LAST`."""
    return FIRST_TIMESTAMP + time


@cache
def whisper_tokenizer() -> Any:
    stamps = [f"<|{time * 0.02:.2f}|>" for time in range(LAST + 1)]
    tokens = [*_ALPHABET, *SPECIAL, *stamps]
    vocabulary = {token: token_id for token_id, token in enumerate(tokens)}
    own = WhisperTokenizer(vocab=vocabulary, merges=[], extra_special_tokens=SPECIAL[1:])
    own.add_tokens([AddedToken(each, special=False, normalized=False) for each in stamps])
    assert own.convert_tokens_to_ids([SPECIAL[0], stamps[0]]) == [EOS, FIRST_TIMESTAMP]
    return own


def new_whisper(seed: int = 0) -> Any:
    """One with timestamps, which hears what is longer than a window in several."""
    model = tiny_models.new_whisper(seed, vocabulary=at(LAST) + 1, start=START, eos=EOS)
    settings = model.generation_config
    settings.no_timestamps_token_id = NO_TIMESTAMPS
    settings.prev_sot_token_id = PREVIOUS
    settings.return_timestamps = False
    return model


@cache
def whisper() -> Any:
    return new_whisper()


Window = Sequence[str | int]  #: texts and tokens that are said in a window


class SayInWindows(LogitsProcessor):
    """Makes a model say this, window by window, and end each. Whisper tells where one begins."""

    def __init__(self, *windows: Window) -> None:
        self.windows = [[*Say(*window).ids, EOS] for window in windows]
        self.begun = 0
        self._start = 0

    def set_begin_index(self, begin_index: int) -> None:
        self.begun += 1
        self._start = begin_index

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        token_id = self.windows[self.begun - 1][input_ids.shape[1] - self._start]
        scores = torch.full_like(scores, -torch.inf)
        scores[:, token_id] = 0.0
        return scores


def recording(frames: int, rows: int = 1) -> dict[str, Any]:
    noise = torch.Generator().manual_seed(0)
    return {"input_features": torch.randn(rows, 4, frames, generator=noise)}


def hear(frames: int, model: Any = None, **kwargs: Any) -> Any:
    """What `generate()` returns of a recording without us."""
    return (model or whisper()).generate(**recording(frames), **{"max_new_tokens": 30, **kwargs})


def stream_whisper(frames: int, *windows: Window, model: Any = None, **kwargs: Any) -> Any:
    """A stream of a recording. With windows, the model says these."""
    if windows:
        kwargs["logits_processor"] = [SayInWindows(*windows)]
    kwargs = {"max_new_tokens": 30, "return_timestamps": True} | kwargs
    return stream_text(model or whisper(), whisper_tokenizer(), recording(frames), **kwargs)


def transcript(output: Any) -> str:
    return str(whisper_tokenizer().decode(output[0], skip_special_tokens=True))


def without_ends(token_ids: list[int]) -> list[int]:
    """Each window has an end of its own, which `generate()` leaves out."""
    return [token_id for token_id in token_ids if token_id != EOS]


@contextlib.contextmanager
def encoder_passes() -> Iterator[list[int]]:
    """Count the windows that the model has begun to hear."""
    passes = [0]

    def count(*args: Any) -> None:
        passes[0] += 1

    handle = whisper().get_encoder().register_forward_pre_hook(count)
    try:
        yield passes
    finally:
        handle.remove()


# What is said in each window, and what is left of it.
HEARD: dict[str, tuple[list[Window], str]] = {
    "closed": ([[at(0), "one", at(LAST)], [at(0), " two", at(9)]], "one two"),
    "no timestamps": ([["one"], [" two"]], "one two"),
    "open": ([[at(0), "one"], [at(0), " two"]], "one two"),
    "phrases": (
        [[at(0), "one", at(7), at(7), " two", at(LAST)], [at(0), " 3", at(9), at(9), "!", at(11)]],
        "one two 3!",
    ),
    "closed by a pair": (
        [[at(0), "one", at(12), at(12)], [at(0), " two", at(LAST)], [at(0), "!", at(8)]],
        "one two!",
    ),
    "cut off in a phrase": (
        [[at(0), "one", at(12), at(12), " tw"], [at(0), " two", at(LAST)], [at(0), "!", at(8)]],
        "one two!",
    ),
    "cut off in the second phrase": (
        [
            [at(0), "one", at(5), at(5), " two", at(10), at(10), " thr"],
            [at(0), " three", at(LAST)],
            [" four"],
        ],
        "one two three four",
    ),
    "a timestamp that closes nothing": (  # which the model's own rules do not allow
        [[at(0), "one", at(12), at(12), " tw", at(14), "o"], [at(0), " two", at(LAST)], ["!"]],
        "one two!",
    ),
    "a character in two windows": (
        [["caf", *Say("é").ids[:1]], [*Say("é").ids[1:], "!"]],
        "café!",
    ),
    "silence": ([[], [at(0), "one", at(9)]], "one"),
}


@cache
def heard(kind: str) -> tuple[int, Any]:
    windows, _ = HEARD[kind]
    frames = {2: 60, 3: 80}[len(windows)]
    say = SayInWindows(*windows)
    return frames, hear(frames, return_timestamps=True, logits_processor=[say])


@pytest.mark.parametrize("kind", HEARD)
async def test_the_text_of_a_long_recording_is_what_generate_returns(kind: str) -> None:
    """That is what it has not taken back; text and tokens."""
    windows, text = HEARD[kind]
    frames, expected = heard(kind)
    assert transcript(expected) == text
    stream = await finished(stream_whisper(frames, *windows))
    assert stream.text == text
    assert stream.output.tolist() == expected.tolist()
    assert without_ends(stream.token_ids) == expected[0].tolist()
    assert stream.usage.computed_tokens == stream.usage.completion_tokens == len(stream.token_ids)
    assert stream.finish_reason is FinishReason.EOS


class Windows:
    """A streamer that counts the windows of a recording: a prompt each, and an end."""

    def __init__(self) -> None:
        self.lengths: list[int] = []
        self.ends = 0
        self._is_first = True

    def put(self, value: Any) -> None:
        if self._is_first:
            self.lengths.append(value.shape[1])
        self._is_first = False

    def end(self) -> None:
        self.ends += 1
        self._is_first = True


# What makes the prompt of a window: nothing, what was said before, words of the caller's.
PROMPTS: dict[str, Callable[[], dict[str, Any]]] = {
    "none": dict,
    "what was said": lambda: {"condition_on_prev_tokens": True},
    "of the first": lambda: {"prompt_ids": torch.tensor([PREVIOUS, *Say("Names: ").ids])},
    "of all": lambda: {
        "prompt_ids": torch.tensor([PREVIOUS, *Say("Names: ").ids]),
        "prompt_condition_type": "all-segments",
        "condition_on_prev_tokens": True,
    },
}


@pytest.mark.parametrize("kind", PROMPTS)
async def test_the_windows_of_a_recording_have_prompts_of_their_own(kind: str) -> None:
    kwargs = {"max_new_tokens": 8, "return_timestamps": True, **PROMPTS[kind]()}
    counted = Windows()
    expected = hear(4 * WINDOW, streamer=counted, **kwargs)
    assert len(counted.lengths) == counted.ends >= 4
    assert (len(set(counted.lengths)) > 1) is ("condition_on_prev_tokens" in kwargs)
    stream = await finished(stream_whisper(4 * WINDOW, **kwargs))
    assert stream.text == transcript(expected)
    assert without_ends(stream.token_ids) == expected[0].tolist()
    assert stream.prompt_token_ids == []


@cache
def heard_at_random(seed: int, **kwargs: Any) -> tuple[Any, Any]:
    model = new_whisper(seed)
    with seeded(seed):
        return model, hear(5 * WINDOW, model, return_timestamps=True, **kwargs)


async def test_what_is_heard_at_random_is_what_generate_returns() -> None:
    """Models that say anything that the rules for timestamps allow, window after window."""
    taken_back = 0  # or the models have not said what this is about
    kwargs: dict[str, Any] = {"temperature": 1.5, "max_new_tokens": 12}
    for seed in range(3):
        model, expected = heard_at_random(seed, **kwargs)
        context = partial(seeded, seed)
        with steps_of(model) as steps:
            stream = await finished(
                stream_whisper(5 * WINDOW, model=model, worker_context=context, **kwargs)
            )
        assert stream.text == transcript(expected)
        assert without_ends(stream.token_ids) == expected[0].tolist()
        taken_back += steps.count - len(stream.token_ids)
    assert taken_back > 0


async def test_a_recording_of_many_windows() -> None:
    words = [f"{number} " for number in range(40)]
    stream = await finished(stream_whisper(40 * WINDOW, *[[word] for word in words]))
    assert stream.text == "".join(words) == transcript(stream.output)


async def test_a_phrase_is_shown_as_soon_as_it_cannot_be_taken_back() -> None:
    """The first is certain from the start; the next ones when another pair of timestamps has come.

    The model waits for the consumer: nothing that is certain is held back.
    """
    windows: list[Window] = [
        [at(0), "one", at(5), at(5), "two", at(10), at(10), "x"],
        ["."],
    ]
    gates = {3: threading.Event(), 12: threading.Event()}
    with steps_of(whisper(), {step: partial(gate.wait, 30) for step, gate in gates.items()}):
        async with stream_whisper(60, *windows) as stream:
            try:
                with fail_after(30):
                    assert await stream.receive() == "o"
                    gates[3].set()
                    while stream.text != "onetwo":
                        await stream.receive()
            finally:
                for gate in gates.values():
                    gate.set()
            assert await stream.read() == "."


async def test_log_probabilities_go_with_the_tokens_that_are_kept() -> None:
    """Each token has that of the step that it was made in, held back or not."""
    windows, text = HEARD["cut off in the second phrase"]
    seen: list[Any] = []

    class Watch(LogitsProcessor):
        def __call__(self, input_ids: Any, scores: Any) -> Any:
            seen.append(scores.log_softmax(dim=-1)[0])
            return scores

    say = SayInWindows(*windows)
    made: list[tuple[int, float]] = []
    async with stream_whisper(80, logits_processor=[Watch(), say], logprobs=True) as stream:
        async for chunk in stream:
            made += zip(chunk.token_ids, chunk.logprobs, strict=True)
    assert stream.text == text
    ids = [token_id for window in say.windows for token_id in window]
    steps = list(zip(ids, seen, strict=True))
    cut = len(say.windows[0]) - 1
    steps = steps[: cut - len(" thr")] + steps[cut:]
    assert made == [(token_id, scores[token_id].item()) for token_id, scores in steps][: len(made)]
    assert [token_id for token_id, _ in made] == stream.token_ids[: len(made)]


@pytest.mark.parametrize("how", ["stop", "cancel", "leave"])
async def test_a_stop_ends_a_recording_and_not_only_its_window(how: str) -> None:
    windows: list[Window] = [[at(0), "one", at(LAST)]] * 40
    actions: dict[str, Callable[[], object]] = {
        "stop": lambda: stream.stop(),
        "cancel": lambda: from_thread.run_sync(scope.cancel),
    }
    what = {8: actions[how]} if how in actions else {}
    with steps_of(whisper(), what) as steps, encoder_passes() as passes:
        with CancelScope() as scope:
            async with stream_whisper(40 * WINDOW, *windows) as stream:
                if how == "leave":
                    await stream.receive()
                else:
                    await stream.read()
    assert stream.output is None  # there are windows that generate() has not heard
    if how == "leave":
        assert steps.count < 200
        assert stream.finish_reason is FinishReason.CANCELLED
        return
    assert steps.count == 8  # in the second window
    assert passes == [3]  # the encoder comes before the prompt
    if how == "stop":
        assert stream.finish_reason is FinishReason.STOPPED
        assert stream.text == "oneo"
        assert stream.usage.completion_tokens == stream.usage.computed_tokens == 8
    else:
        assert stream.finish_reason is FinishReason.CANCELLED


async def test_a_stop_in_a_windows_last_step_is_no_end_of_the_text() -> None:
    windows: list[Window] = [["one"]] * 3
    with steps_of(whisper(), {4: lambda: stream.stop()}) as steps:
        async with stream_whisper(3 * WINDOW, *windows) as stream:
            await stream.read()
    assert steps.count == 4
    assert (stream.text, stream.finish_reason) == ("one", FinishReason.STOPPED)


@pytest.mark.parametrize("end", ["eos", "criterion"])
async def test_a_stop_between_two_windows_is_no_end_of_the_text(end: str) -> None:
    """In the encoder, before the second one's prompt."""
    passes = 0
    last = whisper_tokenizer().convert_tokens_to_ids("e")
    kwargs: dict[str, Any] = {}
    if end == "criterion":
        kwargs["stopping_criteria"] = [lambda input_ids, scores, **_: input_ids[:, -1] == last]

    def begin(*args: Any) -> None:
        nonlocal passes
        passes += 1
        if passes == 2:
            stream.stop()

    handle = whisper().get_encoder().register_forward_pre_hook(begin)
    try:
        windows: list[Window] = [["one"]] * 3
        with steps_of(whisper()) as steps:
            async with stream_whisper(
                3 * WINDOW, *windows, cancel_within="layer", **kwargs
            ) as stream:
                await stream.read()
    finally:
        handle.remove()
    assert (steps.count, passes) == (4 if end == "eos" else 3, 2)
    assert (stream.text, stream.finish_reason) == ("one", FinishReason.STOPPED)


async def test_a_stop_in_the_last_window_leaves_generate_its_result() -> None:
    windows: list[Window] = [["one"], [" two"]]
    with steps_of(whisper(), {6: lambda: stream.stop()}):
        async with stream_whisper(60, *windows) as stream:
            await stream.read()
    assert stream.text == transcript(stream.output) == "one t"
    assert stream.finish_reason is FinishReason.STOPPED


async def test_a_stop_keeps_what_could_have_been_taken_back() -> None:
    windows: list[Window] = [[at(0), "one", at(5), at(5), "two", at(LAST)], ["x"]]
    with steps_of(whisper(), {8: lambda: stream.stop()}) as steps:
        async with stream_whisper(60, *windows) as stream:
            await stream.read()
    assert steps.count == 8
    assert stream.text == "onetw"
    assert stream.finish_reason is FinishReason.STOPPED


@pytest.mark.parametrize(
    ("stop", "text", "steps_made"),
    [("n", "o", 2), ("eo", "on", 5), ("eon", "on", 6), ("ee", "oneon", 9)],
    ids=[
        "in a window",
        "with a window's first token",
        "in two windows",
        "with a window of one token",
    ],
)
async def test_a_stop_string_ends_a_recording(stop: str, text: str, steps_made: int) -> None:
    """In the very step that completes it, and with no further window."""
    windows: list[Window] = [["one"], ["one"], ["e"], ["one"]]
    with steps_of(whisper()) as steps:
        stream = await finished(stream_whisper(4 * WINDOW, *windows, stop=stop))
    assert (stream.text, stream.stop_string) == (text, stop)
    assert stream.finish_reason is FinishReason.STOP_STRING
    assert steps.count == steps_made


async def test_a_recording_that_ends_at_the_limit_of_its_last_window() -> None:
    """`max_new_tokens` is for each of them."""
    windows: list[Window] = [["one"], ["one, two"]]
    stream = await finished(stream_whisper(60, *windows, max_new_tokens=5))
    assert stream.text == transcript(stream.output) == "oneone, "
    assert stream.finish_reason is FinishReason.LENGTH


async def test_an_error_in_a_window_comes_after_the_text_of_those_before() -> None:
    windows: list[Window] = [["one"], [at(0), "a", at(5), at(5), "b"], ["x"]]

    def fail() -> None:
        raise OSError("broken")

    with steps_of(whisper(), {10: fail}):
        async with stream_whisper(3 * WINDOW, *windows) as stream:
            with pytest.raises(OSError, match="broken"):
                await stream.read()
    assert stream.text == "oneab"
    assert stream.finish_reason is FinishReason.ERROR


async def test_a_criterion_beside_a_result_that_is_a_mapping() -> None:
    windows, text = HEARD["phrases"]
    criteria = [MaxTimeCriteria(max_time=900.0)]
    stream = await finished(
        stream_whisper(60, *windows, return_segments=True, stopping_criteria=criteria)
    )
    assert stream.text == transcript(stream.output["sequences"]) == text
    assert len(stream.output["segments"][0]) == 4


TAKES_BACK: dict[str, tuple[dict[str, Any], str]] = {
    "compression": (
        {"temperature": (0.0, 0.5), "compression_ratio_threshold": 1.3},
        r"temperature=\(0.0, 0.5\)",
    ),
    "probability": ({"temperature": [0.0, 0.5], "logprob_threshold": -1.0}, "temperature="),
    "silence": ({"no_speech_threshold": 0.6, "logprob_threshold": -1.0}, "no_speech_threshold=0.6"),
}


@pytest.mark.parametrize("kind", TAKES_BACK)
@pytest.mark.parametrize("where", ["argument", "config"])
async def test_what_takes_back_whole_windows_is_refused(kind: str, where: str) -> None:
    kwargs, message = TAKES_BACK[kind]
    if where == "config":
        config = GenerationConfig(**{k: v for k, v in kwargs.items() if k != "temperature"})
        kwargs = {k: v for k, v in kwargs.items() if k == "temperature"}
        kwargs["generation_config"] = config
    with steps_of(whisper()) as steps, encoder_passes() as passes:
        with pytest.raises(ValueError, match=message):
            stream_whisper(100, **kwargs)
    assert (steps.count, passes) == (0, [0])


async def test_temperatures_that_are_never_fallen_back_to() -> None:
    windows, text = HEARD["closed"]
    stream = await finished(stream_whisper(60, *windows, temperature=(0.0, 0.5)))
    assert stream.text == text


@pytest.mark.parametrize(
    ("frames", "kwargs"),
    [(60, {"return_timestamps": True}), (60, {}), (WINDOW, {"return_timestamps": True})],
    ids=["long", "long by its length", "timestamps"],
)
@pytest.mark.parametrize("rows", [1, 2], ids=["answers", "recordings"])
async def test_a_batch_of_long_recordings_is_refused(
    frames: int, kwargs: dict[str, Any], rows: int
) -> None:
    """Where some are heard to their end, nobody says which."""
    prompt = recording(frames, rows) | {"attention_mask": torch.ones(rows, frames)}
    kwargs = kwargs | {"num_return_sequences": 3 - rows}
    with steps_of(whisper()) as steps, encoder_passes() as passes:
        with pytest.raises(
            ValueError, match=r"2 rows of long .* use|2 rows of long .* stream_text"
        ):
            async with stream_batch(whisper(), whisper_tokenizer(), prompt, **kwargs):
                pytest.fail("entered")
    assert (steps.count, passes) == (0, [0])


async def test_a_batch_of_one_long_recording() -> None:
    windows, text = HEARD["cut off in a phrase"]
    async with stream_batch(
        whisper(),
        whisper_tokenizer(),
        recording(80),
        logits_processor=[SayInWindows(*windows)],
        max_new_tokens=30,
        return_timestamps=True,
    ) as stream:
        assert await stream.read() == [text]


async def test_stopping_the_only_row_ends_its_recording() -> None:
    windows: list[Window] = [["one"]] * 4
    with steps_of(whisper(), {2: lambda: stream.stop(0)}) as steps:
        async with stream_batch(
            whisper(),
            whisper_tokenizer(),
            recording(4 * WINDOW),
            logits_processor=[SayInWindows(*windows)],
            max_new_tokens=30,
            return_timestamps=True,
        ) as stream:
            assert await stream.read() == ["on"]
    assert steps.count == 2
    assert stream.finish_reason == [FinishReason.STOPPED]


@pytest.mark.parametrize(
    "kwargs",
    [{}, {"return_timestamps": True, "force_unique_generate_call": True}],
    ids=["one window", "one call"],
)
async def test_a_batch_of_short_recordings(kwargs: dict[str, Any]) -> None:
    prompt = recording(WINDOW, rows=3)
    kwargs = {"max_new_tokens": 12, **kwargs}
    expected = [
        whisper().generate(row[None], **kwargs)[0].tolist() for row in prompt["input_features"]
    ]
    async with stream_batch(whisper(), whisper_tokenizer(), prompt, **kwargs) as stream:
        texts = await stream.read()
    said = [[each for each in ids if each not in (START, EOS)] for ids in expected]
    assert [without_ends(ids) for ids in stream.token_ids] == said
    assert texts == [transcript([ids]) for ids in said]
