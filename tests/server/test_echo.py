"""Echoed prompts with log-probabilities, as lm-eval asks for them: those of a forward pass."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from operator import itemgetter
from typing import Any

import pytest
import torch

from anystreamer import open_engine
from anystreamer.demo import load_demo
from anystreamer.server import create_app

from ..helpers.serving import client_of, data_of, error_of, official, serving
from ..helpers.tiny_models import steps_of, t5, tokenizer
from .test_server import TEXT

pytestmark = pytest.mark.torch

PROMPT = "An increasing sequence: one, four, two,"

demo = cache(load_demo)


def scores_of(ids: Sequence[int]) -> torch.Tensor:
    """The log-probabilities of each next token, by one forward pass. Shape ``(T, vocabulary)``."""
    model, _ = demo()
    with torch.no_grad():
        logits: torch.Tensor = model(torch.tensor([list(ids)])).logits[0]
    return logits.float().log_softmax(dim=-1)


def loglikelihood_of(answer: Any, context_lengths: Sequence[int]) -> list[tuple[float, bool]]:
    """As lm-eval's client reads it (`LocalCompletionsAPI.parse_logprobs`)."""
    found = []
    choices = sorted(answer["choices"], key=itemgetter("index"))
    for choice, length in zip(choices, context_lengths, strict=True):
        logprobs = choice["logprobs"]["token_logprobs"][length:-1]
        tops = choice["logprobs"]["top_logprobs"][length:-1]
        is_greedy = all(own == max(top.values()) for own, top in zip(logprobs, tops, strict=True))
        found.append((sum(logprobs), is_greedy))
    return found


async def test_a_prompt_s_log_probabilities_are_those_of_a_forward_pass() -> None:
    model, tokenizer = demo()
    ids = tokenizer(PROMPT)["input_ids"]
    scores = scores_of(ids)
    expected = [scores[at, each].item() for at, each in enumerate(ids[1:])]
    async with open_engine(model, tokenizer) as engine, serving(create_app(engine)) as url:
        async with client_of(url) as client:
            for prompt in (PROMPT, ids):
                for limit in (0, 1, 3):
                    body = {"prompt": prompt, "echo": True, "logprobs": 2, "max_tokens": limit}
                    response = await client.post(TEXT, json=body)
                    (choice,) = response.json()["choices"]
                    told = choice["logprobs"]
                    assert len(told["tokens"]) == len(ids) + limit
                    assert told["token_logprobs"][0] is told["top_logprobs"][0] is None
                    assert told["token_logprobs"][1 : len(ids)] == pytest.approx(expected, abs=1e-4)
                    for at, top in enumerate(told["top_logprobs"][1 : len(ids)]):
                        likeliest = scores[at].max().item()
                        assert max(top.values()) == pytest.approx(likeliest, abs=1e-4)
                        assert 2 <= len(top) <= 3  # the chosen one is among them
                    assert choice["text"].startswith(PROMPT)
                    assert "".join(told["tokens"]) == choice["text"]
                    for token, start in zip(told["tokens"], told["text_offset"], strict=True):
                        assert choice["text"][start:].startswith(token)


async def test_the_same_in_chunks_and_for_each_answer() -> None:
    model, tokenizer = demo()
    body = {
        "prompt": [PROMPT, "Odd numbers: one,"],
        "n": 2,
        "echo": True,
        "logprobs": 1,
        "max_tokens": 2,
        "temperature": 0,
    }
    passes = []
    async with open_engine(model, tokenizer) as engine, serving(create_app(engine)) as url:
        async with client_of(url) as client:
            for stream in (False, True):
                with steps_of(model) as steps:
                    response = await client.post(TEXT, json={**body, "stream": stream})
                passes.append(steps.count)
                if not stream:
                    whole = response.json()["choices"]
                    continue
                chunks = [each["choices"][0] for each in data_of(response.text)[:-1]]
    # Two steps of each answer, and one more pass over each prompt, which its answers share.
    assert passes == [4 * 2 + 2] * 2
    for choice in whole:
        mine = [each for each in chunks if each["index"] == choice["index"]]
        assert "".join(each["text"] for each in mine) == choice["text"]
        assert mine[-1]["finish_reason"] == choice["finish_reason"] == "length"
        for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset"):
            joined = [
                each for chunk in mine if chunk["logprobs"] for each in chunk["logprobs"][name]
            ]
            assert joined == choice["logprobs"][name]


async def test_the_loglikelihood_of_lm_eval() -> None:
    """A context and its continuation, in tokens, several at once, with the official client."""
    model, tokenizer = demo()
    pairs = [("An increasing sequence: one,", " two, three"), ("Odd numbers: one,", " seven, ten")]
    contexts = [tokenizer(context)["input_ids"] for context, _ in pairs]
    prompts = [
        [*context, *tokenizer(more, add_special_tokens=False)["input_ids"]]
        for context, (_, more) in zip(contexts, pairs, strict=True)
    ]
    expected = []
    for context, prompt in zip(contexts, prompts, strict=True):
        rows = scores_of(prompt)[len(context) - 1 : -1]
        continuation = torch.tensor(prompt[len(context) :])
        total = rows.gather(1, continuation[:, None]).sum().item()
        expected.append((total, bool((rows.argmax(dim=-1) == continuation).all())))
    assert [greedy for _, greedy in expected] == [True, False]
    lengths = [len(each) for each in contexts]
    async with open_engine(model, tokenizer) as engine, serving(create_app(engine)) as url:
        async with official(url) as client:
            answer = await client.completions.create(
                model="anystreamer",
                prompt=prompts,
                temperature=0,
                max_tokens=1,
                logprobs=1,
                seed=1234,
                echo=True,
            )
    found = loglikelihood_of(answer.model_dump(), lengths)
    for (total, greedy), (own, is_greedy) in zip(expected, found, strict=True):
        assert own == pytest.approx(total, abs=1e-3)
        assert is_greedy is greedy
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == sum(map(len, prompts))


async def test_what_cannot_score_a_prompt_says_so() -> None:
    body = {"prompt": "ab", "echo": True, "logprobs": 1, "max_tokens": 1}
    async with open_engine(t5(), tokenizer()) as engine, serving(create_app(engine)) as url:
        async with client_of(url) as client:
            response = await client.post(TEXT, json=body)
            assert response.status_code == 400
            assert error_of(response)["param"] == "echo"
            echoed = (await client.post(TEXT, json={**body, "logprobs": None})).json()
            assert echoed["choices"][0]["text"].startswith("ab")
    async with open_engine(*demo(), batching="continuous") as engine:
        async with serving(create_app(engine)) as url, client_of(url) as client:
            response = await client.post(TEXT, json=body)
            assert response.status_code == 400
            assert error_of(response)["param"] == "logprobs"
            body |= {"logprobs": None, "max_tokens": 0}
            echoed = (await client.post(TEXT, json=body)).json()
            assert echoed["choices"][0]["text"] == "ab"
            assert echoed["usage"]["completion_tokens"] == 0
