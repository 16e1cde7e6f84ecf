"""The head of speech enhancement: the samples of a recording without its noise."""

import flax.linen as nn
import jax.numpy as jnp

from mmjax.models.augmentation.blocks import from_spectra, short_time_spectra
from mmjax.models.layers import dense
from mmjax.stream import Stream


class Denoiser(nn.Module, kw_only=True):
    """A mask from 0 to 1 over time and frequency, read from the encoder's tokens, on the spectra of what it heard.

    (Ideal ratio masks, Wang et al. 2014, "On training targets for supervised speech separation", here trained on the
    samples that follow; the phase stays that of the noisy speech.) All is float32.
    """

    reads: str

    @property
    def inputs(self) -> tuple[str, ...]:
        return (self.reads, f"{self.reads}/seen")

    @nn.compact
    def __call__(self, tokens: Stream, noisy: Stream) -> Stream:
        """Encoded speech [B, T / s, W] and the samples that it was made of [B, T, hop] -> [B, T, hop]."""
        subsampling, frequencies = (
            -(-noisy.segments.shape[1] // tokens.segments.shape[1]),
            3 * noisy.features.shape[-1] // 2 + 1,
        )
        logits = dense(subsampling * frequencies, ("embed", None), jnp.float32, "mask")(
            tokens.features.astype(jnp.float32)
        )
        mask = nn.sigmoid(logits).reshape(len(logits), -1, frequencies)[:, : noisy.segments.shape[1]]
        # An example's last hops may have no token: they stay as they are.
        there = jnp.repeat(tokens.segments, subsampling, axis=1)[:, : noisy.segments.shape[1]] == noisy.segments
        mask = jnp.where(there[..., None], mask, 1.0)
        return from_spectra(noisy, short_time_spectra(noisy) * jnp.concatenate([mask, mask], axis=-1))
