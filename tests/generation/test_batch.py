"""`stream_batch`: several prompts and several answers in one stream; and log-probabilities."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import anyio
import pytest
import torch
from transformers import (
    EosTokenCriteria,
    GenerationConfig,
    LogitsProcessor,
    MaxLengthCriteria,
    MaxTimeCriteria,
    StoppingCriteria,
    StoppingCriteriaList,
    StopStringCriteria,
)

from anystreamer import FinishReason, stream_batch, stream_text

from ..helpers.inside import worker_left
from ..helpers.tiny_models import (
    SayRows,
    generated,
    ids_of,
    llama,
    new_llama,
    seeded,
    steps_of,
    tokenizer,
)
from ..helpers.tokenizer_families import word_piece

pytestmark = pytest.mark.torch

PROMPTS = ["one", "a longer prompt", "two, three"]
HALF = ids_of("é")[0]  # the first byte of a character of two
EOS = FinishReason.EOS
LENGTH = FinishReason.LENGTH


@pytest.fixture(scope="module", autouse=True)
def padding_was_tried() -> None:
    """Else the first padded batch has some more steps."""

    async def batch() -> None:
        async with stream_batch(llama(), tokenizer(), PROMPTS, max_new_tokens=1) as stream:
            await stream.read()

    anyio.run(batch)


def alone(prompt: str, tokens: int, **kwargs: Any) -> list[int]:
    return generated(llama(), prompt, max_new_tokens=tokens, **kwargs)


def text_of(ids: list[int]) -> str:
    return str(tokenizer().decode(ids, skip_special_tokens=True))


async def test_each_row_says_what_it_says_alone() -> None:
    async with stream_batch(llama(), tokenizer(), PROMPTS, max_new_tokens=40) as stream:
        assert stream.prompt_token_ids == [tokenizer().encode(each) for each in PROMPTS]
        texts = ["", "", ""]
        async for piece in stream:
            assert piece
            texts[piece.row] += piece
    expected = [alone(each, 40) for each in PROMPTS]
    assert stream.token_ids == expected
    assert texts == stream.text == [text_of(ids) for ids in expected]
    assert stream.finish_reason == [LENGTH] * 3
    assert [usage.completion_tokens for usage in stream.usage if usage] == [40] * 3
    assert [usage.prompt_tokens for usage in stream.usage if usage] == list(
        map(len, stream.prompt_token_ids)
    )
    assert stream.output.shape == (3, max(map(len, stream.prompt_token_ids)) + 40)


async def test_read_returns_each_rows_text() -> None:
    async with stream_batch(llama(), tokenizer(), PROMPTS, max_new_tokens=10) as stream:
        assert await stream.read() == [text_of(alone(each, 10)) for each in PROMPTS]


async def test_a_row_that_has_ended_says_no_more_though_pad_is_eos() -> None:
    """The end-of-sequence token of one row is a token that another makes early, or never."""
    rows = [alone(each, 60) for each in PROMPTS]
    eos = rows[0][5]
    expected = [ids[: ids.index(eos) + 1] if eos in ids else ids for ids in rows]
    assert len(set(map(len, expected))) > 1
    async with stream_batch(
        llama(), tokenizer(), PROMPTS, max_new_tokens=60, eos_token_id=eos, pad_token_id=eos
    ) as stream:
        await stream.read()
    assert stream.token_ids == expected
    assert stream.finish_reason == [EOS if eos in ids else LENGTH for ids in rows]


async def test_each_row_has_its_own_stop_strings_and_all_ended_rows_stop_the_model() -> None:
    rows = [text_of(alone(each, 60)) for each in PROMPTS]
    stop = [row[5 + 3 * i : 8 + 3 * i] for i, row in enumerate(rows)]
    with steps_of(llama()) as steps:
        async with stream_batch(
            llama(), tokenizer(), PROMPTS, stop=stop, max_new_tokens=4000
        ) as stream:
            await stream.read()
    assert stream.finish_reason == [FinishReason.STOP_STRING] * 3
    assert all(each in stop for each in stream.stop_string)
    for text, full in zip(stream.text, rows, strict=True):
        assert full.startswith(text)
        assert not any(each in text for each in stop)
    assert steps.count == max(usage.computed_tokens for usage in stream.usage if usage)


async def test_one_row_can_be_stopped_alone() -> None:
    async with stream_batch(llama(), tokenizer(), PROMPTS, max_new_tokens=300) as stream:
        async for piece in stream:
            if piece.row == 1:
                stream.stop(1)
    assert stream.finish_reason == [LENGTH, FinishReason.STOPPED, LENGTH]
    lengths = list(map(len, stream.token_ids))
    assert lengths[0] == lengths[2] == 300
    assert 0 < lengths[1] < 300
    assert stream.token_ids[1] == alone(PROMPTS[1], 300)[: lengths[1]]


async def test_stopping_all_rows_stops_the_model() -> None:
    with steps_of(llama()) as steps:
        async with stream_batch(llama(), tokenizer(), PROMPTS, max_new_tokens=4000) as stream:
            await stream.receive()
            stream.stop()
            await stream.read()
    assert stream.finish_reason == [FinishReason.STOPPED] * 3
    assert steps.count < 4000
    assert [usage.completion_tokens for usage in stream.usage if usage] == [steps.count] * 3


async def test_a_row_that_is_not_there_cannot_be_stopped() -> None:
    async with stream_batch(llama(), tokenizer(), PROMPTS, max_new_tokens=2) as stream:
        with pytest.raises(IndexError):
            stream.stop(3)
        await stream.read()


async def test_leaving_the_block_stops_the_model() -> None:
    with steps_of(llama()) as steps:
        async with stream_batch(llama(), tokenizer(), PROMPTS, max_new_tokens=4000) as stream:
            await stream.receive()
    assert steps.count < 4000
    assert stream.finish_reason == [FinishReason.CANCELLED] * 3


async def test_several_answers_to_each_prompt() -> None:
    kwargs: dict[str, Any] = {"do_sample": True, "num_return_sequences": 2, "max_new_tokens": 12}
    async with stream_batch(
        llama(), tokenizer(), ["same", "size"], worker_context=lambda: seeded(3), **kwargs
    ) as stream:
        await stream.read()
    inputs = tokenizer()(["same", "size"], return_tensors="pt")
    with seeded(3):
        expected = llama().generate(**inputs, **kwargs)[:, inputs["input_ids"].shape[1] :]
    assert stream.token_ids == expected.tolist()
    assert len(stream.text) == 4
    assert stream.prompt_token_ids[0] == stream.prompt_token_ids[1] == tokenizer().encode("same")


async def test_a_criterion_of_the_callers_ends_the_rows_that_it_means() -> None:
    class Second(StoppingCriteria):
        def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
            done = torch.zeros(len(input_ids), dtype=torch.bool)
            done[1] = input_ids.shape[1] >= 15 + 7
            return done

    async with stream_batch(
        llama(), tokenizer(), PROMPTS, max_new_tokens=30, stopping_criteria=[Second()]
    ) as stream:
        await stream.read()
    assert stream.finish_reason == [LENGTH, FinishReason.CRITERIA, LENGTH]
    lengths = list(map(len, stream.token_ids))
    assert lengths[0] == lengths[2] == 30
    assert lengths[1] == 7


class LastIsC(StoppingCriteria):
    def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
        return input_ids[:, -1] == ids_of("c")[0]


SINGLE_ROWS: dict[str, tuple[Callable[[], dict[str, Any]], FinishReason]] = {
    "the caller's": (lambda: {"stopping_criteria": [LastIsC()]}, FinishReason.CRITERIA),
    "a list in the list": (
        lambda: {"stopping_criteria": [StoppingCriteriaList([LastIsC()])]},
        FinishReason.CRITERIA,
    ),
    "EosTokenCriteria": (
        lambda: {"stopping_criteria": [EosTokenCriteria(ids_of("c"))]},
        FinishReason.CRITERIA,
    ),
    "StopStringCriteria": (
        lambda: {"stopping_criteria": [StopStringCriteria(tokenizer(), ["bc"])]},
        FinishReason.CRITERIA,
    ),
    "in place of stop_strings": (
        lambda: {
            "stopping_criteria": [StopStringCriteria(tokenizer(), ["bc"])],
            "stop_strings": ["ab"],
        },
        FinishReason.CRITERIA,
    ),
    "stop_strings": (lambda: {"stop_strings": ["bc"]}, FinishReason.STOP_STRING),
    "of a config": (
        lambda: {"generation_config": GenerationConfig(stop_strings=["x", "bc"])},
        FinishReason.STOP_STRING,
    ),
}


@pytest.mark.parametrize("how", SINGLE_ROWS)
async def test_a_row_that_a_criterion_has_ended_is_not_what_fills_it_up(how: str) -> None:
    """`generate()` fills it up to the length of the others, and the criterion then says no."""
    make, reason = SINGLE_ROWS[how]
    async with stream_batch(
        llama(),
        tokenizer(),
        ["one", "two"],
        logits_processor=[SayRows(ids_of("abcdefgh"), ids_of("zzzz"))],
        pad_token_id=ids_of("Z")[0],
        max_new_tokens=8,
        **make(),
    ) as stream:
        await stream.read()
    assert stream.output[0, -5:].tolist() == ids_of("ZZZZZ")
    assert stream.text == ["abc", "zzzzzzzz"]
    assert stream.token_ids == [ids_of("abc"), ids_of("zzzzzzzz")]
    assert stream.finish_reason == [reason, LENGTH]
    assert [usage.computed_tokens for usage in stream.usage if usage] == [3, 8]


async def test_what_fills_up_a_row_is_no_end_of_the_others() -> None:
    """It is the token that the criterion looks for."""
    eos = ids_of("c")[0]
    async with stream_batch(
        llama(),
        tokenizer(),
        ["one", "two"],
        logits_processor=[SayRows(ids_of("abcdefgh"), ids_of("zzzz"))],
        stopping_criteria=[EosTokenCriteria(eos)],
        pad_token_id=eos,
        max_new_tokens=4000,
    ) as stream:
        while len(stream.token_ids[1]) < 5:
            await stream.receive()
        stream.stop()
        await stream.read()
    assert stream.output[0, -2:].tolist() == [eos, eos]
    assert stream.token_ids[0] == ids_of("abc")
    assert stream.finish_reason == [FinishReason.CRITERIA, FinishReason.STOPPED]


async def test_a_row_that_was_stopped_is_not_ended_by_what_a_criterion_says_later() -> None:
    class Late(StoppingCriteria):
        def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
            return torch.full((len(input_ids),), input_ids.shape[1] >= 40)

    with steps_of(llama(), {3: lambda: stream.stop(1)}):
        async with stream_batch(
            llama(), tokenizer(), PROMPTS, max_new_tokens=4000, stopping_criteria=[Late()]
        ) as stream:
            await stream.read()
    assert stream.finish_reason[1] is FinishReason.STOPPED
    assert stream.finish_reason[::2] == [FinishReason.CRITERIA] * 2


class InStep(LogitsProcessor):
    def __init__(self, step: int, action: Callable[[], object]) -> None:
        self._left = step
        self._action = action

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        self._left -= 1
        if not self._left:
            self._action()
        return scores


@pytest.mark.parametrize("rows", [[0], [2], [0, 1], [0, 1, 2]])
@pytest.mark.parametrize("end", ["limit", "length", "time", "none"])
async def test_a_row_that_is_stopped_in_the_last_step_of_all_has_ended_with_them(
    end: str, rows: list[int]
) -> None:
    time_criterion = MaxTimeCriteria(max_time=900.0)
    criteria: dict[str, Any] = {"length": MaxLengthCriteria(len("one") + 4), "time": time_criterion}

    def stop() -> None:
        for row in rows:
            stream.stop(row)
        if end == "time":
            time_criterion.initial_timestamp -= 1000

    stream: Any
    async with stream_batch(
        llama(),
        tokenizer(),
        ["one", "two", "six"],
        logits_processor=[SayRows(*map(ids_of, ("abcdef", "ghijkl", "mnopqr"))), InStep(4, stop)],
        stopping_criteria=[criteria[end]] if end in criteria else [],
        max_new_tokens=4 if end == "limit" else 900 if rows == [0, 1, 2] or end != "none" else 8,
    ) as stream:
        await stream.read()
    stopped = [FinishReason.STOPPED if row in rows else LENGTH for row in range(3)]
    reason = LENGTH if end == "limit" else FinishReason.CRITERIA
    assert stream.finish_reason == (stopped if end == "none" else [reason] * 3)
    for row, ids in enumerate(stream.token_ids):
        assert len(ids) == (8 if end == "none" and row not in rows else 4)


async def test_a_row_goes_on_where_generate_does_not_see_its_stop_string() -> None:
    """The bytes of half a character are U+FFFD in the text, and are not for `generate()`."""
    rows = [[*ids_of("ab"), HALF, *ids_of("cde")], ids_of("abcdef")]
    if StopStringCriteria(tokenizer(), ["\ufffd"])(torch.tensor([rows[0][:3]]), None).any():
        pytest.skip("generate() of this release sees it")
    async with stream_batch(
        llama(),
        tokenizer(),
        ["one", "two"],
        logits_processor=[SayRows(*rows)],
        stop_strings=["\ufffd", "de"],
        max_new_tokens=30,
    ) as stream:
        await stream.read()
    assert stream.token_ids == [rows[0], ids_of("abcde")]
    assert stream.text == ["ab\ufffdcde", "abcde"]
    assert stream.finish_reason == [FinishReason.STOP_STRING] * 2
    assert stream.stop_string == ["de", "de"]


async def test_a_row_ends_where_its_stop_string_is_in_the_tokens_and_not_in_the_text() -> None:
    """Clean-up takes the space away that the tokens have."""
    own = word_piece(cleanup=False, clean_up_tokenization_spaces=True)
    ids: Any = own.convert_tokens_to_ids(["op", "stop", ".", "fox", "##op"])
    assert None not in ids
    model = new_llama(vocabulary=max(300, len(own)))
    async with stream_batch(
        model,
        own,
        {"input_ids": torch.tensor([[ids[0]], [ids[1]]]), "attention_mask": torch.ones(2, 1)},
        logits_processor=[SayRows(ids[:3], [ids[1]])],
        stop_strings=[" ."],
        eos_token_id=ids[3],
        pad_token_id=ids[4],
        max_new_tokens=6,
    ) as stream:
        await stream.read()
    assert stream.output[0, -3:].tolist() == [ids[4]] * 3
    assert stream.token_ids == [ids[:3], [ids[1]] * 6]
    assert stream.finish_reason == [FinishReason.STOP_STRING, LENGTH]


async def test_a_mapping_of_model_inputs_is_a_batch() -> None:
    inputs = tokenizer()(["same", "size"], return_tensors="pt")
    async with stream_batch(llama(), tokenizer(), inputs, max_new_tokens=9) as stream:
        await stream.read()
    assert stream.token_ids == [alone("same", 9), alone("size", 9)]


async def test_one_prompt_is_a_batch_too() -> None:
    async with stream_batch(llama(), tokenizer(), ["one"], max_new_tokens=9) as stream:
        await stream.read()
    assert stream.token_ids == [alone("one", 9)]


async def test_a_lagging_consumer_gets_each_rows_text_in_one_piece() -> None:
    async with stream_batch(llama(), tokenizer(), PROMPTS, max_new_tokens=20) as stream:
        with anyio.fail_after(30):
            while not worker_left(stream):
                await anyio.sleep(0.01)
        pieces = [piece async for piece in stream]
    assert sorted(piece.row for piece in pieces) == [0, 1, 2]


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ("one", "use stream_text"),
        ([], "prompts is empty"),
        (["one", ""], "prompt is empty"),
        ([{"role": "user", "content": "hi"}], r"put it into a list, \[messages\]"),
        ([{"input_ids": torch.ones(1, 2)}], "one mapping"),
        ({"input_ids": torch.ones(2, 0)}, "is empty"),
        ([1], "not int"),
    ],
)
def test_what_is_no_batch_is_refused_at_once(prompts: Any, message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        stream_batch(llama(), tokenizer(), prompts)


async def test_logprobs_are_those_of_the_models_own_distribution() -> None:
    async with stream_text(
        llama(),
        tokenizer(),
        "one",
        max_new_tokens=20,
        logprobs=True,
        do_sample=True,
        temperature=0.5,
        top_k=20,
        output_logits=True,
        return_dict_in_generate=True,
    ) as stream:
        pieces = [piece async for piece in stream]
    logprobs = [logprob for piece in pieces for logprob in piece.logprobs or ()]
    ids = [token_id for piece in pieces for token_id in piece.token_ids]
    assert ids == stream.token_ids
    rows = torch.stack(stream.output.logits)[:, 0].log_softmax(-1)
    expected = rows[torch.arange(20), torch.tensor(ids)]
    torch.testing.assert_close(torch.tensor(logprobs), expected)


async def test_logprobs_of_a_batch_belong_to_their_rows() -> None:
    async with stream_batch(
        llama(),
        tokenizer(),
        PROMPTS,
        max_new_tokens=10,
        logprobs=True,
        stop=[text_of(alone(PROMPTS[0], 10))[4:6]],
        output_logits=True,
        return_dict_in_generate=True,
    ) as stream:
        found: list[list[float]] = [[], [], []]
        async for piece in stream:
            assert piece.logprobs is not None
            assert len(piece.logprobs) == len(piece.token_ids)
            found[piece.row].extend(piece.logprobs)
    logits = torch.stack(stream.output.logits).log_softmax(-1)
    for row, values in enumerate(found):
        ids = torch.tensor(stream.token_ids[row])[: len(values)]
        expected = logits[torch.arange(len(ids)), row, ids]
        torch.testing.assert_close(torch.tensor(values), expected)


async def test_pieces_have_no_logprobs_unless_asked_for() -> None:
    async with stream_text(llama(), tokenizer(), "one", max_new_tokens=3) as stream:
        assert (await stream.receive()).logprobs is None


@pytest.mark.parametrize(
    "drafts", [{"prompt_lookup_num_tokens": 3}, {"use_mtp": True}, {"assistant_early_exit": 0}]
)
def test_logprobs_are_refused_with_assisted_decoding(drafts: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="assisted"):
        stream_text(llama(), tokenizer(), "one", logprobs=True, **drafts)


async def test_top_logprobs_are_those_of_the_likeliest_tokens() -> None:
    async with stream_batch(
        llama(),
        tokenizer(),
        PROMPTS,
        max_new_tokens=6,
        logprobs=True,
        top_logprobs=3,
        output_logits=True,
        return_dict_in_generate=True,
    ) as stream:
        found: list[list[Any]] = [[], [], []]
        async for piece in stream:
            assert piece.logprobs is not None
            assert piece.top_logprobs is not None
            for logprob, top in zip(piece.logprobs, piece.top_logprobs, strict=True):
                assert top[0][1] == logprob  # greedy
            found[piece.row].extend(piece.top_logprobs)
    logits = torch.stack(stream.output.logits).log_softmax(-1)
    for row, tops in enumerate(found):
        for step, top in enumerate(tops):
            values, ids = logits[step, row].topk(3)
            assert [token_id for token_id, _ in top] == ids.tolist()
            torch.testing.assert_close(torch.tensor([each for _, each in top]), values)


async def test_of_a_small_vocabulary_there_are_no_more_than_all() -> None:
    async with stream_text(
        llama(), tokenizer(), "one", max_new_tokens=1, logprobs=True, top_logprobs=10**6
    ) as stream:
        (top,) = (await stream.receive()).top_logprobs or ()
    assert len(top) == llama().config.vocab_size


def test_top_logprobs_are_refused_without_logprobs() -> None:
    for logprobs, top_logprobs in ((False, 1), (True, -1)):
        with pytest.raises(ValueError, match="top_logprobs"):
            stream_text(llama(), tokenizer(), "one", logprobs=logprobs, top_logprobs=top_logprobs)
