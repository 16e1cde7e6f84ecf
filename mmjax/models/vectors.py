"""An encoder for sequences of vectors, such as sensor data, radar, positions, or features of another model."""

from typing import Any

import flax.linen as nn

from mmjax.models.blocks import Tower
from mmjax.models.encoder import Encoder
from mmjax.models.layers import dense, layer_norm
from mmjax.models.positions import Rotary
from mmjax.models.transformer import TransformerBlock
from mmjax.stream import Stream, only_tokens


class Vectors(Encoder, Tower, kw_only=True):
    """A linear layer and a Transformer with rotary positions over the whole sequence.

    The vectors are not normalised: scale them to about -1 to 1.
    """

    inputs: int  # numbers per vector
    layers: int = 2  # number of blocks
    width: int = 128  # features of a token
    heads: int = 4  # attention heads
    mlp: int = 512  # hidden features of the feed-forward

    positions = Rotary()

    def geometry(self) -> dict[str, Any]:
        return {"width": self.inputs}

    @nn.compact
    def __call__(self, vectors: Stream, train: bool = False) -> Stream:
        """[B, T, inputs] -> [B, T, width]."""
        if vectors.features.shape[-1] != self.inputs:
            raise ValueError(f"vectors of {vectors.features.shape[-1]} numbers, not {self.inputs}")
        vectors = only_tokens(vectors)
        x = dense(self.width, (None, "embed"), self.dtype, "embedding")(vectors.features)
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        blocks = self.stack(TransformerBlock, self.settings(train, packed=True), constants=2)
        x, _ = blocks(x, vectors.segments, vectors.positions)
        return only_tokens(vectors._replace(features=layer_norm(self.dtype, "norm")(x)))
