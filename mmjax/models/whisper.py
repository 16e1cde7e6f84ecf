"""Whisper's speech encoder over packed rows."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmjax.errors import UserError
from mmjax.models.encoder import SpeechEncoder
from mmjax.models.front_ends import WhisperLogMel
from mmjax.models.layers import ACTIVATIONS, BlockStyle, dense, stack
from mmjax.models.published import published
from mmjax.models.remat import Remat
from mmjax.models.roles import parameter
from mmjax.models.segments import neighbour
from mmjax.models.transformer import TransformerBlock
from mmjax.stream import Stream, only_tokens
from mmjax.tree import setting

STYLE = BlockStyle(epsilon=1e-5)


# Published sizes of Whisper (Radford et al. 2022, table 1): layers, width, heads of the encoder.
WHISPERS = {
    "tiny": (4, 384, 6),
    "base": (6, 512, 8),
    "small": (12, 768, 12),
    "medium": (24, 1024, 16),
    "large": (32, 1280, 20),
}


class WhisperEncoder(SpeechEncoder, kw_only=True):
    """Two convolutions in time, learned positions, a pre-norm Transformer (Radford et al. 2022, arXiv:2212.04356).

    Attributes:
      length: tokens of the longest recording, of two hops each.
      pad_to_length: whoever fills the rows continues every recording with silence to this length (30 s), as OpenAI trained
        its models; the silence is attended to like the rest. Off, a recording takes as many tokens as it has.
    """

    front_end: WhisperLogMel = WhisperLogMel()
    layers: int = 4
    width: int = 384
    heads: int = 6
    mlp: int = 1536
    length: int = 1500  # tokens of the longest recording, two hops each
    pad_to_length: bool = False  # every recording, with silence: what OpenAI's models learned from
    dropout: float = 0.0
    unroll: bool = setting(False)
    remat: Remat = "none"
    dtype: Any = setting(jnp.float32)

    subsampling = 2

    @classmethod
    def preset(cls, name: str, **changes: Any) -> "WhisperEncoder":
        """A published size, such as "small"; any field may be changed."""
        layers, width, heads = published(name, WHISPERS, "Whisper")
        return cls(**dict(layers=layers, width=width, heads=heads, mlp=4 * width) | changes)

    def check_row(self, path: str, key: str, room: int) -> None:
        super().check_row(path, key, room)
        hops = self.subsampling * self.length
        if self.pad_to_length and room % hops:
            raise UserError(
                f"{path}.pad_to_length takes {hops} hops for each recording, of which {key}={room} is no multiple; write "
                f"{max(1, round(room / hops)) * hops}"
            )
        if not self.pad_to_length and room > hops:
            raise UserError(
                f"{path}.length={self.length} tokens are {hops} hops, but a recording may fill its row of {room}"
            )

    def geometry(self) -> dict[str, Any]:
        return super().geometry() | {"pad": self.subsampling * self.length if self.pad_to_length else None}

    @nn.compact
    def __call__(self, speech: Stream, train: bool = False) -> Stream:
        """[B, T, hop] samples -> [B, ceil(T / 2), width]."""
        frames = self.front_end(only_tokens(speech))
        gelu = ACTIVATIONS[STYLE.activation]
        x = only_tokens(frames._replace(features=frames.features.astype(self.dtype)))
        x = only_tokens(x._replace(features=gelu(self._convolution(x, "convolution_1"))))
        # Stride 2: examples begin at even positions.
        taken = jax.tree.map(lambda a: a[:, ::2], x._replace(features=gelu(self._convolution(x, "convolution_2"))))
        positions = taken.positions // 2
        init = parameter("embedding", nn.initializers.normal(0.02), (None, "embed"))
        places = nn.Embed(self.length, self.width, embedding_init=init, dtype=self.dtype, name="place")
        features = nn.Dropout(self.dropout, deterministic=not train)(taken.features + places(positions))
        blocks = stack(
            TransformerBlock,
            self.layers,
            2,
            self.unroll,
            self.remat,
            packed=True,
            heads=self.heads,
            mlp=self.mlp,
            rotary=False,
            dropout=self.dropout,
            train=train,
            dtype=self.dtype,
            style=STYLE,
        )
        features, _ = blocks(features, taken.segments, positions)
        return only_tokens(Stream(STYLE.normalise(self.dtype, "norm")(features), taken.segments, positions))

    def _convolution(self, x: Stream, name: str) -> jax.Array:
        """Three taps in time, zeros beyond the example: [B, T, F] -> [B, T, width]."""
        taps = jnp.concatenate([neighbour(x, by) for by in (-1, 0, 1)], axis=-1)
        return dense(self.width, (None, "embed"), self.dtype, name)(taps)
