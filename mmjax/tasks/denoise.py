"""Speech enhancement: the samples of a recording without its noise."""

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from mmjax.errors import UserError
from mmjax.losses import OF_WAVEFORMS, si_sdr
from mmjax.models.augmentation import AddNoise, SpeechAugmentation
from mmjax.models.augmentation.blocks import from_spectra, short_time_spectra
from mmjax.models.layers import dense
from mmjax.models.masking import check_hiding
from mmjax.models.task import Encoded, Facts, Output, Sums, Task
from mmjax.stream import Stream, only_tokens


class Denoise(Task, kw_only=True):
    """Removes noise: a mask from 0 to 1 over time and frequency, on the spectra of what the encoder received.

    (Ideal ratio masks, Wang et al. 2014, "On training targets for supervised speech separation", trained on the samples that
    follow; the phase stays that of the noisy speech.) In training, clean speech is hidden under noise, a room or a telephone
    line. The loss is the negated scale-invariant signal-to-distortion ratio. All is float32.
    """

    reads: str = "speech"  # a speech encoder
    by: SpeechAugmentation = SpeechAugmentation(noise=AddNoise(probability=1.0))  # hides clean speech; without masks

    hides = "input"
    measured = False
    positive = False
    loss_metrics = OF_WAVEFORMS

    def check(self, path: str, config: Any) -> None:
        super().check(path, config)
        check_hiding(path, self, "samples", config.model)
        encoder = config.model.encoders[self.reads]
        if encoder.augment:
            raise UserError(
                f"model.encoders.{self.reads}.augment changes samples that {path} does not see; set it in {path}.by instead"
            )
        if self.by.masks or not any(vars(self.by).values()):
            raise UserError(f"{path}.by must augment samples, and must not mask features")
        self.by.check(f"{path}.by", encoder.front_end.sample_rate, encoder.front_end.hop)

    def hide(self, stream: Stream, examples: Stream, key: jax.Array, encoder: Any) -> tuple[Stream, Stream]:
        """Samples [B, T, hop] -> the samples with noise, and the clean ones as labels."""
        return self.by.of_samples(stream, examples, key), only_tokens(stream)

    @nn.compact
    def __call__(self, encoded: Encoded, train: bool = False) -> Output:
        """Encoded speech [B, T / s, W] and the samples that it was computed from [B, T, hop] -> samples [B, T, hop]."""
        tokens, noisy = encoded.streams[self.reads], encoded.seen[self.reads]
        length, hop = noisy.features.shape[1:]
        subsampling, frequencies = -(-length // tokens.segments.shape[1]), 3 * hop // 2 + 1
        logits = dense(subsampling * frequencies, ("embed", None), jnp.float32, "mask")(
            tokens.features.astype(jnp.float32)
        )
        mask = nn.sigmoid(logits).reshape(len(logits), -1, frequencies)[:, :length]
        # An example's last hops may have no token. They stay as they are.
        there = jnp.repeat(tokens.segments, subsampling, axis=1)[:, :length] == noisy.segments
        mask = jnp.where(there[..., None], mask, 1.0)
        clean = from_spectra(noisy, short_time_spectra(noisy) * jnp.concatenate([mask, mask], axis=-1))
        return Output(clean, encoded.hidden)

    def loss(self, output: Output) -> Sums:
        return si_sdr(*output)

    def decode(
        self,
        apply: Callable[..., Any],
        encoded: Encoded,
        output: Output,
        rooms: Mapping[str, int],
        tables: Any = None,
    ) -> Stream:
        """[B, T, hop + 1]: the samples, and how many of them a hop holds."""
        count = encoded.seen[self.reads].positions[..., 1:].astype(jnp.float32)
        features = jnp.concatenate([output.prediction.features, count], axis=-1)
        return output.prediction._replace(features=features)

    def prediction(self, tokens: np.ndarray, facts: Facts) -> np.ndarray:
        """Samples [N]."""
        return np.concatenate([hop[: int(hop[-1])] for hop in tokens])
