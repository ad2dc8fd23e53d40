"""`stream_text` over real `generate()` calls of tiny models."""

from __future__ import annotations

import contextlib
import copy
import gc
import math
import random
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from anyio import (
    BrokenResourceError,
    CancelScope,
    CapacityLimiter,
    ClosedResourceError,
    EndOfStream,
    Event,
    create_task_group,
    current_time,
    fail_after,
    from_thread,
    wait_all_tasks_blocked,
)
from anyio.lowlevel import checkpoint
from transformers import (
    DynamicCache,
    EosTokenCriteria,
    GenerationConfig,
    LogitsProcessor,
    MaxLengthCriteria,
    MaxTimeCriteria,
    StoppingCriteria,
    StoppingCriteriaList,
    StopStringCriteria,
)

from anystreamer import FinishReason, TextChunk, stream_text

from ..helpers.tiny_models import (
    EOS,
    MARK,
    WHISPER_FRAMES,
    Say,
    TinyProcessor,
    assistant,
    decoded,
    generated,
    ids_of,
    llama,
    new_llama,
    new_tokenizer,
    other_llama,
    seeded,
    steps_of,
    t5,
    tokenizer,
    whisper,
)

pytestmark = pytest.mark.torch

PROMPT = "Once upon"
CHAT = [{"role": "user", "content": "Hi!"}]

# Long enough that a test which fails to stop it notices, short enough that it does not hang.
ENDLESS: dict[str, Any] = {"max_new_tokens": 900}

Action = Callable[[], object]


@pytest.fixture(scope="module", autouse=True)
def what_torch_loads_late_is_no_garbage() -> None:
    """Else each test's collection looks through half of torch."""
    generated(llama(), PROMPT, max_new_tokens=2)
    generated(llama(), PROMPT, max_new_tokens=2, prompt_lookup_num_tokens=2)
    torch.compile(llama(), backend="eager")
    gc.collect()
    gc.freeze()


def stream_llama(prompt: Any = PROMPT, **kwargs: Any) -> Any:
    return stream_text(llama(), tokenizer(), prompt, **kwargs)


def says(*pieces: str | int) -> dict[str, Any]:
    """Arguments with which a model says this, and nothing more unless it is given more time."""
    say = Say(*pieces)
    return {"logits_processor": [say], "max_new_tokens": len(say.ids)}


def inputs_of(prompt: str) -> dict[str, Any]:
    return dict(tokenizer()(prompt, return_tensors="pt"))


async def collect(context: Any) -> tuple[list[TextChunk], Any]:
    async with context as stream:
        return [chunk async for chunk in stream], stream


async def reason_of(context: Any) -> Any:
    return (await collect(context))[1].finish_reason


class Calls:
    """What goes on in `generate()`: who is in it, and in which order they came."""

    def __init__(self) -> None:
        self.inside = 0
        self.most = 0
        self.entered: list[Any] = []
        self._lock = threading.Lock()

    def around(self, generate: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(**kwargs: Any) -> Any:
            with self._lock:
                self.inside += 1
                self.most = max(self.most, self.inside)
                self.entered.append(kwargs.pop("call", None))
            try:
                return generate(**kwargs)
            finally:
                with self._lock:
                    self.inside -= 1

        return wrapper


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    """The calls of `llama().generate()`. Tell them apart by an argument ``call=``."""
    calls = Calls()
    monkeypatch.setattr(llama(), "generate", calls.around(llama().generate))
    return calls


class Gate:
    """A forward pass in which the model waits until a test lets it go on."""

    def __init__(self) -> None:
        self._reached = Event()
        self._open = threading.Event()

    def __call__(self) -> None:
        from_thread.run_sync(self._reached.set)
        assert self._open.wait(30), "nobody opened the gate"

    async def reached(self) -> None:
        """Wait until the model is there."""
        with fail_after(30):
            await self._reached.wait()

    def open(self) -> None:
        self._open.set()

    async def open_when_blocked(self) -> None:
        """Open it when every task has come to where it waits for the model."""
        try:
            await wait_all_tasks_blocked()
        finally:
            self.open()


# -- What comes out ---------------------------------------------------------------------------


@pytest.mark.parametrize("skip_special_tokens", [True, False])
async def test_text_is_what_the_tokenizer_decodes(skip_special_tokens: bool) -> None:
    text = "Grüße, 東京 👩‍👧!"
    say = says(text, MARK, " end", EOS)
    chunks, stream = await collect(stream_llama(**say, skip_special_tokens=skip_special_tokens))
    expected = text + " end" if skip_special_tokens else text + "<mark> end<eos>"
    assert stream.text == expected
    assert stream.text == decoded(stream.token_ids, skip_special_tokens=skip_special_tokens)
    assert "".join(chunks) == stream.text


async def test_greedy_text_is_generates() -> None:
    expected = generated(llama(), PROMPT, max_new_tokens=40)
    _, stream = await collect(stream_llama(max_new_tokens=40))
    assert stream.token_ids == expected
    assert stream.text == decoded(expected)


async def test_sampled_text_is_generates() -> None:
    """A seed that is set in the worker thread, by `worker_context`, makes it the same."""
    kwargs: dict[str, Any] = {"do_sample": True, "temperature": 1.5, "max_new_tokens": 30}
    with seeded(7):
        expected = generated(llama(), PROMPT, **kwargs)
    _, stream = await collect(stream_llama(**kwargs, worker_context=lambda: seeded(7)))
    assert stream.token_ids == expected


async def test_worker_context_is_around_generate_in_the_worker(calls: Calls) -> None:
    """It is entered when the turn has come, and left right after `generate()`."""
    seen: list[Any] = []

    @contextlib.contextmanager
    def context() -> Iterator[None]:
        seen.append(("in", threading.get_ident(), calls.inside))
        yield
        seen.append(("out", threading.get_ident(), calls.inside))

    def look() -> None:
        seen.append(("step", threading.get_ident(), calls.inside))

    with steps_of(llama(), {1: look}):
        await collect(stream_llama(max_new_tokens=1, worker_context=context))
    assert [(name, inside) for name, _, inside in seen] == [("in", 0), ("step", 1), ("out", 0)]
    assert len({thread for _, thread, _ in seen}) == 1
    assert seen[0][1] != threading.get_ident()


async def test_worker_context_is_left_after_a_stop_and_after_an_error() -> None:
    left: list[str] = []

    @contextlib.contextmanager
    def context(name: str) -> Iterator[None]:
        try:
            yield
        finally:
            left.append(name)

    async with stream_llama(**ENDLESS, worker_context=lambda: context("stop")):
        pass
    with pytest.raises(ValueError, match="no_such_thing"):
        await collect(stream_llama(no_such_thing=1, worker_context=lambda: context("error")))
    assert left in (["stop", "error"], ["error"])  # the first may not have had its turn


async def test_chat_messages_go_through_the_chat_template() -> None:
    messages = [
        {"role": "user", "content": "Hi!"},
        {"role": "assistant", "content": "Yes?"},
        {"role": "user", "content": "Go."},
    ]
    expected = "u:Hi!\na:Yes?\nu:Go.\na:"
    _, stream = await collect(stream_llama(messages, max_new_tokens=5))
    assert decoded(stream.prompt_token_ids) == expected
    assert stream.token_ids == generated(llama(), expected, max_new_tokens=5)


async def test_chat_messages_may_be_a_tuple() -> None:
    _, stream = await collect(stream_llama(tuple(CHAT), max_new_tokens=1))
    assert decoded(stream.prompt_token_ids) == "u:Hi!\na:"


async def test_chat_template_kwargs_reach_the_template() -> None:
    kwargs: dict[str, Any] = {"system": "Be kind. "}
    async with stream_llama(CHAT, chat_template_kwargs=kwargs, max_new_tokens=1) as stream:
        assert decoded(stream.prompt_token_ids) == "Be kind. u:Hi!\na:"


async def test_chat_template_kwargs_may_continue_the_last_message() -> None:
    """The two go together in transformers: the caller's word counts, not our default."""
    messages = [*CHAT, {"role": "assistant", "content": "I am"}]
    kwargs: dict[str, Any] = {"add_generation_prompt": False, "continue_final_message": True}
    async with stream_llama(messages, chat_template_kwargs=kwargs, max_new_tokens=1) as stream:
        assert decoded(stream.prompt_token_ids) == "u:Hi!\na:I am"


def mapping_prompts() -> dict[str, Callable[[], Mapping[str, Any]]]:
    return {
        "input_ids": lambda: {"input_ids": torch.tensor([ids_of(PROMPT)])},
        "dict": lambda: inputs_of(PROMPT),
        "inputs": lambda: {"inputs": torch.tensor([ids_of(PROMPT)])},
        "BatchEncoding": lambda: tokenizer()(PROMPT, return_tensors="pt"),
    }


@pytest.mark.parametrize("kind", mapping_prompts())
async def test_prompt_as_model_inputs(kind: str) -> None:
    prompt = mapping_prompts()[kind]()
    _, stream = await collect(stream_llama(prompt, max_new_tokens=8))
    assert stream.prompt_token_ids == ids_of(PROMPT)
    assert stream.token_ids == generated(llama(), PROMPT, max_new_tokens=8)


async def test_prompt_as_embeddings() -> None:
    """There are no ids to know; the text is the same."""
    with torch.no_grad():
        embeddings = llama().get_input_embeddings()(torch.tensor([ids_of(PROMPT)]))
    _, stream = await collect(stream_llama({"inputs_embeds": embeddings}, max_new_tokens=8))
    assert stream.prompt_token_ids == []
    assert stream.token_ids == generated(llama(), PROMPT, max_new_tokens=8)
    assert (stream.usage.prompt_tokens, stream.usage.completion_tokens) == (0, 8)
    assert stream.finish_reason is FinishReason.LENGTH


@pytest.mark.parametrize("kind", ["text", "chat"])
async def test_processor_in_place_of_a_tokenizer(kind: str) -> None:
    """It encodes, and its tokenizer decodes; the chat template is the processor's own."""
    processor = TinyProcessor(tokenizer())
    processor.chat_template = "<{{ messages[0].content[0].text }}>"
    messages = [{"role": "user", "content": [{"type": "text", "text": "Hi!"}]}]
    prompt, text = (PROMPT, PROMPT) if kind == "text" else (messages, "<Hi!>")
    _, stream = await collect(stream_text(llama(), processor, prompt, max_new_tokens=8))
    assert decoded(stream.prompt_token_ids) == text
    assert stream.token_ids == generated(llama(), text, max_new_tokens=8)
    assert stream.text == decoded(stream.token_ids)


async def test_a_tokenizer_with_an_attribute_tokenizer_is_no_processor() -> None:
    """Mistral's keeps the one of another library there, which cannot decode as transformers do."""
    own = new_tokenizer()
    own.tokenizer = SimpleNamespace(decode=lambda token_ids: "?")
    _, stream = await collect(stream_text(llama(), own, PROMPT, **says("abc")))
    assert stream.text == "abc"


@dataclass
class Unhashable:
    """With nothing but what the protocols ask for."""

    inner: Any

    def generate(self, **kwargs: Any) -> Any:
        return self.inner.generate(**kwargs)

    def decode(self, token_ids: Any, **kwargs: Any) -> str:
        return str(self.inner.decode(token_ids, **kwargs))

    def __call__(self, **kwargs: Any) -> Any:
        return self.inner(**kwargs)


async def test_a_model_may_be_any_object(calls: Calls) -> None:
    """One that cannot be hashed as well. Its generations wait for each other all the same."""
    model = Unhashable(llama())
    texts = []

    async def one() -> None:
        context = stream_text(model, tokenizer(), PROMPT, **says("abc"))
        texts.append("".join((await collect(context))[0]))

    async with create_task_group() as tasks:
        tasks.start_soon(one)
        tasks.start_soon(one)
    assert texts == ["abc", "abc"]
    assert calls.most == 1


@pytest.mark.parametrize("prompt", [PROMPT, {"input_ids": torch.tensor([[1, 2]])}])
async def test_a_tokenizer_may_be_any_object(prompt: Any) -> None:
    context = stream_text(llama(), Unhashable(tokenizer()), prompt, **says("abc"))
    assert (await collect(context))[1].text == "abc"


async def test_a_tokenizer_of_the_library_below() -> None:
    """It cannot encode as transformers' do; it decodes what is given as ids."""
    backend = tokenizer().backend_tokenizer
    _, stream = await collect(stream_text(llama(), backend, inputs_of(PROMPT), **says("añ", EOS)))
    assert stream.text == "añ"


async def test_prompt_token_ids_are_known_when_the_block_is_entered() -> None:
    gate = Gate()
    with steps_of(llama(), {1: gate}):
        async with stream_llama(max_new_tokens=1) as stream:
            try:
                assert stream.prompt_token_ids == ids_of(PROMPT)
            finally:
                gate.open()


async def test_encoding_errors_are_raised_where_the_block_is_entered() -> None:
    """Bare, and before the model has done anything."""
    with steps_of(llama()) as steps:
        with pytest.raises(Exception, match="who is that") as caught:
            async with stream_llama([{"role": "nobody", "content": ""}]):
                pytest.fail("entered")
        assert not isinstance(caught.value, BaseExceptionGroup)
        without = new_tokenizer()
        without.chat_template = None
        with pytest.raises(ValueError, match="chat_template"):
            async with stream_text(llama(), without, CHAT):
                pytest.fail("entered")
    assert steps.count == 0


async def test_an_encoding_error_is_the_very_same_object() -> None:
    error = OSError("no vocabulary")

    class Broken:
        def decode(self, token_ids: Any, **kwargs: Any) -> str:
            return ""

        def __call__(self, **kwargs: Any) -> Any:
            raise error

    with pytest.raises(OSError, match="no vocabulary") as caught:
        async with stream_text(llama(), Broken(), PROMPT):
            pytest.fail("entered")
    assert caught.value is error
    assert error.__context__ is None
    assert error.__cause__ is None


# -- The pieces -------------------------------------------------------------------------------


async def test_chunks_are_never_empty_and_ids_come_once_and_in_order() -> None:
    say = says("añ👍", MARK, MARK, "b", EOS)
    chunks, stream = await collect(stream_llama(**say))
    assert all(chunks)
    assert all(isinstance(chunk, TextChunk) for chunk in chunks)
    assert stream.token_ids == say["logits_processor"][0].ids
    # The end-of-sequence token has no text. Unless it was joined, it is in the stream alone.
    delivered = [token_id for chunk in chunks for token_id in chunk.token_ids]
    assert delivered in (stream.token_ids[:-1], stream.token_ids)


async def test_a_special_token_in_the_text_comes_with_the_next_piece() -> None:
    """A consumer that waits for each piece sees which ids made it."""
    gates = {step: Gate() for step in range(2, 5)}
    pieces = []
    with steps_of(llama(), gates):
        async with stream_llama(**says("a", MARK, "b", EOS)) as stream:
            gates[2].open()  # each piece is received before its next token is made
            pieces.append(await stream.receive())
            gates[3].open()
            pieces.append(await stream.receive())
            gates[4].open()
            assert await stream.read() == ""
    assert [piece.token_ids for piece in pieces] == [(ids_of("a")[0],), (MARK, ids_of("b")[0])]
    assert stream.token_ids[-1] == EOS


async def test_elapsed_never_decreases() -> None:
    chunks, stream = await collect(stream_llama(max_new_tokens=30))
    elapsed = [chunk.elapsed for chunk in chunks]
    assert elapsed == sorted(elapsed)
    assert elapsed[0] > 0
    assert elapsed[-1] <= stream.timing.total


async def test_a_consumer_that_lags_gets_what_is_ready_in_one_piece() -> None:
    async with stream_llama(**says("all of this")) as stream:
        with fail_after(30):
            while "ended" not in repr(stream):
                await checkpoint()
        chunk = await stream.receive()
        assert chunk == "all of this"
        assert list(chunk.token_ids) == ids_of("all of this")
        with pytest.raises(EndOfStream):
            await stream.receive()


async def test_each_character_is_delivered_when_it_is_complete() -> None:
    """The model waits for the consumer in each step: nothing that is final is held back."""
    text = "xé東!"
    starts = [sum(len(c.encode()) for c in text[:n]) for n in range(len(text) + 1)]
    gates = {start + 1: Gate() for start in starts[1:-1]}
    with steps_of(llama(), gates):
        async with stream_llama(**says(text)) as stream:
            received = []
            for start in starts[1:]:
                received.append(await stream.receive())
                if start + 1 in gates:
                    gates[start + 1].open()
    assert received == list(text)


async def test_read_returns_everything() -> None:
    async with stream_llama(**says("One. Two.")) as stream:
        assert await stream.read() == "One. Two."
        assert await stream.read() == ""
        assert stream.text == "One. Two."


async def test_read_after_some_iteration_returns_the_rest() -> None:
    gate = Gate()
    with steps_of(llama(), {6: gate}):
        async with stream_llama(**says("One. Two.")) as stream:
            async for _ in stream:
                if stream.text == "One. ":
                    break
            gate.open()
            assert await stream.read() == "Two."
            assert stream.text == "One. Two."


async def test_read_of_a_text_without_text_is_empty() -> None:
    async with stream_llama(**says(EOS)) as stream:
        assert await stream.read() == ""
    assert (stream.text, stream.token_ids) == ("", [EOS])
    assert stream.usage.completion_tokens == 1


async def test_output_is_what_generate_returned() -> None:
    _, stream = await collect(stream_llama(max_new_tokens=5))
    assert torch.is_tensor(stream.output)
    assert stream.output[0].tolist() == stream.prompt_token_ids + stream.token_ids
    kwargs: dict[str, Any] = {"return_dict_in_generate": True, "output_scores": True}
    _, stream = await collect(stream_llama(max_new_tokens=5, **kwargs))
    assert stream.output.sequences[0].tolist() == stream.prompt_token_ids + stream.token_ids
    assert len(stream.output.scores) == 5


async def test_output_of_a_stopped_generation_is_what_it_made() -> None:
    with steps_of(llama(), {4: lambda: stream.stop()}):
        async with stream_llama(**ENDLESS) as stream:
            await stream.read()
    assert stream.output[0].tolist() == stream.prompt_token_ids + stream.token_ids


async def test_what_is_known_at_the_end_is_set_before_the_end_is_seen() -> None:
    gate = Gate()
    with steps_of(llama(), {3: gate}):
        async with stream_llama(**says("abc")) as stream:
            await stream.receive()

            def known() -> list[Any]:
                return [stream.finish_reason, stream.usage, stream.timing, stream.output]

            assert known() == [None] * 4
            assert stream.stop_string is None
            gate.open()
            with pytest.raises(EndOfStream):
                while True:
                    await stream.receive()
            assert None not in known()
            end = known()
    assert known()[:3] == end[:3]
    usage, timing = stream.usage, stream.timing
    assert (usage.prompt_tokens, usage.completion_tokens) == (len(ids_of(PROMPT)), 3)
    assert usage.computed_tokens == 3
    assert 0 <= timing.queued <= timing.first_token <= timing.total


async def test_usage_tells_what_was_computed_from_what_was_delivered() -> None:
    gate = Gate()
    async with create_task_group() as tasks:
        with steps_of(llama(), {4: gate}):
            async with stream_llama(**ENDLESS, logits_processor=[Say("abcdef")]) as stream:
                while len(stream.token_ids) < 3:
                    await stream.receive()
                await gate.reached()
                tasks.start_soon(gate.open_when_blocked)
    assert stream.usage.completion_tokens == 3
    assert stream.usage.computed_tokens in (4, 5)
    assert stream.text == "abc"


# -- Why it ended -----------------------------------------------------------------------------


async def test_finish_reason_eos() -> None:
    _, stream = await collect(stream_llama(logits_processor=[Say("ab", EOS)], **ENDLESS))
    assert stream.finish_reason is FinishReason.EOS
    assert (stream.text, stream.token_ids[-1]) == ("ab", EOS)


@pytest.mark.parametrize(
    "eos_token_id",
    [ids_of("!")[0], [EOS, ids_of("!")[0]], torch.tensor([EOS, ids_of("!")[0]])],
    ids=["number", "list", "tensor"],
)
async def test_finish_reason_eos_of_the_callers(eos_token_id: Any) -> None:
    """An ordinary token may end the text too, and is a part of it."""
    context = stream_llama(logits_processor=[Say("ab!c")], eos_token_id=eos_token_id, **ENDLESS)
    _, stream = await collect(context)
    assert (stream.finish_reason, stream.text) == (FinishReason.EOS, "ab!")


async def test_finish_reason_eos_of_a_generation_config() -> None:
    config = GenerationConfig(eos_token_id=ids_of("!")[0], max_new_tokens=20)
    _, stream = await collect(stream_llama(logits_processor=[Say("ab!")], generation_config=config))
    assert (stream.finish_reason, stream.text) == (FinishReason.EOS, "ab!")


@pytest.mark.parametrize(
    "kwargs",
    [
        {"max_new_tokens": 5},
        {"max_length": len(PROMPT) + 5},
        {"generation_config": GenerationConfig(max_new_tokens=5)},
        {"generation_config": GenerationConfig(max_length=len(PROMPT) + 5)},
        {"generation_config": GenerationConfig(max_new_tokens=9), "max_new_tokens": 5},
        {"max_length": 3, "max_new_tokens": 5},
    ],
    ids=["new", "all", "config-new", "config-all", "argument-wins", "new-wins"],
)
async def test_finish_reason_length(kwargs: dict[str, Any]) -> None:
    _, stream = await collect(stream_llama(**kwargs))
    assert stream.finish_reason is FinishReason.LENGTH
    assert stream.usage.completion_tokens == 5


# What could be taken for the reason, when none of it is.
SUSPECTS: dict[str, Callable[[], dict[str, Any]]] = {
    "nothing": dict,
    "criterion": lambda: {"stopping_criteria": [lambda input_ids, scores: False]},
    "transformers' criterion": lambda: {"stopping_criteria": [MaxTimeCriteria(max_time=900.0)]},
    "max_time": lambda: {"max_time": 900.0},
    "stop": lambda: {"stop": "never said"},
    "stop_strings": lambda: {
        "generation_config": GenerationConfig(stop_strings=["never said"]),
    },
}


@pytest.mark.filterwarnings("ignore:Using the model-agnostic default")
@pytest.mark.parametrize("suspect", SUSPECTS)
async def test_finish_reason_length_when_nothing_is_said(suspect: str) -> None:
    """`generate()` makes 20 tokens by default."""
    _, stream = await collect(stream_llama(**SUSPECTS[suspect]()))
    assert stream.finish_reason is FinishReason.LENGTH
    assert stream.usage.completion_tokens == 20


@pytest.mark.parametrize("suspect", SUSPECTS)
async def test_finish_reason_length_of_embeddings(suspect: str) -> None:
    """`max_length` counts them, though they are no tokens."""
    with torch.no_grad():
        embeddings = llama().get_input_embeddings()(torch.tensor([ids_of(PROMPT)]))
    kwargs = SUSPECTS[suspect]() | {"max_length": len(PROMPT) + 5}
    _, stream = await collect(stream_llama({"inputs_embeds": embeddings}, **kwargs))
    assert stream.finish_reason is FinishReason.LENGTH
    assert stream.usage.completion_tokens == 5


async def test_finish_reason_time() -> None:
    _, stream = await collect(stream_llama(max_time=1e-9, **ENDLESS))
    assert stream.finish_reason is FinishReason.TIME
    assert stream.usage.completion_tokens == 1


class AfterTokens(StoppingCriteria):
    """A caller's criterion, with something of its own that is copied with it."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.asked = 0
        self.also = [count]

    def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
        self.asked += 1
        done = input_ids.shape[1] - len(PROMPT) >= self.count
        return torch.full((input_ids.shape[0],), done, dtype=torch.bool)


def after_tokens(count: int) -> Callable[..., bool]:
    return lambda input_ids, scores, **kwargs: input_ids.shape[1] - len(PROMPT) >= count


@pytest.mark.parametrize(
    "make",
    [
        lambda: [AfterTokens(3)],
        lambda: StoppingCriteriaList([AfterTokens(3)]),
        lambda: (AfterTokens(3),),
        lambda: [after_tokens(9), after_tokens(3)],
        lambda: [MaxLengthCriteria(max_length=len(PROMPT) + 3)],
        lambda: [EosTokenCriteria(eos_token_id=ids_of("c")[0])],
        lambda: [StopStringCriteria(tokenizer(), ["c"])],
    ],
    ids=["own", "list", "tuple", "functions", "MaxLength", "EosToken", "StopString"],
)
async def test_finish_reason_criteria(make: Callable[[], Any]) -> None:
    context = stream_llama(logits_processor=[Say("abcdef")], stopping_criteria=make(), **ENDLESS)
    _, stream = await collect(context)
    assert stream.finish_reason is FinishReason.CRITERIA
    assert stream.text == "abc"


async def test_a_criterion_is_asked_once_for_each_token() -> None:
    criterion = AfterTokens(4)
    await collect(stream_llama(stopping_criteria=[criterion], **ENDLESS))
    assert criterion.asked == 4


async def test_the_callers_list_of_criteria_is_left_as_it_was() -> None:
    criteria = StoppingCriteriaList([AfterTokens(2)])
    before = list(criteria)
    await collect(stream_llama(stopping_criteria=criteria, **ENDLESS))
    assert list(criteria) == before


async def test_finish_reason_stop_string() -> None:
    _, stream = await collect(stream_llama(logits_processor=[Say("one two")], stop=" t", **ENDLESS))
    assert stream.finish_reason is FinishReason.STOP_STRING
    assert (stream.text, stream.stop_string) == ("one", " t")


async def test_finish_reason_stop_string_of_transformers() -> None:
    """It is a part of the text, as `generate()` has it."""
    config = GenerationConfig(stop_strings=[" t", "zz"], max_new_tokens=50)
    context = stream_llama(logits_processor=[Say("one two")], generation_config=config)
    _, stream = await collect(context)
    assert stream.finish_reason is FinishReason.STOP_STRING
    assert (stream.text, stream.stop_string) == ("one t", " t")


async def test_a_stop_string_of_transformers_may_begin_in_the_prompt() -> None:
    """So `generate()` has it. Ours do not."""
    context = stream_llama("a ST", logits_processor=[Say("OP it")], stop_strings="STOP", **ENDLESS)
    _, stream = await collect(context)
    assert (stream.text, stream.finish_reason) == ("OP", FinishReason.STOP_STRING)


async def test_stop_strings_as_an_argument_need_no_second_tokenizer() -> None:
    """`generate()` wants a `tokenizer=` with them: it is the one that the stream has."""
    context = stream_llama(logits_processor=[Say("one two")], stop_strings=[" t"], **ENDLESS)
    _, stream = await collect(context)
    assert stream.finish_reason is FinishReason.STOP_STRING
    assert stream.text == "one t"


async def test_finish_reason_stopped() -> None:
    with steps_of(llama(), {3: lambda: stream.stop()}) as steps:
        async with stream_llama(**ENDLESS) as stream:
            await stream.read()
            assert stream.finish_reason is FinishReason.STOPPED
    assert stream.usage.completion_tokens == stream.usage.computed_tokens == steps.count == 3
    assert stream.text == decoded(stream.token_ids)


async def test_finish_reason_cancelled_by_a_scope() -> None:
    with steps_of(llama(), {3: lambda: from_thread.run_sync(scope.cancel)}):
        with CancelScope() as scope:
            async with stream_llama(**ENDLESS) as stream:
                await stream.read()
    assert scope.cancelled_caught
    assert stream.finish_reason is FinishReason.CANCELLED


async def test_finish_reason_cancelled_by_aclose() -> None:
    async with stream_llama(**ENDLESS) as stream:
        await stream.receive()
        await stream.aclose()
        assert stream.finish_reason is FinishReason.CANCELLED
        assert stream.usage is not None
        assert stream.timing is not None
        with pytest.raises(ClosedResourceError):
            await stream.receive()


async def test_finish_reason_cancelled_by_leaving() -> None:
    async with stream_llama(**ENDLESS) as stream:
        await stream.receive()
    assert stream.finish_reason is FinishReason.CANCELLED
    with pytest.raises((ClosedResourceError, BrokenResourceError)):
        await stream.receive()


async def test_finish_reason_error() -> None:
    with steps_of(llama(), {3: raiser(RuntimeError("broken"))}):
        async with stream_llama(**ENDLESS) as stream:
            with pytest.raises(RuntimeError, match="broken"):
                await stream.read()
            assert stream.finish_reason is FinishReason.ERROR
            assert stream.output is None
            assert stream.usage.completion_tokens == 2


# Ways for the model to end by itself in its third step. Each with what it is called.
OWN_ENDS: dict[str, tuple[FinishReason, Callable[[], dict[str, Any]]]] = {
    "eos": (FinishReason.EOS, lambda: {"logits_processor": [Say("ab", EOS)], **ENDLESS}),
    "length": (FinishReason.LENGTH, lambda: {"max_new_tokens": 3}),
    "criteria": (
        FinishReason.CRITERIA,
        lambda: {"stopping_criteria": [after_tokens(3)], **ENDLESS},
    ),
    "transformers' criteria": (
        FinishReason.CRITERIA,
        lambda: {"stopping_criteria": [MaxLengthCriteria(len(PROMPT) + 3)], **ENDLESS},
    ),
    "stop string": (
        FinishReason.STOP_STRING,
        lambda: {"logits_processor": [Say("abcd")], "stop": "bc", **ENDLESS},
    ),
    "transformers' stop string": (
        FinishReason.STOP_STRING,
        lambda: {
            "logits_processor": [Say("abcd")],
            "generation_config": GenerationConfig(stop_strings=["bc"], max_new_tokens=50),
        },
    ),
}


@pytest.mark.parametrize("end", OWN_ENDS)
async def test_the_models_own_end_wins_over_a_stop_in_the_same_step(end: str) -> None:
    """If the consumer reads on: it was given the whole text."""
    reason, kwargs = OWN_ENDS[end]
    with steps_of(llama(), {3: lambda: stream.stop()}) as steps:
        async with stream_llama(**kwargs()) as stream:
            await stream.read()
    assert stream.finish_reason is reason
    assert steps.count == 3


async def test_time_wins_over_a_stop_in_the_same_step() -> None:
    with steps_of(llama(), {1: lambda: stream.stop()}):
        async with stream_llama(max_time=1e-9, **ENDLESS) as stream:
            await stream.read()
    assert stream.finish_reason is FinishReason.TIME


@pytest.mark.parametrize("end", OWN_ENDS)
async def test_leaving_in_the_step_of_the_models_own_end_is_a_cancellation(end: str) -> None:
    """It was not given the whole text."""
    _, kwargs = OWN_ENDS[end]
    gate = Gate()
    async with create_task_group() as tasks:
        with steps_of(llama(), {3: gate}) as steps:
            async with stream_llama(**kwargs()) as stream:
                await gate.reached()
                tasks.start_soon(gate.open_when_blocked)
    assert stream.finish_reason is FinishReason.CANCELLED
    assert steps.count == 3


async def test_leaving_with_the_whole_text_is_the_models_own_end() -> None:
    """Nobody has to ask for the end to know that there was one."""
    async with stream_llama(**says("abc")) as stream:
        while len(stream.token_ids) < 3:
            await stream.receive()
        with fail_after(30):
            while "ended" not in repr(stream):
                await checkpoint()
    assert stream.finish_reason is FinishReason.LENGTH


async def test_leaving_before_held_text_is_not_the_whole_text() -> None:
    """What could have become a stop string comes last, and its tokens came before."""
    async with stream_llama(**says("ab"), stop="bc") as stream:
        assert await stream.receive() in ("a", "ab")
        with fail_after(30):
            while "ended" not in repr(stream):
                await checkpoint()
    if stream.text == "ab":
        assert stream.finish_reason is FinishReason.LENGTH
    else:
        assert stream.finish_reason is FinishReason.CANCELLED


@pytest.mark.parametrize(
    ("kwargs", "reason"),
    [
        ({**says("ab", EOS)}, FinishReason.EOS),
        ({**says("abc"), "stop": "bc"}, FinishReason.STOP_STRING),
        ({**says("ab!"), "stop": "b!", "eos_token_id": ids_of("!")[0]}, FinishReason.STOP_STRING),
        ({**says("abc"), "stopping_criteria": [after_tokens(3)]}, FinishReason.CRITERIA),
        (
            {
                "logits_processor": [Say("ab", EOS)],
                "stopping_criteria": [after_tokens(3)],
                **ENDLESS,
            },
            FinishReason.EOS,
        ),
        ({"max_new_tokens": 1, "max_time": 1e-9}, FinishReason.LENGTH),
    ],
    ids=[
        "eos-length",
        "stop_string-length",
        "stop_string-eos",
        "criteria-length",
        "eos-criteria",
        "length-time",
    ],
)
async def test_of_the_models_own_ends_the_first_in_the_order_counts(
    kwargs: dict[str, Any], reason: FinishReason
) -> None:
    kwargs = copy.copy(kwargs)
    if "logits_processor" in kwargs:  # it has a state, and each loop runs this
        kwargs["logits_processor"] = copy.deepcopy(kwargs["logits_processor"])
    assert await reason_of(stream_llama(**kwargs)) is reason


# -- 2. The stop ------------------------------------------------------------------------------


class Left(Exception):
    """Raised in a body."""


async def leave(stream: Any, how: str, scope: CancelScope) -> None:
    if how == "cancel":
        scope.cancel()
        await checkpoint()
    elif how == "deadline":
        scope.deadline = -math.inf
        await checkpoint()
    elif how == "exception":
        raise Left
    elif how == "aclose":
        await stream.aclose()
    else:
        assert how in ("break", "return")


@pytest.mark.parametrize("how", ["break", "cancel", "deadline", "exception", "aclose"])
async def test_leaving_stops_the_model_within_a_step(how: str, calls: Calls) -> None:
    """In whatever way. The model is in its third step then; a fourth may have been begun."""
    gate = Gate()
    async with create_task_group() as tasks:
        with steps_of(llama(), {3: gate}) as steps:
            with CancelScope() as scope, contextlib.suppress(Left):
                async with stream_llama(**ENDLESS, logits_processor=[Say("ab")]) as stream:
                    async for _ in stream:
                        if len(stream.token_ids) == 2:
                            break
                    tasks.start_soon(gate.open_when_blocked)
                    await leave(stream, how, scope)
            assert calls.inside == 0
            assert steps.count <= 4
    assert stream.text == "ab"
    assert stream.finish_reason is FinishReason.CANCELLED


async def test_stop_ends_after_the_current_step_and_keeps_everything(calls: Calls) -> None:
    gate = Gate()
    with steps_of(llama(), {3: gate}) as steps:
        async with stream_llama(**ENDLESS, logits_processor=[Say("abcd")]) as stream:
            while len(stream.token_ids) < 2:
                await stream.receive()
            stream.stop()
            stream.stop()
            gate.open()
            await stream.read()
    assert calls.inside == 0
    assert steps.count <= 4
    assert len(stream.token_ids) == steps.count
    assert "abcd".startswith(stream.text)
    assert stream.finish_reason is FinishReason.STOPPED


async def test_a_cancelled_scope_is_seen_even_while_the_loop_is_blocked() -> None:
    gate = Gate()
    done = threading.Event()
    with steps_of(llama(), {2: gate, 8: done.set}) as steps:
        with CancelScope() as scope:
            async with stream_llama(**ENDLESS, logits_processor=[Say("ab")]) as stream:
                await stream.receive()
                scope.cancel()
                gate.open()
                done.wait(0.1)  # the loop does nothing, and an eighth step is waited for
    assert steps.count <= 3


async def test_a_shielded_consumer_does_not_keep_the_model_going() -> None:
    with steps_of(llama(), {3: lambda: from_thread.run_sync(scope.cancel)}) as steps:
        with CancelScope() as scope:
            async with stream_llama(**ENDLESS) as stream:
                with CancelScope(shield=True):
                    await stream.read()
                assert len(stream.token_ids) <= 4
    assert steps.count <= 4


async def test_a_deadline_stops_the_model() -> None:
    """While the consumer waits for a step that takes longer."""
    gate = Gate()

    async def open_when_over() -> None:
        while not scope.cancel_called:
            await checkpoint()
        gate.open()

    with steps_of(llama(), {3: gate}) as steps:
        async with create_task_group() as tasks:
            with CancelScope() as scope:
                async with stream_llama(**ENDLESS) as stream:
                    await gate.reached()
                    scope.deadline = current_time() + 0.01
                    tasks.start_soon(open_when_over)
                    await stream.read()
    assert scope.cancelled_caught
    assert steps.count <= 4
    assert stream.finish_reason is FinishReason.CANCELLED


async def test_the_blocks_end_is_after_generates(calls: Calls) -> None:
    """Also when the consumer leaves at once."""
    for _ in range(20):
        async with stream_llama(**ENDLESS):
            pass
        assert calls.inside == 0


async def test_a_stop_before_the_turn_makes_no_step(calls: Calls) -> None:
    gate = Gate()
    with steps_of(llama(), {1: gate}) as steps:
        async with stream_llama(max_new_tokens=1) as first, stream_llama(**ENDLESS) as second:
            second.stop()
            assert await second.read() == ""
            assert second.finish_reason is FinishReason.STOPPED
            assert (second.timing.queued, second.timing.first_token) == (None, None)
            assert second.output is None
            gate.open()
            await first.read()
    assert steps.count == 1
    assert len(calls.entered) == 1


# -- 3. Queued work never runs ----------------------------------------------------------------


@pytest.mark.parametrize("how", ["break", "cancel", "exception", "aclose"])
async def test_queued_work_never_runs(how: str, calls: Calls) -> None:
    gate = Gate()
    with steps_of(llama(), {1: gate}) as steps:
        async with stream_llama(max_new_tokens=2) as first:
            with CancelScope() as scope, contextlib.suppress(Left):
                async with stream_llama(**ENDLESS) as second:
                    await wait_all_tasks_blocked()
                    await leave(second, how, scope)
            assert steps.count <= 1
            assert second.finish_reason is FinishReason.CANCELLED
            assert second.timing.queued is None
            gate.open()
            await first.read()
    assert steps.count == 2
    assert len(calls.entered) == 1


async def test_a_block_entered_in_a_cancelled_scope_makes_no_step() -> None:
    with steps_of(llama()) as steps, CancelScope() as scope:
        scope.cancel()
        async with stream_llama(**ENDLESS):
            await checkpoint()
    assert steps.count == 0


async def test_a_block_cancelled_while_its_prompt_is_encoded_makes_no_step() -> None:
    """Nor is it left before the tokenizer is."""
    gate = Gate()
    encoded = []

    class Slow:
        decode = tokenizer().decode

        def __call__(self, **kwargs: Any) -> Any:
            gate()
            encoded.append(True)
            return tokenizer()(**kwargs)

    async def cancel() -> None:
        await gate.reached()
        scope.cancel()
        await gate.open_when_blocked()

    with steps_of(llama()) as steps:
        async with create_task_group() as tasks:
            tasks.start_soon(cancel)
            with CancelScope() as scope:
                async with stream_text(llama(), Slow(), PROMPT, **ENDLESS):
                    pytest.fail("entered")
            assert encoded == [True]
    assert scope.cancelled_caught
    assert steps.count == 0


# -- 4. Errors arrive -------------------------------------------------------------------------


def raiser(error: BaseException) -> Action:
    def action() -> None:
        raise error

    return action


async def test_an_error_before_the_first_token() -> None:
    error = RuntimeError("no memory")
    error.__cause__ = cause = OSError("device")
    with steps_of(llama(), {1: raiser(error)}):
        async with stream_llama(**ENDLESS) as stream:
            with pytest.raises(RuntimeError) as caught:
                await stream.receive()
            assert caught.value is error
            assert error.__cause__ is cause
            assert (stream.text, stream.finish_reason) == ("", FinishReason.ERROR)
            assert stream.timing.first_token is None


async def test_an_error_in_the_middle_comes_after_the_text_before_it() -> None:
    """What was held back is part of that text: half a character, the start of a stop string."""
    error = KeyError("weights")
    say = Say("né", *ids_of("東")[:2])
    with steps_of(llama(), {6: raiser(error)}):
        async with stream_llama(**ENDLESS, logits_processor=[say]) as stream:
            with pytest.raises(KeyError) as caught:
                await stream.read()
            assert caught.value is error
            assert stream.text == decoded(say.ids) == "né\ufffd"
            assert stream.token_ids == say.ids
    error = KeyError("weights")
    with steps_of(llama(), {4: raiser(error)}):
        async with stream_llama(**ENDLESS, logits_processor=[Say("abc")], stop="bcd") as stream:
            with pytest.raises(KeyError):
                await stream.read()
            assert stream.text == "abc"


async def test_an_error_that_nobody_reads_comes_at_the_end_of_the_block() -> None:
    error = RuntimeError("broken")
    with steps_of(llama(), {2: raiser(error)}):
        with pytest.raises(RuntimeError) as caught:
            async with stream_llama(**ENDLESS) as stream:
                with fail_after(30):
                    while "ended" not in repr(stream):
                        await checkpoint()
    assert caught.value is error
    assert stream.finish_reason is FinishReason.ERROR


async def test_an_error_in_the_step_of_a_cancellation_wins() -> None:
    error = RuntimeError("broken")

    def cancel_and_raise() -> None:
        from_thread.run_sync(scope.cancel)
        raise error

    with steps_of(llama(), {3: cancel_and_raise}):
        with CancelScope() as scope:
            with pytest.raises(RuntimeError) as caught:
                async with stream_llama(**ENDLESS) as stream:
                    await stream.read()
    assert caught.value is error
    assert stream.finish_reason is FinishReason.ERROR


async def test_an_error_in_the_step_of_a_stop_wins() -> None:
    error = RuntimeError("broken")

    def stop_and_raise() -> None:
        stream.stop()
        raise error

    with steps_of(llama(), {3: stop_and_raise}):
        async with stream_llama(**ENDLESS) as stream:
            with pytest.raises(RuntimeError) as caught:
                await stream.read()
    assert caught.value is error
    assert stream.finish_reason is FinishReason.ERROR


async def test_of_two_errors_the_bodys_wins_with_a_note_of_the_workers() -> None:
    gate = Gate()

    def wait_and_raise() -> None:
        gate()
        raise RuntimeError("the worker's")

    body = Left("the body's")
    async with create_task_group() as tasks:
        with steps_of(llama(), {2: wait_and_raise}), pytest.raises(Left) as caught:
            async with stream_llama(**ENDLESS):
                await gate.reached()
                tasks.start_soon(gate.open_when_blocked)
                raise body
        assert caught.value is body
        assert "the worker's" in "".join(body.__notes__)


async def test_what_generate_refuses_arrives() -> None:
    with steps_of(llama()) as steps:
        async with stream_llama(no_such_argument=1) as stream:
            with pytest.raises(ValueError, match="no_such_argument"):
                await stream.read()
        async with stream_llama(max_new_tokens=0) as stream:
            with pytest.raises(ValueError, match="max_new_tokens"):
                await stream.read()
    assert steps.count == 0


@pytest.mark.parametrize("where", ["logits_processor", "stopping_criteria"])
async def test_errors_of_the_callers_own_parts_arrive(where: str) -> None:
    error = ZeroDivisionError()

    def fail(input_ids: Any, scores: Any, **kwargs: Any) -> Any:
        if input_ids.shape[1] == len(PROMPT) + 2:
            raise error
        return scores if where == "logits_processor" else False

    async with stream_llama(**ENDLESS, **{where: [fail]}) as stream:
        with pytest.raises(ZeroDivisionError) as caught:
            await stream.read()
        assert caught.value is error


@pytest.mark.parametrize("stop", [(), "zz"], ids=["plain", "stop"])
async def test_errors_of_the_tokenizer_arrive(stop: str | tuple[()]) -> None:
    """It decodes in the middle of `generate()`."""
    error = UnicodeError("cannot decode")

    class Broken:
        def decode(self, token_ids: Any, **kwargs: Any) -> str:
            if MARK in token_ids:
                raise error
            return decoded(token_ids, **kwargs)

    say = says("ab", MARK, "c")
    async with stream_text(llama(), Broken(), inputs_of(PROMPT), stop=stop, **say) as stream:
        with pytest.raises(UnicodeError) as caught:
            await stream.read()
        assert caught.value is error
        assert stream.text == "ab"
        assert stream.finish_reason is FinishReason.ERROR


@pytest.mark.parametrize("when", ["enter", "exit", "call"])
async def test_errors_of_a_worker_context_arrive(when: str) -> None:
    error = RuntimeError(when)

    class Context:
        def __enter__(self) -> None:
            if when == "enter":
                raise error

        def __exit__(self, *exc_info: object) -> None:
            if when == "exit":
                raise error

    def make() -> Any:
        if when == "call":
            raise error
        return Context()

    with steps_of(llama()) as steps:
        async with stream_llama(max_new_tokens=2, worker_context=make) as stream:
            with pytest.raises(RuntimeError) as caught:
                await stream.read()
            assert caught.value is error
            assert stream.finish_reason is FinishReason.ERROR
    assert steps.count == (2 if when == "exit" else 0)


async def test_a_worker_context_that_swallows_an_error_swallows_it() -> None:
    """It is what `contextlib.suppress` is asked to do: the text ends there."""
    with steps_of(llama(), {3: raiser(RuntimeError("broken"))}):
        context = stream_llama(**ENDLESS, worker_context=lambda: contextlib.suppress(RuntimeError))
        async with context as stream:
            await stream.read()
    assert len(stream.token_ids) == 2
    assert stream.output is None
    assert stream.finish_reason is not None


# -- 6. Bounded, by choice --------------------------------------------------------------------


async def test_a_small_buffer_holds_the_model() -> None:
    ahead = []
    with steps_of(llama()) as steps:
        async with stream_llama(**says("abcdefghijklmnop"), max_buffer_size=2) as stream:
            async for _ in stream:
                # Two wait, one is being made.
                ahead.append(steps.count - len(stream.token_ids))
    assert max(ahead) <= 4
    assert stream.text == "abcdefghijklmnop"


async def test_nested_streams_on_one_model_do_not_deadlock() -> None:
    """The inner one waits for the outer's turn, which therefore no longer waits for its reader."""
    inner_texts = []
    with fail_after(30):
        async with stream_llama(**says("abcdef"), max_buffer_size=1) as outer:
            async for _ in outer:
                async with stream_llama(**says("xyz"), max_buffer_size=1) as inner:
                    inner_texts.append(await inner.read())
    assert outer.text == "abcdef"
    assert set(inner_texts) == {"xyz"}


@pytest.mark.parametrize("max_buffer_size", [1, math.inf])
async def test_a_consumer_that_never_reads_is_left_at_once(
    max_buffer_size: float, calls: Calls
) -> None:
    with fail_after(30):
        async with stream_llama(**ENDLESS, max_buffer_size=max_buffer_size):
            await checkpoint()
    assert calls.inside == 0


# -- 8. Stop strings --------------------------------------------------------------------------


async def test_a_stop_string_across_tokens_ends_in_the_step_that_completes_it() -> None:
    with steps_of(llama()) as steps:
        context = stream_llama(logits_processor=[Say("A東京! B")], stop=["京!", "B"], **ENDLESS)
        chunks, stream = await collect(context)
    assert stream.text == "".join(chunks) == "A東"
    assert stream.stop_string == "京!"
    made = len("A東京!".encode())
    assert steps.count == stream.usage.computed_tokens == stream.usage.completion_tokens == made
    assert stream.token_ids == ids_of("A東京!")


async def test_no_part_of_a_stop_string_is_shown_and_nothing_else_is_held_back() -> None:
    """The model waits in every step: what is shown by then is all that may be."""
    text = "ab<<en<<end>>"
    shown = {1: "a", 2: "ab", 5: "ab<", 7: "ab<<en", 8: "ab<<en"}
    gates = {step + 1: Gate() for step in (1, 2)}
    with steps_of(llama(), gates):
        context = stream_llama(logits_processor=[Say(text)], stop="<<end>>", **ENDLESS)
        async with context as stream:
            assert await stream.receive() == shown[1]
            gates[2].open()
            assert await stream.receive() == "b"
            gates[3].open()
            assert await stream.read() == "<<en"
    assert stream.text == "ab<<en"


async def test_text_held_back_for_a_stop_string_is_shown_at_the_end() -> None:
    _, stream = await collect(stream_llama(**says("yes or n"), stop="no"))
    assert stream.text == "yes or n"
    assert stream.finish_reason is FinishReason.LENGTH
    assert stream.stop_string is None


async def test_a_stop_string_in_the_prompt_does_not_count() -> None:
    _, stream = await collect(stream_llama("a STOP b", **says("c"), stop="STOP"))
    assert (stream.text, stream.finish_reason) == ("c", FinishReason.LENGTH)
    # Nor does one that begins there.
    _, stream = await collect(stream_llama("a STO", **says("P!"), stop="STOP"))
    assert (stream.text, stream.finish_reason) == ("P!", FinishReason.LENGTH)


async def test_a_special_token_may_be_a_stop_string() -> None:
    """Only where it is part of the text."""
    kwargs: dict[str, Any] = {"stop": "<mark>", "skip_special_tokens": False}
    _, stream = await collect(stream_llama(**says("a", MARK, "b"), **kwargs))
    assert (stream.text, stream.stop_string) == ("a", "<mark>")


async def test_stop_strings_may_come_from_any_iterable() -> None:
    """Once: a generator would be empty in the thread."""
    context = stream_llama(**says("abc"), stop=(string for string in ["c"]))
    _, stream = await collect(context)
    assert stream.text == "ab"


async def test_a_stop_string_completed_by_the_very_end_of_the_text() -> None:
    """A character that is cut off becomes U+FFFD, which somebody may stop at."""
    _, stream = await collect(stream_llama(**says("a", *ids_of("é")[:1]), stop="\ufffd"))
    assert stream.text == "a"
    assert (stream.finish_reason, stream.stop_string) == (FinishReason.STOP_STRING, "\ufffd")


# -- 9. Turns ---------------------------------------------------------------------------------


async def test_two_streams_on_one_model_never_overlap(calls: Calls) -> None:
    async def one() -> None:
        await collect(stream_llama(max_new_tokens=10))

    async with create_task_group() as tasks:
        for _ in range(4):
            tasks.start_soon(one)
    assert calls.most == 1
    assert len(calls.entered) == 4


async def test_a_crowd_on_one_model(calls: Calls) -> None:
    """Everybody leaves in another way and at another time, and gets their own text until then."""
    chance = random.Random(0)
    ways = ["read", "break", "stop", "aclose", "cancel", "exception"]
    ends = []

    async def one(number: int, how: str, when: int) -> None:
        text = f"{number}: Größe, 東京; " * 2
        arguments = {"stop": "; " * 2, "max_buffer_size": chance.choice([1, 3, math.inf])}
        with CancelScope() as scope, contextlib.suppress(Left):
            async with stream_llama(**says(text), **arguments) as stream:
                async for _ in stream:
                    if len(stream.text) >= when and how != "read":
                        break
                if how == "stop":
                    stream.stop()
                if how in ("stop", "read"):
                    await stream.read()
                else:
                    await leave(stream, how, scope)
        # One that is stopped inside a character shows that there was one.
        assert text.startswith(stream.text.removesuffix("\ufffd"))
        assert (stream.text == text) or how != "read"
        assert len(stream.token_ids) == stream.usage.completion_tokens
        assert stream.usage.completion_tokens <= stream.usage.computed_tokens
        ends.append(stream.finish_reason)

    async with create_task_group() as tasks:
        for number in range(12):
            tasks.start_soon(one, number, ways[number % 6], chance.randrange(30))
    assert len(ends) == 12
    assert None not in ends
    assert calls.most == 1


async def test_first_come_first_served(calls: Calls) -> None:
    gate = Gate()
    with steps_of(llama(), {1: gate}):
        async with contextlib.AsyncExitStack() as stack:
            streams = []
            for number in range(4):
                context = stream_llama(call=number, max_new_tokens=1)
                streams.append(await stack.enter_async_context(context))
                await wait_all_tasks_blocked()
            gate.open()
            for stream in reversed(streams):
                await stream.read()
    assert calls.entered == [0, 1, 2, 3]


async def test_the_time_in_the_queue_is_told() -> None:
    gate = Gate()
    with steps_of(llama(), {1: gate}):
        async with (
            stream_llama(max_new_tokens=1) as first,
            stream_llama(max_new_tokens=1) as second,
        ):
            gate.open()
            await second.read()
            await first.read()
    assert second.timing.queued >= first.timing.first_token - second.timing.total
    assert second.timing.queued <= second.timing.first_token <= second.timing.total


async def test_two_models_do_overlap() -> None:
    """Each waits in its first step until the other is there."""
    both = threading.Barrier(2, timeout=30)
    with steps_of(llama(), {1: both.wait}), steps_of(other_llama(), {1: both.wait}):
        async with stream_llama(max_new_tokens=1) as one:
            async with stream_text(other_llama(), tokenizer(), PROMPT, max_new_tokens=1) as other:
                assert len((await one.read(), await other.read())) == 2
    assert one.finish_reason is other.finish_reason is FinishReason.LENGTH


async def test_a_limiter_of_the_callers_gives_the_turns() -> None:
    """Two tokens, two generations at a time, and the third waits."""
    limiter = CapacityLimiter(2)
    both = threading.Barrier(2, timeout=30)
    steps = {1: both.wait, 2: both.wait}
    with steps_of(llama(), steps):
        async with contextlib.AsyncExitStack() as stack:
            streams = [
                await stack.enter_async_context(stream_llama(max_new_tokens=1, limiter=limiter))
                for _ in range(3)
            ]
            for stream in streams:
                await stream.read()
    assert limiter.borrowed_tokens == 0
    assert {stream.finish_reason for stream in streams} == {FinishReason.LENGTH}


async def test_a_limiter_of_the_callers_is_shared_with_other_work() -> None:
    limiter = CapacityLimiter(1)
    async with limiter:
        async with stream_llama(max_new_tokens=1, limiter=limiter) as stream:
            await wait_all_tasks_blocked()
            assert "waiting for its turn" in repr(stream)
            assert limiter.statistics().tasks_waiting == 1
    assert stream.finish_reason is FinishReason.CANCELLED


class Adapter(torch.nn.Module):
    """As peft's, around a model: the attributes of the model inside are its own."""

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


@pytest.mark.parametrize("wrap", ["compile", "adapter", "compiled adapter"])
async def test_wrappers_of_a_model_share_its_turns(wrap: str, calls: Calls) -> None:
    """The weights are the same, and so is the device."""
    model = llama() if wrap == "compile" else Adapter(llama())
    if "compile" in wrap:
        model = torch.compile(model, backend="eager")
    texts = []

    async def one(model: Any) -> None:
        chunks, _ = await collect(stream_text(model, tokenizer(), PROMPT, max_new_tokens=10))
        texts.append("".join(chunks))

    async with create_task_group() as tasks:
        for each in (model, llama(), model):
            tasks.start_soon(one, each)
    assert calls.most == 1
    assert len(calls.entered) == 3
    assert len(set(texts)) == 1


async def test_the_turn_is_free_again_after_every_end() -> None:
    with steps_of(llama(), {2: raiser(RuntimeError("broken"))}):
        with pytest.raises(RuntimeError, match="broken"):
            await collect(stream_llama(**ENDLESS))
    async with stream_llama(**ENDLESS):
        pass
    with CancelScope() as scope:
        async with stream_llama(**ENDLESS):
            scope.cancel()
            await checkpoint()
    with fail_after(30):
        assert await reason_of(stream_llama(max_new_tokens=1)) is FinishReason.LENGTH


async def test_streams_do_not_keep_a_model_alive() -> None:
    """Neither the turns nor a worker thread that idles does; the stream itself may be kept."""

    async def use() -> tuple[Any, Any, Any]:
        model, own_tokenizer = new_llama(), new_tokenizer()
        _, stream = await collect(stream_text(model, own_tokenizer, PROMPT, max_new_tokens=2))
        return weakref.ref(model), weakref.ref(own_tokenizer), stream

    model, own_tokenizer, stream = await use()
    # An idle thread keeps its last call until its next one: anyio's and trio's are shared.
    await collect(stream_text(other_llama(), tokenizer(), PROMPT, max_new_tokens=1))
    gc.collect()
    assert model() is None
    assert own_tokenizer() is None
    assert stream.finish_reason is FinishReason.LENGTH


async def test_streams_that_failed_do_not_keep_a_model_alive() -> None:
    async def use() -> Any:
        model = new_llama()
        with pytest.raises(ValueError, match="no_such_argument"):
            await collect(stream_text(model, tokenizer(), PROMPT, no_such_argument=1))
        return weakref.ref(model)

    model = await use()
    await collect(stream_text(other_llama(), tokenizer(), PROMPT, max_new_tokens=1))
    gc.collect()
    assert model() is None


# -- 11. What cannot stream says so -----------------------------------------------------------

BAD: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    # name: (the call, the error, what its message tells)
    "empty text": (lambda: stream_llama(""), ValueError, "prompt is empty"),
    "empty chat": (lambda: stream_llama([]), ValueError, "prompt is empty"),
    "empty mapping": (lambda: stream_llama({}), ValueError, "prompt is empty"),
    "empty ids": (
        lambda: stream_llama({"input_ids": torch.zeros(1, 0, dtype=torch.long)}),
        ValueError,
        "'input_ids'.* is empty",
    ),
    "empty embeddings": (
        lambda: stream_llama({"inputs_embeds": torch.zeros(1, 0, 16)}),
        ValueError,
        "'inputs_embeds'.* is empty",
    ),
    "list of texts": (lambda: stream_llama(["a", "b"]), ValueError, "batch of 2.*takes one"),
    "list of chats": (lambda: stream_llama([CHAT, CHAT]), ValueError, "batch of 2.*takes one"),
    "two rows": (
        lambda: stream_llama({"input_ids": torch.ones(2, 3, dtype=torch.long)}),
        ValueError,
        "'input_ids'.* has 2 rows.*takes one",
    ),
    "two encoded texts": (
        lambda: stream_llama(tokenizer()(["ab", "cd"], return_tensors="pt")),
        ValueError,
        "'input_ids'.* has 2 rows.*takes one",
    ),
    "two rows of embeddings": (
        lambda: stream_llama({"inputs_embeds": torch.zeros(2, 3, 16)}),
        ValueError,
        "'inputs_embeds'.* has 2 rows.*takes one",
    ),
    "two rows of inputs": (
        lambda: stream_llama({"inputs": torch.ones(2, 3, dtype=torch.long)}),
        ValueError,
        "'inputs'.* has 2 rows.*takes one",
    ),
    "bytes": (lambda: stream_llama(b"hello"), TypeError, "prompt must be a str.*not bytes"),
    "nothing": (lambda: stream_llama(None), TypeError, "prompt must be a str.*not NoneType"),
    "a tensor": (
        lambda: stream_llama(torch.ones(1, 3, dtype=torch.long)),
        TypeError,
        "prompt must be a str.*not Tensor.*'input_ids'",
    ),
    "messages without a role": (
        lambda: stream_llama([{"content": "hi"}]),
        TypeError,
        "prompt must be .*'role'.*no chat message",
    ),
    "num_return_sequences": (
        lambda: stream_llama(num_return_sequences=2, do_sample=True),
        ValueError,
        "num_return_sequences=2.*one",
    ),
    "num_return_sequences in a config": (
        lambda: stream_llama(
            generation_config=GenerationConfig(num_return_sequences=3, do_sample=True)
        ),
        ValueError,
        "num_return_sequences=3.*one",
    ),
    "num_beams": (lambda: stream_llama(num_beams=2), ValueError, "num_beams=2.*num_beams=1"),
    "num_beams in a config": (
        lambda: stream_llama(generation_config=GenerationConfig(num_beams=3)),
        ValueError,
        "num_beams=3.*num_beams=1",
    ),
    "custom_generate": (
        lambda: stream_llama(custom_generate=lambda model, **kwargs: None),
        ValueError,
        "custom_generate=.*stream_from_thread",
    ),
    "paged cache": (
        lambda: stream_llama(cache_implementation="paged"),
        ValueError,
        "cache_implementation='paged'",
    ),
    "paged cache in a config": (
        lambda: stream_llama(generation_config=GenerationConfig(cache_implementation="paged")),
        ValueError,
        "cache_implementation='paged'",
    ),
    "synced_gpus": (lambda: stream_llama(synced_gpus=True), ValueError, "synced_gpus="),
    "streamer": (lambda: stream_llama(streamer=object()), TypeError, "streamer=.*iterate"),
    "streamer None": (lambda: stream_llama(streamer=None), TypeError, "streamer=.*iterate"),
    "max_tokens": (lambda: stream_llama(max_tokens=5), TypeError, "max_tokens=.*max_new_tokens="),
    "max_completion_tokens": (
        lambda: stream_llama(max_completion_tokens=5),
        TypeError,
        "max_completion_tokens=.*max_new_tokens=",
    ),
    "stop number": (lambda: stream_llama(stop=5), TypeError, "stop must be a str.*not int"),
    "stop bytes": (lambda: stream_llama(stop=b"x"), TypeError, "stop must be a str.*not bytes"),
    "stop of numbers": (lambda: stream_llama(stop=[1]), TypeError, "stop string must be a str"),
    "stop empty": (lambda: stream_llama(stop=""), ValueError, "stop string must not be empty"),
    "stop with an empty one": (
        lambda: stream_llama(stop=["a", ""]),
        ValueError,
        "stop string must not be empty",
    ),
    "buffer of nothing": (
        lambda: stream_llama(max_buffer_size=0),
        ValueError,
        "max_buffer_size must be at least 1",
    ),
    "buffer of a half": (
        lambda: stream_llama(max_buffer_size=1.5),
        TypeError,
        "max_buffer_size must be a whole number",
    ),
    "limiter": (lambda: stream_llama(limiter=1), TypeError, "limiter must be .*not int"),
    "no model": (
        lambda: stream_text(object(), tokenizer(), PROMPT),  # type: ignore[arg-type]
        TypeError,
        r"model must have generate\(\).*object",
    ),
    "a model without a head": (
        lambda: stream_text(torch.nn.Linear(2, 2).eval(), tokenizer(), PROMPT),  # type: ignore[arg-type]
        TypeError,
        r"model must have generate\(\).*Linear.*AutoModelForCausalLM",
    ),
    "tokenizer that cannot decode": (
        lambda: stream_text(llama(), object(), PROMPT),  # type: ignore[arg-type]
        TypeError,
        r"tokenizer.*decode\(\)",
    ),
    "no tokenizer": (
        lambda: stream_text(llama(), None, PROMPT),  # type: ignore[arg-type]
        TypeError,
        r"tokenizer.*decode\(\)",
    ),
}


@pytest.mark.parametrize("case", BAD)
async def test_bad_input_is_refused(case: str) -> None:
    """At the call or where the block is entered; with what is wrong and what to do instead."""
    call, error, message = BAD[case]
    with steps_of(llama()) as steps, pytest.raises(error, match=message) as caught:
        async with call():
            pytest.fail("entered")
    assert type(caught.value) is error
    assert steps.count == 0


def test_bad_input_is_refused_at_the_call_where_that_is_possible() -> None:
    """The traceback then leads to the line with the mistake."""
    for call, error, _ in BAD.values():
        with pytest.raises(error):
            call()


async def test_a_prompt_that_encodes_to_nothing_is_refused() -> None:
    own = new_tokenizer()
    own.chat_template = "{{ '' }}"
    with steps_of(llama()) as steps, pytest.raises(ValueError, match="prompt has no tokens"):
        async with stream_text(llama(), own, CHAT):
            pytest.fail("entered")
    assert steps.count == 0


async def test_a_model_input_given_twice_is_refused() -> None:
    with (
        steps_of(llama()) as steps,
        pytest.raises(TypeError, match="attention_mask= is given twice"),
    ):
        async with stream_llama(attention_mask=torch.ones(1, len(PROMPT))):
            pytest.fail("entered")
    assert steps.count == 0


def test_beams_of_the_models_own_config_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llama().generation_config, "num_beams", 4)
    with pytest.raises(ValueError, match=r"num_beams=4.*num_beams=1"):
        stream_llama()


async def test_beams_of_the_models_own_config_can_be_overruled(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(llama().generation_config, "num_beams", 4)
    assert await reason_of(stream_llama(num_beams=1, max_new_tokens=2)) is FinishReason.LENGTH
    config = GenerationConfig(num_beams=1, max_new_tokens=2)
    assert await reason_of(stream_llama(generation_config=config)) is FinishReason.LENGTH


def test_a_model_in_training_mode_is_refused() -> None:
    model = new_llama().train()
    with pytest.raises(ValueError, match=r"training mode.*model\.eval\(\)"):
        stream_text(model, tokenizer(), PROMPT)


def test_several_ranks_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    with pytest.raises(ValueError, match=r"2 ranks.*one process"):
        stream_llama()


async def test_a_process_group_of_one_rank_is_accepted(tmp_path: Path) -> None:
    torch.distributed.init_process_group(
        "gloo", init_method=(tmp_path / "store").as_uri(), rank=0, world_size=1
    )
    try:
        assert await reason_of(stream_llama(max_new_tokens=1)) is FinishReason.LENGTH
    finally:
        torch.distributed.destroy_process_group()


async def test_the_unopened_object_shows_the_right_form() -> None:
    right_form = r"async with stream_text\(\.\.\.\) as stream"
    with pytest.raises(TypeError, match=right_form):
        async for _ in stream_llama():
            pass
    with pytest.raises(TypeError, match=right_form):
        await stream_llama()
    with pytest.raises(TypeError, match=right_form):
        with stream_llama():
            pass
    with pytest.raises(TypeError, match=right_form):
        list(stream_llama())


async def test_a_context_cannot_be_opened_twice() -> None:
    context = stream_llama(max_new_tokens=1)
    async with context as stream:
        await stream.read()
    with pytest.raises(RuntimeError, match="opened before"):
        async with context:
            pytest.fail("entered")


# -- generate()'s own ways --------------------------------------------------------------------


async def test_a_logits_processor_of_the_callers() -> None:
    class Never(LogitsProcessor):
        def __call__(self, input_ids: Any, scores: Any) -> Any:
            scores = scores.clone()
            scores[:, first] = -torch.inf
            return scores

    first = generated(llama(), PROMPT, max_new_tokens=1)[0]
    _, stream = await collect(stream_llama(max_new_tokens=10, logits_processor=[Never()]))
    assert first not in stream.token_ids
    assert stream.token_ids == generated(
        llama(), PROMPT, max_new_tokens=10, logits_processor=[Never()]
    )


async def test_a_generation_config_of_the_callers_is_used_and_left_as_it_was() -> None:
    config = GenerationConfig(max_new_tokens=6, repetition_penalty=1.8)
    before = config.to_dict()
    expected = generated(llama(), PROMPT, generation_config=copy.deepcopy(config))
    _, stream = await collect(stream_llama(generation_config=config))
    assert stream.token_ids == expected
    assert config.to_dict() == before


@pytest.mark.parametrize("how", ["stop", "stop string", "length", "leave"])
async def test_a_cache_of_the_callers_is_consistent_after_a_stop(how: str) -> None:
    """A second turn on it says what an uncached run does."""
    cache = DynamicCache(config=llama().config)
    kwargs: dict[str, Any] = {"logits_processor": [Say("one two")], **ENDLESS}
    at: dict[int, Action] = {}
    if how == "stop":
        at = {5: lambda: stream.stop()}
    elif how == "stop string":
        kwargs["stop"] = "tw"
    elif how == "length":
        kwargs["max_new_tokens"] = 5
    with steps_of(llama(), at):
        async with stream_llama(past_key_values=cache, **kwargs) as stream:
            if how == "leave":
                await stream.receive()
            else:
                await stream.read()
    so_far = stream.output
    assert cache.get_seq_length() == so_far.shape[1] - 1
    prompt = {"input_ids": torch.cat([so_far, torch.tensor([ids_of(" And?")])], dim=1)}
    expected = generated(llama(), prompt, max_new_tokens=8)
    _, second = await collect(stream_llama(prompt, past_key_values=cache, max_new_tokens=8))
    assert second.token_ids == expected


ASSISTED: dict[str, Callable[[], dict[str, Any]]] = {
    "assistant_model": lambda: {"assistant_model": assistant()},
    "prompt_lookup": lambda: {"prompt_lookup_num_tokens": 4},
}
REPEATED = "one two three one two three one"


@pytest.mark.parametrize("way", ASSISTED)
async def test_assisted_decoding_delivers_several_tokens_at_once(way: str) -> None:
    text = " two three one two"
    kwargs: dict[str, Any] = {**ASSISTED[way](), "logits_processor": [Say(text, EOS)], **ENDLESS}
    with steps_of(llama()) as steps:
        chunks, stream = await collect(stream_llama(REPEATED, **kwargs))
    assert stream.text == "".join(chunks) == text
    assert stream.token_ids == [*ids_of(text), EOS]
    assert steps.count < stream.usage.computed_tokens == len(stream.token_ids)
    assert stream.finish_reason is FinishReason.EOS


@pytest.mark.parametrize("way", ASSISTED)
async def test_assisted_decoding_says_what_plain_decoding_does(way: str) -> None:
    expected = generated(llama(), REPEATED, max_new_tokens=30)
    _, stream = await collect(stream_llama(REPEATED, max_new_tokens=30, **ASSISTED[way]()))
    assert stream.token_ids == expected


@pytest.mark.parametrize("way", ASSISTED)
async def test_assisted_decoding_ends_at_a_stop_string(way: str) -> None:
    """Tokens made in the same step come after it: they are delivered, and have no text."""
    kwargs: dict[str, Any] = {
        **ASSISTED[way](),
        **ENDLESS,
        "logits_processor": [Say(" two three one two")],
    }
    _, stream = await collect(stream_llama(REPEATED, stop=["ee", "o o"], **kwargs))
    assert (stream.text, stream.stop_string) == (" two thr", "ee")
    assert stream.finish_reason is FinishReason.STOP_STRING
    made = len(" two three")
    assert made <= stream.usage.computed_tokens <= made + 4
    assert stream.token_ids == stream.output[0, len(REPEATED) :].tolist()


@pytest.mark.parametrize("way", ASSISTED)
@pytest.mark.parametrize("skip_special_tokens", [True, False])
async def test_assisted_decoding_ends_at_an_eos(way: str, skip_special_tokens: bool) -> None:
    kwargs: dict[str, Any] = {
        **ASSISTED[way](),
        **ENDLESS,
        "logits_processor": [Say(" two", EOS, "x")],
    }
    context = stream_llama(REPEATED, **kwargs, skip_special_tokens=skip_special_tokens)
    _, stream = await collect(context)
    assert stream.finish_reason is FinishReason.EOS
    assert stream.token_ids == [*ids_of(" two"), EOS]


@pytest.mark.parametrize("way", ASSISTED)
async def test_assisted_decoding_stops_within_a_step(way: str) -> None:
    with steps_of(llama(), {2: lambda: stream.stop()}) as steps:
        async with stream_llama(REPEATED, **ASSISTED[way](), **ENDLESS) as stream:
            await stream.read()
    assert steps.count == 2
    assert stream.token_ids == stream.output[0, len(REPEATED) :].tolist()
    assert stream.finish_reason is FinishReason.STOPPED


@pytest.mark.parametrize("way", ASSISTED)
async def test_a_stop_keeps_what_was_held_back(way: str) -> None:
    """A step may end with an unfinished character, or with what may become a stop string."""
    text = " twó thrêe ónê twó"
    every_end = [character + "\0" for character in set(text)]  # always holds the last one back
    for step in (1, 2):
        with steps_of(llama(), {step: lambda: stream.stop()}):
            kwargs: dict[str, Any] = {"logits_processor": [Say(text)], "stop": every_end, **ENDLESS}
            async with stream_llama(text, **ASSISTED[way](), **kwargs) as stream:
                await stream.read()
        made = stream.output[0, len(ids_of(text)) :].tolist()
        assert stream.token_ids == made
        assert stream.text == decoded(made)
        assert stream.finish_reason is FinishReason.STOPPED


@pytest.mark.parametrize("way", ASSISTED)
async def test_a_stop_in_the_step_of_an_eos_of_several_tokens_is_an_eos(way: str) -> None:
    with steps_of(llama(), {1: lambda: stream.stop()}):
        kwargs: dict[str, Any] = {"logits_processor": [Say(" ", EOS)], **ENDLESS}
        async with stream_llama(REPEATED, **ASSISTED[way](), **kwargs) as stream:
            await stream.read()
    if stream.output[0, -1] == EOS:  # where the draft had it
        assert stream.finish_reason is FinishReason.EOS
    assert stream.token_ids == stream.output[0, len(REPEATED) :].tolist()


async def test_a_criterion_asked_about_drafts_does_not_make_them_text(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Releases of transformers up to 5.0 at least ask the criteria before they check the drafts."""
    generate = type(llama())._assisted_decoding

    def asking(self: Any, input_ids: Any, *args: Any, **kwargs: Any) -> Any:
        drafts = torch.cat([input_ids, torch.tensor([ids_of("WRONG")])], dim=1)
        kwargs["stopping_criteria"](drafts, None)
        return generate(self, input_ids, *args, **kwargs)

    monkeypatch.setattr(type(llama()), "_assisted_decoding", asking)
    kwargs: dict[str, Any] = {**ASSISTED["prompt_lookup"](), **says(" two three")}
    _, stream = await collect(stream_llama(REPEATED, stop="zz", **kwargs))
    assert stream.text == " two three"


async def test_the_criteria_can_be_copied() -> None:
    """Assisted decoding of some releases does so. The copies still lead to this stream."""

    class Copying(StoppingCriteria):
        def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
            return torch.zeros(input_ids.shape[0], dtype=torch.bool)

    seen: list[Any] = []
    generate = llama().generate

    def copying(**kwargs: Any) -> Any:
        seen.extend(kwargs["stopping_criteria"])
        kwargs["stopping_criteria"] = copy.deepcopy(
            StoppingCriteriaList(kwargs["stopping_criteria"])
        )
        return generate(**kwargs)

    own = AfterTokens(500)
    model = Adapter(llama())
    model.generate = copying  # type: ignore[method-assign]
    with steps_of(llama(), {3: lambda: stream.stop()}) as steps:
        context = stream_text(
            model, tokenizer(), PROMPT, stopping_criteria=[own, Copying()], stop="zz", **ENDLESS
        )
        async with context as stream:
            await stream.read()
    assert steps.count == 3
    assert len(seen) == 3
    duplicate = copy.deepcopy(seen[0])
    assert duplicate is not seen[0]
    assert duplicate.also == own.also


async def test_an_encoder_decoder() -> None:
    say = says("le chat", EOS)
    _, stream = await collect(stream_text(t5(), tokenizer(), "the cat", **say))
    assert (stream.text, stream.finish_reason) == ("le chat", FinishReason.EOS)
    assert stream.prompt_token_ids == ids_of("the cat")
    assert stream.usage.prompt_tokens == len("the cat")
    assert stream.output[0].tolist() == [EOS, *stream.token_ids]


async def test_an_encoder_decoder_says_what_generate_does() -> None:
    kwargs: dict[str, Any] = {"max_new_tokens": 10, "min_new_tokens": 10}
    expected = generated(t5(), PROMPT, **kwargs)
    _, stream = await collect(stream_text(t5(), tokenizer(), PROMPT, **kwargs))
    assert stream.token_ids == expected
    assert stream.finish_reason is FinishReason.LENGTH


@pytest.mark.parametrize("suspect", SUSPECTS)
async def test_finish_reason_length_of_an_encoder_decoder(suspect: str) -> None:
    """`max_length` is the decoder's, with its start token."""
    kwargs: dict[str, Any] = {"logits_processor": [Say("abcdefgh")], "max_length": 6} | SUSPECTS[
        suspect
    ]()
    _, stream = await collect(stream_text(t5(), tokenizer(), PROMPT, **kwargs))
    assert (stream.text, stream.finish_reason) == ("abcde", FinishReason.LENGTH)


async def test_an_encoder_decoder_with_a_prompt_for_its_decoder() -> None:
    """It is no part of the text, nor of what the prompt's mapping is asked for."""
    start = torch.tensor([[EOS, *ids_of("le ")]])
    prompt = {**inputs_of("the cat"), "decoder_input_ids": start}
    _, stream = await collect(
        stream_text(t5(), tokenizer(), prompt, **says("chat", EOS), stop="xx")
    )
    assert stream.text == "chat"
    assert stream.output[0].tolist() == [*start[0].tolist(), *stream.token_ids]


async def test_stop_strings_of_an_encoder_decoder() -> None:
    kwargs: dict[str, Any] = {"logits_processor": [Say("le chat noir")], **ENDLESS}
    with steps_of(t5()) as steps:
        _, stream = await collect(stream_text(t5(), tokenizer(), "the cat", stop="at", **kwargs))
    assert (stream.text, stream.stop_string) == ("le ch", "at")
    assert steps.count == len("le chat")


def features(length: int = WHISPER_FRAMES) -> Any:
    return torch.randn(1, 4, length, generator=torch.Generator().manual_seed(0))


async def test_speech_to_text() -> None:
    """Whisper's own `generate()`, around the common one."""
    say = says("hello", EOS)
    context = stream_text(whisper(), tokenizer(), {"input_features": features()}, **say)
    _, stream = await collect(context)
    assert (stream.text, stream.finish_reason) == ("hello", FinishReason.EOS)
    assert stream.prompt_token_ids == []


async def test_speech_to_text_stops_within_a_step() -> None:
    with steps_of(whisper(), {3: lambda: stream.stop()}) as steps:
        kwargs: dict[str, Any] = {"logits_processor": [Say("hello there")], "max_new_tokens": 50}
        prompt = {"input_features": features()}
        async with stream_text(whisper(), tokenizer(), prompt, **kwargs) as stream:
            assert await stream.read() == "hel"
    assert steps.count == 3


async def test_a_batch_of_speech_is_refused() -> None:
    with steps_of(whisper()) as steps:
        with pytest.raises(ValueError, match=r"'input_features'.* has 2 rows"):
            prompt = {"input_features": torch.cat([features(), features()])}
            stream_text(whisper(), tokenizer(), prompt)
    assert steps.count == 0


@pytest.mark.parametrize(
    "make",
    [
        lambda: {"cache_implementation": "static"},
        lambda: {"use_cache": False},
        lambda: {"prefill_chunk_size": 4, "past_key_values": DynamicCache()},
    ],
    ids=["static cache", "no cache", "prefill in chunks"],
)
async def test_other_ways_to_run_the_model(make: Callable[[], dict[str, Any]]) -> None:
    expected = generated(llama(), PROMPT, max_new_tokens=8)
    _, stream = await collect(stream_llama(max_new_tokens=8, stop="never said", **make()))
    assert stream.token_ids == expected
    assert stream.finish_reason is FinishReason.LENGTH


class DelayedEvent:
    """In place of the event of a device: there is none to wait for on a CPU."""

    def __init__(self, **kwargs: Any) -> None:
        pass

    def record(self) -> None:
        pass

    def synchronize(self) -> None:
        pass


@pytest.fixture
def deferred_stops(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on MPS: tokens are put a step late, and the step after a stop is computed and undone."""
    from transformers.generation import utils

    if not hasattr(utils, "DeferredStopCheck"):
        pytest.skip("this release of transformers has no deferred stops")
    monkeypatch.setattr(utils.DeferredStopCheck, "is_supported", staticmethod(lambda *a, **k: True))
    monkeypatch.setattr(torch, "Event", DelayedEvent)


@pytest.mark.usefixtures("deferred_stops")
@pytest.mark.parametrize("stop", [(), "zz"], ids=["plain", "stop"])
@pytest.mark.parametrize("end", ["eos", "length", "criteria", "stop string"])
async def test_a_device_that_stops_a_step_late(end: str, stop: str | tuple[()]) -> None:
    """What is delivered is what `generate()` returns, with or without a look at each step."""
    _, kwargs = OWN_ENDS[end]
    arguments = {"stop": stop} | kwargs()
    _, stream = await collect(stream_llama(**arguments))
    assert stream.finish_reason is OWN_ENDS[end][0]
    assert stream.token_ids == stream.output[0, len(PROMPT) :].tolist()
    assert stream.usage.computed_tokens == 3


@pytest.mark.usefixtures("deferred_stops")
@pytest.mark.parametrize("stop", [(), "zz"], ids=["plain", "stop"])
async def test_a_stop_on_a_device_that_stops_a_step_late(stop: str | tuple[()]) -> None:
    with steps_of(llama(), {3: lambda: stream.stop()}) as steps:
        async with stream_llama(**ENDLESS, stop=stop) as stream:
            await stream.read()
    assert steps.count <= 4
    assert stream.token_ids == stream.output[0, len(PROMPT) :].tolist()


# -- Without transformers ---------------------------------------------------------------------

WITHOUT = """
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "transformers", "tokenizers", "numpy"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Blocker())

import anyio
from anystreamer import stream_from_thread, stream_text

class Tokenizer:
    def __call__(self, text, **kwargs):
        return {"input_ids": [[1, 2]]}
    def decode(self, token_ids, **kwargs):
        return "".join(chr(96 + token_id) for token_id in token_ids)

class Model:
    def generate(self, **kwargs):
        raise AssertionError("called")

class TorchlessModel:
    uses_torch = False
    def generate(self, input_ids, streamer, stopping_criteria, **kwargs):
        streamer.put(input_ids)
        for token_id in (1, 2, 3):
            input_ids = [[*input_ids[0], token_id]]
            streamer.put([token_id])
            if any(criterion(input_ids, None) for criterion in stopping_criteria):
                break
        streamer.end()
        return input_ids

def produce(emit, should_stop):
    for number in range(3):
        emit(number)

async def main():
    async with stream_from_thread(produce) as stream:
        print([item async for item in stream])
    async with stream_text(TorchlessModel(), Tokenizer(), "x") as stream:
        print(await stream.read(), stream.finish_reason, stream.output)
    try:
        stream_text(Model(), Tokenizer(), "x")
    except ImportError as error:
        print(error)

anyio.run(main)
"""


def test_without_transformers() -> None:
    """What needs no torch works; what does says what to install."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", WITHOUT], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    items, text, message = done.stdout.splitlines()
    assert items == "[0, 1, 2]"
    assert text == "abc length [[1, 2, 1, 2, 3]]"
    assert "pip install 'anystreamer[transformers]'" in message
