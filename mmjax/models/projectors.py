"""Projectors: from the tokens of an encoder to the vectors that a language model reads."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmjax.errors import UserError
from mmjax.models.attend import AUTO, Selection
from mmjax.models.blocks import BlockSettings
from mmjax.models.fusion.perceiver import PerceiverBlock
from mmjax.models.layers import dense, gelu, layer_norm
from mmjax.models.roles import parameter
from mmjax.stream import Stream, only_tokens
from mmjax.tree import setting


class Projector(nn.Module, kw_only=True):
    """The base class of projectors. Each window of an encoder's tokens becomes a fixed number of vectors.

    A medium begins with a window, because recordings start at multiples of its length (`Task.align`).
    """

    kind = "projector"

    dtype: Any = setting(jnp.float32)

    def window(self, encoder: Any) -> int:
        """The number of tokens of the encoder in a window."""
        raise NotImplementedError

    def check(self, path: str, name: str, encoder: Any) -> None:
        """Checks that the tokens of each medium divide into windows.

        Args:
          path: the key of the projector in the config.
          name: of the encoder.

        Raises:
          UserError: they do not.
        """
        window, geometry = self.window(encoder), encoder.geometry()
        of_one = encoder.tokens_per_image or (geometry.get("pad") or 0) // encoder.subsampling
        if of_one % window:
            raise UserError(f"{path} joins {window} tokens, but every input of model.encoders.{name} has {of_one}")

    def __call__(self, stream: Stream, encoder: Any, width: int) -> Stream:
        """Tokens [B, T, W], their positions [B, T] the numbers of their media -> [B, S, width].

        Args:
          encoder: that made the tokens.
        """
        raise NotImplementedError


def windows(stream: Stream, window: int) -> Stream:
    """Tokens [B, T, W] in windows [B, T / window, window, W], segments and positions [B, T / window, window]."""
    count = stream.segments.shape[1] // window
    return jax.tree.map(lambda x: x.reshape(x.shape[0], count, window, *x.shape[2:]), only_tokens(stream))


class Stacked(Projector, kw_only=True):
    """The base class of projectors that join consecutive tokens into one vector.

    Attributes:
      rate: vectors per second of a recording; 12.5 is 80 ms for each (NeMo's SALM, Kimi-Audio).
      stack: number of tokens that are joined; None: what `rate` asks for, and 1 for other media than recordings.
    """

    kind = "projector"

    rate: float = 12.5  # vectors per second of a recording
    stack: int | None = None  # tokens that are joined; None: as rate asks for; 1 for other media

    def window(self, encoder: Any) -> int:
        per_second = encoder.tokens_per_second
        return self.stack or (1 if per_second is None else max(1, round(per_second / self.rate)))

    def stacked(self, stream: Stream, encoder: Any) -> Stream:
        """Tokens [B, T, W] -> [B, T / window, window * W]; zeros in place of tokens beyond the end of a medium."""
        whole = windows(stream, self.window(encoder))
        features = whole.features.reshape(*whole.features.shape[:2], -1).astype(self.dtype)
        return Stream(features, whole.segments[..., 0], whole.positions[..., 0])


class Linear(Stacked, kw_only=True):
    """A linear layer on joined tokens (LLaVA, Liu et al. 2023, arXiv:2304.08485; SLAM-ASR, Ma et al. 2024)."""

    @nn.compact
    def __call__(self, stream: Stream, encoder: Any, width: int) -> Stream:
        stacked = self.stacked(stream, encoder)
        return only_tokens(
            stacked._replace(features=dense(width, (None, "embed"), self.dtype, "out")(stacked.features))
        )


class MLP(Stacked, kw_only=True):
    """Two linear layers with GELU on joined tokens (LLaVA 1.5, Liu et al. 2023, arXiv:2310.03744)."""

    hidden: int | None = None  # features between the two layers; None: as many as the language model's width

    @nn.compact
    def __call__(self, stream: Stream, encoder: Any, width: int) -> Stream:
        stacked = self.stacked(stream, encoder)
        x = gelu(dense(self.hidden or width, (None, "mlp"), self.dtype, "up")(stacked.features))
        return only_tokens(stacked._replace(features=dense(width, ("mlp", "embed"), self.dtype, "down")(x)))


class Resampler(Projector, kw_only=True):
    """Learned latents attend to the tokens of a window (Flamingo's Perceiver resampler, Alayrac et al. 2022, arXiv:2204.14198).

    A picture is one window, so it becomes `vectors` vectors. A recording has a window for every `seconds`.
    """

    vectors: int = 64  # per window
    seconds: float = 1.0  # of a recording in a window
    layers: int = 2  # number of blocks
    width: int = 512  # features of a latent
    heads: int = 8  # attention heads
    backend: Selection = setting(AUTO)  # of attention

    def window(self, encoder: Any) -> int:
        if encoder.tokens_per_second is not None:
            return max(1, round(self.seconds * encoder.tokens_per_second))
        return encoder.tokens_per_image or 0

    def check(self, path: str, name: str, encoder: Any) -> None:
        if not self.window(encoder):
            raise UserError(
                f"{path}: a Resampler needs recordings, or pictures of one size, but those of model.encoders.{name} differ; "
                "choose Linear or MLP"
            )
        super().check(path, name, encoder)

    @nn.compact
    def __call__(self, stream: Stream, encoder: Any, width: int) -> Stream:
        whole = windows(stream, self.window(encoder))
        rows, count, length = whole.segments.shape
        tokens = jax.tree.map(lambda x: x.reshape(rows * count, length, *x.shape[3:]), whole)
        embedded = dense(self.width, (None, "embed"), self.dtype, "embedding")(tokens.features.astype(self.dtype))
        # Within a window all tokens are of one medium, so that the window itself is the only segment.
        there = tokens.mask.any(axis=1, keepdims=True)
        tokens = Stream(embedded, tokens.mask.astype(jnp.int32), tokens.positions)
        init = parameter("embedding", nn.initializers.normal(1.0), (None, "embed"))
        learned = self.param("latents", init, (self.vectors, self.width)).astype(self.dtype)
        x = jnp.broadcast_to(learned, (rows * count, self.vectors, self.width))
        latents = jnp.broadcast_to(there.astype(jnp.int32), x.shape[:2])
        settings = BlockSettings(heads=self.heads, mlp=4 * self.width, dtype=self.dtype, backend=self.backend)
        for number in range(self.layers):
            x, _ = PerceiverBlock(settings, name=f"layers_{number}")(x, latents, tokens)
        x = dense(width, ("embed", None), self.dtype, "out")(layer_norm(self.dtype, "norm")(x))

        def of_latents(of_windows: jax.Array) -> jax.Array:
            return jnp.repeat(of_windows[..., 0], self.vectors, axis=1)

        vectors = x.reshape(rows, count * self.vectors, width)
        return only_tokens(Stream(vectors, of_latents(whole.segments), of_latents(whole.positions)))
