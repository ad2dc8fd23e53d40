"""The seed of one request: its tokens are drawn with a random generator of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["Seed"]


class Seed:
    """A logits processor. Tokens that are sampled from its scores depend on this seed alone.

    ``generate()`` samples with `torch.multinomial` and passes no generator, so that it would use
    the default one of the whole process. To set that one's seed is not enough: other requests,
    engines and threads draw from it at the same time, and would be disturbed as well.
    """

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._scores_type: Any = None

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        """Return the same scores, as a tensor that passes the generator to `multinomial`."""
        if self._scores_type is None:
            self._scores_type = _scores_type(self._seed, scores.device)
        return scores.as_subclass(self._scores_type)


def _scores_type(seed: int, device: Any) -> Any:
    import torch

    generator = torch.Generator(device).manual_seed(seed)

    class Scores(torch.Tensor):
        @classmethod
        def __torch_function__(
            cls,
            func: Any,
            types: Sequence[type],
            args: Sequence[Any] = (),
            kwargs: Mapping[str, Any] | None = None,
        ) -> Any:
            kwargs = dict(kwargs or {})
            if func in (torch.multinomial, torch.Tensor.multinomial):
                kwargs.setdefault("generator", generator)
            # torch's own has no types.
            result: Any = super().__torch_function__(func, types, args, kwargs)
            if isinstance(result, torch.Tensor) and not result.dtype.is_floating_point:
                return result.as_subclass(torch.Tensor)  # token ids, which become model inputs
            return result

    return Scores
