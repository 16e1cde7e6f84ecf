"""The augmentations of speech, in physical order."""

import jax

from mmjax.errors import UserError
from mmjax.models.augmentation.noise import AddNoise
from mmjax.models.augmentation.reverberation import Reverberate
from mmjax.models.augmentation.spec_augment import SpecAugment
from mmjax.models.augmentation.waveform import Clip, Gain, TelephoneBand
from mmjax.stream import Stream
from mmjax.tree import part


@part
class SpeechAugmentation:
    """Reverberation, noise, telephone line, gain and clipping of samples, then masks on features. None: off.

    Each has its own random key, so switching one off does not change the random numbers of the others.
    """

    reverberate: Reverberate | None = None  # a simulated room
    noise: AddNoise | None = None  # noise at a random level
    telephone: TelephoneBand | None = None  # the band of a telephone
    gain: Gain | None = None  # another loudness
    clip: Clip | None = None  # clipped peaks
    masks: SpecAugment | None = None  # of features (SpecAugment)

    def check(self, path: str, sample_rate: int, hop: int) -> None:
        """Checks that the augmentations suit the recordings.

        Args:
          path: the key of this part in the config.
          sample_rate: in Hz.
          hop: samples per hop.

        Raises:
          UserError: they do not.
        """
        for name in ("reverberate", "telephone"):
            rate = getattr(getattr(self, name), "sample_rate", sample_rate)
            if rate != sample_rate:
                raise UserError(
                    f"{path}.{name}.sample_rate is {rate}, but the front end's sample_rate is {sample_rate}"
                )
        if self.telephone:
            self.telephone.check(f"{path}.telephone", hop)

    def of_samples(
        self,
        speech: Stream,
        examples: Stream,
        key: jax.Array,
        responses: jax.Array | None = None,
        noises: jax.Array | None = None,
    ) -> Stream:
        """[B, T, hop] samples -> [B, T, hop].

        Args:
          responses: [K, taps] impulse responses of rooms; None: synthetic responses.
          noises: [K, samples] recordings; None: synthetic noise.
        """
        banks = {"reverberate": (responses,), "noise": (noises,)}
        for number, name in enumerate(("reverberate", "noise", "telephone", "gain", "clip")):
            if augment := getattr(self, name):
                speech = augment(speech, examples, jax.random.fold_in(key, number), *banks.get(name, ()))
        return speech

    def of_frames(self, frames: Stream, examples: Stream, key: jax.Array) -> Stream:
        """[B, T, F] features of about zero mean -> [B, T, F]."""
        return frames if self.masks is None else self.masks(frames, examples, jax.random.fold_in(key, 5))
