"""The log-probabilities of a prompt's own tokens, computed in the turn of its answer."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from .._streams import Logprob

__all__ = ["PromptScores"]

POSITIONS_AT_ONCE = 128  # whose logits are normalised together: in float32 they take much memory


class PromptScores:
    """A logits processor that scores the prompt before the answer's first token is chosen.

    It runs one more forward pass over the prompt, since ``generate()`` computes the logits of the
    last position only. Several answers to a prompt can share one: the prompt is scored once.

    Args:
        model: a decoder of transformers.
        top: how many of the likeliest tokens to give for each position.
    """

    def __init__(self, model: Any, top: int) -> None:
        self._model = model
        self._top = top
        #: of each token of the prompt but the first, which nothing predicts; None until the call
        self.logprobs: list[Logprob] | None = None

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        """Return *scores* unchanged. *input_ids* has the shape ``(1, T)``."""
        if self.logprobs is None:
            import torch

            with torch.no_grad():
                output = self._model(
                    input_ids=input_ids,
                    attention_mask=torch.ones_like(input_ids),
                    use_cache=False,
                )
            self.logprobs = list(self._logprobs(output.logits[0], input_ids[0, 1:]))
        return scores

    def __deepcopy__(self, memo: dict[int, Any]) -> PromptScores:
        # Assisted decoding copies processors for its draft model.
        return self

    def _logprobs(self, logits: Any, ids: Any) -> Iterator[Logprob]:
        """The log-probabilities of *ids*.

        *logits* has the shape ``(T, vocabulary)``, and *ids*, the tokens from the second on, has
        ``(T - 1,)``.
        """
        for start in range(0, len(ids), POSITIONS_AT_ONCE):
            chosen = ids[start : start + POSITIONS_AT_ONCE, None].to(logits.device)
            rows = logits[start : start + len(chosen)].float().log_softmax(dim=-1)
            values = rows.gather(1, chosen)[:, 0].tolist()
            likeliest = rows.topk(min(self._top, rows.shape[1]))
            pairs = zip(likeliest.indices.tolist(), likeliest.values.tolist(), strict=True)
            tops = [tuple(zip(*pair, strict=True)) for pair in pairs]
            yield from zip(values, tops, strict=True)
