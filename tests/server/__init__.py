"""Tests of an engine behind HTTP."""
