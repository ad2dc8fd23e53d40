"""Tests of loading a model by its name."""
