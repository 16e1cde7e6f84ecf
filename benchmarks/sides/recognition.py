"""Recognition in plain PyTorch: a Conformer with CTC, of the sizes of configs/asterisk_recognition.py.

python -m benchmarks.sides.recognition FOLDER MINUTES

Batches hold recordings of similar lengths, padded to the longest.
"""

import math
import sys
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.sides.plain import fit

WIDTH, HEADS, LAYERS, KERNEL, DROPOUT = 128, 4, 4, 15, 0.1
BINS, WINDOW, HOP = 80, 400, 160
SECONDS, EXAMPLES = 36, 28  # of a batch, with padding
RATE = 1e-3


def mel_filters(rate: int) -> torch.Tensor:
    """[WINDOW // 2 + 1, BINS] triangles, evenly spaced on the mel scale."""
    edges = torch.linspace(0, 2595 * math.log10(1 + rate / 2 / 700), BINS + 2)
    edges = 700 * (10 ** (edges / 2595) - 1)
    bins = torch.linspace(0, rate / 2, WINDOW // 2 + 1)[:, None]
    up, down = (bins - edges[:-2]) / (edges[1:-1] - edges[:-2]), (edges[2:] - bins) / (edges[2:] - edges[1:-1])
    return torch.minimum(up, down).clamp(min=0)


def features(samples: torch.Tensor, filters: torch.Tensor) -> torch.Tensor:
    """Samples [N] int16 -> log-mel frames [N // HOP + 1, BINS], normalised."""
    power = torch.stft(samples.float() / 32_768, WINDOW, HOP, window=torch.hann_window(WINDOW), return_complex=True)
    frames = (power.abs().square().T @ filters).clamp(min=1e-7).log()
    return (frames - frames.mean()) / (frames.std() + 1e-3)


class Block(nn.Module):
    """A Conformer block (Gulati et al. 2020)."""

    def __init__(self):
        super().__init__()
        self.first, self.last = self.feed_forward(), self.feed_forward()
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(3))
        self.attention = nn.MultiheadAttention(WIDTH, HEADS, DROPOUT, batch_first=True)
        self.widen, self.narrow = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.depthwise = nn.Conv1d(WIDTH, WIDTH, KERNEL, padding=KERNEL // 2, groups=WIDTH)
        self.middle = nn.LayerNorm(WIDTH)
        self.drop = nn.Dropout(DROPOUT)

    @staticmethod
    def feed_forward() -> nn.Module:
        layers = (nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 4 * WIDTH), nn.SiLU(), nn.Dropout(DROPOUT))
        return nn.Sequential(*layers, nn.Linear(4 * WIDTH, WIDTH), nn.Dropout(DROPOUT))

    def forward(self, x: torch.Tensor, padding: torch.Tensor) -> torch.Tensor:
        x = x + self.first(x) / 2
        y = self.norms[0](x)
        x = x + self.drop(self.attention(y, y, y, key_padding_mask=padding, need_weights=False)[0])
        y = F.glu(self.widen(self.norms[1](x))).masked_fill(padding[..., None], 0)
        y = self.depthwise(y.transpose(1, 2)).transpose(1, 2)
        x = x + self.drop(self.narrow(F.silu(self.middle(y))))
        return self.norms[2](x + self.last(x) / 2)


class Recogniser(nn.Module):
    """Frames [B, T, BINS] and their numbers [B] -> log-probabilities [B, T / 4, vocabulary + 1], and their numbers [B].

    The blank is the last class.
    """

    def __init__(self, vocabulary: int):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 32, 3, 2, 1), nn.SiLU(), nn.Conv2d(32, 32, 3, 2, 1), nn.SiLU())
        self.project = nn.Linear(32 * BINS // 4, WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(LAYERS))
        self.out = nn.Linear(WIDTH, vocabulary + 1)

    def forward(self, frames: torch.Tensor, lengths: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = self.project(self.stem(frames[:, None]).transpose(1, 2).flatten(2))
        angle = torch.arange(x.shape[1])[:, None] * torch.exp(torch.arange(0, WIDTH, 2) * (-math.log(1e4) / WIDTH))
        x = x + torch.stack([angle.sin(), angle.cos()], -1).flatten(1)
        lengths = (lengths + 3) // 4
        padding = torch.arange(x.shape[1]) >= lengths[:, None]
        for block in self.blocks:
            x = block(x, padding)
        return self.out(x).log_softmax(-1), lengths


def masked(frames: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """SpecAugment (Park et al. 2019) in place: two masks over bins, two over up to a twentieth of the time each."""
    for row, length in zip(frames, lengths.tolist(), strict=True):
        for size, axis, widest in ((BINS, 1, 18), (BINS, 1, 18), (length, 0, length // 20), (length, 0, length // 20)):
            wide = int(torch.randint(widest + 1, ()))
            first = int(torch.randint(max(size - wide, 1), ()))
            row.narrow(axis, first, wide).zero_()
    return frames


def batches_of(lengths: torch.Tensor, rate: int) -> list[torch.Tensor]:
    """Numbers of examples of similar lengths, as many as a batch holds."""
    found: list[list[int]] = [[]]
    for number in lengths.argsort().tolist():
        if len(found[-1]) == EXAMPLES or (len(found[-1]) + 1) * int(lengths[number]) * HOP > SECONDS * rate:
            found.append([])
        found[-1].append(number)
    return [torch.tensor(one) for one in found if one]


def main(folder: Path, minutes: float) -> None:
    """Trains, and writes the texts of the test recordings, each the best path."""
    torch.manual_seed(0)
    data = {name: torch.from_numpy(value) for name, value in np.load(folder / "data.npz").items()}
    vocabulary, rate = int(data["vocabulary"]), int(data["sample_rate"])
    filters, model = mel_filters(rate), Recogniser(vocabulary)
    ids, texts = data["train_ids"], data["train_lengths"]

    def frames_of(split: str) -> list[torch.Tensor]:
        sizes = torch.diff(data[f"{split}_ends"], prepend=torch.zeros(1, dtype=torch.int64))
        return [features(one, filters) for one in data[f"{split}_samples"].split(sizes.tolist())]

    def padded(frames: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        return nn.utils.rnn.pad_sequence(frames, batch_first=True), torch.tensor([len(one) for one in frames])

    train = frames_of("train")
    groups = batches_of(torch.tensor([len(one) for one in train]), rate)
    ctc = nn.CTCLoss(vocabulary, zero_infinity=True)

    def loss(chosen: torch.Tensor) -> torch.Tensor:
        numbers = groups[int(chosen)]
        frames, lengths = padded([train[number] for number in numbers.tolist()])
        outputs, lengths = model(masked(frames, lengths), lengths)
        return ctc(outputs.transpose(0, 1), ids[numbers], lengths, texts[numbers])

    steps = fit(model, loss, len(groups), 1, minutes, RATE)
    print(f"PyTorch: {steps} steps, {sum(p.numel() for p in model.parameters()):,} parameters, {len(groups)} batches")
    test = frames_of("test")
    written = torch.zeros(len(test), max(map(len, test)), dtype=torch.int64)
    with torch.inference_mode():
        for number, frames in enumerate(test):
            best = model(*padded([frames]))[0][0].argmax(-1).unique_consecutive()
            best = best[best != vocabulary]
            written[number, : len(best)] = best
    np.savez(folder / "result.npz", ids=written.numpy())


if __name__ == "__main__":
    main(Path(sys.argv[1]), float(sys.argv[2]))
