"""Settings for every test: one torch thread, so that parallel work on the machine stays possible."""

import os

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch

torch.set_num_threads(1)
