"""`finish_reason`: why a stream ended, and which reason counts when there are several."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from anyio import (
    BrokenResourceError,
    CancelScope,
    ClosedResourceError,
    create_task_group,
    fail_after,
    from_thread,
)
from anyio.lowlevel import checkpoint
from transformers import (
    EosTokenCriteria,
    GenerationConfig,
    LlamaForCausalLM,
    MaxLengthCriteria,
    MaxTimeCriteria,
    StoppingCriteriaList,
    StopStringCriteria,
)

from anystreamer import FinishReason, GenerationTimeout, stream_text
from anystreamer._generation import call, token_streamer

from ..helpers.llama_streams import ENDLESS, PROMPT, collect, raiser, reason_of, says, stream_llama
from ..helpers.model_calls import Gate
from ..helpers.own_ends import OWN_ENDS, SUSPECTS, AfterTokens, after_tokens
from ..helpers.tiny_models import (
    EOS,
    Say,
    decoded,
    generated,
    ids_of,
    llama,
    new_llama,
    steps_of,
    tokenizer,
)

pytestmark = pytest.mark.torch


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
    """An ordinary token can end the text too, and is part of it."""
    context = stream_llama(logits_processor=[Say("ab!c")], eos_token_id=eos_token_id, **ENDLESS)
    _, stream = await collect(context)
    assert (stream.finish_reason, stream.text) == (FinishReason.EOS, "ab")
    assert stream.token_ids == ids_of("ab!")


async def test_finish_reason_eos_of_a_generation_config() -> None:
    config = GenerationConfig(eos_token_id=ids_of("!")[0], max_new_tokens=20)
    _, stream = await collect(stream_llama(logits_processor=[Say("ab!")], generation_config=config))
    assert (stream.finish_reason, stream.text) == (FinishReason.EOS, "ab")
    assert stream.token_ids == ids_of("ab!")


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


@pytest.mark.filterwarnings("ignore:Using the model-agnostic default")
@pytest.mark.parametrize("suspect", SUSPECTS)
async def test_finish_reason_length_by_default(suspect: str) -> None:
    """`generate()` makes 20 tokens by default."""
    _, stream = await collect(stream_llama(**SUSPECTS[suspect]()))
    assert stream.finish_reason is FinishReason.LENGTH
    assert stream.usage.completion_tokens == 20


@pytest.mark.parametrize("suspect", SUSPECTS)
async def test_finish_reason_length_of_embeddings(suspect: str) -> None:
    """`max_length` counts them, though they are not tokens."""
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


@pytest.mark.parametrize("drafts", [{}, {"prompt_lookup_num_tokens": 3}], ids=["plain", "drafts"])
async def test_a_criterion_takes_the_place_of_the_setting(drafts: dict[str, Any]) -> None:
    """As with `generate()`: a token of the setting ends nothing, not even as the last one."""
    for criterion, reason in (("c", FinishReason.CRITERIA), ("z", FinishReason.LENGTH)):
        context = stream_llama(
            logits_processor=[Say("abcde")],
            eos_token_id=ids_of("be"),
            stopping_criteria=[EosTokenCriteria(ids_of(criterion)[0])],
            max_new_tokens=5,
            **drafts,
        )
        _, stream = await collect(context)
        assert stream.finish_reason is reason
        assert stream.token_ids == ids_of("abc" if criterion == "c" else "abcde")


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


@pytest.mark.parametrize("strings", ["\ufffd", ["\ufffd", " x"]])
async def test_generate_goes_on_where_it_does_not_see_its_stop_string(strings: Any) -> None:
    """It compares tokens: half a character is not U+FFFD for it. Then nothing else stops it."""
    kwargs: dict[str, Any] = {"max_new_tokens": 7, "stop_strings": strings}
    pieces = ("a", ids_of("é")[0], "b x c")
    plain = {"tokenizer": tokenizer(), "logits_processor": [Say(*pieces)], **kwargs}
    ids = generated(llama(), "hi", **plain)
    if len(ids) < len("a? x"):
        pytest.skip("generate() of this release sees it")
    context = stream_llama("hi", logits_processor=[Say(*pieces)], **kwargs)
    _, stream = await collect(context)
    assert stream.token_ids == ids
    assert "\ufffd" in stream.text
    if isinstance(strings, str):
        assert (stream.finish_reason, stream.stop_string) == (FinishReason.LENGTH, None)
    else:
        assert (stream.finish_reason, stream.stop_string) == (FinishReason.STOP_STRING, " x")
    assert stream.text == decoded(ids)


async def test_a_stop_string_of_transformers_can_begin_in_the_prompt() -> None:
    """As with `generate()` itself. Ours cannot."""
    context = stream_llama("a ST", logits_processor=[Say("OP it")], stop_strings="STOP", **ENDLESS)
    _, stream = await collect(context)
    assert (stream.text, stream.finish_reason) == ("OP", FinishReason.STOP_STRING)
    assert stream.stop_string == "STOP"


@pytest.mark.parametrize(
    ("prompt", "answer", "strings", "text"),
    [
        ("a STOP", "S STOP", ["STOP"], "S STOP"),  # one that ends in the prompt ends nothing
        ("a STO", "P", ["TO", "STOP"], "P"),  # one that has such another inside
        ("an é", "a", ["éa"], "a"),
        ("aa", "ab", ["aab"], "ab"),
        ("one", " two", ["e t"], " t"),
    ],
)
async def test_a_stop_string_that_begins_in_the_prompt_is_named(
    prompt: str, answer: str, strings: list[str], text: str
) -> None:
    plain = {"logits_processor": [Say(answer)], "tokenizer": tokenizer(), "stop_strings": strings}
    if generated(llama(), prompt, max_new_tokens=10, **plain) != ids_of(text):
        pytest.skip("generate() of this release does not find it")
    for chat in (False, True):
        asked: Any = [{"role": "user", "content": "Hi"}] if chat else prompt
        kwargs: dict[str, Any] = {}
        if chat:
            asked += [{"role": "assistant", "content": prompt}]
            kwargs["chat_template_kwargs"] = {"continue_final_message": True}
        context = stream_llama(
            asked, logits_processor=[Say(answer)], stop_strings=strings, **ENDLESS, **kwargs
        )
        _, stream = await collect(context)
        assert (stream.text, stream.finish_reason) == (text, FinishReason.STOP_STRING)
        assert stream.stop_string == strings[-1]


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


@pytest.mark.parametrize("end", OWN_ENDS)
async def test_the_models_own_end_wins_over_a_stop_in_the_same_step(end: str) -> None:
    """If the consumer reads on: it was given the whole text."""
    reason, kwargs = OWN_ENDS[end]
    with steps_of(llama(), {3: lambda: stream.stop()}) as steps:
        async with stream_llama(**kwargs()) as stream:
            await stream.read()
    assert stream.finish_reason is reason
    assert steps.count == 3


async def test_a_callers_time_takes_the_place_of_the_setting() -> None:
    kwargs = {"max_time": 1e-9, "stopping_criteria": [MaxTimeCriteria(max_time=900.0)]}
    with steps_of(llama(), {3: lambda: stream.stop()}) as steps:
        async with stream_llama(**kwargs, **ENDLESS, stop="zz") as stream:
            await stream.read()
    assert steps.count == 3
    assert stream.finish_reason is FinishReason.STOPPED


@pytest.mark.filterwarnings("ignore:Using the model-agnostic default")
@pytest.mark.parametrize("setting", [{}, {"max_new_tokens": 5}, {"max_length": 15}])
@pytest.mark.parametrize("how", ["by itself", "stop", "deadline", "max_time"])
async def test_a_callers_length_takes_the_place_of_the_limit(
    how: str, setting: dict[str, int]
) -> None:
    criterion = MaxLengthCriteria(len(PROMPT) + (40 if how == "by itself" else 900))
    more: dict[str, Any] = {"deadline": {"timeout": 0.5}, "max_time": {"max_time": 0.5}}.get(
        how, {}
    )

    def act() -> None:
        if how == "stop":
            stream.stop()
        elif more:
            time.sleep(0.6)

    stream: Any
    with (
        steps_of(llama(), {30: act}),
        pytest.raises(GenerationTimeout) if how == "deadline" else nullcontext(),
    ):
        async with stream_llama(stopping_criteria=[criterion], **setting, **more) as stream:
            await stream.read()
    assert (
        stream.finish_reason
        is {
            "by itself": FinishReason.CRITERIA,
            "stop": FinishReason.STOPPED,
            "deadline": FinishReason.TIMEOUT,
            "max_time": FinishReason.TIME,
        }[how]
    )
    if how in ("by itself", "stop"):
        assert len(stream.token_ids) == (40 if how == "by itself" else 30)


async def test_time_that_passes_in_the_last_put_does_not_count(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    passed = 0.0
    for module in (call, token_streamer):
        monkeypatch.setattr(module, "perf_counter", lambda: time.perf_counter() + passed)
    kwargs: dict[str, Any] = {"max_time": 900.0}
    kwargs["stopping_criteria"] = [MaxLengthCriteria(len(PROMPT) + 3)]
    processors = [Say("abcdef")]
    async with stream_llama(
        logits_processor=processors, max_buffer_size=1, **kwargs, **ENDLESS
    ) as stream:
        await stream.wait_until_held()
        assert await stream.receive() == "a"
        await stream.wait_until_held()
        passed = 1000.0
        assert await stream.read() == "bc"
    assert stream.finish_reason is FinishReason.CRITERIA


class Talker(LlamaForCausalLM):
    """Makes text, and then something else with the same model, as speech is made."""

    after_text: Callable[[], object]

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        output = super().generate(*args, **kwargs)  # type: ignore[misc]
        self.after_text()
        with torch.no_grad():
            self(input_ids=output)  # a step that can be cut
        return output


@pytest.mark.parametrize("cancel_within", ["step", "layer"])
@pytest.mark.parametrize("end", ["stop", "length", "MaxLength", "criterion"])
@pytest.mark.parametrize("after", ["max_time", "MaxTime", "stop"])
async def test_what_follows_the_text_does_not_change_why_it_ended(
    after: str, end: str, cancel_within: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    length = len(PROMPT) + 3
    time_criterion = MaxTimeCriteria(max_time=900.0)
    passed = 0.0
    stream: Any
    for module in (call, token_streamer):
        monkeypatch.setattr(module, "perf_counter", lambda: time.perf_counter() + passed)

    def after_text() -> None:
        nonlocal passed
        if after == "stop":
            stream.stop()
        else:
            passed, time_criterion.initial_timestamp = 1000.0, 0.0

    model: Any = new_llama(seed=3)
    model.__class__ = Talker
    model.after_text = after_text
    criteria: dict[str, Any] = {
        "MaxLength": MaxLengthCriteria(length),
        "criterion": lambda input_ids, scores, **_: input_ids.shape[1] >= length,
    }
    kwargs: dict[str, Any] = {"max_time": 900.0} if after == "max_time" else {}
    kwargs["stopping_criteria"] = [time_criterion] if after == "MaxTime" else []
    kwargs["stopping_criteria"] += [criteria[end]] if end in criteria else []
    kwargs["max_new_tokens"] = 3 if end == "length" else 900
    kwargs["logits_processor"] = [Say("abcdef")]
    actions = {3: lambda: stream.stop()} if end == "stop" else {}
    with steps_of(model, actions):
        async with stream_text(
            model, tokenizer(), PROMPT, cancel_within=cancel_within, **kwargs
        ) as stream:
            await stream.read()
    reasons = {"stop": FinishReason.STOPPED, "length": FinishReason.LENGTH}
    assert stream.finish_reason is reasons.get(end, FinishReason.CRITERIA)
    assert len(stream.token_ids) == 3


async def test_a_stop_string_ends_its_step_though_the_time_passes_in_it() -> None:
    """After the clock of `generate()` has been asked, in a criterion of the caller's."""

    def slow(input_ids: Any, scores: Any, **kwargs: Any) -> bool:
        if input_ids.shape[1] == len(PROMPT) + 4:
            time.sleep(max(0.0, began + 0.6 - time.perf_counter()))
        return False

    began = time.perf_counter()
    with steps_of(llama()) as steps:
        async with stream_llama(
            logits_processor=[Say("abcdefgh")],
            stop="cd",
            max_time=0.5,
            stopping_criteria=[slow],
            **ENDLESS,
        ) as stream:
            await stream.read()
    assert stream.text == "ab"
    assert stream.finish_reason is FinishReason.STOP_STRING
    assert len(stream.token_ids) == steps.count == 4


async def test_time_wins_over_a_stop_in_the_same_step() -> None:
    with steps_of(llama(), {1: lambda: stream.stop()}):
        async with stream_llama(max_time=1e-9, **ENDLESS) as stream:
            await stream.read()
    assert stream.finish_reason is FinishReason.TIME


@pytest.mark.parametrize("end", ["length", "criteria", "transformers' criteria", "EosToken"])
async def test_leaving_after_the_whole_text_is_no_cancellation(
    end: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though `generate()` has not ended its streamer yet."""
    model, gate = llama(), Gate()
    generate = model.generate

    def generate_and_wait(*, streamer: Any, **kwargs: Any) -> Any:
        own_end = streamer.end

        def end_later() -> None:
            gate()
            own_end()

        streamer.end = end_later
        return generate(streamer=streamer, **kwargs)

    reason, make = (
        FinishReason.CRITERIA,
        lambda: ENDLESS | {"stopping_criteria": [EosTokenCriteria(eos_token_id=ids_of("c")[0])]},
    )
    if end in OWN_ENDS:
        reason, make = OWN_ENDS[end]
    monkeypatch.setattr(model, "generate", generate_and_wait)
    async with create_task_group() as tasks:
        async with stream_llama(logits_processor=[Say("abcdef")], **make()) as stream:
            while len(stream.token_ids) < 3:
                await stream.receive()
            tasks.start_soon(gate.open_when_blocked)
    assert stream.finish_reason is reason


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
    """The end counts even if the consumer has not received it."""
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
