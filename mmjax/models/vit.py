"""The patch image encoder: a Vision Transformer over packed patches."""

from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from mmjax.errors import UserError
from mmjax.models.encoder import ImageEncoder, check_attention
from mmjax.models.layers import BlockStyle, dense, stack
from mmjax.models.positions import sample_grid, sincos
from mmjax.models.remat import Remat
from mmjax.models.roles import parameter
from mmjax.models.segments import single_pictures
from mmjax.models.transformer import TransformerBlock
from mmjax.stream import Stream, fold, only_tokens, unfold
from mmjax.tree import setting

# Published sizes of ViT: layers, width, heads, mlp (Dosovitskiy et al. 2021; Zhai et al. 2022; Alabdulmohsin et al. 2023).
VIT_SIZES = {
    "Ti": (12, 192, 3, 768),
    "S": (12, 384, 6, 1536),
    "B": (12, 768, 12, 3072),
    "L": (24, 1024, 16, 4096),
    "So400m": (27, 1152, 16, 4304),
    "H": (32, 1280, 16, 5120),
}


class ViT(ImageEncoder, kw_only=True):
    """Vision Transformer (Dosovitskiy et al. 2021, arXiv:2010.11929) over packed patches.

    Positions are learned, one vector per place, as in the paper; or fixed sines in two dimensions; or rotary in two
    dimensions, which sees a shape alike wherever it stands.

    Images of one size have the same number of tokens each, so rows are folded into one image each before attention,
    and no score is computed between two images. With `max_patches`, images keep their aspect ratio and have as many
    patches as that or fewer; many stand in a row, attention stays within each image, and the learned grid of
    image_size / patch places a side is resized to each image's own.

    The images of an example do not see each other here; all their tokens are the example's.

    Pixels (0 to 1) are normalised by `mean` and `std`, one number or one per channel; empty positions are unseen.

    A class token, where wanted, takes a position in the row like any patch; its patch row is -1. Registers (Darcet et
    al. 2024, arXiv:2309.16588) follow it with columns 1, 2, ... of that row. They have no learned or fixed position,
    and are discarded at the end: in the result their positions are empty. `placed_registers` gives them learned
    positions between those of class token and patches; one such is DeiT's distillation token (Touvron et al. 2021,
    arXiv:2012.12877).
    """

    patch: int = 16  # pixels
    image_size: int = 224  # pixels
    layers: int = 12
    width: int = 384
    heads: int = 6
    mlp: int = 1536
    class_token: bool = False
    registers: int = 0  # further tokens per image that only the encoder sees
    placed_registers: bool = False  # they too have learned positions, as the distillation token of an imported DeiT
    positions: Literal["learned", "sincos", "rotary"] = "learned"
    max_patches: int | None = None  # of an image that keeps its aspect ratio; None: all are image_size squares
    block: BlockStyle = BlockStyle()
    mean: float | tuple[float, ...] = 0.5  # of the pixels, 0 to 1; of all channels or of each
    std: float | tuple[float, ...] = 0.5
    dropout: float = 0.0
    unroll: bool = setting(False)
    remat: Remat = "none"
    dtype: Any = setting(jnp.float32)

    hideable = ("patches",)

    @classmethod
    def preset(cls, name: str, **changes: Any) -> "ViT":
        """A published size and patch, such as "B/16" or "So400m/14"; any field may be changed."""
        size, _, patch = name.partition("/")
        if size not in VIT_SIZES or not patch.isdecimal():
            raise UserError(f"there is no ViT '{name}'; name a size ({', '.join(VIT_SIZES)}) and a patch: B/16")
        fields = dict(zip(("layers", "width", "heads", "mlp"), VIT_SIZES[size], strict=True), patch=int(patch))
        return cls(**fields | changes)

    def check(self, path: str) -> None:
        check_attention(path, self, pairs=4)
        if self.positions == "sincos" and self.width % 4:
            raise UserError(f"{path}.width={self.width} does not divide into the 4 parts of sincos positions")
        if self.image_size < self.patch:
            raise UserError(f"{path}.image_size={self.image_size} is less than one patch of {self.patch}")
        for key, value in (("mean", self.mean), ("std", self.std)):
            if isinstance(value, tuple) and (len(value) != 3 or (key == "std" and min(value) <= 0)):
                above = " above 0" if key == "std" else ""
                raise UserError(f"{path}.{key} must be one number or 3{above}, not {value}")

    @property
    def tokens_per_image(self) -> int | None:
        """Where all images have as many."""
        side = self.image_size // self.patch
        return side * side + self.class_token + self.registers if self.max_patches is None else None

    @nn.compact
    def __call__(self, image: Stream, train: bool = False) -> Stream:
        """[B, T, patch * patch * 3] uint8 patches with positions [B, T, 2] -> [B, T, width]."""
        rows, side = image.segments.shape[0], self.image_size // self.patch
        if self.tokens_per_image:
            image = fold(image, self.tokens_per_image)
        whole = only_tokens(image)
        image = single_pictures(whole)
        x = ((image.features / 255.0 - self._per_pixel(self.mean)) / self._per_pixel(self.std)).astype(self.dtype)
        x = dense(self.width, (None, "embed"), self.dtype, "embedding")(x)
        x = self._place(self._special_tokens(x, image.positions), image, side)
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        blocks = stack(
            TransformerBlock,
            self.layers,
            2,
            self.unroll,
            self.remat,
            packed=True,
            heads=self.heads,
            mlp=self.mlp,
            rotary=self.positions == "rotary",
            dropout=self.dropout,
            train=train,
            dtype=self.dtype,
            style=self.block,
        )
        x, _ = blocks(x, image.segments, image.positions)
        x = self.block.normalise(self.dtype, "norm")(x)
        image = image._replace(features=x, segments=jnp.where(_is_register(image.positions), 0, whole.segments))
        return unfold(only_tokens(image), rows)

    def _per_pixel(self, value: float | tuple[float, ...]) -> Any:
        return np.tile(np.array(value, np.float32), self.patch**2) if isinstance(value, tuple | list) else value

    def _special_tokens(self, x: jax.Array, positions: jax.Array) -> jax.Array:
        """The learned vectors of class token and registers in their places."""
        row, column = positions[..., 0], positions[..., 1]
        if self.class_token:
            init = parameter("embedding", nn.initializers.zeros, ("embed",))
            token = self.param("class_token", init, (self.width,)).astype(self.dtype)
            x = jnp.where((row < 0)[..., None], token, x)
        if self.registers:
            init = parameter("embedding", nn.initializers.normal(0.02), (None, "embed"))
            registers = self.param("registers", init, (self.registers, self.width)).astype(self.dtype)
            x = jnp.where(_is_register(positions)[..., None], registers[(column - 1).clip(0, self.registers - 1)], x)
        return x

    def _place(self, x: jax.Array, image: Stream, side: int) -> jax.Array:
        """Adds learned or fixed positions."""
        if self.positions == "sincos":
            return x + sincos(image.positions, self.width).astype(self.dtype)
        if self.positions != "learned":
            return x
        row, column = image.positions[..., 0], image.positions[..., 1]
        init = parameter("embedding", nn.initializers.normal(0.5), (None, "embed"))
        special = self.class_token + self.registers * self.placed_registers
        table = nn.Embed(side * side + special, self.width, embedding_init=init, dtype=self.dtype, name="place")
        place = (column - 1 + self.class_token).clip(0, max(special - 1, 0))  # of a token that is no patch
        if self.max_patches is None:
            code = table(jnp.where(row < 0, place, row * side + column + special))
        else:
            grid = table.embedding[special:].reshape(side, side, self.width)
            code = sample_grid(grid, image.positions, image.segments).astype(self.dtype)
            if special:
                code = jnp.where((row < 0)[..., None], table(place), code)
        if self.registers and not self.placed_registers:
            code = jnp.where(_is_register(image.positions)[..., None], 0.0, code)
        return x + code


def _is_register(positions: jax.Array) -> jax.Array:
    return (positions[..., 0] < 0) & (positions[..., 1] > 0)
