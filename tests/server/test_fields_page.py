"""The page with the fields of requests says what the code does, and what others document."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from openai.types.chat.completion_create_params import CompletionCreateParamsStreaming as OpenAIChat
from openai.types.completion_create_params import CompletionCreateParamsStreaming as OpenAIText

from anystreamer.server._fields import INSTEAD, Fixed, Ignored, Neutral, Strict
from anystreamer.server._request_models import ChatRequest, CompletionRequest

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "fields.md"
# The fields of ChatCompletionRequest and CompletionRequest in vLLM at commit 002032ee, in
# vllm/entrypoints/openai/{chat_completion,completion}/protocol.py. Four are left out, because they
# have no effect there: user, suffix, return_token_offsets and return_mm_kwargs.
VLLM = set(
    """
    add_generation_prompt add_special_tokens allowed_token_ids bad_words cache_salt chat_template
    chat_template_kwargs continue_final_message documents echo ec_transfer_params frequency_penalty
    ignore_eos include_reasoning include_stop_str_in_output kv_transfer_params length_penalty
    logit_bias logprob_token_ids logprobs max_completion_tokens max_tokens media_io_kwargs messages
    min_p min_tokens mm_processor_kwargs model n parallel_tool_calls presence_penalty priority
    prompt prompt_embeds prompt_logprobs reasoning_effort repetition_detection repetition_penalty
    request_id response_format return_prompt_text return_token_ids return_tokens_as_token_ids
    routed_experts_prompt_start seed session_id skip_special_tokens spaces_between_special_tokens
    stop stop_token_ids stream stream_interval stream_options structured_outputs temperature
    thinking_token_budget tool_choice tools top_k top_logprobs top_p truncate_prompt_tokens
    truncation_side use_beam_search vllm_xargs watermarking
    """.split()
)

# The fields of ChatCompletionRequest and CompletionRequest in SGLang at commit 004c82e0, in
# python/sglang/srt/entrypoints/openai/protocol.py. It ignores all others.
SGLANG = set(
    """
    best_of bootstrap_host bootstrap_port bootstrap_room cache_salt chat_template_kwargs
    continue_final_message custom_labels custom_logit_processor custom_params data_parallel_rank
    disagg_prefill_dp_rank ebnf echo extra_key frequency_penalty ignore_eos images_config input_ids
    json_schema logit_bias logprobs lora_path max_completion_tokens max_dynamic_patch max_tokens
    messages min_dynamic_patch min_p min_tokens model n ngram_corpus_id no_stop_trim
    parallel_tool_calls presence_penalty priority prompt reasoning_effort regex repetition_penalty
    response_format return_cached_tokens_details return_hidden_states return_meta_info
    return_prompt_token_ids return_routed_experts return_token_ids rid routed_dp_rank
    routed_experts_start_len seed separate_reasoning session_id session_params skip_special_tokens
    stop stop_regex stop_token_ids stream stream_options stream_reasoning suffix task temperature
    tool_choice tools top_k top_logprobs top_p use_audio_in_video user
    """.split()
)

KINDS: dict[str, type[Strict]] = {"chat": ChatRequest, "text": CompletionRequest}
COLUMNS = (
    *("field", "in", "OpenAI", "transformers", "vLLM", "SGLang"),
    *("anystreamer", "same as no value"),
)


def rows() -> list[dict[str, str]]:
    lines = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line[:1] == "|"]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert tuple(cells[0]) == COLUMNS
    return [dict(zip(COLUMNS, row, strict=True)) for row in cells[2:]]


def own_columns(name: str) -> dict[str, str]:
    """What the code says of a field."""
    fields = {
        each: kind.model_fields[name] for each, kind in KINDS.items() if name in kind.model_fields
    }
    if not fields:
        return {"in": "–", "anystreamer": "no", "same as no value": "–"}
    meant = []
    for kind, field in fields.items():
        does, neutral = "yes", ""
        for each in field.metadata:
            if isinstance(each, Ignored):
                does = "a note"
            elif isinstance(each, Fixed):
                does = "no"
            if isinstance(each, Fixed | Neutral):
                neutral = ", ".join(f"`{json.dumps(value)}`" for value in each.values)
        meant.append((does, neutral or "–", kind))
    # A field of both can do something in one of them only.
    done = [does for does, _, _ in meant]
    kinds = list(fields)
    if len(set(done)) > 1:
        kinds = [kind for kind, does in zip(kinds, done, strict=True) if does != "no"]
    neutrals = {kind: value for does, value, kind in meant if does == max(done)}
    neutral = next(iter(neutrals.values()))
    if len(set(neutrals.values()) - {"–"}) > 1:
        neutral = ", ".join(f"{value} ({kind})" for kind, value in neutrals.items())
    return {"in": ", ".join(kinds), "anystreamer": max(done), "same as no value": neutral}


def test_each_field_of_ours_has_a_row_that_is_true() -> None:
    table = {row["field"].strip("`"): row for row in rows()}
    ours = ChatRequest.model_fields.keys() | CompletionRequest.model_fields.keys()
    assert ours <= table.keys()
    for name, row in table.items():
        assert own_columns(name).items() <= row.items(), name


def test_fields_that_are_only_others_are_refused() -> None:
    """And those that say what to send instead, are known to the code."""
    for row in rows():
        if row["anystreamer"] == "no" and row["in"] == "–":
            for kind in KINDS.values():
                assert row["field"].strip("`") not in kind.model_fields
    assert {"structured_outputs", "documents"} <= INSTEAD.keys()


def test_the_column_of_openai_is_that_of_its_client() -> None:
    theirs: Any = OpenAIChat.__annotations__.keys() | OpenAIText.__annotations__.keys()
    for base in (*OpenAIChat.__orig_bases__, *OpenAIText.__orig_bases__):  # type: ignore[attr-defined]
        theirs |= getattr(base, "__annotations__", {}).keys()
    told = {row["field"].strip("`") for row in rows() if row["OpenAI"] == "yes"}
    # A newer client can have more.
    assert told <= theirs


def test_the_column_of_transformers_is_that_of_its_server() -> None:
    serving = pytest.importorskip("transformers.cli.serving.chat_completion")
    kind = serving.TransformersCompletionCreateParamsStreaming
    theirs = set(kind.__mutable_keys__) - serving.UNUSED_CHAT_COMPLETION_FIELDS
    told = {row["field"].strip("`") for row in rows() if row["transformers"] == "yes"}
    assert told - {"prompt", "suffix"} <= theirs


def test_the_column_of_vllm_is_that_of_its_source() -> None:
    assert {row["field"].strip("`") for row in rows() if row["vLLM"] == "yes"} == VLLM


def test_the_column_of_sglang_is_that_of_its_source() -> None:
    assert {row["field"].strip("`") for row in rows() if row["SGLang"] == "yes"} == SGLANG


def test_nothing_that_all_others_do_is_missing_here() -> None:
    for row in rows():
        if row["OpenAI"] == row["vLLM"] == row["transformers"] == "yes":
            assert row["anystreamer"] in ("yes", "a note"), row
