"""Tests of the KV caches that an engine keeps for the next turns of conversations."""
