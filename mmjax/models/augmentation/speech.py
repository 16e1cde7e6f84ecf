"""The augmentations of speech, in the order in which sound meets them."""

import jax

from mmjax.models.augmentation.noise import AddNoise
from mmjax.models.augmentation.reverberation import Reverberate
from mmjax.models.augmentation.spec_augment import SpecAugment
from mmjax.models.augmentation.waveform import Clip, Gain, TelephoneBand
from mmjax.stream import Stream
from mmjax.tree import part


@part
class SpeechAugmentation:
    """A room, its noise, the line, the level, the recorder; then masks on the features. None is off.

    Each draws from a key of its own: switching one off changes nothing that another draws.
    """

    reverberate: Reverberate | None = None
    noise: AddNoise | None = None
    telephone: TelephoneBand | None = None
    gain: Gain | None = None
    clip: Clip | None = None
    masks: SpecAugment | None = None

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
          responses: [K, taps] impulse responses of rooms; noises: [K, samples] recordings. None: synthetic ones.
        """
        banks = {"reverberate": (responses,), "noise": (noises,)}
        for number, name in enumerate(("reverberate", "noise", "telephone", "gain", "clip")):
            if augment := getattr(self, name):
                speech = augment(speech, examples, jax.random.fold_in(key, number), *banks.get(name, ()))
        return speech

    def of_frames(self, frames: Stream, examples: Stream, key: jax.Array) -> Stream:
        """[B, T, F] features of about zero mean -> [B, T, F]."""
        return frames if self.masks is None else self.masks(frames, examples, jax.random.fold_in(key, 5))
