"""Masked prediction: part of the input is hidden, and what stood there becomes the labels.

Which tokens are hidden is drawn by the number of each example and the place of the token in it, so neither packing nor
the number of devices changes it.
"""

import jax
import jax.numpy as jnp
import numpy as np

from mmjax.models.augmentation import AddNoise, SpeechAugmentation
from mmjax.models.augmentation.by_example import at_tokens, keys
from mmjax.models.segments import EXACT
from mmjax.models.spectrum import normalise_example
from mmjax.stream import Stream, only_tokens
from mmjax.tree import part


def uniform(stream: Stream, examples: Stream, key: jax.Array) -> jax.Array:
    """[B, T] numbers from 0 to 1, drawn by (key, example, position)."""
    return jax.vmap(jax.vmap(jax.random.uniform))(_of_tokens(stream, examples, key))


def normal(stream: Stream, examples: Stream, key: jax.Array) -> jax.Array:
    """[B, T, F] normally distributed numbers, drawn by (key, example, position)."""
    width = stream.features.shape[-1:]
    return jax.vmap(jax.vmap(lambda k: jax.random.normal(k, width)))(_of_tokens(stream, examples, key))


def _of_tokens(stream: Stream, examples: Stream, key: jax.Array) -> jax.Array:
    """[B, T] keys, of (key, example, position)."""
    of_examples = jax.random.key_data(keys(examples, key))
    of_tokens = jax.random.wrap_key_data(at_tokens(of_examples, stream.segments))
    places = stream.positions
    if places.ndim == 3:
        places = places[..., 0] * 65_536 + places[..., 1]
    return jax.vmap(jax.vmap(jax.random.fold_in))(of_tokens, places)


@part
class MaskedText:
    """BERT's masked language model (Devlin et al. 2019, arXiv:1810.04805, section 3.1).

    Of the hidden tokens 80 % become the mask, 10 % another token at random, and 10 % stay as they are.

    Attributes:
      reads: the stream whose tokens are hidden.
      share: of the tokens.
      vocabulary: ids that a random token may have: 1 to vocabulary - 1.
      mask: id of the mask; 0, the blank, stands in no text of a tokenizer that was trained here.
    """

    reads: str = "text"
    share: float = 0.15  # of the tokens
    vocabulary: int = 128  # sentencepiece pieces
    mask: int = 0  # id of the mask

    def __call__(self, text: Stream, examples: Stream, key: jax.Array) -> tuple[Stream, Stream]:
        """[B, T] ids -> the same with tokens hidden, and those tokens as labels [B, T]."""
        text = only_tokens(text)
        chosen, kind, other = (uniform(text, examples, k) for k in jax.random.split(key, 3))
        hidden = text.mask & (chosen < self.share)
        random = 1 + jnp.minimum((other * (self.vocabulary - 1)).astype(text.features.dtype), self.vocabulary - 2)
        instead = jnp.where(kind < 0.8, self.mask, jnp.where(kind < 0.9, random, text.features))
        labels = text._replace(segments=jnp.where(hidden, text.segments, 0))
        return text._replace(features=jnp.where(hidden, instead, text.features)), labels


@part
class MaskedPatches:
    """Masked autoencoding of pictures (He et al. 2022, arXiv:2111.06377): the encoder sees the other patches alone.

    The labels are the pixels of the hidden patches, each patch with zero mean and unit variance (section 4.1). Each
    patch is hidden by a coin of its own, where the paper hides an exact share.

    Attributes:
      share: of the patches.
    """

    reads: str = "image"
    share: float = 0.75  # of the patches

    def __call__(self, image: Stream, examples: Stream, key: jax.Array) -> tuple[Stream, Stream]:
        """[B, T, P] uint8 patches -> the same, the hidden ones empty, and their pixels as labels [B, T, P] float32."""
        patches = image.mask & (image.positions[..., 0] >= 0)  # no class token, no register
        hidden = patches & (uniform(image, examples, key) < self.share)
        pixels = jnp.where(hidden[..., None], image.features.astype(jnp.float32) / 255.0, 0.0)
        mean, variance = pixels.mean(-1, keepdims=True), pixels.var(-1, keepdims=True)
        pixels = (pixels - mean) * jax.lax.rsqrt(variance + 1e-6)
        seen = image._replace(segments=jnp.where(hidden, 0, image.segments))
        return seen, Stream(pixels, jnp.where(hidden, image.segments, 0), image.positions)


@part
class NoisySpeech:
    """Clean speech hidden under noise, a room or a telephone line, to be found again by a `Denoiser`.

    Attributes:
      by: what is done to the samples; without masks, which are of features.
    """

    reads: str = "speech"
    by: SpeechAugmentation = SpeechAugmentation(noise=AddNoise(probability=1.0))  # without masks

    def __call__(self, speech: Stream, examples: Stream, key: jax.Array) -> tuple[Stream, Stream]:
        """[B, T, hop] samples -> the same with noise, and the clean ones as labels."""
        return self.by.of_samples(speech, examples, key), only_tokens(speech)


@part
class RandomProjectionQuantizer:
    """BEST-RQ (Chiu et al. 2022, arXiv:2202.01855): frames of speech are hidden by noise, their random codes predicted.

    The frames of a token, normalised over the recording, are projected by a fixed random matrix; the label is the
    nearest of fixed random codes of unit length. Neither is a parameter: both follow from `seed`.

    Attributes:
      codes: how many there are; width: of the projection.
      start: how likely a frame begins a span of hidden ones; span: its length in frames, whole tokens.
    """

    reads: str = "speech"
    codes: int = 8192
    width: int = 16
    start: float = 0.01  # how likely a frame begins a hidden span
    span: int = 40  # frames
    seed: int = 0

    def __call__(self, frames: Stream, examples: Stream, key: jax.Array, subsampling: int) -> tuple[Stream, Stream]:
        """Frames [B, T, F] -> the same with spans hidden, and labels [B, T / subsampling] of hidden tokens."""
        frames = only_tokens(frames)
        tokens = jax.tree.map(lambda x: x[:, ::subsampling], frames)
        which, noise = jax.random.split(key)
        # A token begins a span as often as any of its frames would.
        begins = tokens.mask & (uniform(tokens, examples, which) < 1.0 - (1.0 - self.start) ** subsampling)
        hidden = begins
        for later in range(1, -(-self.span // subsampling)):
            before = jnp.pad(tokens.segments, ((0, 0), (later, 0)))[:, : begins.shape[1]]
            started = jnp.pad(begins, ((0, 0), (later, 0)))[:, : begins.shape[1]]
            hidden |= started & (before == tokens.segments) & tokens.mask
        labels = Stream(self.labels(frames, subsampling), jnp.where(hidden, tokens.segments, 0), tokens.positions)
        hide = jnp.repeat(hidden, subsampling, axis=1)[:, : frames.segments.shape[1]] & frames.mask
        instead = 0.1 * normal(frames, examples, noise)
        return frames._replace(features=jnp.where(hide[..., None], instead, frames.features)), labels

    def labels(self, frames: Stream, subsampling: int) -> jax.Array:
        """[B, T, F] -> [B, T / subsampling] int32 codes; those of empty positions mean nothing."""
        frames = normalise_example(frames, correction=0, epsilon=1e-5).features
        rows, length, bins = frames.shape
        stacked = frames.reshape(rows, length // subsampling, subsampling * bins)
        generator = np.random.default_rng(self.seed)
        bound = (6.0 / (stacked.shape[-1] + self.width)) ** 0.5  # Xavier
        projection = generator.uniform(-bound, bound, (stacked.shape[-1], self.width)).astype(np.float32)
        codes = generator.standard_normal((self.codes, self.width)).astype(np.float32)
        codes /= np.linalg.norm(codes, axis=1, keepdims=True)
        projected = jnp.matmul(stacked, projection, precision=EXACT)
        # Of vectors of unit length the nearest is the one with the largest product.
        return jnp.matmul(projected, codes.T, precision=EXACT).argmax(-1).astype(jnp.int32)
