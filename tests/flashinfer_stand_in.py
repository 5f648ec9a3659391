"""A stand-in for the module ``flashinfer``: the class and the function that we use, in plain torch, on
any device and in any type. It refuses what the real ones refuse or read wrongly. That its signatures
begin as the real ones do is tested where FlashInfer is installed (test_attention_backends).
"""

from __future__ import annotations

import math
from importlib.machinery import ModuleSpec
from typing import Any

import torch
from torch import Tensor

__spec__ = ModuleSpec("flashinfer", None)  # as found by importlib when it stands in sys.modules


class BatchPrefillWithPagedKVCacheWrapper:
    plans = 0
    """Of all wrappers together."""

    def __init__(
        self,
        float_workspace_buffer: Tensor,
        kv_layout: str = "NHD",
        use_cuda_graph: bool = False,
        qo_indptr_buf: Tensor | None = None,
        paged_kv_indptr_buf: Tensor | None = None,
        paged_kv_indices_buf: Tensor | None = None,
        paged_kv_last_page_len_buf: Tensor | None = None,
        custom_mask_buf: Tensor | None = None,
        mask_indptr_buf: Tensor | None = None,
        backend: str = "auto",
    ) -> None:
        assert float_workspace_buffer.dtype == torch.uint8
        assert kv_layout == "HND"
        assert backend == "fa2"  # the only one that takes masks
        assert not use_cuda_graph
        self._planned: dict[str, Any] = {}

    def plan(
        self,
        qo_indptr: Tensor,
        paged_kv_indptr: Tensor,
        paged_kv_indices: Tensor,
        paged_kv_last_page_len: Tensor,
        num_qo_heads: int,
        num_kv_heads: int,
        head_dim_qk: int,
        page_size: int,
        head_dim_vo: int | None = None,
        custom_mask: Tensor | None = None,
        packed_custom_mask: Tensor | None = None,
        causal: bool = False,
        pos_encoding_mode: str = "NONE",
        use_fp16_qk_reduction: bool = False,
        sm_scale: float | None = None,
        window_left: int = -1,
        logits_soft_cap: float | None = None,
        rope_scale: float | None = None,
        rope_theta: float | None = None,
        q_data_type: str | torch.dtype = "float16",
        kv_data_type: str | torch.dtype | None = None,
    ) -> None:
        type(self).plans += 1
        on_host = qo_indptr, paged_kv_indptr, paged_kv_last_page_len
        assert all(x.device.type == "cpu" for x in on_host)  # else every plan would wait for them
        assert all(x.dtype == torch.int32 for x in (*on_host, paged_kv_indices))
        assert packed_custom_mask is None  # with several rows 0.7.4 reads it at the wrong places
        assert not causal
        assert not use_fp16_qk_reduction
        assert pos_encoding_mode == "NONE"
        assert window_left == -1
        assert num_qo_heads % num_kv_heads == 0
        queries = qo_indptr.diff().tolist()
        pages = paged_kv_indptr.diff().tolist()
        last = paged_kv_last_page_len.tolist()
        assert len(queries) == len(pages) == len(last)
        assert all(0 < count <= page_size for count in last)
        keys = [(count - 1) * page_size + rest for count, rest in zip(pages, last, strict=True)]
        sizes = [n * k for n, k in zip(queries, keys, strict=True)]
        masks: list[Tensor | None] = [None] * len(sizes)
        if custom_mask is not None:
            assert custom_mask.dtype == torch.bool
            assert custom_mask.shape == (sum(sizes),)
            masks = list(custom_mask.split(sizes))
        self._planned = {
            "rows": list(zip(queries, keys, paged_kv_indices.split(pages), masks, strict=True)),
            "heads": (num_qo_heads, num_kv_heads, head_dim_qk),
            "page": page_size,
            "scale": sm_scale if sm_scale is not None else 1 / math.sqrt(head_dim_qk),
            "types": (q_data_type, kv_data_type or q_data_type),
        }

    def run(
        self,
        q: Tensor,
        paged_kv_cache: tuple[Tensor, Tensor],
        *args: Any,
        q_scale: float | None = None,
        k_scale: float | None = None,
        v_scale: float | None = None,
        out: Tensor | None = None,
        lse: Tensor | None = None,
        return_lse: bool = False,
    ) -> tuple[Tensor, Tensor]:
        assert not args
        assert return_lse
        planned, (keys, values) = self._planned, paged_kv_cache
        heads, kv_heads, dim = planned["heads"]
        assert q.shape == (sum(row[0] for row in planned["rows"]), heads, dim)
        assert keys.shape[1:] == values.shape[1:] == (kv_heads, planned["page"], dim)
        assert (q.dtype, keys.dtype) == planned["types"]
        assert keys.stride() == values.stride()  # else it compiles a second kernel
        assert q.stride(-1) == keys.stride(-1) == 1
        found, at = [], 0
        for count, length, pages, mask in planned["rows"]:
            assert int(pages.max()) < len(keys)
            query = q[at : at + count].float()
            at += count
            # [pages, kv_heads, page, dim] → [heads, length, dim]
            key, value = (
                pool[pages.long()].float().transpose(0, 1).flatten(1, 2)[:, :length]
                for pool in (keys, values)
            )
            key, value = (x.repeat_interleave(heads // kv_heads, dim=0) for x in (key, value))
            scores = torch.einsum("nhd,hkd->nhk", query, key) * planned["scale"]
            if mask is not None:
                hidden = ~mask.view(count, 1, length)
                scores = scores.masked_fill(hidden, -torch.inf)
            total = torch.logsumexp(scores, dim=-1)
            weights = (scores - total[..., None]).exp().nan_to_num(0.0)  # of no keys: all zero
            seen = torch.einsum("nhk,hkd->nhd", weights, value).to(q.dtype)
            found.append((seen, total / math.log(2)))
        outs, sums = zip(*found, strict=True)
        return torch.cat(outs), torch.cat(sums)


def merge_state(v_a: Tensor, s_a: Tensor, v_b: Tensor, s_b: Tensor) -> tuple[Tensor, Tensor]:
    """Outputs ``[n, heads, dim]`` over two sets of keys, and their sums' logarithms of base 2."""
    assert v_a.is_contiguous()
    assert v_b.is_contiguous()
    assert s_a.dtype == s_b.dtype == torch.float32
    most = torch.maximum(s_a, s_b)
    most = torch.where(most == -torch.inf, 0.0, most)
    a, b = (s_a - most).exp2(), (s_b - most).exp2()
    share = torch.where(a + b > 0, a / (a + b), 0.0)[..., None]
    merged = share * v_a.float() + (1 - share) * v_b.float() * (a + b > 0)[..., None]
    return merged.to(v_a.dtype), (a + b).log2() + most
