"""Loads a model and its tokenizer or processor, by name."""

from .load import load_model, placement, shown_name

__all__ = ["load_model", "placement", "shown_name"]
