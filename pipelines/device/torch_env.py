"""How torch and transformers behave in our processes: environment variables, to be set before they are
imported."""

TORCH = {
    # How often an idle OpenMP thread looks again before it sleeps. By default it spins on: with any
    # neighbour on the cores one token then took ten times as long.
    "GOMP_SPINCOUNT": "20000",
    # oneDNN compiles a kernel for every number of bf16 rows it meets and keeps 1,024 of them, twice:
    # hundreds of MiB. Making one anew is not measurable (docs/soak.md).
    "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "128",
    "LRU_CACHE_CAPACITY": "128",
    # Bars of transformers in a worker's log, where each of their states is a line.
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
}
"""Defaults; what the user has set stays."""
