"""The model that clients talk to: it counts, calls a tool, or goes on for ever, as a message asks.

The embedded model can only count. This one is a chain instead: its latest token alone decides the
next one. So its answers are known, and where the server enforces a form, it makes the shortest.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

__all__ = ["save_model"]

_ALPHABET = sorted(pre_tokenizers.ByteLevel.alphabet())
_END = "<|end|>"
# Each begins an answer of its kind. The template chooses one by the latest message.
_COUNTS, _CALLS, _TICKS = "<|counts|>", "<|calls|>", "<|ticks|>"
_CALLS_PLUGIN = "<|calls plugin|>"
_WORDS = [
    word if word == "one" else f", {word}"
    for word in "one two three four five six seven eight nine ten".split()
]
# Its first token is none that a form of other tools can begin with.
_CALL = ['<tool_call>{"name": "get_weather", "arguments": ', '{"city": "Paris"}}', "</tool_call>"]
# The function of a plugin, as Semantic Kernel names it.
_PLUGIN_CALL = [_CALL[0].replace("get_weather", "get-weather"), *_CALL[1:]]
_TICK = " tick"
_CHAINS = [
    [_COUNTS, *_WORDS, _END],
    [_CALLS, *_CALL, _END],
    [_CALLS_PLUGIN, *_PLUGIN_CALL[:2]],
    [_TICKS, _TICK, _TICK],
]
# What the model prefers where its chain has nothing, or the form forbids it: what ends a string, an
# object, a list or a number, and an object before a call. White space would never end.
_PREFERRED = '"}],:0123456789{'
_NEVER = "\t\n\r "

_CHAT_TEMPLATE = """
{%- for tool in tools or [] %}{{ "tool: " + tool | tojson + "\\n" }}{% endfor %}
{%- for message in messages %}
    {{- message.role + ": " + (message.content or "") + "\\n" }}
{%- endfor %}
{%- if add_generation_prompt %}
    {%- set latest = messages[-1] %}
    {%- if "for ever" in (latest.content or "") %}{{ "<|ticks|>" }}
    {%- elif tools and latest.role == "user" and "weather" in latest.content %}
        {{- "<|calls plugin|>" if tools[0].function.name == "get-weather" else "<|calls|>" }}
    {%- else %}{{ "<|counts|>" }}{% endif %}
{%- endif %}
"""

_RESPONSE_TEMPLATE = {
    "defaults": {"role": "assistant"},
    "start_anchor_pattern": r"<\|(?:counts|calls|calls plugin|ticks)\|>",
    "fields": {
        "tool_calls": {
            "open": "<tool_call>",
            "close": "</tool_call>",
            "content": "json",
            "repeats": True,
            "transform": {"type": "function", "function": "{content}"},
        },
        "content": {"close": _END},
    },
}


def save_model(folder: Path) -> None:
    """Write the model and its tokenizer into *folder*."""
    tokenizer = _new_tokenizer()
    tokenizer.save_pretrained(folder)
    _new_model(tokenizer).save_pretrained(folder)


def _new_tokenizer() -> Any:
    vocabulary = {char: token_id for token_id, char in enumerate(_ALPHABET)}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([_END, _COUNTS, _CALLS, _CALLS_PLUGIN, _TICKS])
    texts = (*_WORDS, *_CALL, _PLUGIN_CALL[0], _TICK)
    backend.add_tokens([AddedToken(text, normalized=False) for text in texts])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token=_END,
        pad_token=_END,
        model_input_names=["input_ids", "attention_mask"],
        chat_template=_CHAT_TEMPLATE,
        response_template=_RESPONSE_TEMPLATE,
    )


def _new_model(tokenizer: Any) -> Any:
    """A Llama whose layer adds nothing: its weights are the table of the chain."""
    size = len(tokenizer)
    config = LlamaConfig(
        vocab_size=size,
        hidden_size=size + 1,
        intermediate_size=1,
        num_hidden_layers=1,
        num_attention_heads=1,
        head_dim=8,
        max_position_embeddings=2**20,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = LlamaForCausalLM(config)
    layer = model.model.layers[0]
    score = torch.zeros(size, size + 1)  # of each token, after each one
    for text in _NEVER:
        score[tokenizer.encode(text), -1] = -2.0
    for rank, text in enumerate(reversed(_PREFERRED), start=1):
        score[tokenizer.encode(text), -1] = float(rank)
    for chain in _CHAINS:
        ids = tokenizer.convert_tokens_to_ids(chain)
        score[ids[1:], ids[:-1]] = 2.0 * len(_PREFERRED)
    with torch.no_grad():
        layer.self_attn.o_proj.weight.zero_()
        layer.mlp.down_proj.weight.zero_()
        model.model.embed_tokens.weight.copy_(torch.eye(size, size + 1))
        model.model.embed_tokens.weight[:, -1] = 1.0
        model.lm_head.weight.copy_(score)
    return model
