"""Phi-3 and Phi-4 language models (`Phi3ForCausalLM` of transformers): Llama with fused projections."""

from collections.abc import Mapping

import numpy as np

from mmjax.interchange import llama

MODEL_TYPES = ("phi3",)
part, tasks, rules, outputs = llama.part, llama.tasks, llama.rules, llama.outputs
copies, ignored = llama.copies, llama.ignored

FUSED = {"self_attn.qkv_proj": ("q_proj", "k_proj", "v_proj"), "mlp.gate_up_proj": ("gate_proj", "up_proj")}


def unpack(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Divides queries, keys and values [rows, W], and the two projections of the feed-forward, into Llama's tensors."""
    found = dict(tensors)
    for name in tensors:
        for fused, parts in FUSED.items():
            if name.endswith(f"{fused}.weight"):
                whole, place = found.pop(name), name.removesuffix(f"{fused}.weight") + fused.split(".")[0]
                if "qkv" in fused:
                    queries = tensors[f"{place}.o_proj.weight"].shape[1]
                    ends = [queries, (queries + len(whole)) // 2]
                else:
                    ends = [len(whole) // 2]
                split = np.split(whole, ends)
                found |= {f"{place}.{part}.weight": x for part, x in zip(parts, split, strict=True)}
    return found


def pack(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The inverse of `unpack`."""
    found = dict(tensors)
    for name in tensors:
        for fused, parts in FUSED.items():
            if name.endswith(f"{parts[0]}.weight"):
                place = name.removesuffix(f".{parts[0]}.weight")
                parent = place.removesuffix(fused.split(".")[0])
                found[f"{parent}{fused}.weight"] = np.concatenate([found.pop(f"{place}.{x}.weight") for x in parts])
    return found
