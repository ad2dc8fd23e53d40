"""Imports the programs that made the embedded model: the checkout has them, a wheel does not."""

from __future__ import annotations

from pathlib import Path

import anystreamer.demo

anystreamer.demo.__path__.append(str(Path(__file__).parents[2] / "src" / "anystreamer" / "demo"))

from anystreamer.demo import sequences, train  # noqa: E402

__all__ = ["sequences", "train"]
