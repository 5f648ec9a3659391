"""The streaming side of longstream: Kafka, Faust, the device process, metrics and the command line."""

OPENMP_SPINS = "20000"
"""How often an idle OpenMP thread looks again before it sleeps (GOMP_SPINCOUNT), in our processes.
By default it spins on: with any neighbour on the cores one token then took ten times as long."""
