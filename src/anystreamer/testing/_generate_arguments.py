"""Which arguments transformers' ``generate()`` refuses, for a model that needs no transformers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

__all__ = ["NAMES", "check_arguments", "effective_arguments", "max_new_tokens"]

# Parameters of generate() and of a Llama's forward(), and all settings of a GenerationConfig.
NAMES = frozenset(
    """
    assistant_confidence_threshold assistant_early_exit assistant_ensemble_weight
    assistant_lookbehind assistant_model assistant_tokenizer attention_mask bad_words_ids
    begin_suppress_tokens bos_token_id cache_config cache_implementation compile_config constraints
    continuous_batching_config cu_seq_lens_k cu_seq_lens_q custom_generate decoder_start_token_id
    disable_compile diversity_penalty do_sample dola_layers early_stopping
    encoder_no_repeat_ngram_size encoder_repetition_penalty eos_token_id epsilon_cutoff eta_cutoff
    exponential_decay_length_penalty force_words_ids forced_bos_token_id forced_eos_token_id
    generation_config guidance_scale input_ids inputs inputs_embeds is_assistant is_causal
    is_first_iteration labels length_penalty logits_processor logits_to_keep low_memory
    max_cache_len max_length max_length_k max_length_q max_matching_ngram_size max_new_tokens
    max_time min_length min_new_tokens min_p negative_prompt_attention_mask negative_prompt_ids
    next_sequence_length no_repeat_ngram_size num_assistant_tokens num_assistant_tokens_schedule
    num_beam_groups num_beams num_items_in_batch num_return_sequences output_attentions
    output_hidden_states output_logits output_router_logits output_scores pad_token_id
    past_key_values penalty_alpha position_ids prefill_chunk_size prefix_allowed_tokens_fn
    prompt_lookup_num_tokens remove_invalid_values renormalize_logits repetition_penalty
    return_dict_in_generate seq_idx sequence_bias speculation_type stop_strings stopping_criteria
    streamer suppress_tokens synced_gpus target_lookbehind temperature token_healing tokenizer top_h
    top_k top_p trust_remote_code typical_p use_cache use_mtp watermarking_config
    """.split()
)

_CACHES = (
    *("static", "offloaded_static", "sliding_window", "hybrid", "hybrid_chunked"),
    *("offloaded_hybrid", "offloaded_hybrid_chunked", "dynamic", "offloaded", "quantized", "paged"),
)


@dataclass(frozen=True)
class _Rule:
    name: str
    accepts: Callable[[Any], bool]
    requirement: str
    when_sampling: bool = False  # only sampling reads it

    def check(self, value: Any) -> None:
        message = f"{self.name} must be {self.requirement}, got {value!r}"
        try:
            is_accepted = self.accepts(value)
        except TypeError:
            raise TypeError(message) from None
        if not is_accepted:
            raise ValueError(message)


def _is_penalty(value: Any) -> bool:
    return value == 1 or (isinstance(value, float) and value > 0)


def _is_size(value: Any) -> bool:
    return value <= 0 or isinstance(value, int)  # it is not used unless it is positive


def _is_list_of_words(value: Any) -> bool:
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(ids, list) and all(each >= 0 for each in ids) for ids in value)
    )


_PENALTY = "1 or a float above 0"

_RULES = (
    _Rule("max_new_tokens", lambda value: value > 0, "at least 1"),
    # Any number, but only a number: the comparison raises a TypeError for others.
    _Rule("max_time", lambda value: value > 0 or True, "a number of seconds"),
    _Rule("num_beams", lambda value: value > 0, "at least 1"),
    _Rule("prompt_lookup_num_tokens", lambda value: value > 0, "at least 1"),
    _Rule("early_stopping", lambda value: value in (True, False, "never"), "a bool or 'never'"),
    _Rule("repetition_penalty", _is_penalty, _PENALTY),
    _Rule("encoder_repetition_penalty", _is_penalty, _PENALTY),
    _Rule("no_repeat_ngram_size", _is_size, "an int"),
    _Rule("min_length", _is_size, "an int"),
    _Rule("min_new_tokens", _is_size, "an int"),
    _Rule("bad_words_ids", _is_list_of_words, "a list of lists of token ids, not empty"),
    _Rule("cache_implementation", lambda value: value in _CACHES, f"one of {', '.join(_CACHES)}"),
    _Rule("temperature", _is_penalty, _PENALTY, when_sampling=True),
    _Rule(
        "top_k",
        lambda value: value == 0 or (isinstance(value, int) and value > 0),
        "an int of at least 0",
        when_sampling=True,
    ),
    _Rule("top_p", lambda value: value >= 0, "a number from 0 to 1", when_sampling=True),
    _Rule("min_p", lambda value: 0 <= value <= 1, "a number from 0 to 1", when_sampling=True),
    _Rule("top_h", lambda value: 0 < value <= 1, "a number above 0, up to 1", when_sampling=True),
    _Rule("typical_p", lambda value: value > 0, "a number above 0", when_sampling=True),
)


def effective_arguments(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """What is in effect: the arguments, and the settings of the ``generation_config`` with them."""
    config = arguments.get("generation_config")
    settings = (
        {} if config is None else {key: vars(config)[key] for key in vars(config).keys() & NAMES}
    )
    return {**settings, **arguments}


def check_arguments(arguments: Mapping[str, Any]) -> None:
    """Refuse what ``generate()`` refuses: an unknown name, or a value that cannot work.

    Raises:
        ValueError: with what to pass instead.
        TypeError: a value of a type that cannot be compared with a number.
    """
    given = {name: value for name, value in arguments.items() if value is not None}
    for name in given.keys() - NAMES:
        similar = get_close_matches(name, NAMES, n=1)
        hint = f"did you mean {similar[0]}=?" if similar else "leave it out"
        raise ValueError(f"generate() of transformers has no argument {name}=: {hint}")
    for rule in _RULES:
        if rule.name in given and (given.get("do_sample") or not rule.when_sampling):
            rule.check(given[rule.name])


def max_new_tokens(arguments: Mapping[str, Any], prompt_length: int) -> float:
    """How many tokens these arguments allow after a prompt; infinity if they set no limit.

    Raises:
        ValueError: they allow no token at all.
    """
    if (limit := arguments.get("max_new_tokens")) is not None:
        return float(limit)
    if (total := arguments.get("max_length")) is None:
        return float("inf")
    if prompt_length >= total:
        raise ValueError(
            f"max_length={total} leaves no room after a prompt of {prompt_length} tokens: pass a "
            "larger one, or max_new_tokens="
        )
    return float(total - prompt_length)
