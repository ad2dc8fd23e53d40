"""Loads a model and what encodes its prompts, by name."""

from .load import load_model, placement, shown_name

__all__ = ["load_model", "placement", "shown_name"]
