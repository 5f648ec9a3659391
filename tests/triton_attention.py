"""Run by test_attention_backends in a process of its own: the Triton kernel, interpreted on the CPU,
beside the reference. Prints the largest difference of every case.

    TRITON_INTERPRET=1 python -m tests.triton_attention
"""

from __future__ import annotations

from operators.cache.attention_triton import TritonAttention
from tests.attention_cases import difference
from tests.engine import toy_decoder

if __name__ == "__main__":
    for arch in ("llama", "phi3"):
        for wrapped in (False, True):
            found = difference(TritonAttention(), toy_decoder(arch), wrapped=wrapped)
            print(found, flush=True)
