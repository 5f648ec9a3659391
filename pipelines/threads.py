"""How the threads of torch behave in our processes; set before torch is imported."""

OPENMP_SPINS = "20000"
"""How often an idle OpenMP thread looks again before it sleeps (GOMP_SPINCOUNT). By default it spins
on: with any neighbour on the cores one token then took ten times as long."""
