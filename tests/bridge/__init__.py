"""Tests of a blocking producer as an async stream."""
