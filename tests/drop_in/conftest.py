"""The fixtures of tests that call generate()."""

from ..helpers.generation_fixtures import calls, torch_is_loaded_completely

__all__ = ["calls", "torch_is_loaded_completely"]
