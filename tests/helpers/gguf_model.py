"""The embedded model as a GGUF file, which llama.cpp reads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from anystreamer.demo import load_demo

__all__ = ["write_gguf"]


def write_gguf(path: Path) -> None:
    """Write the embedded model with its weights, its tokens and its chat template.

    llama.cpp splits texts into words in ways of its own. With this model, the result differs for
    words with a hyphen: pass ids in place of such text.
    """
    import gguf  # installed in the session of llama.cpp only

    model, tokenizer = load_demo()
    config: Any = model.config
    writer = gguf.GGUFWriter(path, gguf.MODEL_ARCH_NAMES[gguf.MODEL_ARCH.LLAMA])
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    add_tokens(writer, tokenizer)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, weight in model.named_parameters():
        tensor = weight.detach().float()
        if name.endswith(("q_proj.weight", "k_proj.weight")):
            tensor = interleaved(tensor, config.num_attention_heads)
        writer.add_tensor(names.get_name(name, try_suffixes=(".weight",)), tensor.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def add_tokens(writer: Any, tokenizer: Any) -> None:
    import gguf

    special = set(tokenizer.all_special_ids)
    ids = range(len(tokenizer))
    writer.add_vocab_size(len(ids))
    writer.add_tokenizer_model("gpt2")  # a byte-level BPE
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokenizer.convert_ids_to_tokens(list(ids)))
    kinds = gguf.TokenType
    writer.add_token_types([kinds.CONTROL if each in special else kinds.NORMAL for each in ids])
    inside = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    writer.add_token_merges([" ".join(pair) for pair in inside["merges"]])
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_pad_token_id(tokenizer.pad_token_id)
    writer.add_add_bos_token(False)
    writer.add_chat_template(tokenizer.chat_template)


def interleaved(weight: Any, heads: int) -> Any:
    """llama.cpp rotates pairs of neighbours, and transformers the halves of a head."""
    rows = weight.shape[0] // heads
    return weight.reshape(heads, 2, rows // 2, -1).swapaxes(1, 2).reshape(weight.shape).contiguous()
