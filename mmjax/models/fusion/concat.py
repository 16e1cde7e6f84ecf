"""Self-attention over the tokens of all modalities of an example."""

import flax.linen as nn

from mmjax.models.blocks import Tower
from mmjax.models.fusion.base import Fusion, read_out
from mmjax.models.layers import layer_norm
from mmjax.models.transformer import TransformerBlock
from mmjax.stream import Stream, concatenate


class Concat(Fusion, Tower, kw_only=True):
    """Early fusion: one Transformer over the joined tokens of all modalities and a class token per example.

    The result is the class token (Devlin et al. 2019, arXiv:1810.04805). No positions are added: encoders apply them.
    """

    layers: int = 3  # number of blocks
    width: int = 128  # features of a token
    heads: int = 4  # attention heads
    mlp: int = 512  # hidden features of the feed-forward

    @nn.compact
    def __call__(self, streams: dict[str, Stream], examples: Stream, train: bool = False) -> Stream:
        """Streams [B, T_m, W_m] and the slots of the examples [B, N] -> [B, N, width]."""
        joint = concatenate([*self.common(streams).values(), self.learned("class_token", 1, examples)])
        blocks = self.stack(TransformerBlock, self.settings(train), constants=2)
        x, _ = blocks(joint.features, joint.segments, joint.positions)
        slots = examples.segments.shape[1]
        return read_out(layer_norm(self.dtype, "norm")(x[:, -slots:]), examples)
