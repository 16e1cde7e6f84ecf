"""Cross-entropy over classes: one class per example, or any number of them."""

import jax
import jax.numpy as jnp

from mmjax.losses.base import ACCURACY, SumWeight
from mmjax.stream import Stream

OF_CLASSES = {"accuracy": ACCURACY}


def cross_entropy(
    logits: Stream, labels: Stream, label_smoothing: float = 0.0, gamma: float = 0.0
) -> dict[str, SumWeight]:
    """Softmax cross-entropy per example, in float32, with label smoothing (Szegedy et al. 2016, section 7).

    Args:
      logits: [B, N, C].
      labels: classes [B, N], or distributions over classes [B, N, C].
      label_smoothing: the probability that is spread over all classes.
      gamma: exponent of the focal loss (Lin et al. 2017, equation 4); 0 is plain cross-entropy.

    Returns:
      {"loss", "accuracy"}: (sum, number of examples). The right class of a distribution is its most probable one.
    """
    known = labels.mask & logits.mask
    log_probability = jax.nn.log_softmax(logits.features.astype(jnp.float32))
    if labels.features.ndim == 3:
        share = jnp.where(known[..., None], labels.features, 0.0)
        of_label, target = (share * log_probability).sum(-1), share.argmax(-1)
    else:
        target = jnp.where(known, labels.features, 0)
        of_label = jnp.take_along_axis(log_probability, target[..., None], axis=-1)[..., 0]
    loss = -(1.0 - label_smoothing) * of_label - label_smoothing * log_probability.mean(-1)
    loss = loss * focal_factor(of_label, gamma)
    right = log_probability.argmax(-1) == target
    count = known.sum().astype(jnp.float32)
    return {
        "loss": (jnp.where(known, loss, 0.0).sum(), count),
        "accuracy": ((known & right).sum().astype(jnp.float32), count),
    }


def sigmoid_cross_entropy(logits: Stream, labels: Stream, gamma: float = 0.0) -> dict[str, SumWeight]:
    """Sigmoid cross-entropy in float32: each class is a decision of its own, labelled 0 or 1.

    Args:
      logits, labels: [B, N, C].
      gamma: exponent of the focal loss (Lin et al. 2017, equation 4); 0 is plain cross-entropy.

    Returns:
      {"loss", "accuracy"}: (sum, examples x classes).
    """
    known = (labels.mask & logits.mask)[..., None]
    positive = labels.features > 0
    score = jnp.where(known, logits.features.astype(jnp.float32), 0.0)
    of_label = jax.nn.log_sigmoid(jnp.where(positive, score, -score))
    count = (known.sum() * score.shape[-1]).astype(jnp.float32)
    return {
        "loss": (jnp.where(known, -of_label * focal_factor(of_label, gamma), 0.0).sum(), count),
        "accuracy": ((known & ((score > 0) == positive)).sum().astype(jnp.float32), count),
    }


def focal_factor(log_probability: jax.Array, gamma: float) -> jax.Array | float:
    """(1 - p)^gamma, where p is the probability of the label."""
    if gamma == 0:
        return 1.0
    # Above 0, because the power has no finite gradient there for gamma < 1.
    return jnp.maximum(-jnp.expm1(log_probability), 1e-12) ** gamma
