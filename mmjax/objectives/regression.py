"""Losses of numbers: by the difference of each, and of waveforms by the share that is not noise."""

from typing import ClassVar, Literal

import jax
import jax.numpy as jnp

from mmjax.objectives.base import Objective, SumWeight
from mmjax.stream import Stream
from mmjax.tree import part


@part
class Regression(Objective):
    """How far each predicted number is from its label, in float32.

    Attributes:
      of: what is done with the difference d: its square, its magnitude, or "huber" (Huber 1964): d^2 / 2 up to
        `delta`, and from there on a straight line.
      delta: in the unit of the labels.
    """

    of: Literal["squared", "absolute", "huber"] = "squared"
    delta: float = 1.0

    labelled: ClassVar[bool] = True

    def __call__(self, predictions: Stream, labels: Stream) -> dict[str, SumWeight]:
        """Predictions and labels [B, T, ...], of equal shape -> {"loss"}: (sum, numbers)."""
        known = predictions.mask & (predictions.segments == labels.segments)
        mask = known.reshape(known.shape + (1,) * (predictions.features.ndim - 2))
        here = lambda x: jnp.where(mask, x.astype(jnp.float32), 0.0)  # noqa: E731
        difference = here(predictions.features) - here(labels.features)
        if self.of == "squared":
            loss = difference**2
        elif self.of == "absolute":
            loss = jnp.abs(difference)
        else:
            inside = jnp.clip(difference, -self.delta, self.delta)
            loss = inside * (difference - 0.5 * inside)
        each = predictions.features[0, 0].size
        return {"loss": (loss.sum(), (known.sum() * each).astype(jnp.float32))}


@part
class SISDR(Objective):
    """Scale-invariant signal-to-distortion ratio (Le Roux et al. 2019, arXiv:1811.02508), negated, in dB.

    The estimate is compared with its projection on the target, so its loudness does not matter. As in the paper,
    signals are taken to have no offset. The ratio ends at about 80 dB on both sides, for an estimate without any error
    or without any target. An example with a silent target is left out.
    """

    labelled: ClassVar[bool] = True

    def __call__(self, estimates: Stream, targets: Stream) -> dict[str, SumWeight]:
        """Samples [B, T, hop] of both, each example's standing together -> {"loss", "si_sdr"}: (sum of dB, examples)."""
        known = estimates.mask & (estimates.segments == targets.segments)
        estimate, target = (
            jnp.where(known[..., None], x.features.astype(jnp.float32), 0.0) for x in (estimates, targets)
        )
        # Examples are numbered anew, by how many begin up to a token: no more than there are tokens.
        begins = known & (targets.segments != jnp.pad(targets.segments, ((0, 0), (1, 0)))[:, :-1])
        example = jnp.cumsum(begins, axis=1)
        add = jax.vmap(lambda x, i: jax.ops.segment_sum(x.sum(-1), i, known.shape[1] + 1))
        of_token = lambda x: jnp.take_along_axis(x, example, axis=1)[..., None]  # noqa: E731

        energy = add(target * target, example)
        heard = energy > 0
        scale = add(estimate * target, example) / jnp.where(heard, energy, 1.0)
        projection = of_token(scale) * target
        least = 1e-8 * add(estimate * estimate, example) + 1e-12
        signal = add(projection**2, example) + least
        noise = add((estimate - projection) ** 2, example) + least
        decibels = jnp.where(heard, 10.0 * jnp.log10(signal / noise), 0.0).sum()
        count = heard.sum().astype(jnp.float32)
        return {"loss": (-decibels, count), "si_sdr": (decibels, count)}
