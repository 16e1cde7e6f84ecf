"""LSTM layers over packed rows, and a recurrent speech encoder as a baseline."""

from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmjax.errors import UserError
from mmjax.models.adapters import as_array
from mmjax.models.encoder import SpeechEncoder
from mmjax.models.front_ends import FrontEnd, LogMel
from mmjax.models.layers import dense
from mmjax.models.roles import projection
from mmjax.models.stems import StridedStem, stacked
from mmjax.stream import Stream, only_tokens
from mmjax.tree import setting


def lstm(gates: jax.Array, recurrent: jax.Array, segments: jax.Array, backward: bool = False) -> jax.Array:
    """A long short-term memory over packed rows (Hochreiter and Schmidhuber 1997). The initial state of every example is zero.

    Args:
      gates: [B, T, 4 H] contributions of the input to input gate, forget gate, candidate and output gate.
      recurrent: [H, 4 H] weights of the state.
      segments: [B, T] int32.
      backward: run from the end of each example to its start.

    Returns:
      [B, T, H] float32; zeros in empty positions.
    """
    if backward:
        return jnp.flip(lstm(jnp.flip(gates, 1), recurrent, jnp.flip(segments, 1)), 1)
    begins = segments != jnp.pad(segments, ((0, 0), (1, 0)))[:, :-1]

    def step(carry, now):
        contribution, begin = now
        state = lstm_step(contribution, tuple(jnp.where(begin[:, None], 0.0, x) for x in carry), recurrent)
        return state, state[0]

    zero = jnp.zeros((gates.shape[0], recurrent.shape[0]), jnp.float32)
    over_time = gates.astype(jnp.float32).swapaxes(0, 1), begins.swapaxes(0, 1)
    _, hidden = jax.lax.scan(step, (zero, zero), over_time)
    return jnp.where((segments > 0)[..., None], hidden.swapaxes(0, 1), 0.0)


def lstm_step(
    gates: jax.Array, state: tuple[jax.Array, jax.Array], recurrent: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """The next hidden and cell state [B, H] of an LSTM layer; `gates` [B, 4 H] and `recurrent` are as for `lstm`."""
    hidden, cell = state
    given, forget, candidate, output = jnp.split(gates + hidden @ recurrent, 4, axis=-1)
    cell = nn.sigmoid(forget) * cell + nn.sigmoid(given) * jnp.tanh(candidate)
    return nn.sigmoid(output) * jnp.tanh(cell), cell


class BiLSTM(SpeechEncoder, kw_only=True):
    """Speech encoder of bidirectional LSTM layers (Graves et al. 2013, arXiv:1303.5778).

    Attributes:
      width: of the result; each direction has half of it.
      stem: concatenated frames ("stack"), or the convolutions of `StridedStem` ("full", "depthwise"), which make it a CNN-LSTM.
      subsampling: hops per token.
    """

    front_end: FrontEnd = LogMel()  # from samples to frames
    layers: int = 2  # number of blocks
    width: int = 256  # both directions together
    stem: Literal["stack", "full", "depthwise"] = "stack"  # full or depthwise convolutions make it a CNN-LSTM
    stem_channels: int = 32  # of the stem
    subsampling: Literal[2, 4, 8] = 4  # hops per token
    dropout: float = 0.0  # of activations, in training
    dtype: Any = setting(jnp.float32)

    def check(self, path: str) -> None:
        if self.width % 2:
            raise UserError(f"{path}.width={self.width} does not divide among two directions")

    @nn.compact
    def __call__(self, speech: Stream, train: bool = False) -> Stream:
        """[B, T, hop] samples -> [B, ceil(T / subsampling), width]."""
        frames = self.front_end(only_tokens(speech))
        if self.stem == "stack":
            x = stacked(frames, self.subsampling)
        else:
            stem = StridedStem(
                subsampling=self.subsampling,
                channels=self.stem_channels,
                depthwise=self.stem == "depthwise",
                dtype=self.dtype,
                name="stem",
            )
            x = stem(frames, self.width)
        features = x.features.astype(self.dtype)
        for layer in range(self.layers):
            features = nn.Dropout(self.dropout, deterministic=not train)(features)
            directions = [self._direction(features, x.segments, layer, backward) for backward in (False, True)]
            features = jnp.concatenate(directions, axis=-1).astype(self.dtype)
        return only_tokens(x._replace(features=features))

    def _direction(self, features: jax.Array, segments: jax.Array, layer: int, backward: bool) -> jax.Array:
        name, hidden = f"layer_{layer}_{'backward' if backward else 'forward'}", self.width // 2
        gates = dense(4 * hidden, ("embed", "mlp"), self.dtype, f"{name}_input")(features)
        init = projection(nn.initializers.orthogonal(), (None, "mlp"))
        recurrent = as_array(self.param(f"{name}_recurrent", init, (hidden, 4 * hidden)))
        return lstm(gates, recurrent, segments, backward)
