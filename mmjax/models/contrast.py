"""The head of contrastive learning: two modalities of an example as vectors to be compared."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmjax.models.layers import dense
from mmjax.models.roles import parameter
from mmjax.models.segments import having, mean
from mmjax.stream import Stream


class Contrast(nn.Module, kw_only=True):
    """Each example's mean token of two modalities, projected and normalised; the learned scale and bias of the logits.

    Attributes:
      between: the two encoders.
      outputs: width of the vectors.
      scale: the logits' first scale, the inverse temperature: 10 in SigLIP (Zhai et al. 2023), 1 / 0.07 in CLIP
        (Radford et al. 2021).
      bias: the logits' first bias: -10 in SigLIP; without effect in CLIP.
      limit: what the scale may not exceed: 100 in CLIP.
    """

    between: tuple[str, ...]  # two encoders
    outputs: int  # width of the vectors that are compared
    scale: float = 10.0  # of the logits at first; 14.3 in CLIP
    bias: float = -10.0  # of the logits at first; without effect in CLIP
    limit: float | None = None  # of the scale; 100 in CLIP

    @property
    def inputs(self) -> tuple[str, ...]:
        return *self.between, "examples"

    @nn.compact
    def __call__(self, first: Stream, second: Stream, examples: Stream) -> Stream:
        """Streams [B, T, W], [B, S, W'] and slots [B, N] -> [B, N, 2, outputs + 1] in float32.

        Logit (i, j) is the product of the first vector of example i and the second of example j: scale and bias are
        in the first. The slot of an example that lacks one of the two is empty.
        """
        (a, has_first), (b, has_second) = (
            self._vectors(name, stream, examples)
            for name, stream in zip(("first", "second"), (first, second), strict=True)
        )
        log_scale = self.param("log_scale", parameter("gate", nn.initializers.constant(math.log(self.scale)), ()), ())
        bias = self.param("bias", parameter("bias", nn.initializers.constant(self.bias), ()), ())
        if self.limit is not None:
            # Its gradient passes, so that a scale beyond the limit can come back.
            log_scale += jax.lax.stop_gradient(jnp.minimum(log_scale, math.log(self.limit)) - log_scale)
        ones = jnp.ones_like(a[..., :1])
        pairs = jnp.stack(
            [jnp.concatenate([jnp.exp(log_scale) * a, bias * ones], -1), jnp.concatenate([b, ones], -1)], axis=2
        )
        segments = jnp.where(has_first & has_second, examples.segments, 0)
        return Stream(jnp.where((segments > 0)[..., None, None], pairs, 0.0), segments, examples.positions)

    def _vectors(self, name: str, stream: Stream, examples: Stream) -> tuple[jax.Array, jax.Array]:
        """Unit vectors [B, N, outputs], and where there are any."""
        x = dense(self.outputs, ("embed", None), jnp.float32, name, bias=False)(mean(stream, examples.segments))
        return x * jax.lax.rsqrt(jnp.maximum((x * x).sum(-1, keepdims=True), 1e-24)), having(stream, examples) > 0
