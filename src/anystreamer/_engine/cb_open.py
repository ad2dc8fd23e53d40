"""Opens transformers' manager for an engine, and refuses models that it does not serve."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import torch

from .._errors import describe, is_kind, message_of
from .active_request import ActiveRequest, ScoreHooks
from .cb_check import AnswerCheck
from .cb_config import Settings, is_neutral_penalty
from .cb_form_masks import FormMasks
from .cb_manager import (
    attention_of,
    cache_size,
    configs_of,
    is_compiled,
    runs_in_order,
    runs_python,
    use_attention,
    use_simple_queue,
)
from .cb_passes import one_pass_at_a_time
from .cb_processors import ForEachRequest
from .cb_refusals import NOT_IN_ORDER
from .cb_sampling import Recorder, choose_for_each, draw_by_itself

__all__ = ["open_manager"]


@contextmanager
def open_manager(
    model: Any,
    tokenizer: Any,
    settings: Settings,
    active_request: Callable[[str], ActiveRequest | None],
    is_cancelled: Callable[[], bool],
) -> Iterator[Any]:
    """Own a manager that runs, and whose answers are those of ``generate()``.

    Args:
        model: of transformers.
        tokenizer: its tokenizer.
        settings: of the engine.
        active_request: finds a request by its id. Called in the manager's thread.
        is_cancelled: whether the engine has been closed meanwhile. Then the check ends early.

    Raises:
        ValueError: the model cannot be served, or not correctly.
        MemoryError, torch.OutOfMemoryError: there is not enough memory.
    """
    configs, before = configs_of(model), attention_of(model)
    with use_attention(configs, before):  # a manager that fails does not restore it
        with _refusing(model):
            check = AnswerCheck(model, _special_ids(model, tokenizer), is_cancelled)
            manager = _new_manager(model, settings, settings.for_manager(model))
            use_simple_queue(manager)
            choose_for_each(manager)
            recorder = None
            if runs_in_order(manager):
                hooks_of = partial(_hooks_of, active_request)
                # Each is put before those that are there already.
                FormMasks(lambda name: hooks_of(name).form_matcher).add_to(manager)
                ForEachRequest(lambda name: hooks_of(name).changes).add_to(manager)
                recorder = Recorder(
                    partial(_wants_logprobs, active_request), partial(_fail, active_request)
                )
                recorder.add_to(manager)
                ForEachRequest(lambda name: hooks_of(name).penalties).add_to(manager)
            elif not is_neutral_penalty(penalty := model.generation_config.repetition_penalty):
                raise ValueError(
                    f"repetition_penalty={penalty!r} of the model's generation config "
                    f"{NOT_IN_ORDER}"
                )
        attention = attention_of(model)
        with (
            use_attention(configs, before),  # of the model; the manager's passes have their own
            nullcontext()
            if is_compiled(manager)
            else one_pass_at_a_time(manager.model, configs, attention),
        ):
            if not runs_python(manager):
                # Nothing of such a step can be recorded: another manager is checked in its place.
                with _refusing(model):
                    trial = _new_manager(model, settings, settings.for_trial(model))
                    with _stopped(trial):
                        with use_attention(configs, attention):
                            trial.warmup()
                        _start(trial, check)
            with _stopped(manager):
                with _refusing(model):
                    with use_attention(configs, attention):  # it is looked at for the cache
                        manager.warmup()
                    if recorder is not None:
                        draw_by_itself(manager, recorder)
                    _start(manager, check if runs_python(manager) else None)
                yield manager


def _hooks_of(active_request: Callable[[str], ActiveRequest | None], request_id: str) -> ScoreHooks:
    active = active_request(request_id)
    return ScoreHooks() if active is None else active.score_hooks


def _wants_logprobs(active_request: Callable[[str], ActiveRequest | None], request_id: str) -> bool:
    active = active_request(request_id)
    return active is not None and active.request.options.logprobs


def _fail(
    active_request: Callable[[str], ActiveRequest | None], request_id: str, tokens: int
) -> None:
    if (active := active_request(request_id)) is not None:
        active.fail_after(tokens)


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
