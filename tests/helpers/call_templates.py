"""Response templates of several families of models, from transformers' tests and the models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LogitsProcessor, PreTrainedTokenizerFast

from .tiny_models import new_llama

__all__ = ["FAMILIES", "NEEDS_RESPONSE_PARSER", "QWEN", "Family", "Wish", "tool"]

NEEDS_RESPONSE_PARSER = pytest.mark.skipif(
    not hasattr(PreTrainedTokenizerFast, "get_response_parser"),
    reason="this release of transformers has no response parser",
)

_ALPHABET = sorted(pre_tokenizers.ByteLevel.alphabet())
_BY_NAME = {"type": "function", "function": {"name": "{name}", "arguments": "{content}"}}
_OF_CONTENT = {"type": "function", "function": "{content}"}

# In the prompt: the messages and, before them, the tools.
_CHAT_TEMPLATE = """
{%- for tool in tools or [] %}{{ "tool:" + tool | tojson + "\\n" }}{% endfor %}
{%- for message in messages %}{{ message.role + ":" + message.content + "\\n" }}{% endfor %}
{%- if add_generation_prompt %}{{ anchor }}{% endif %}
"""


class Wish(LogitsProcessor):
    """Makes a model prefer these tokens, one after the other."""

    def __init__(self, ids: Sequence[int]) -> None:
        self.ids = list(ids)
        self._at = 0

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        at, self._at = self._at, self._at + 1
        if at < len(self.ids):
            scores = scores.clone()
            scores[:, self.ids[at]] += 100.0
        return scores


def tool(
    name: str,
    properties: Mapping[str, Any] | None = None,
    required: Sequence[str] = (),
    *,
    strict: bool | None = None,
) -> dict[str, Any]:
    """A tool in OpenAI's form."""
    function = {
        "name": name,
        "description": f"The function {name}.",
        "parameters": {
            "type": "object",
            "properties": dict(properties or {}),
            "required": list(required),
        },
    }
    return {
        "type": "function",
        "function": function | ({} if strict is None else {"strict": strict}),
    }


class Never(LogitsProcessor):
    """Keeps a model from these tokens."""

    def __init__(self, ids: Sequence[int]) -> None:
        self._ids = list(ids)

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        return scores.index_fill(1, torch.tensor(self._ids, dtype=torch.long), -torch.inf)


@dataclass(frozen=True)
class Family:
    """A way to write calls: the template, the special tokens, and a call of `wait`."""

    fields: dict[str, Any]
    anchor: str
    call: str  #: of ``wait`` with 7 seconds
    special: tuple[str, ...]  #: the first one ends an answer
    opens_call: str  #: what "none" masks
    opens_reasoning: str = ""

    @property
    def template(self) -> dict[str, Any]:
        defaults = {"role": "assistant"}
        return {"defaults": defaults, "start_anchor": self.anchor, "fields": self.fields}

    @cached_property
    def tokenizer(self) -> Any:
        vocabulary = {char: i for i, char in enumerate(_ALPHABET)}
        backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        backend.decoder = decoders.ByteLevel()
        backend.add_special_tokens(list(self.special))
        return PreTrainedTokenizerFast(
            tokenizer_object=backend,
            eos_token=self.special[0],
            pad_token=self.special[0],
            model_input_names=["input_ids", "attention_mask"],
            chat_template=_CHAT_TEMPLATE.replace("anchor", repr(self.anchor)),
        )

    @property
    def eos(self) -> int:
        return len(_ALPHABET)

    @cached_property
    def model(self) -> Any:
        size = len(_ALPHABET) + len(self.special)
        return new_llama(vocabulary=size, eos=self.eos, never=[self.eos])

    @property
    def prompt(self) -> str:
        return f"user:hi\n{self.anchor}"

    def no_reasoning(self) -> list[Any]:
        """A processor against reasoning, which a model with random weights would hardly end."""
        id_of = self.tokenizer.convert_tokens_to_ids
        if self.opens_reasoning in self.special:
            return [Never([id_of(self.opens_reasoning)])]
        return []


def _field(opens: Mapping[str, Any], content: str = "json", **more: Any) -> dict[str, Any]:
    return {**opens, "content": content, **more}


_THINK = {"open": "<think>", "close": "</think>", "content": "text"}
_TAGS = {"tag_pattern": r"<parameter=(?P<key>\w+)>\s*(?P<value>.*?)\s*</parameter>"}
_XML_CALL = (
    "<tool_call>\n<function=wait>\n<parameter=seconds>\n7\n</parameter>\n</function>\n</tool_call>"
)

FAMILIES: dict[str, Family] = {
    "qwen": Family(
        {
            "reasoning_content": _THINK,
            "tool_calls": _field(
                {"open_pattern": r"\s*<tool_call>", "close": "</tool_call>"},
                repeats=True,
                transform=_OF_CONTENT,
            ),
            "content": {"close_pattern": r"\s*(?:<\|im_end\|>|<\|endoftext\|>)"},
        },
        "<|im_start|>assistant\n",
        '<tool_call>\n{"name": "wait", "arguments": {"seconds": 7}}\n</tool_call>',
        ("<|im_end|>", "<|im_start|>", "<think>", "</think>"),
        "<tool_call>",
        "<think>",
    ),
    "qwen coder": Family(
        {
            "tool_calls": _field(
                {
                    "open_pattern": r"\s*<tool_call>\s*<function=(?P<name>[^>\n]+)>",
                    "close_pattern": r"</function>\s*</tool_call>",
                },
                "xml-inline",
                content_args=_TAGS,
                repeats=True,
                transform=_BY_NAME,
            ),
            "content": {"close": "<|im_end|>"},
        },
        "<|im_start|>assistant\n",
        _XML_CALL,
        ("<|im_end|>", "<|im_start|>"),
        "<tool_call>",
    ),
    "qwen coder, json values": Family(
        {
            "tool_calls": _field(
                {
                    "open_pattern": r"<tool_call>\s*<function=(?P<name>\w+)>",
                    "close": "</tool_call>",
                },
                "xml-inline",
                content_args={
                    **_TAGS,
                    "value_parser": {"name": "json", "args": {"allow_non_json": True}},
                },
                repeats=True,
                transform=_BY_NAME,
            ),
            "content": {"close": "<|im_end|>"},
        },
        "<|im_start|>assistant\n",
        _XML_CALL,
        ("<|im_end|>", "<|im_start|>"),
        "<tool_call>",
    ),
    "harmony": Family(
        {
            "thinking": {"open": "<|channel|>analysis<|message|>", "close": "<|end|>"},
            "content": {"open": "<|channel|>final<|message|>", "close": "<|end|>"},
            "tool_calls": _field(
                {
                    "open_pattern": r"<\|channel\|>commentary to=functions\.(?P<name>\w+).*?"
                    r"<\|message\|>",
                    "close": "<|call|>",
                },
                repeats=True,
                transform=_BY_NAME,
            ),
        },
        "<|start|>assistant",
        "<|channel|>commentary to=functions.wait <|constrain|>json<|message|>"
        '{"seconds": 7}<|call|>',
        ("<|call|>", "<|start|>", "<|channel|>", "<|message|>", "<|end|>", "<|constrain|>"),
        "commentary to=functions.",
    ),
    "cohere": Family(
        {
            "content": {"open": "<|START_RESPONSE|>", "close": "<|END_RESPONSE|>"},
            "thinking": {"open": "<|START_THINKING|>", "close": "<|END_THINKING|>"},
            "tool_calls": _field(
                {"open": "<|START_ACTION|>", "close": "<|END_ACTION|>"},
                transform_each=True,
                transform={
                    "type": "function",
                    "function": {"name": "{tool_name}", "arguments": "{parameters}"},
                },
            ),
        },
        "<|CHATBOT_TOKEN|>",
        '<|START_ACTION|>[\n{"tool_name": "wait", "parameters": {"seconds": 7}}\n]<|END_ACTION|>',
        (
            "<|END_OF_TURN_TOKEN|>",
            *("<|CHATBOT_TOKEN|>", "<|START_RESPONSE|>", "<|END_RESPONSE|>"),
            *("<|START_THINKING|>", "<|END_THINKING|>", "<|START_ACTION|>", "<|END_ACTION|>"),
        ),
        "<|START_ACTION|>",
        "<|START_THINKING|>",
    ),
    "mistral, a list": Family(
        {
            "content": {"close": "</s>"},
            "tool_calls": _field(
                {"open": "[TOOL_CALLS]", "close": "</s>"},
                transform_each=True,
                transform={
                    "type": "function",
                    "id": "{id}",
                    "function": {"name": "{name}", "arguments": "{arguments}"},
                },
            ),
        },
        "[/INST]",
        '[TOOL_CALLS] [{"name": "wait", "arguments": {"seconds": 7}, "id": "abcdefghi"}]',
        ("</s>", "[/INST]", "[TOOL_CALLS]"),
        "[TOOL_CALLS]",
    ),
    "mistral, one by one": Family(
        {
            "content": {"close": "</s>"},
            "tool_calls": _field(
                {
                    "open_pattern": r"\[TOOL_CALLS\](?P<name>[\w-]+)\[ARGS\]",
                    "close_pattern": r"(?=\[TOOL_CALLS\])|</s>",
                },
                repeats=True,
                transform=_BY_NAME,
            ),
        },
        "[/INST]",
        '[TOOL_CALLS]wait[ARGS]{"seconds": 7}',
        ("</s>", "[/INST]", "[TOOL_CALLS]", "[ARGS]"),
        "[TOOL_CALLS]",
    ),
    "llama": Family(
        {
            "content": {"close": "<|eot_id|>"},
            "tool_calls": _field(
                {"open": "<|python_tag|>", "close": ["<|eom_id|>", "<|eot_id|>"]},
                transform={
                    "type": "function",
                    "function": {"name": "{content.name}", "arguments": "{content.parameters}"},
                },
            ),
        },
        "<|start_header_id|>",
        '<|python_tag|>{"name": "wait", "parameters": {"seconds": 7}}<|eom_id|>',
        ("<|eot_id|>", "<|start_header_id|>", "<|python_tag|>", "<|eom_id|>"),
        "<|python_tag|>",
    ),
    "inkling": Family(
        {
            "thinking": {
                "open_pattern": r"(?:<\|message_model\|>)?[^<]*<\|content_thinking\|>",
                "close": "<|end_message|>",
            },
            "content": {
                "open_pattern": r"(?:<\|message_model\|>)?[^<]*<\|content_text\|>",
                "close": "<|end_message|>",
            },
            "tool_calls": _field(
                {
                    "open_pattern": r"(?:<\|message_model\|>)?[^<]*<\|content_invoke_tool_json\|>",
                    "close": "<|end_message|>",
                },
                repeats=True,
                transform={
                    "type": "function",
                    "function": {"name": "{content.name}", "arguments": "{content.args}"},
                },
            ),
        },
        "<|message_model|>",
        '<|content_invoke_tool_json|>{"name": "wait", "args": {"seconds": 7}}<|end_message|>',
        (
            "<|eos|>",
            *("<|message_model|>", "<|content_thinking|>", "<|content_text|>"),
            *("<|content_invoke_tool_json|>", "<|end_message|>"),
        ),
        "<|content_invoke_tool_json|>",
        "<|content_thinking|>",
    ),
}
QWEN = FAMILIES["qwen"]
