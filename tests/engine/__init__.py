"""Tests of many requests on one model."""
