"""Tests of the streamer that takes the place of one of transformers'."""
