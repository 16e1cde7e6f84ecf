"""The patch image encoder: a Vision Transformer over packed patches."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmjax.errors import UserError
from mmjax.models.blocks import BlockStyle, Tower
from mmjax.models.encoder import ImageEncoder, check_attention
from mmjax.models.layers import dense
from mmjax.models.pixels import PixelNormalisation
from mmjax.models.positions import ImagePositions, LearnedGrid, is_register, resize_positions
from mmjax.models.roles import parameter
from mmjax.models.segments import single_pictures
from mmjax.models.transformer import TransformerBlock
from mmjax.stream import Stream, fold, only_tokens, unfold

# Published sizes of ViT: layers, width, heads, mlp (Dosovitskiy et al. 2021; Zhai et al. 2022; Alabdulmohsin et al. 2023).
VIT_SIZES = {
    "Ti": (12, 192, 3, 768),
    "S": (12, 384, 6, 1536),
    "B": (12, 768, 12, 3072),
    "L": (24, 1024, 16, 4096),
    "So400m": (27, 1152, 16, 4304),
    "H": (32, 1280, 16, 5120),
}
# What differs in image towers of the same sizes: SigLIP and SigLIP 2 (Zhai et al. 2023; Tschannen et al. 2025).
FAMILIES = {"": {}, "SigLIP": dict(block=BlockStyle(activation="gelu_tanh"))}


class ViT(ImageEncoder, Tower, kw_only=True):
    """Vision Transformer (Dosovitskiy et al. 2021, arXiv:2010.11929) over packed patches.

    If all images have one size, they have the same number of tokens. Rows are then folded into one image each before
    attention, and no score between two images is computed. With `max_patches`, images keep their aspect ratio and have at
    most that many patches; a row holds several images, and attention stays within segments.

    The images of an example do not see each other here; all their tokens are the example's.

    A class token takes a position in the row before the patches; its patch row is -1. Registers (Darcet et al. 2024,
    arXiv:2309.16588) follow it with row -1 and columns 1, 2, ...; their positions are empty in the result.
    """

    patch: int = 16  # pixels
    image_size: int = 224  # pixels
    layers: int = 12  # number of blocks
    width: int = 384  # features of a token
    heads: int = 6  # attention heads
    mlp: int = 1536  # hidden features of the feed-forward
    class_token: bool = False  # a token before the patches that stands for the image
    registers: int = 0  # further tokens per image that only the encoder sees
    positions: ImagePositions = LearnedGrid()  # how positions enter the computation
    max_patches: int | None = None  # of an image that keeps its aspect ratio; None: all are image_size squares
    block: BlockStyle = BlockStyle()  # the style of the blocks
    pixels: PixelNormalisation = PixelNormalisation()  # normalisation of pixels
    input_norm: bool = False  # normalise the tokens before the first block, as CLIP does

    hideable = ("patches",)

    @classmethod
    def preset(cls, name: str, **changes: Any) -> "ViT":
        """A published size and patch, such as "B/16" or "SigLIP So400m/14"; any field may be changed."""
        family, _, sizes = name.rpartition(" ")
        size, _, patch = sizes.partition("/")
        if family not in FAMILIES or size not in VIT_SIZES or not patch.isdecimal():
            sizes = ", ".join(VIT_SIZES)
            raise UserError(f"there is no ViT '{name}'; name a size ({sizes}) and a patch: B/16, or SigLIP B/16")
        fields = dict(zip(("layers", "width", "heads", "mlp"), VIT_SIZES[size], strict=True), patch=int(patch))
        return cls(**fields | FAMILIES[family] | changes)

    def check(self, path: str) -> None:
        check_attention(path, self, dimensions=2)
        self.pixels.check(f"{path}.pixels")
        if self.image_size < self.patch:
            raise UserError(f"{path}.image_size={self.image_size} is less than one patch of {self.patch}")

    def adapted(self, path: str, value: Any, source: "ViT") -> Any:
        """Resizes learned positions to another image size (bicubic, as in DeiT)."""
        old, new = source.image_size // source.patch, self.image_size // self.patch
        if path != "place.embedding" or old == new:
            return value
        return resize_positions(value, (old, old), (new, new), "bicubic", special=len(value) - old * old)

    @property
    def tokens_per_image(self) -> int | None:
        """Tokens of each image if all images have one size, else None."""
        side = self.image_size // self.patch
        return side * side + self.class_token + self.registers if self.max_patches is None else None

    @nn.compact
    def __call__(self, image: Stream, train: bool = False, visible: int | None = None) -> Stream:
        """[B, T, patch * patch * 3] uint8 patches with positions [B, T, 2] -> [B, T, width].

        Args:
          visible: tokens of each image, if all images have one size and a task has left out the others.
        """
        rows = image.segments.shape[0]
        if self.tokens_per_image:
            image = fold(image, visible or self.tokens_per_image)
        whole = only_tokens(image)
        image = single_pictures(whole)
        x = self.pixels(image.features).astype(self.dtype)
        x = dense(self.width, (None, "embed"), self.dtype, "embedding")(x)
        x = self.positions.add(self._special_tokens(x, image.positions), image, self)
        if self.input_norm:
            x = self.block.normalise(self.dtype, "input_norm")(x)
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        blocks = self.stack(TransformerBlock, self.settings(train, packed=True), constants=2)
        x, _ = blocks(x, image.segments, self.positions.coordinates(image, self))
        x = self.block.normalise(self.dtype, "norm")(x)
        image = image._replace(features=x, segments=jnp.where(is_register(image.positions), 0, whole.segments))
        return unfold(only_tokens(image), rows)

    def _special_tokens(self, x: jax.Array, positions: jax.Array) -> jax.Array:
        """x with the learned vectors of class token and registers in their positions."""
        row, column = positions[..., 0], positions[..., 1]
        if self.class_token:
            init = parameter("embedding", nn.initializers.zeros, ("embed",))
            token = self.param("class_token", init, (self.width,)).astype(self.dtype)
            x = jnp.where((row < 0)[..., None], token, x)
        if self.registers:
            init = parameter("embedding", nn.initializers.normal(0.02), (None, "embed"))
            registers = self.param("registers", init, (self.registers, self.width)).astype(self.dtype)
            x = jnp.where(is_register(positions)[..., None], registers[(column - 1).clip(0, self.registers - 1)], x)
        return x
