"""What made the embedded model: it is in the checkout, and not in what is installed."""

from __future__ import annotations

from pathlib import Path

import anystreamer.demo

anystreamer.demo.__path__.append(str(Path(__file__).parents[2] / "src" / "anystreamer" / "demo"))

from anystreamer.demo import sequences, train  # noqa: E402

__all__ = ["sequences", "train"]
