"""Captioning in plain PyTorch: a ViT and nn.TransformerDecoder, of the sizes of configs/openclipart_captions.py.

python -m benchmarks.sides.captioning FOLDER MINUTES
"""

import sys
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.sides.plain import WIDTH, ViT, block, fit, parts

BATCH, RATE, SMOOTHING = 64, 1e-3, 0.1


class Captioner(nn.Module):
    """Pictures and the ids before each position -> logits [B, L, vocabulary]. Id 0 begins and ends a text."""

    def __init__(self, vocabulary: int, longest: int):
        super().__init__()
        self.encoder, self.decoder = ViT(), block(nn.TransformerDecoderLayer, 2)
        self.tokens, self.out = nn.Embedding(vocabulary, WIDTH), nn.Linear(WIDTH, vocabulary)
        self.positions = nn.Parameter(0.02 * torch.randn(longest, WIDTH))
        nn.init.normal_(self.tokens.weight, std=0.02)

    def decode(self, seen: torch.Tensor, before: torch.Tensor) -> torch.Tensor:
        length = before.shape[1]
        mask = nn.Transformer.generate_square_subsequent_mask(length)
        x = self.tokens(before) + self.positions[:length]
        return self.out(self.decoder(x, seen, tgt_mask=mask, tgt_is_causal=True))


def main(folder: Path, minutes: float) -> None:
    """Trains, and writes the texts of the test pictures, found greedily."""
    torch.manual_seed(0)
    data = {name: torch.from_numpy(value) for name, value in np.load(folder / "data.npz").items()}
    ids, lengths = data["train_ids"], data["train_lengths"]
    longest = ids.shape[1]
    model = Captioner(int(data["vocabulary"]), longest)

    def loss(chosen: torch.Tensor) -> torch.Tensor:
        length = int(lengths[chosen].max())
        after = ids[chosen][:, :length]
        before = F.pad(after, (1, 0))[:, :length]
        logits = model.decode(model.encoder(parts(data["train_pixels"][chosen])), before)
        wanted = after.masked_fill(torch.arange(length) >= lengths[chosen][:, None], -100)
        return F.cross_entropy(logits.flatten(0, 1), wanted.flatten(), label_smoothing=SMOOTHING)

    steps = fit(model, loss, len(ids), BATCH, minutes, RATE)
    print(f"PyTorch: {steps} steps of {BATCH} examples, {sum(p.numel() for p in model.parameters()):,} parameters")
    with torch.inference_mode():
        seen = model.encoder(data["test_pixels"].float() / 255)
        written = torch.zeros(len(seen), 1, dtype=torch.int64)
        for _ in range(longest):
            following = model.decode(seen, written)[:, -1].argmax(-1, keepdim=True)
            written = torch.cat([written, following], 1)
    np.savez(folder / "result.npz", ids=written[:, 1:].numpy())


if __name__ == "__main__":
    main(Path(sys.argv[1]), float(sys.argv[2]))
