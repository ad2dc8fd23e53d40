"""Tests of what `anystreamer.testing` gives to the tests of applications."""
