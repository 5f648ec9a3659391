"""The model side of longstream: exact, bounded, batched model state per stream.

Pure by rule: nothing in this package knows Kafka, Prometheus, the environment or the wall clock.
What it needs of the outside (a clock, an observer) is handed in. ``pipelines`` imports this package;
never the other way round (checked by ``tests/test_layers.py``).
"""
