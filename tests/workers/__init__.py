"""Tests of workers: threads that an application owns, for any producer."""
