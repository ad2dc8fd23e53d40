"""Tests of token ids to text."""
