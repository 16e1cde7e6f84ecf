"""The whole model: encoders by modality, a fusion, heads by objective."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmjax.models.layers import dense
from mmjax.stream import Batch, Stream


class Head(nn.Module):
    """A linear read-out of one stream, in float32: losses and their softmax are not for bfloat16."""

    reads: str
    outputs: int

    @nn.compact
    def __call__(self, stream: Stream) -> Stream:
        logits = dense(self.outputs, ("embed", "vocabulary"), jnp.float32, "logits")(
            stream.features.astype(jnp.float32)
        )
        return stream._replace(features=logits)


class Multimodal(nn.Module):
    """Encoders -> fusion -> heads. Which modalities a batch carries decides what is computed.

    Attributes:
      encoders: by the name of the stream that each reads.
      fusion: (encoded streams, example slots) -> one vector per example.
      heads: by the name of their output; each reads "fused" or an encoder's stream.
    """

    encoders: dict[str, nn.Module]
    fusion: nn.Module
    heads: dict[str, Head]
    dtype: Any = jnp.float32
    unroll: bool = False

    @nn.compact
    def __call__(self, batch: Batch, train: bool = False) -> dict[str, Stream]:
        """Returns the heads' logits as streams; a head whose stream is not in the batch is left out.

        `batch["examples"]` says which slots of each row hold an example.
        """
        batch = jax.tree.map(jnp.asarray, batch)
        streams = {name: encode(batch[name], train) for name, encode in self.encoders.items() if name in batch}
        fused = self.fusion(streams, batch["examples"], train)
        sources = {**streams, "fused": fused}
        return {name: head(sources[head.reads]) for name, head in self.heads.items() if head.reads in sources}
