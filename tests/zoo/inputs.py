"""The inputs that tiny models generate from: ids, recordings, images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

__all__ = ["KINDS", "PROMPTS", "Inputs"]

Inputs = Callable[[int], dict[str, Any]]

# Prompts of different length, as ids.
PROMPTS = [[50, 60, 70], [220, 210, 200, 190, 180, 170, 160], [99] * 5, [111, 122, 133, 144]]


def _noise(number: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(number))


def _ids(number: int) -> torch.Tensor:
    return torch.tensor([PROMPTS[number]])


def _recording(*shape: int, name: str = "input_features", mask: int | None = None) -> Inputs:
    def inputs(number: int) -> dict[str, Any]:
        made: dict[str, Any] = {name: _noise(number, 1, *shape)}
        if mask is not None:
            made["attention_mask"] = torch.ones(1, mask, dtype=torch.long)
        return made

    return inputs


def _image(size: int, *, ids: bool = False) -> Inputs:
    def inputs(number: int) -> dict[str, Any]:
        made: dict[str, Any] = {"pixel_values": _noise(number, 1, 3, size, size)}
        return made | ({"input_ids": _ids(number)} if ids else {})

    return inputs


def _patches(number: int) -> dict[str, Any]:
    places = torch.cartesian_prod(torch.arange(1, 3), torch.arange(1, 3)).float()
    patches = torch.cat([places, _noise(number, 4, 3 * 8 * 8)], dim=1)[None]
    return {"flattened_patches": patches, "attention_mask": torch.ones(1, 4)}


# For each main input, what a model is tried with.
KINDS: dict[str, Sequence[Inputs]] = {
    "input_ids": [lambda number: {"input_ids": _ids(number)}, _image(16, ids=True)],
    "pixel_values": [
        _image(16),
        _image(32),
        lambda number: {"input_ids": _ids(number)},
        _image(16, ids=True),
    ],
    "flattened_patches": [_patches],
    "input_features": [
        _recording(40, 16),
        _recording(40, 16, mask=40),
        _recording(16, 40),
        _recording(16, 40, mask=40),
        _recording(16, 64),
        _recording(64, 16, mask=64),
    ],
    "input_values": [_recording(4000, name="input_values")],
    "inputs": [_recording(4000, name="inputs"), _recording(40, 16, name="inputs")],
}
