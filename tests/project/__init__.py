"""Tests of what is said and shipped: packaging, docs, benchmarks, the public surface."""
