"""The model side of longstream: exact, bounded, batched model state per stream.

Pure by rule: nothing in this package uses Kafka, Prometheus, the environment or the wall clock. A clock
and an observer are parameters. ``pipelines`` imports this package, never the other way round (checked by
import-linter and ``tests/test_purity.py``).
"""
