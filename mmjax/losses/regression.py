"""Losses of numbers: by the difference of each, and of waveforms by their signal-to-distortion ratio."""

from typing import Literal

import jax
import jax.numpy as jnp

from mmjax.losses.base import SumWeight
from mmjax.metric import Metric
from mmjax.stream import Stream

Difference = Literal["squared", "absolute", "huber"]
OF_WAVEFORMS = {"si_sdr": Metric("higher", heading="SI-SDR in dB")}


def regression(
    predictions: Stream, labels: Stream, of: Difference = "squared", delta: float = 1.0
) -> dict[str, SumWeight]:
    """The difference between predicted numbers and labels, in float32.

    Args:
      predictions, labels: [B, T, ...], of equal shape.
      of: what is done with the difference d: its square, its magnitude, or "huber" (Huber 1964): d^2 / 2 up to `delta`, and a
        straight line beyond.
      delta: in the unit of the labels.

    Returns:
      {"loss"}: (sum, numbers).
    """
    known = predictions.mask & (predictions.segments == labels.segments)
    mask = known.reshape(known.shape + (1,) * (predictions.features.ndim - 2))
    prediction, label = (jnp.where(mask, x.features.astype(jnp.float32), 0.0) for x in (predictions, labels))
    difference = prediction - label
    if of == "squared":
        loss = difference**2
    elif of == "absolute":
        loss = jnp.abs(difference)
    else:
        inside = jnp.clip(difference, -delta, delta)
        loss = inside * (difference - 0.5 * inside)
    each = predictions.features[0, 0].size
    return {"loss": (loss.sum(), (known.sum() * each).astype(jnp.float32))}


def si_sdr(estimates: Stream, targets: Stream) -> dict[str, SumWeight]:
    """Negated scale-invariant signal-to-distortion ratio in dB (Le Roux et al. 2019, arXiv:1811.02508).

    The estimate is compared with its projection on the target, so its loudness does not matter. As in the paper, signals are
    assumed to have no offset. The ratio is limited to about +-80 dB. An example with a silent target is left out.

    Args:
      estimates, targets: samples [B, T, hop]; those of an example are contiguous.

    Returns:
      {"loss", "si_sdr"}: (sum of dB, examples).
    """
    known = estimates.mask & (estimates.segments == targets.segments)
    estimate, target = (jnp.where(known[..., None], x.features.astype(jnp.float32), 0.0) for x in (estimates, targets))
    # Examples are renumbered by the number of examples that begin up to a token, which is at most the number of tokens.
    begins = known & (targets.segments != jnp.pad(targets.segments, ((0, 0), (1, 0)))[:, :-1])
    example = jnp.cumsum(begins, axis=1)
    add = jax.vmap(lambda x, i: jax.ops.segment_sum(x.sum(-1), i, known.shape[1] + 1))

    energy = add(target * target, example)
    heard = energy > 0
    scale = add(estimate * target, example) / jnp.where(heard, energy, 1.0)
    projection = jnp.take_along_axis(scale, example, axis=1)[..., None] * target
    least = 1e-8 * add(estimate * estimate, example) + 1e-12
    signal = add(projection**2, example) + least
    noise = add((estimate - projection) ** 2, example) + least
    decibels = jnp.where(heard, 10.0 * jnp.log10(signal / noise), 0.0).sum()
    count = heard.sum().astype(jnp.float32)
    return {"loss": (-decibels, count), "si_sdr": (decibels, count)}
