"""Self-supervised pretraining of image encoders by masked autoencoding."""

from typing import Any

import jax
import jax.numpy as jnp

from mmjax.errors import UserError
from mmjax.losses import regression
from mmjax.models.encoder import check_attention
from mmjax.models.masking import check_hiding, uniform
from mmjax.models.patch_decoder import PatchDecoder
from mmjax.models.remat import rematerialised_whole
from mmjax.models.task import Encoded, Output, Sums, Task
from mmjax.stream import Stream


class MaskedPatches(Task, kw_only=True):
    """Masked autoencoding of pictures (He et al. 2022, arXiv:2111.06377): the encoder reads only the visible patches.

    The labels are the pixels of the hidden patches, each patch with zero mean and unit variance (section 4.1). Each patch is
    hidden independently; the paper hides an exact share.
    """

    reads: str = "image"  # a ViT
    share: float = 0.75  # of the patches that are hidden
    decoder: PatchDecoder = PatchDecoder()  # predicts the pixels

    hides = "input"

    def check(self, path: str, config: Any) -> None:
        super().check(path, config)
        check_hiding(path, self, "patches", config.model)
        check_attention(f"{path}.decoder", self.decoder)
        if self.decoder.width % 4:
            raise UserError(f"{path}.decoder.width={self.decoder.width} must be a multiple of 4, for its positions")
        encoder = config.model.encoders[self.reads]
        if encoder.max_patches and encoder.positions.needs_grid:
            raise UserError(
                f"model.encoders.{self.reads}.positions are learned for the grid of a whole image, but {path} hides a part of "
                "it; choose SinCos or Rotary"
            )

    def hide(self, stream: Stream, examples: Stream, key: jax.Array) -> tuple[Stream, Stream]:
        """uint8 patches [B, T, P] -> the stream with hidden patches empty, and their pixels as labels [B, T, P] float32."""
        patches = stream.mask & (stream.positions[..., 0] >= 0)  # no class token, no register
        hidden = patches & (uniform(stream, examples, key) < self.share)
        pixels = jnp.where(hidden[..., None], stream.features.astype(jnp.float32) / 255.0, 0.0)
        mean, variance = pixels.mean(-1, keepdims=True), pixels.var(-1, keepdims=True)
        pixels = (pixels - mean) * jax.lax.rsqrt(variance + 1e-6)
        seen = stream._replace(segments=jnp.where(hidden, 0, stream.segments))
        return seen, Stream(pixels, jnp.where(hidden, stream.segments, 0), stream.positions)

    def __call__(self, encoded: Encoded, train: bool = False) -> Output:
        """Encoded patches [B, T, W] -> pixels of all patches [B, T, P] float32, and those of hidden patches as labels."""
        seen, whole = encoded.streams[self.reads], encoded.batch[self.reads]
        block = encoded.encoders[self.reads].tokens_per_image
        pixels = rematerialised_whole(lambda decoder, *x: decoder(*x, block=block), self.decoder, seen, whole)
        return Output(pixels, encoded.hidden)

    def loss(self, output: Output) -> Sums:
        return regression(*output)
