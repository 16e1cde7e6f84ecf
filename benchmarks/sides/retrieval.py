"""Retrieval in plain PyTorch: two towers as in CLIP (Radford et al. 2021), of the sizes of configs/openclipart_retrieval.py.

python -m benchmarks.sides.retrieval FOLDER MINUTES
"""

import math
import sys
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.sides.plain import WIDTH, ViT, block, fit, parts

BATCH, RATE = 128, 1e-3


class Towers(nn.Module):
    """Pictures and texts as unit vectors [B, WIDTH]: the projected mean of their tokens."""

    def __init__(self, vocabulary: int, longest: int):
        super().__init__()
        self.pictures, self.texts = ViT(), block(nn.TransformerEncoderLayer, 2)
        self.tokens = nn.Embedding(vocabulary, WIDTH)
        self.positions = nn.Parameter(0.02 * torch.randn(longest, WIDTH))
        self.of_picture, self.of_text = (nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(2))
        self.log_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))
        nn.init.normal_(self.tokens.weight, std=0.02)

    def image(self, pixels: torch.Tensor) -> torch.Tensor:
        return F.normalize(self.of_picture(self.pictures(pixels).mean(1)), dim=-1)

    def text(self, ids: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        padded = torch.arange(ids.shape[1]) >= lengths[:, None]
        x = self.texts(self.tokens(ids) + self.positions[: ids.shape[1]], src_key_padding_mask=padded)
        mean = x.masked_fill(padded[..., None], 0).sum(1) / lengths[:, None]
        return F.normalize(self.of_text(mean), dim=-1)


def main(folder: Path, minutes: float) -> None:
    """Trains, and writes the vectors of the test pictures and texts."""
    torch.manual_seed(0)
    data = {name: torch.from_numpy(value) for name, value in np.load(folder / "data.npz").items()}
    model = Towers(int(data["vocabulary"]), max(data[f"{split}_ids"].shape[1] for split in ("train", "test")))

    def loss(chosen: torch.Tensor) -> torch.Tensor:
        lengths = data["train_lengths"][chosen]
        texts = model.text(data["train_ids"][chosen][:, : int(lengths.max())], lengths)
        logits = (
            model.log_scale.clamp(max=math.log(100)).exp() * model.image(parts(data["train_pixels"][chosen])) @ texts.T
        )
        labels = torch.arange(len(chosen))
        return (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2

    steps = fit(model, loss, len(data["train_ids"]), BATCH, minutes, RATE)
    print(f"PyTorch: {steps} steps of {BATCH} examples, {sum(p.numel() for p in model.parameters()):,} parameters")
    with torch.inference_mode():
        image = model.image(data["test_pixels"].float() / 255)
        text = model.text(data["test_ids"], data["test_lengths"])
    np.savez(folder / "result.npz", image=image.numpy(), text=text.numpy())


if __name__ == "__main__":
    main(Path(sys.argv[1]), float(sys.argv[2]))
