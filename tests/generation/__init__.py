"""Tests of `generate()` behind the bridge."""
