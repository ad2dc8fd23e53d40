"""Tests of an engine on another server."""
