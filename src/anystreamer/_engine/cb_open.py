"""Opens transformers' manager for an engine, and refuses models that it does not serve."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch

from .._errors import describe, is_kind, message_of
from .._text import FormMatcher
from .cb_check import AnswerCheck
from .cb_config import Settings
from .cb_form_masks import add_form_masks, can_mask
from .cb_manager import attention_of, cache_size, is_compiled, runs_python, use_attention
from .cb_passes import one_pass_at_a_time

__all__ = ["open_manager"]


@contextmanager
def open_manager(
    model: Any,
    tokenizer: Any,
    settings: Settings,
    matcher_of: Callable[[str], FormMatcher | None],
    is_cancelled: Callable[[], bool],
) -> Iterator[Any]:
    """Own a manager that runs, and whose answers are those of ``generate()``.

    Args:
        model: of transformers.
        tokenizer: its tokenizer.
        settings: of the engine.
        matcher_of: see `add_form_masks`.
        is_cancelled: whether the engine has been closed meanwhile. Then the check ends early.

    Raises:
        ValueError: the model cannot be served, or not correctly.
        MemoryError, torch.OutOfMemoryError: there is not enough memory.
    """
    with use_attention(model, attention_of(model)):  # a manager that fails does not restore it
        with _refusing(model):
            check = AnswerCheck(model, _special_ids(model, tokenizer), is_cancelled)
            manager = _new_manager(model, settings, settings.for_manager(model))
            if can_mask(manager):
                add_form_masks(manager, matcher_of)
        with nullcontext() if is_compiled(manager) else one_pass_at_a_time(manager.model):
            if not runs_python(manager):
                # Nothing of such a step can be recorded: another manager is checked in its place.
                with _refusing(model):
                    trial = _new_manager(model, settings, settings.for_trial(model))
                    with _stopped(trial):
                        _start(trial, check)
            with _stopped(manager):
                with _refusing(model):
                    _start(manager, check if runs_python(manager) else None)
                yield manager


@contextmanager
def _refusing(model: Any) -> Iterator[None]:
    """Turn an error into one that says what to do instead."""
    try:
        yield
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as exc:
        reason = message_of(exc) if is_kind(exc, ValueError) else describe(exc)
        raise ValueError(
            f"batching='continuous' cannot serve {type(model).__name__}: {reason}; "
            "use batching='none'"
        ) from exc


def _new_manager(model: Any, settings: Settings, config: Any) -> Any:
    return model.init_continuous_batching(
        generation_config=settings.generation_config(model), continuous_batching_config=config
    )


def _start(manager: Any, check: AnswerCheck | None) -> None:
    if manager.model.device.type != "cpu":
        manager.warmup()
    if check is not None:
        check.run(manager)
    else:
        manager.start()
        cache_size(manager)  # raises if it has died


@contextmanager
def _stopped(manager: Any) -> Iterator[None]:
    """Stop a manager after the block, in which its requests have ended."""
    try:
        yield
    finally:
        manager.stop(block=True)
        manager.destroy()


def _special_ids(model: Any, tokenizer: Any) -> set[int]:
    """Ids that are not text: they can end an answer, or stand for an image."""
    special = set(getattr(tokenizer, "all_special_ids", ()))
    for config in (model.config, model.config.get_text_config()):
        for name, value in config.to_dict().items():
            if name.endswith(("_token_id", "_token_index")):
                special.update(value if isinstance(value, list) else [value])
    return special
