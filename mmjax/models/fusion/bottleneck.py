"""Fusion of modalities through a few bottleneck tokens."""

from collections.abc import Collection

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmjax.errors import UserError
from mmjax.models.blocks import BlockSettings, Tower
from mmjax.models.fusion.base import Fusion, read_out
from mmjax.models.layers import layer_norm
from mmjax.models.segments import having
from mmjax.models.transformer import TransformerBlock
from mmjax.stream import Stream, concatenate, only_tokens

Segments = dict[str, jax.Array]


class BottleneckBlock(nn.Module):
    """One Transformer layer per modality over its own tokens and the bottlenecks.

    Each modality computes its own update of the bottlenecks. The next layer reads their mean over the modalities that the
    example has.
    """

    settings: BlockSettings

    @nn.compact
    def __call__(self, carry: tuple[dict[str, jax.Array], jax.Array], own: Segments, shared: Segments):
        """One layer.

        Args:
          carry: tokens [B, T_m, W] by modality, and bottlenecks [B, K, W].
          own, shared: segments of the tokens and of the bottlenecks, by modality.
        """
        tokens, bottlenecks = carry
        updated, total, count = {}, jnp.zeros(bottlenecks.shape, jnp.float32), 0.0
        for name in sorted(tokens):
            length = tokens[name].shape[1]
            x = jnp.concatenate([tokens[name], bottlenecks], axis=1)
            segments = jnp.concatenate([own[name], shared[name]], axis=1)
            block = TransformerBlock(self.settings, name=f"{name}_block")
            x, _ = block(x, segments, jnp.zeros_like(segments))
            updated[name] = x[:, :length]
            there = (shared[name] > 0)[..., None]
            total = total + jnp.where(there, x[:, length:], 0.0)
            count = count + there
        return (updated, (total / jnp.maximum(count, 1)).astype(self.settings.dtype)), None


class Bottleneck(Fusion, Tower, kw_only=True):
    """Multimodal bottleneck transformer (MBT; Nagrani et al. 2021, arXiv:2107.00135).

    Each modality has its own Transformer layers and class token. Modalities exchange information only through `bottlenecks`
    tokens per example. The result is the mean of the normalised class tokens of the modalities that an example has.

    Class tokens read the bottlenecks that the previous layer wrote, so a single layer exchanges nothing.
    """

    layers: int = 3  # number of blocks
    width: int = 128  # features of a token
    heads: int = 4  # attention heads
    mlp: int = 512  # hidden features of the feed-forward
    bottlenecks: int = 4  # tokens per example through which modalities exchange; 0: no exchange

    def check(self, path: str, modalities: Collection[str]) -> None:
        super().check(path, modalities)
        if self.bottlenecks and self.layers < 2:
            raise UserError(
                f"{path}.layers is 1, but modalities exchange nothing before the second layer; write 2 or more"
            )

    @nn.compact
    def __call__(self, streams: dict[str, Stream], examples: Stream, train: bool = False) -> Stream:
        """Streams [B, T_m, W_m] and the slots of the examples [B, N] -> [B, N, width]."""
        joint, shared, there = {}, {}, {}
        for name, stream in self.common(streams).items():
            # An example without this modality has no class token and no bottlenecks of it either.
            there[name] = examples._replace(segments=having(stream, examples))
            joint[name] = concatenate([stream, self.learned(f"{name}_class_token", 1, there[name])])
            shared[name] = jnp.repeat(there[name].segments, self.bottlenecks, axis=1)
        bottlenecks = self.learned("bottlenecks", self.bottlenecks, examples).features
        blocks = self.stack(BottleneckBlock, self.settings(train), constants=2)
        tokens = {name: stream.features for name, stream in joint.items()}
        (tokens, _), _ = blocks((tokens, bottlenecks), {name: s.segments for name, s in joint.items()}, shared)

        slots, norm = examples.segments.shape[1], layer_norm(self.dtype, "norm")
        total = sum(read_out(norm(tokens[name][:, -slots:]), there[name]).features for name in tokens)
        count = sum(there[name].mask for name in tokens)[..., None]
        return only_tokens(examples._replace(features=total / jnp.maximum(count, 1).astype(self.dtype)))
