"""Positions that only a Conformer has: relative, by distance, and rotary on the inputs of queries and keys."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from mmjax.errors import UserError
from mmjax.models.adapters import as_array
from mmjax.models.positions import SpeechPositions, rotary
from mmjax.models.roles import parameter, projection
from mmjax.stream import Stream
from mmjax.tree import part


@part
class Relative(SpeechPositions):
    """Relative positions of Transformer-XL (Dai et al. 2019, arXiv:1901.02860), as in the Conformer's paper."""

    def check(self, path: str, width: int, head_width: int, dimensions: int = 1) -> None:
        if width % 2:
            raise UserError(f"{path}.width={width} is odd; the sines and cosines of relative positions need pairs")

    def score(
        self, query: jax.Array, key: jax.Array, positions: jax.Array, key_positions: jax.Array, attention: Any
    ) -> tuple[jax.Array, jax.Array, None]:
        """Queries [B, H, T, D + W] and keys [B, H, S, D + W]; the products are sums of content and position scores."""
        batch, heads, _, head_width = query.shape
        width, dtype = attention.width, attention.dtype
        init = parameter("bias", nn.initializers.zeros, ("heads", None))
        content_bias, position_bias = (
            attention.param(name, init, (heads, head_width)).astype(dtype)[None, :, None]
            for name in ("content_bias", "position_bias")
        )
        factors = OffsetProjection(width, dtype, name="position")(query + position_bias)
        angles, key_angles = sinusoids(positions, width), sinusoids(key_positions, width)
        factors = rotated(factors, *(a[:, None] for a in angles)).astype(dtype)
        key_angles = jnp.concatenate(key_angles, axis=-1).astype(dtype)[:, None]
        key_angles = jnp.broadcast_to(key_angles, (batch, heads, *key_angles.shape[2:]))
        query = jnp.concatenate([query + content_bias, factors], axis=-1)
        return query, jnp.concatenate([key, key_angles], axis=-1), None


@part
class RotaryInput(SpeechPositions):
    """Rotary positions applied before the projections of queries and keys, as in wav2vec 2.0's Conformer."""

    def check(self, path: str, width: int, head_width: int, dimensions: int = 1) -> None:
        if head_width % 2:
            raise UserError(f"{path}: rotary positions need heads whose width divides by 2")

    def project(self, x: Stream, project: Callable[..., Any]) -> list[jax.Array]:
        query_key = project(2, name="query_key")
        heads = x.features.reshape(*x.segments.shape, query_key.heads, -1).swapaxes(1, 2)
        inputs = rotary(heads, x.positions).swapaxes(1, 2).reshape(x.features.shape)
        return query_key(inputs) + project(1, name="value")(x.features)


@part
class DistanceEmbeddings(SpeechPositions):
    """A learned vector per distance, whose product with the query is added to the score (Shaw et al. 2018, arXiv:1803.02155).

    Attributes:
      left, right: the largest distance to an earlier and to a later token; longer distances share its vector.
    """

    left: int = 64  # tokens; longer distances to earlier tokens share one vector
    right: int = 8  # the same for later tokens

    def score(
        self, query: jax.Array, key: jax.Array, positions: jax.Array, key_positions: jax.Array, attention: Any
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Queries and keys unchanged, and a bias [B, H, T, S] (equation 4, before the scaling)."""
        length, head_width = query.shape[2:]
        init = parameter("embedding", nn.initializers.normal(0.02), (None, None))
        table = attention.param("distance", init, (self.left + self.right + 1, head_width)).astype(attention.dtype)
        offsets = np.arange(1 - key.shape[2], length)  # of a key from a query
        vectors = table[np.clip(offsets, -self.left, self.right) + self.left]
        scores = jnp.einsum("bhtd,sd->bhts", query, vectors, preferred_element_type=jnp.float32)
        return query, key, relative_shift(scores)


class OffsetProjection(nn.Module):
    """Projects queries [B, H, T, D] to the factors [B, H, T, W] of the sine and cosine of every frequency."""

    width: int  # features of a token
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, query: jax.Array) -> jax.Array:
        init = projection(nn.initializers.xavier_uniform(), ("embed", "heads"))
        kernel = as_array(self.param("kernel", init, (self.width, query.shape[1] * query.shape[3])))
        kernel = kernel.reshape(self.width, query.shape[1], query.shape[3]).astype(self.dtype)
        return jnp.einsum("bhtd,whd->bhtw", query, kernel)


def sinusoids(positions: jax.Array, width: int) -> tuple[jax.Array, jax.Array]:
    """Cosines and sines [B, T, W / 2] of positions [B, T] at Transformer-XL's frequencies."""
    angles = positions[..., None] * 10_000.0 ** (-jnp.arange(0, width, 2) / width)
    return jnp.cos(angles), jnp.sin(angles)


def rotated(factors: jax.Array, cosine: jax.Array, sine: jax.Array) -> jax.Array:
    """Rotates the factors of sines and cosines of offsets to factors of cosines and sines of key positions.

    Transformer-XL (Dai et al. 2019, arXiv:1901.02860, section 3.3) scores query i and key j by the sum over frequencies
    of a sin(i - j) + b cos(i - j). This equals (a sin i + b cos i) cos j + (b sin i - a cos i) sin j, a product with the
    cosines and sines of the key's position. So no matrix of queries by offsets is computed and shifted.

    Args:
      factors: [..., W] a and b interleaved, as in the paper's code.
      cosine, sine: [..., W / 2] of the queries' positions.

    Returns:
      [..., W], the factors of all cosines, then of all sines.
    """
    a, b = factors[..., 0::2], factors[..., 1::2]
    return jnp.concatenate([a * sine + b * cosine, b * sine - a * cosine], axis=-1)


def relative_shift(scores: jax.Array) -> jax.Array:
    """[B, H, T, S + T - 1] scores for the offsets S-1 .. -(T-1) -> [B, H, T, S] for the pairs (query i, key j).

    The queries are the last T of the S positions. Pads, reshapes and slices, without a gather, as in Transformer-XL (Dai
    et al. 2019, arXiv:1901.02860, appendix B).
    """
    batch, heads, length, offsets = scores.shape
    padded = jnp.pad(scores, ((0, 0), (0, 0), (0, 0), (1, 0)))
    shifted = padded.reshape(batch, heads, offsets + 1, length)[:, :, 1:]
    return shifted.reshape(batch, heads, length, offsets)[..., : offsets + 1 - length]
