"""Settings for every test: one torch thread, so that parallel work on the machine stays possible."""

import os

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch
from hypothesis import HealthCheck, settings

torch.set_num_threads(1)

# A loaded machine is slow to generate inputs; that says nothing about the code.
settings.register_profile("longstream", suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("longstream")
