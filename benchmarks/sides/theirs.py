"""PyTorch's side: the same models from transformers and torch.nn, the same steps, padded batches.

What is known to be fast on a CPU is taken: fused AdamW, scaled_dot_product_attention, convolutions in channels_last.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import transformers
from torch import nn

from benchmarks.sides import cases

WINDOW, HOP, BINS = 400, 160, 80


class LogMel(nn.Module):
    """[B, samples] -> [B, frames, bins], as `mmjax.models.LogMel`."""

    def __init__(self):
        super().__init__()
        mel = 2595.0 * np.log10(1.0 + np.arange(WINDOW // 2 + 1) * cases.RATE / WINDOW / 700.0)
        edges = np.linspace(0.0, 2595.0 * np.log10(1.0 + cases.RATE / 2 / 700.0), BINS + 2)
        rise = (mel[:, None] - edges[:-2]) / np.diff(edges)[:-1]
        fall = (edges[2:] - mel[:, None]) / np.diff(edges)[1:]
        filters = np.maximum(0.0, np.minimum(rise, fall)).astype(np.float32)
        self.register_buffer("filters", torch.from_numpy(filters))
        self.register_buffer("window", torch.hann_window(WINDOW))

    @torch.no_grad()
    def forward(self, samples: torch.Tensor) -> torch.Tensor:
        spectrum = torch.stft(samples, WINDOW, HOP, WINDOW, self.window, center=False, return_complex=True)
        energies = spectrum.abs().square().transpose(1, 2) @ self.filters
        return (energies.clamp(min=1e-8).log10() + 1.5) / 2.0


class Stem(nn.Module):
    """Two 3 x 3 convolutions of stride 2 over all channels and a linear layer, as in the paper: a quarter of the frames."""

    def __init__(self, width: int, channels: int):
        super().__init__()
        self.first, self.second = (
            nn.Conv2d(inputs, channels, 3, stride=2, padding=1).to(memory_format=torch.channels_last)
            for inputs in (1, channels)
        )
        self.out = nn.Linear(channels * BINS // 4, width)

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        x = self.second(self.first(frames[:, None].contiguous(memory_format=torch.channels_last)).relu()).relu()
        return self.out(x.transpose(1, 2).flatten(2))


def _frames(samples: torch.Tensor) -> torch.Tensor:
    """How many of the encoder's tokens each recording has, by its samples."""
    for _ in range(2):
        samples = (samples + 1) // 2
    return samples


class Speech(nn.Module):
    """Samples -> tokens: log-mel, stem, and transformers' blocks (of Parakeet, or with rotary positions wav2vec 2.0's)."""

    def __init__(
        self, layers: int, width: int, heads: int, kernel: int, stem_channels: int | None = None, rotary=False
    ):
        super().__init__()
        self.front_end, self.stem, self.rotary = LogMel(), Stem(width, stem_channels or width), rotary
        common = dict(
            hidden_size=width, num_attention_heads=heads, num_hidden_layers=layers, intermediate_size=4 * width
        )
        if rotary:
            self.blocks = transformers.models.wav2vec2_conformer.modeling_wav2vec2_conformer.Wav2Vec2ConformerEncoder(
                transformers.Wav2Vec2ConformerConfig(
                    **common,
                    position_embeddings_type="rotary",
                    conv_depthwise_kernel_size=kernel,
                    hidden_act="swish",
                    attention_dropout=0.0,
                    hidden_dropout=0.0,
                    activation_dropout=0.0,
                    conformer_conv_dropout=0.0,
                    layerdrop=0.0,
                )
            )
        else:
            from transformers.models.parakeet import modeling_parakeet as parakeet

            config = transformers.ParakeetEncoderConfig(
                **common,
                conv_kernel_size=kernel,
                dropout=0.0,
                dropout_positions=0.0,
                activation_dropout=0.0,
                attention_dropout=0.0,
                layerdrop=0.0,
                scale_input=False,
                attn_implementation="sdpa",
                num_mel_bins=BINS,
            )
            self.places = parakeet.ParakeetEncoderRelPositionalEncoding(config)
            self.blocks = nn.ModuleList([parakeet.ParakeetEncoderBlock(config, i) for i in range(layers)])

    def forward(self, samples: torch.Tensor, lengths: torch.Tensor, ragged: bool) -> tuple[torch.Tensor, torch.Tensor]:
        """[B, samples] and how many are real [B] -> [B, T, width], how many tokens are real [B].

        Args:
          ragged: whether some recordings are shorter than others.
        """
        x = self.stem(self.front_end(samples))
        tokens = _frames((lengths - WINDOW) // HOP + 1)
        real = torch.arange(x.shape[1], device=x.device) < tokens[:, None]
        if self.rotary:
            return self.blocks(x, attention_mask=real).last_hidden_state, tokens
        seen = (real[:, None, None, :] & real[:, None, :, None]) if ragged else None
        places = self.places(x)
        for block in self.blocks:
            x = block(x, attention_mask=seen, position_embeddings=places)
        return x, tokens


def _vit(sizes: dict[str, int]) -> nn.Module:
    return transformers.ViTModel(
        transformers.ViTConfig(
            hidden_size=sizes["width"],
            num_hidden_layers=sizes["layers"],
            num_attention_heads=sizes["heads"],
            intermediate_size=sizes["mlp"],
            image_size=sizes["image_size"],
            patch_size=sizes["patch"],
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            attn_implementation="sdpa",
        ),
        add_pooling_layer=False,
    )


def _bert(sizes: dict[str, int]) -> nn.Module:
    return transformers.BertModel(
        transformers.BertConfig(
            vocab_size=sizes["vocabulary"],
            hidden_size=sizes["width"],
            num_hidden_layers=sizes["layers"],
            num_attention_heads=sizes["heads"],
            intermediate_size=sizes["mlp"],
            max_position_embeddings=sizes["length"],
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            attn_implementation="sdpa",
        ),
        add_pooling_layer=False,
    )


class Attention(nn.Module):
    """[B, T, width] looks at keys [B, S, width]."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads, self.query = heads, nn.Linear(width, width)
        self.key_value, self.out = nn.Linear(width, 2 * width), nn.Linear(width, width)

    def forward(self, x: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
        query, key, value = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part in (self.query(x), *self.key_value(keys).chunk(2, dim=-1))
        )
        return self.out(F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2))


class CrossAttention(nn.Module):
    """As `mmjax.models.fusion.CrossAttention`; all examples here have all modalities, so that there is no mask."""

    def __init__(self, widths: list[int], layers: int, width: int, heads: int, mlp: int, queries: int):
        super().__init__()
        self.project = nn.ModuleList([nn.Linear(one, width) for one in widths])
        self.norms = nn.ModuleList([nn.LayerNorm(width) for _ in widths])
        self.kinds, self.queries = (
            nn.Parameter(torch.randn(len(widths), width)),
            nn.Parameter(torch.randn(queries, width)),
        )
        self.layers = nn.ModuleList(
            nn.ModuleDict(
                {
                    "look": Attention(width, heads),
                    "cross": Attention(width, heads),
                    "gate": nn.Linear(width, mlp),
                    "up": nn.Linear(width, mlp),
                    "down": nn.Linear(mlp, width),
                    **{f"norm_{i}": nn.LayerNorm(width) for i in range(3)},
                }
            )
            for _ in range(layers)
        )
        self.norm = nn.LayerNorm(width)

    def forward(self, streams: list[torch.Tensor]) -> torch.Tensor:
        keys = torch.cat(
            [
                norm(project(x)) + kind
                for x, project, norm, kind in zip(streams, self.project, self.norms, self.kinds, strict=True)
            ],
            dim=1,
        )
        x = self.queries.expand(len(keys), -1, -1)
        for layer in self.layers:
            own = layer["norm_0"](x)
            x = x + layer["look"](own, own)
            x = x + layer["cross"](layer["norm_1"](x), keys)
            own = layer["norm_2"](x)
            x = x + layer["down"](F.silu(layer["gate"](own)) * layer["up"](own))
        return self.norm(x).mean(dim=1)


class Model(nn.Module):
    """Any of the models: batch in, loss out."""

    def __init__(self, size: cases.Size):
        super().__init__()
        (towers, classes, pieces), self.fusion = size, None
        several = "fusion" in towers
        widths = {part: sizes["width"] for part, sizes in towers.items()}
        if "speech" in towers:
            self.speech = Speech(**towers["speech"], rotary=several)
            self.transcript = nn.Linear(widths["speech"], pieces)
        if "image" in towers:
            self.image = _vit(towers["image"])
        if "text" in towers:
            self.text = _bert(towers["text"])
        if several:
            self.fusion = CrossAttention([widths[part] for part in ("speech", "image", "text")], **towers["fusion"])
        if several or "speech" not in towers:
            self.answer = nn.Linear(widths["fusion" if several else next(iter(towers))], classes)

    def forward(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        streams, loss = [], 0.0
        if "speech" in batch:
            x, tokens = self.speech(batch["speech"], batch["samples"], "ragged" in batch)
            streams.append(x)
            scores = self.transcript(x).float().log_softmax(-1).transpose(0, 1)
            loss = loss + F.ctc_loss(scores, batch["transcript"], tokens, batch["labels"], zero_infinity=True)
        if "image" in batch:
            streams.append(self.image(batch["image"]).last_hidden_state)
        if "text" in batch:
            streams.append(self.text(batch["text"]).last_hidden_state)
        if "answer" in batch and hasattr(self, "answer"):
            read = self.fusion(streams) if self.fusion else streams[0][:, 0]
            loss = loss + F.cross_entropy(self.answer(read), batch["answer"])
        return loss


def _batch(examples: list[cases.Raw], device: str) -> dict[str, torch.Tensor]:
    """Examples padded to the longest of them."""

    def padded(arrays: list[np.ndarray]) -> torch.Tensor:
        return nn.utils.rnn.pad_sequence([torch.from_numpy(a) for a in arrays], batch_first=True)

    batch, first = {"answer": torch.tensor([e.answer for e in examples])}, examples[0]
    if first.speech is not None:
        batch |= {
            "speech": padded([e.speech for e in examples]),
            "samples": torch.tensor([len(e.speech) for e in examples]),
            "transcript": padded([e.transcript for e in examples]).long(),
            "labels": torch.tensor([len(e.transcript) for e in examples]),
        }
        if len({len(e.speech) for e in examples}) > 1:
            batch["ragged"] = torch.tensor(True)  # a key, not a value: no step has to look at it
    if first.image is not None:
        pixels = torch.from_numpy(np.stack([e.image for e in examples])).permute(0, 3, 1, 2)
        batch["image"] = pixels.float().div(127.5).sub(1.0).contiguous()
    if first.text is not None:
        batch["text"] = padded([e.text for e in examples]).long()
    return {name: tensor.to(device) for name, tensor in batch.items()}


def trainer(case: cases.Case, how: set[str], device: str = "cpu") -> Callable[[], float]:
    """A function that trains on all examples of the case once, and returns the last loss.

    Args:
      how: "compile"; "sorted": batches are of similar lengths, as transformers' `group_by_length`.
    """
    torch.manual_seed(0)
    examples = sorted(case.examples, key=lambda e: len(e.speech)) if "sorted" in how else case.examples
    batches = [_batch(examples[at : at + case.batch], device) for at in range(0, len(examples), case.batch)]
    model: Any = Model(case.size).train().to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.01, fused=True)
    run = torch.compile(model, dynamic=len(batches) > 1) if "compile" in how else model

    def once() -> float:
        for batch in batches:
            with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
                loss = run(batch)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
        return float(loss.detach())

    return once


def prepared(name: str, variant: str) -> Callable[[], float]:
    """A function that trains on all examples of a case of `CPU` once; the variant is "eager" or "compile", and "-sorted"."""
    return trainer(cases.CPU[name](), set(variant.split("-")))
