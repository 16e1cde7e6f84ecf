"""Self-supervised pretraining of speech encoders by random-projection quantisation."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from mmjax.errors import UserError
from mmjax.losses import OF_TOKENS, token_cross_entropy
from mmjax.models.layers import dense
from mmjax.models.masking import check_hiding, normal, uniform
from mmjax.models.segments import EXACT
from mmjax.models.spectrum import normalise_example
from mmjax.models.task import Encoded, Output, Sums, Task
from mmjax.stream import Stream, only_tokens


class BestRQ(Task, kw_only=True):
    """BEST-RQ (Chiu et al. 2022, arXiv:2202.01855): hides spans of speech frames by noise, and predicts their random codes.

    The frames of a token, normalised over the recording, are projected by a fixed random matrix. The label is the nearest of
    fixed random codes of unit length. `seed` determines the matrix and the codes; they are not parameters.
    """

    reads: str = "speech"  # a Conformer
    codes: int = 8192  # number of codes
    width: int = 16  # features of the projection
    start: float = 0.01  # probability that a frame begins a hidden span
    span: int = 40  # frames, rounded up to whole tokens
    seed: int = 0  # of projection and codes

    hides = "frames"
    loss_metrics = OF_TOKENS

    def check(self, path: str, config: Any) -> None:
        super().check(path, config)
        check_hiding(path, self, "frames", config.model)
        augment = config.model.encoders[self.reads].augment
        if augment and augment.masks:
            raise UserError(
                f"model.encoders.{self.reads}.augment.masks would hide the input from which {path} computes its labels; "
                "leave them out"
            )

    def hide_frames(self, frames: Stream, examples: Stream, key: jax.Array, subsampling: int) -> tuple[Stream, Stream]:
        """Frames [B, T, F] -> the frames with spans hidden, and labels [B, T / subsampling] of hidden tokens."""
        frames = only_tokens(frames)
        tokens = jax.tree.map(lambda x: x[:, ::subsampling], frames)
        which, noise = jax.random.split(key)
        # A token begins a span with the probability that one of its frames does.
        begins = tokens.mask & (uniform(tokens, examples, which) < 1.0 - (1.0 - self.start) ** subsampling)
        hidden = begins
        for later in range(1, -(-self.span // subsampling)):
            before = jnp.pad(tokens.segments, ((0, 0), (later, 0)))[:, : begins.shape[1]]
            started = jnp.pad(begins, ((0, 0), (later, 0)))[:, : begins.shape[1]]
            hidden |= started & (before == tokens.segments) & tokens.mask
        labels = Stream(self.codes_of(frames, subsampling), jnp.where(hidden, tokens.segments, 0), tokens.positions)
        hide = jnp.repeat(hidden, subsampling, axis=1)[:, : frames.segments.shape[1]] & frames.mask
        instead = 0.1 * normal(frames, examples, noise)
        return frames._replace(features=jnp.where(hide[..., None], instead, frames.features)), labels

    def codes_of(self, frames: Stream, subsampling: int) -> jax.Array:
        """[B, T, F] -> [B, T / subsampling] int32 codes; those of empty positions have no meaning."""
        frames = normalise_example(frames, correction=0, epsilon=1e-5).features
        rows, length, bins = frames.shape
        stacked = frames.reshape(rows, length // subsampling, subsampling * bins)
        generator = np.random.default_rng(self.seed)
        bound = (6.0 / (stacked.shape[-1] + self.width)) ** 0.5  # Xavier
        projection = generator.uniform(-bound, bound, (stacked.shape[-1], self.width)).astype(np.float32)
        codes = generator.standard_normal((self.codes, self.width)).astype(np.float32)
        codes /= np.linalg.norm(codes, axis=1, keepdims=True)
        projected = jnp.matmul(stacked, projection, precision=EXACT)
        # The nearest vector of unit length has the largest product.
        return jnp.matmul(projected, codes.T, precision=EXACT).argmax(-1).astype(jnp.int32)

    @nn.compact
    def __call__(self, encoded: Encoded, train: bool = False) -> Output:
        """Encoded tokens [B, T, W] -> logits [B, T, codes], and the codes of hidden tokens."""
        stream = encoded.streams[self.reads]
        logits = dense(self.codes, ("embed", None), jnp.float32, "logits")(stream.features.astype(jnp.float32))
        return Output(stream._replace(features=logits), encoded.hidden)

    def loss(self, output: Output) -> Sums:
        return token_cross_entropy(*output)
