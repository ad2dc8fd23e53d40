"""`stream_text` over the rarer kinds of `generate()`: in a context of the worker thread's own, of
long recordings, with healed prompts, and with the drafts of a model that has another tokenizer.
"""

from __future__ import annotations

import contextlib
import gc
import threading
from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial
from typing import Any

import pytest
import torch
from anyio import CancelScope, Event, create_task_group, fail_after, from_thread
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AddedToken,
    GenerationConfig,
    LogitsProcessor,
    MaxTimeCriteria,
    PreTrainedTokenizerFast,
    WhisperTokenizer,
)

from anystreamer import FinishReason, stream_batch, stream_text

from ..helpers import tiny_models
from ..helpers.llama_streams import ENDLESS, PROMPT
from ..helpers.tiny_models import (
    WHISPER_FRAMES,
    Say,
    decoded,
    drafting,
    generated,
    llama,
    new_llama,
    seeded,
    steps_of,
    tokenizer,
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


async def collect(context: Any) -> Any:
    """A stream that has been read to its end."""
    async with context as stream:
        await stream.read()
        return stream


# -- In a context of the worker thread's own --------------------------------------------------


def in_force() -> tuple[bool, str]:
    """What a context manager may have set for this thread: autocast, and the default device."""
    return torch.is_autocast_enabled("cpu"), torch.empty(0).device.type


def in_a_thread(function: Callable[[], Any]) -> Any:
    results: list[Any] = []
    thread = threading.Thread(target=lambda: results.append(function()))
    thread.start()
    thread.join()
    return results[0]


CONTEXTS: dict[str, tuple[Callable[[], Any], Any]] = {
    "autocast": (lambda: torch.autocast("cpu", dtype=torch.bfloat16), (True, "cpu")),
    "default device": (lambda: torch.device("meta"), (False, "meta")),
}


@pytest.mark.parametrize("kind", CONTEXTS)
async def test_a_context_holds_in_the_worker_thread_and_nowhere_else(kind: str) -> None:
    """While the model is in a forward pass, the loop and a third thread are as they were."""
    context, inside = CONTEXTS[kind]
    outside = (False, "cpu")
    seen: dict[str, Any] = {}

    def look() -> None:
        seen["worker"] = in_force()
        seen["loop"] = from_thread.run_sync(in_force)
        seen["other"] = in_a_thread(in_force)

    with steps_of(llama(), {3: look}):
        await collect(
            stream_text(llama(), tokenizer(), PROMPT, max_new_tokens=5, worker_context=context)
        )
    assert seen == {"worker": inside, "loop": outside, "other": outside}
    assert in_force() == outside
    with steps_of(llama(), {1: look}):  # threads are used again
        await collect(stream_text(llama(), tokenizer(), PROMPT, max_new_tokens=1))
    assert seen["worker"] == outside


async def test_autocast_changes_what_the_forward_pass_computes_in() -> None:
    dtypes: list[Any] = []

    def look(module: Any, args: Any, output: Any) -> None:
        dtypes.append(output.dtype)

    def autocast() -> Any:
        return torch.autocast("cpu", dtype=torch.bfloat16)

    with autocast():
        expected = generated(llama(), PROMPT, max_new_tokens=6)
    handle = llama().lm_head.register_forward_hook(look)
    try:
        kwargs: dict[str, Any] = {"max_new_tokens": 6}
        context = stream_text(llama(), tokenizer(), PROMPT, worker_context=autocast, **kwargs)
        stream = await collect(context)
        assert dtypes == [torch.bfloat16] * 6
        assert stream.token_ids == expected
        dtypes.clear()
        stream = await collect(stream_text(llama(), tokenizer(), PROMPT, **kwargs))
        assert dtypes == [torch.float32] * 6
        assert stream.token_ids == generated(llama(), PROMPT, **kwargs)
    finally:
        handle.remove()
    assert llama().lm_head.weight.dtype is torch.float32


async def test_nothing_of_ours_is_made_on_the_default_device() -> None:
    """One without memory shows it: what is read back from there is an error."""
    kwargs: dict[str, Any] = {"max_new_tokens": 8, "logprobs": True, "stop": "never said"}
    criteria = [lambda input_ids, scores, **kwargs: False]
    expected = await collect(stream_text(llama(), tokenizer(), PROMPT, **kwargs))
    async with stream_text(
        llama(),
        tokenizer(),
        PROMPT,
        **kwargs,
        stopping_criteria=criteria,
        worker_context=lambda: torch.device("meta"),
    ) as stream:
        logprobs = [each async for chunk in stream for each in chunk.logprobs or ()]
    assert stream.token_ids == expected.token_ids == generated(llama(), PROMPT, max_new_tokens=8)
    assert len(logprobs) == 8
    assert stream.finish_reason is FinishReason.LENGTH


class Adapters:
    """Low-rank changes to the weights of a model, of which one at a time can be put on."""

    def __init__(self, model: Any, names: str) -> None:
        self.model = model
        self.on: str | None = None
        self._plain = model.lm_head.weight.data
        self._changes = {}
        for seed, name in enumerate(names):
            noise = torch.Generator().manual_seed(seed)
            rows, columns = self._plain.shape
            down = torch.randn(2, columns, generator=noise)
            self._changes[name] = 0.02 * torch.randn(rows, 2, generator=noise) @ down

    @contextlib.contextmanager
    def put_on(self, name: str) -> Iterator[None]:
        assert self.on is None, f"{name} on top of {self.on}"
        self.on = name
        self.model.lm_head.weight.data = self._plain + self._changes[name]
        try:
            yield
        finally:
            self.model.lm_head.weight.data = self._plain
            self.on = None

    def alone(self, name: str, **kwargs: Any) -> list[int]:
        with self.put_on(name):
            return generated(self.model, PROMPT, **kwargs)

    def stream(self, name: str | None, **kwargs: Any) -> Any:
        if name is not None:
            kwargs["worker_context"] = partial(self.put_on, name)
        return stream_text(self.model, tokenizer(), PROMPT, **kwargs)


async def test_each_of_the_streams_of_a_model_has_its_own_adapter() -> None:
    """They are called while another one generates, and take turns."""
    adapters = Adapters(new_llama(seed=5), "abc")
    names = "abcab"
    kwargs: dict[str, Any] = {"max_new_tokens": 20}
    expected = {name: adapters.alone(name, **kwargs) for name in "abc"}
    assert len({tuple(ids) for ids in expected.values()}) == 3
    all_called = Event()
    waiting = threading.Event()
    called: list[str] = []
    streams: list[tuple[str, Any]] = []

    async def one(name: str) -> None:
        async with adapters.stream(name, **kwargs) as stream:
            called.append(name)
            if len(called) == len(names):
                all_called.set()
            await stream.read()
        streams.append((name, stream))

    with steps_of(adapters.model, {3: lambda: waiting.wait(30)}):
        async with create_task_group() as tasks:
            try:
                for name in names:
                    tasks.start_soon(one, name)
                with fail_after(30):
                    await all_called.wait()
            finally:
                waiting.set()
    assert len(streams) == len(names)
    for name, stream in streams:
        assert stream.token_ids == expected[name]
        assert stream.text == decoded(expected[name])


@pytest.mark.parametrize("how", ["end", "leave", "stop", "cancel", "error"])
async def test_an_adapter_is_taken_off_however_a_stream_ends(how: str) -> None:
    adapters = Adapters(new_llama(seed=5), "a")
    plain = generated(adapters.model, PROMPT, max_new_tokens=20)

    def fail() -> None:
        raise OSError("broken")

    actions: dict[str, Callable[[], object]] = {
        "stop": lambda: stream.stop(),
        "cancel": lambda: from_thread.run_sync(scope.cancel),
        "error": fail,
    }
    tokens = 5 if how == "end" else 900
    with steps_of(adapters.model, {3: actions[how]} if how in actions else {}):
        with CancelScope() as scope:
            is_error = how == "error"
            with pytest.raises(OSError, match="broken") if is_error else contextlib.nullcontext():
                async with adapters.stream("a", max_new_tokens=tokens) as stream:
                    await stream.receive()
                    if how != "leave":
                        await stream.read()
    assert adapters.on is None
    stream = await collect(adapters.stream(None, max_new_tokens=20))
    assert stream.token_ids == plain


# -- Long recordings --------------------------------------------------------------------------

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
    stream = await collect(stream_whisper(frames, *windows))
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
    stream = await collect(stream_whisper(4 * WINDOW, **kwargs))
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
            stream = await collect(
                stream_whisper(5 * WINDOW, model=model, worker_context=context, **kwargs)
            )
        assert stream.text == transcript(expected)
        assert without_ends(stream.token_ids) == expected[0].tolist()
        taken_back += steps.count - len(stream.token_ids)
    assert taken_back > 0


async def test_a_recording_of_many_windows() -> None:
    words = [f"{number} " for number in range(40)]
    stream = await collect(stream_whisper(40 * WINDOW, *[[word] for word in words]))
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


async def test_a_stop_between_two_windows_is_no_end_of_the_text() -> None:
    """In the encoder, before the second one's prompt."""
    passes = 0

    def begin(*args: Any) -> None:
        nonlocal passes
        passes += 1
        if passes == 2:
            stream.stop()

    handle = whisper().get_encoder().register_forward_pre_hook(begin)
    try:
        windows: list[Window] = [["one"]] * 3
        with steps_of(whisper()) as steps:
            async with stream_whisper(3 * WINDOW, *windows, cancel_within="layer") as stream:
                await stream.read()
    finally:
        handle.remove()
    assert (steps.count, passes) == (4, 2)
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
        stream = await collect(stream_whisper(4 * WINDOW, *windows, stop=stop))
    assert (stream.text, stream.stop_string) == (text, stop)
    assert stream.finish_reason is FinishReason.STOP_STRING
    assert steps.count == steps_made


async def test_a_recording_that_ends_at_the_limit_of_its_last_window() -> None:
    """`max_new_tokens` is for each of them."""
    windows: list[Window] = [["one"], ["one, two"]]
    stream = await collect(stream_whisper(60, *windows, max_new_tokens=5))
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
    stream = await collect(
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
    stream = await collect(stream_whisper(60, *windows, temperature=(0.0, 0.5)))
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


# -- Healed prompts ---------------------------------------------------------------------------


def new_word_tokenizer(*words: str) -> Any:
    """A byte-level tokenizer with tokens for these words, and for what they begin with."""
    vocabulary = {char: token_id for token_id, char in enumerate(_ALPHABET)}
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


@cache
def words() -> Any:
    return new_word_tokenizer("https", "://", " hyper")


def new_word_llama(own: Any, seed: int = 6) -> Any:
    never = [own.bos_token_id, own.eos_token_id]
    return new_llama(seed, vocabulary=len(own), eos=own.eos_token_id, never=never)


@cache
def healing() -> Any:
    """A model that would rather have said "https" than "http", after anything."""
    model = new_word_llama(words())
    model.lm_head.bias = torch.nn.Parameter(torch.zeros(len(words())))
    model.lm_head.bias.data[words().convert_tokens_to_ids("https")] = 3.0
    return model


def stream_healed(prompt: str, **kwargs: Any) -> Any:
    kwargs = {"max_new_tokens": 6, "token_healing": True} | kwargs
    return stream_text(healing(), words(), prompt, **kwargs)


@pytest.mark.parametrize(
    ("prompt", "healed"),
    [
        ("see http", "see https"),
        ("see htt", "see https"),
        (" see http  ", "see https"),
        ("see http:", "see http:"),
        ("hello", "hello"),
    ],
    ids=["token", "part of a token", "spaces", "no such token", "nothing to heal"],
)
async def test_the_text_continues_the_healed_prompt(prompt: str, healed: str) -> None:
    """The new ids are those after it, and with it they are what `generate()` returns."""
    inputs = words()(prompt, return_tensors="pt")
    kwargs: dict[str, Any] = {"max_new_tokens": 6, "token_healing": True}
    expected = healing().generate(**inputs, **kwargs, tokenizer=words())
    assert words().decode(expected[0]).startswith(healed)
    stream = await collect(stream_healed(prompt))
    assert stream.output.tolist() == expected.tolist()
    assert stream.prompt_token_ids == words().encode(healed)
    assert stream.prompt_token_ids + stream.token_ids == stream.output[0].tolist()
    assert stream.text == words().decode(stream.token_ids)
    assert healed + stream.text == words().decode(expected[0])
    assert stream.usage.prompt_tokens == len(words().encode(healed))
    assert stream.usage.completion_tokens == 6
    assert stream.finish_reason is FinishReason.LENGTH


async def test_the_healed_prompt_is_known_with_the_first_piece() -> None:
    async with stream_healed("see http", max_new_tokens=200) as stream:
        piece = await stream.receive()
        assert words().decode(stream.prompt_token_ids) == "see https"
        assert piece


async def test_a_prompt_that_is_not_to_be_healed_stays() -> None:
    stream = await collect(stream_healed("see http  ", token_healing=False))
    assert stream.prompt_token_ids == words().encode("see http  ")


async def test_a_stop_string_and_a_stop_after_a_healed_prompt() -> None:
    kwargs: dict[str, Any] = {"stop": "://", **ENDLESS}
    say = Say("://x")
    stream = await collect(stream_healed("see http", **kwargs, logits_processor=[say]))
    assert (stream.text, stream.stop_string) == ("", "://")
    assert stream.token_ids == say.ids[:3]
    with steps_of(healing(), {4: lambda: stream.stop()}) as steps:  # the first one heals
        async with stream_healed("see http", **ENDLESS) as stream:
            await stream.read()
    assert steps.count == 4
    assert stream.prompt_token_ids + stream.token_ids == stream.output[0].tolist()
    assert len(stream.token_ids) == 3
    assert stream.finish_reason is FinishReason.STOPPED


async def test_healing_different_prompts_at_once_is_refused() -> None:
    """`generate()` pads them anew, on the tokenizer's side, and looks at the padding."""
    prompts = ["see http", "a longer one, http "]
    with steps_of(healing()) as steps:
        with pytest.raises(ValueError, match=r"token_healing=True.* stream_text\(\)"):
            async with stream_batch(healing(), words(), prompts, token_healing=True):
                pytest.fail("entered")
    assert steps.count == 0


async def test_healing_one_prompt_for_several_answers() -> None:
    kwargs: dict[str, Any] = {"token_healing": True, "max_new_tokens": 6}
    async with stream_batch(
        healing(), words(), ["see http "], num_return_sequences=2, do_sample=True, **kwargs
    ) as stream:
        await stream.read()
    assert stream.prompt_token_ids == [words().encode("see https")] * 2
    both = zip(stream.prompt_token_ids, stream.token_ids, strict=True)
    assert [prompt + answer for prompt, answer in both] == stream.output.tolist()


# -- Drafts of a model that has another tokenizer ---------------------------------------------


@cache
def letters() -> Any:
    return new_word_tokenizer()


@cache
def speaker() -> Any:
    """A model that says letters only: bytes that are no text get lost between two tokenizers."""
    model = new_word_llama(letters())
    said = set(letters().encode("abcdefghijklmnopqrstuvwxyz,. "))
    model.lm_head.weight.data[[each for each in range(len(letters())) if each not in said]] = 0
    return model


def new_drafter() -> tuple[Any, Any]:
    """A model that drafts what `speaker` says, with a vocabulary of its own; and its tokenizer."""
    own = new_word_tokenizer("zzz", "qqq")
    model = new_word_llama(own)
    model.load_state_dict(
        {
            name: value if name.startswith("model.layers") else model.state_dict()[name]
            for name, value in speaker().state_dict().items()
        }
    )
    kept = len(_ALPHABET)
    for mine, its in [
        (model.get_input_embeddings(), speaker().get_input_embeddings()),
        (model.lm_head, speaker().lm_head),
    ]:
        mine.weight.data.zero_()
        mine.weight.data[:kept] = its.weight.data[:kept]
    return drafting(model), own


TALK = "one two three"


def drafted() -> dict[str, Any]:
    model, own = new_drafter()
    return {"assistant_model": model, "assistant_tokenizer": own}


def stream_drafted(**kwargs: Any) -> Any:
    return stream_text(speaker(), letters(), TALK, **drafted(), **kwargs)


def talk(**kwargs: Any) -> list[int]:
    """The new tokens that `generate()` makes without us."""
    inputs = letters()(TALK, return_tensors="pt")
    ids: list[int] = speaker().generate(**inputs, **kwargs)[0, len(TALK) :].tolist()
    return ids


async def test_drafts_in_another_vocabulary_change_nothing_but_the_number_of_steps() -> None:
    expected = talk(max_new_tokens=30)
    with steps_of(speaker()) as steps:
        stream = await collect(stream_drafted(max_new_tokens=30))
    assert stream.token_ids == expected == stream.output[0, len(TALK) :].tolist()
    assert stream.text == letters().decode(expected)
    assert stream.prompt_token_ids == letters().encode(TALK)
    assert steps.count < stream.usage.computed_tokens == 30  # or no draft was any good
    assert stream.finish_reason is FinishReason.LENGTH


async def test_drafts_in_another_vocabulary_when_sampling() -> None:
    """In another way: the drafter's probabilities are translated, in an order that is random."""
    with steps_of(speaker()) as steps:
        stream = await collect(stream_drafted(do_sample=True, max_new_tokens=40))
    assert stream.token_ids == stream.output[0, len(TALK) :].tolist()
    assert stream.text == letters().decode(stream.token_ids, skip_special_tokens=True)
    assert steps.count < len(stream.token_ids)


async def test_a_stop_string_and_a_stop_among_drafts_in_another_vocabulary() -> None:
    said = letters().decode(talk(max_new_tokens=30))
    stop = said[8:11]
    stream = await collect(stream_drafted(stop=stop, **ENDLESS))
    assert (stream.text, stream.stop_string) == (said[: said.index(stop)], stop)
    assert stream.token_ids == stream.output[0, len(TALK) :].tolist()
    assert len(stream.token_ids) <= said.index(stop) + len(stop) + 4
    with steps_of(speaker(), {3: lambda: stream.stop()}) as steps:
        async with stream_drafted(**ENDLESS) as stream:
            await stream.read()
    assert steps.count == 3
    assert stream.finish_reason is FinishReason.STOPPED
    assert stream.token_ids == stream.output[0, len(TALK) :].tolist()
    assert said.startswith(stream.text)


async def test_what_generate_refuses_of_another_tokenizer_arrives() -> None:
    """It sees from the vocabularies whether there is another."""
    model, _ = new_drafter()
    with steps_of(speaker()) as steps:
        with pytest.raises(ValueError, match="assistant_tokenizer"):
            await collect(
                stream_text(speaker(), letters(), TALK, assistant_model=model, max_new_tokens=3)
            )
        with pytest.raises(ValueError, match="assistant_tokenizer"):
            await collect(
                stream_text(
                    speaker(),
                    letters(),
                    TALK,
                    assistant_model=speaker(),
                    assistant_tokenizer=letters(),
                    max_new_tokens=3,
                )
            )
    assert steps.count == 0
