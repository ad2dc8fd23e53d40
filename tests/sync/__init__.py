"""Tests of the same without an event loop."""
