"""The whole model: encoders by modality, a fusion, heads by objective."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmjax.models.contrast import Contrast
from mmjax.models.layers import dense
from mmjax.models.pooling import AttentionPool, ClassPool, MeanPool
from mmjax.stream import Batch, Factors, Stream


class Head(nn.Module):
    """A linear read-out of one stream, in float32: losses and their softmax are not for bfloat16.

    With a pool, of one vector per example instead of one per token.
    """

    reads: str
    outputs: int
    pool: MeanPool | ClassPool | AttentionPool | None = None

    @property
    def inputs(self) -> tuple[str, ...]:
        return (self.reads, "examples") if self.pool else (self.reads,)

    @nn.compact
    def __call__(self, stream: Stream, examples: Stream | None = None) -> Stream:
        if self.pool:
            stream = self.pool(stream, examples)
        logits = dense(self.outputs, ("embed", "vocabulary"), jnp.float32, "logits")(
            stream.features.astype(jnp.float32)
        )
        return stream._replace(features=logits)


class Vocabulary(nn.Module):
    """A linear read-out without bias, over so many outputs that the logits are left to the loss, chunk by chunk."""

    reads: str
    outputs: int

    @property
    def inputs(self) -> tuple[str, ...]:
        return (self.reads,)

    @nn.compact
    def __call__(self, stream: Stream) -> Stream:
        """[B, T, W] -> `Factors` of the logits [B, T, outputs], in float32."""
        init = nn.with_logical_partitioning(nn.initializers.xavier_uniform(), ("embed", "vocabulary"))
        kernel = self.param("kernel", init, (stream.features.shape[-1], self.outputs))
        return stream._replace(features=Factors(stream.features.astype(jnp.float32), kernel))


class Multimodal(nn.Module):
    """Encoders -> fusion -> heads. Which modalities a batch carries decides what is computed.

    Attributes:
      encoders: by the name of the stream that each reads.
      fusion: (encoded streams, example slots) -> one vector per example.
      heads: by the name of their output; each reads "fused", an encoder's stream, or two encoders'.
    """

    encoders: dict[str, nn.Module]
    fusion: nn.Module
    heads: dict[str, Head | Vocabulary | Contrast]
    dtype: Any = jnp.float32
    unroll: bool = False

    @nn.compact
    def __call__(self, batch: Batch, train: bool = False) -> dict[str, Stream]:
        """Returns the heads' outputs as streams; a head is left out if what it reads is not in the batch.

        `batch["examples"]` says which slots of each row hold an example.
        """
        batch = jax.tree.map(jnp.asarray, batch)
        streams = {}
        for name, encode in self.encoders.items():
            if name in batch:
                whose = (batch["examples"],) if getattr(encode, "reads_examples", False) else ()
                streams[name] = encode(batch[name], train, *whose)
        fused = self.fusion(streams, batch["examples"], train)
        sources = {**streams, "fused": fused, "examples": batch["examples"]}
        return {
            name: head(*(sources[source] for source in head.inputs))
            for name, head in self.heads.items()
            if all(source in sources for source in head.inputs)
        }
