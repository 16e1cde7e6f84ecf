"""Self-supervised pretraining of image encoders by masked autoencoding."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mmjax.errors import UserError
from mmjax.losses import regression
from mmjax.models.encoder import check_attention
from mmjax.models.masking import check_hiding, put_back, ranks, uniform, without
from mmjax.models.patch_decoder import PatchDecoder
from mmjax.models.remat import rematerialised_whole
from mmjax.models.segments import renumbered, single_pictures
from mmjax.models.task import Encoded, Output, Sums, Task
from mmjax.stream import Stream


class MaskedPatches(Task, kw_only=True):
    """Masked autoencoding of pictures (He et al. 2022, arXiv:2111.06377): the encoder computes only the visible patches.

    The labels are the pixels of the hidden patches, each patch with zero mean and unit variance (section 4.1). A picture of
    n patches has floor((1 - share) n) visible ones. They are put together in shorter rows, so that the encoder costs this
    share. A picture of fewer than 1 / (1 - share) patches has no visible one.
    """

    reads: str = "image"  # a ViT
    share: float = 0.75  # of the patches that are hidden
    decoder: PatchDecoder = PatchDecoder()  # predicts the pixels

    hides = "input"

    def check(self, path: str, config: Any) -> None:
        super().check(path, config)
        check_hiding(path, self, "patches", config.model)
        check_attention(f"{path}.decoder", self.decoder)
        if not 0.0 < self.share < 1.0:
            raise UserError(f"{path}.share={self.share} must be above 0 and below 1")
        if self.decoder.width % 4:
            raise UserError(f"{path}.decoder.width={self.decoder.width} must be a multiple of 4, for its positions")
        encoder, key = config.model.encoders[self.reads], f"model.encoders.{self.reads}"
        if not self._visible(encoder.max_patches or (encoder.image_size // encoder.patch) ** 2):
            raise UserError(f"{path}.share={self.share} leaves no patch of an image of {key} visible; lower it")
        if encoder.max_patches and encoder.positions.needs_grid:
            raise UserError(
                f"{key}.positions are learned for the grid of a whole image, but {path} hides a part of it; choose SinCos or "
                "Rotary"
            )
        if encoder.max_patches and encoder.class_token + encoder.registers:
            raise UserError(
                f"{path} needs rows of a known number of visible patches, but images of {key} with max_patches also have a "
                "class token or registers; leave them out, or max_patches"
            )
        for name, task in config.model.tasks.items():
            if self.reads in task.media:
                raise UserError(
                    f"model.tasks.{name} joins neighbouring patches of '{self.reads}', of which {path} leaves some out"
                )

    def hide(self, stream: Stream, examples: Stream, key: jax.Array, encoder: Any) -> tuple[Stream, Stream]:
        """uint8 patches [B, T, P] -> visible patches [B, S, P], and the pixels of the hidden ones as labels [B, T, P]."""
        patches = stream.mask & (stream.positions[..., 0] >= 0)  # no class token, no register
        picture = renumbered(single_pictures(stream).segments)
        count = jax.vmap(lambda of, one: jax.ops.segment_sum(of, one, picture.shape[1] + 1)[one])(
            patches.astype(jnp.int32), picture
        )
        chance = jnp.where(patches, uniform(stream, examples, key), 2.0)  # class token and registers are the last
        length = picture.shape[1]
        hidden = patches & (ranks(chance, picture) < count - jnp.asarray(self._visible(np.arange(length + 1)))[count])
        pixels = jnp.where(hidden[..., None], stream.features.astype(jnp.float32) / 255.0, 0.0)
        mean, variance = pixels.mean(-1, keepdims=True), pixels.var(-1, keepdims=True)
        pixels = (pixels - mean) * jax.lax.rsqrt(variance + 1e-6)
        labels = Stream(pixels, jnp.where(hidden, stream.segments, 0), stream.positions)
        if one := encoder.tokens_per_image:
            special = encoder.class_token + encoder.registers
            room = length // one * int(self._visible(one - special) + special)
        else:
            room = int(self._visible(length))
        return without(stream, hidden, room), labels

    def _visible(self, patches: Any) -> Any:
        """The number of visible patches of a picture with `patches` patches."""
        return np.floor((1.0 - self.share) * patches + 1e-6).astype(np.int32)

    def __call__(self, encoded: Encoded, train: bool = False) -> Output:
        """Encoded visible patches [B, S, W] -> pixels of all patches [B, T, P] float32, and those of hidden patches as labels."""
        seen, whole, labels = encoded.streams[self.reads], encoded.batch[self.reads], encoded.hidden
        if labels is not None:
            seen = put_back(seen, whole.mask & ~labels.mask)
        block = encoded.encoders[self.reads].tokens_per_image
        pixels = rematerialised_whole(lambda decoder, *x: decoder(*x, block=block), self.decoder, seen, whole)
        return Output(pixels, labels)

    def loss(self, output: Output) -> Sums:
        return regression(*output)
