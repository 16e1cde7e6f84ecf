"""What the peers of benchmarks/quality.py in plain PyTorch share: a ViT, random parts of pictures, and the training loop.

Blocks are torch.nn's, with the norm first; the optimizer is fused AdamW with warm-up and a cosine; batches are padded.
"""

import math
import os
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

WIDTH, HEADS, MLP, DROPOUT = 128, 4, 384, 0.1
SIDE, PATCH = 64, 8


def block(kind: type, layers: int) -> Any:
    """A stack of nn.TransformerEncoderLayer or nn.TransformerDecoderLayer."""
    layer = kind(WIDTH, HEADS, MLP, DROPOUT, "gelu", batch_first=True, norm_first=True)
    if kind is nn.TransformerDecoderLayer:
        return nn.TransformerDecoder(layer, layers, nn.LayerNorm(WIDTH))
    return nn.TransformerEncoder(layer, layers, nn.LayerNorm(WIDTH), enable_nested_tensor=False)


class ViT(nn.Module):
    """[B, SIDE, SIDE, 3] in 0 to 1 -> [B, patches, WIDTH]."""

    def __init__(self, layers: int = 4):
        super().__init__()
        self.patches, self.blocks = nn.Linear(3 * PATCH**2, WIDTH), block(nn.TransformerEncoderLayer, layers)
        self.positions = nn.Parameter(0.02 * torch.randn((SIDE // PATCH) ** 2, WIDTH))

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        x = ((pixels - 0.8) / 0.3).unflatten(2, (-1, PATCH)).unflatten(1, (-1, PATCH)).transpose(2, 3)
        return self.blocks(self.patches(x.flatten(3).flatten(1, 2)) + self.positions)


def parts(pixels: torch.Tensor, least_area: float = 0.5, aspect: float = 4 / 3) -> torch.Tensor:
    """Random parts [B, SIDE, SIDE, 3] in 0 to 1 of pictures [B, H, W, 3] uint8: random resized crops (Szegedy et al. 2015)."""
    count = len(pixels)
    area, log_aspect = torch.empty(count).uniform_(least_area, 1), torch.empty(count).uniform_(-1, 1) * math.log(aspect)
    size = torch.stack([(area.log() / 2 + sign * log_aspect / 2).exp().clamp(max=1) for sign in (1, -1)], 1)
    theta = torch.zeros(count, 2, 3)
    theta[:, 0, 0], theta[:, 1, 1] = size[:, 0], size[:, 1]
    theta[:, :, 2] = (1 - size) * torch.empty(count, 2).uniform_(-1, 1)
    grid = F.affine_grid(theta, [count, 3, SIDE, SIDE], align_corners=False)
    return F.grid_sample(pixels.permute(0, 3, 1, 2).float() / 255, grid, align_corners=False).permute(0, 2, 3, 1)


def batches(count: int, batch: int) -> Iterator[torch.Tensor]:
    """Yields numbers of examples, each once before any is used again."""
    order = torch.randperm(count)
    while True:
        while len(order) < batch:
            order = torch.cat([order, torch.randperm(count)])
        chosen, order = order[:batch], order[batch:]
        yield chosen


def fit(
    model: nn.Module, loss: Callable[[torch.Tensor], torch.Tensor], count: int, batch: int, minutes: float, rate: float
) -> int:
    """Trains for some minutes; the learning rate follows the clock. Returns the number of steps."""
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.05, fused=True)
    start, limit, steps = time.perf_counter(), 60 * minutes, 0
    model.train()
    for chosen in batches(count, batch):
        share = (time.perf_counter() - start) / limit
        if share >= 1:
            break
        now = rate * (share / 0.1 if share < 0.1 else (1 + math.cos(math.pi * (share - 0.1) / 0.9)) / 2)
        for group in optimizer.param_groups:
            group["lr"] = now
        value = loss(chosen)
        optimizer.zero_grad()
        value.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        steps += 1
        if steps % 100 == 0:
            print(f"step {steps}, {100 * share:.0f} % of the time: loss {value.item():.3f}", flush=True)
    model.eval()
    return steps
