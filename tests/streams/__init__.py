"""Tests of what a consumer of text holds."""
