"""The table of docs/models.md: parameters and forward FLOPs of every preset, counted on the traced model.

    python -m benchmarks.models > table.md

Nothing is computed but shapes. FLOPs are those of matrix products (2 per multiply-add), front end included, for one
recording of 10 s, one picture or one text of 128 tokens, alone in its row: attention over longer ones costs more each.
"""

from typing import Any

import jax
import numpy as np

from mmjax import config as c
from mmjax.flops import matrix_flops
from mmjax.models.conformer import CONFORMERS
from mmjax.models.decoder import DECODERS
from mmjax.models.transformer import TRANSFORMERS
from mmjax.models.vit import VIT_SIZES
from mmjax.models.whisper import WHISPERS
from mmjax.stream import Stream

SECONDS = 10
TOKENS = 128


def recording(front_end: c.LogMel) -> Stream:
    hops = SECONDS * front_end.sample_rate // front_end.hop
    tokens = np.zeros((1, hops), np.int32)
    return Stream(np.zeros((1, hops, front_end.hop), np.float32), tokens + 1, tokens)


def picture(vit: c.ViT) -> Stream:
    tokens = (vit.image_size // vit.patch) ** 2 + vit.class_token
    features = np.zeros((1, tokens, vit.patch**2 * 3), np.uint8)
    return Stream(features, np.ones((1, tokens), np.int32), np.zeros((1, tokens, 2), np.int32))


def text() -> Stream:
    tokens = np.zeros((1, TOKENS), np.int32)
    return Stream(tokens, tokens + 1, tokens)


def measure(tower: Any, example: Stream) -> tuple[int, float]:
    """Parameters, and FLOPs of one forward pass."""
    model = tower
    params = jax.eval_shape(model.init, jax.random.key(0), example)
    flops = matrix_flops(model.apply, params, example)
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(params)), sum(flops.values())


def conformers() -> list[tuple[str, c.Conformer]]:
    names = [*CONFORMERS, *(f"modern {size}" for size in "SML")]
    return [(name, c.Conformer.preset(name)) for name in names]


def vits() -> list[tuple[str, c.ViT]]:
    patches = {"So400m": 14, "H": 14}
    names = [f"{size}/{patches.get(size, 16)}" for size in VIT_SIZES]
    return [(name, c.ViT.preset(name, class_token=not name.startswith("So400m"))) for name in names]


def table() -> str:
    lines = [
        "| `Conformer.preset` | layers | width | heads | kernel | hops per token | parameters | GFLOP per second of audio |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, tower in conformers():
        parameters, flops = measure(tower, recording(tower.front_end))
        shape = f"{tower.layers} | {tower.width} | {tower.heads} | {tower.convolution.kernel} | {tower.subsampling}"
        lines.append(f"| {name} | {shape} | {parameters / 1e6:.3f} M | {flops / SECONDS / 1e9:.2f} |")
    lines += [
        "",
        "| `ViT.preset` | layers | width | heads | mlp | parameters | GFLOP per image of 224 pixels |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, tower in vits():
        parameters, flops = measure(tower, picture(tower))
        shape = f"{tower.layers} | {tower.width} | {tower.heads} | {tower.mlp}"
        lines.append(f"| {name} | {shape} | {parameters / 1e6:.4f} M | {flops / 1e9:.2f} |")
    lines += [
        "",
        "| `WhisperEncoder.preset` | layers | width | heads | parameters | GFLOP per second of audio |",
        "|---|---|---|---|---|---|",
    ]
    for name in WHISPERS:
        tower = c.WhisperEncoder.preset(name)
        parameters, flops = measure(tower, recording(tower.front_end))
        shape = f"{tower.layers} | {tower.width} | {tower.heads}"
        lines.append(f"| {name} | {shape} | {parameters / 1e6:.3f} M | {flops / SECONDS / 1e9:.2f} |")
    for kind, names in (("Transformer", TRANSFORMERS), ("TextDecoder", DECODERS)):
        lines += [
            "",
            f"| `{kind}.preset` | layers | width | heads | mlp | parameters | GFLOP per token |",
            "|---|---|---|---|---|---|---|",
        ]
        for name in names:
            tower = getattr(c, kind).preset(name)
            parameters, flops = measure(tower, text())
            shape = f"{tower.layers} | {tower.width} | {tower.heads} | {tower.mlp}"
            lines.append(f"| {name} | {shape} | {parameters / 1e6:,.3f} M | {flops / TOKENS / 1e9:.3f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
