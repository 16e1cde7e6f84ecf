"""Whisper's speech encoder over packed rows."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmjax.errors import UserError
from mmjax.models.blocks import BlockStyle, Tower
from mmjax.models.encoder import SpeechEncoder
from mmjax.models.front_ends import WhisperLogMel
from mmjax.models.layers import ACTIVATIONS, dense
from mmjax.models.positions import Learned
from mmjax.models.published import published
from mmjax.models.segments import neighbour, samples_in
from mmjax.models.transformer import TransformerBlock
from mmjax.stream import Stream, fold, only_tokens, unfold

STYLE = BlockStyle(epsilon=1e-5)


# Published sizes of Whisper (Radford et al. 2022, table 1, and the model card): layers, width, heads of the encoder, mel bins.
# Turbo differs from large-v3 in its decoder alone.
WHISPERS = {
    "tiny": (4, 384, 6, 80),
    "base": (6, 512, 8, 80),
    "small": (12, 768, 12, 80),
    "medium": (24, 1024, 16, 80),
    "large": (32, 1280, 20, 80),
    "large-v3": (32, 1280, 20, 128),
    "large-v3-turbo": (32, 1280, 20, 128),
}


class WhisperEncoder(SpeechEncoder, Tower, kw_only=True):
    """Two convolutions in time, learned positions, a pre-norm Transformer (Radford et al. 2022, arXiv:2212.04356).

    Attributes:
      length: tokens of the longest recording; a token is two hops.
      pad_to_length: recordings are padded with silence to this length (30 s) when rows are filled, as in the training of
        OpenAI's models; tokens attend to the silence. Otherwise a recording has only its own tokens.
    """

    front_end: WhisperLogMel = WhisperLogMel()  # from samples to frames
    layers: int = 4  # number of blocks
    width: int = 384  # features of a token
    heads: int = 6  # attention heads
    mlp: int = 1536  # hidden features of the feed-forward
    length: int = 1500  # tokens of the longest recording, two hops each
    pad_to_length: bool = False  # pad every recording with silence, as in the training of OpenAI's models
    trim: bool = False  # leave out the tokens of this silence, which a language model need not read

    subsampling = 2

    @classmethod
    def preset(cls, name: str, **changes: Any) -> "WhisperEncoder":
        """A published size, such as "small"; any field may be changed."""
        layers, width, heads, bins = published(name, WHISPERS, "Whisper")
        sizes = dict(layers=layers, width=width, heads=heads, mlp=4 * width)
        return cls(**dict(front_end=WhisperLogMel(bins=bins)) | sizes | changes)

    def check_row(self, path: str, key: str, room: int) -> None:
        super().check_row(path, key, room)
        hops = self.subsampling * self.length
        if self.pad_to_length and room % hops:
            raise UserError(
                f"{key}={room} is not a multiple of {hops}, the hops of each recording with {path}.pad_to_length; write "
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
        rows = speech.segments.shape[0]
        if self.pad_to_length:  # every recording has as many hops: no score between two of them is computed
            speech = fold(speech, self.subsampling * self.length)
        speech, recorded = only_tokens(speech), samples_in(speech) > 0
        if self.pad_to_length and speech.positions.ndim == 3:  # silence is a part of the recording
            whole = jnp.where(speech.mask, self.front_end.hop, 0)
            speech = speech._replace(positions=jnp.stack([speech.positions[..., 0], whole], axis=-1))
        frames = self.front_end(speech)
        gelu = ACTIVATIONS[STYLE.activation]
        x = only_tokens(frames._replace(features=frames.features.astype(self.dtype)))
        x = only_tokens(x._replace(features=gelu(self._convolution(x, "convolution_1"))))
        # Stride 2; examples begin at even positions.
        taken = jax.tree.map(lambda a: a[:, ::2], x._replace(features=gelu(self._convolution(x, "convolution_2"))))
        tokens = Stream(taken.features, taken.segments, taken.positions // 2)
        features = Learned(length=self.length).add(tokens.features, tokens, self)
        features = nn.Dropout(self.dropout, deterministic=not train)(features)
        blocks = self.stack(TransformerBlock, self.settings(train, block=STYLE, packed=True), constants=2)
        features, _ = blocks(features, tokens.segments, tokens.positions)
        if self.trim:
            tokens = tokens._replace(segments=jnp.where(recorded[:, ::2], tokens.segments, 0))
        features = STYLE.normalise(self.dtype, "norm")(features)
        return unfold(only_tokens(tokens._replace(features=features)), rows)

    def _convolution(self, x: Stream, name: str) -> jax.Array:
        """A convolution of three taps, with zeros outside the example: [B, T, F] -> [B, T, width]."""
        taps = jnp.concatenate([neighbour(x, by) for by in (-1, 0, 1)], axis=-1)
        return dense(self.width, (None, "embed"), self.dtype, name)(taps)
