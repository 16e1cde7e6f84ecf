"""Cross-entropy over classes: one class per example, or any number of them."""

from typing import ClassVar

import jax
import jax.numpy as jnp

from mmjax.objectives.base import Objective, SumWeight
from mmjax.stream import Stream
from mmjax.tree import part


@part
class Classification(Objective):
    """Softmax cross-entropy per example, in float32, with label smoothing (Szegedy et al. 2016, section 7).

    The mass of smoothing is spread over all classes. `accuracy` is reported beside the loss.

    Attributes:
      gamma: focuses on examples that are not yet right (Lin et al. 2017, equation 4); 0 is plain cross-entropy.
    """

    label_smoothing: float = 0.0
    gamma: float = 0.0

    labelled: ClassVar[bool] = True

    def __call__(self, logits: Stream, labels: Stream) -> dict[str, SumWeight]:
        """Logits [B, N, C] and labels, classes [B, N] or distributions over them [B, N, C].

        Returns:
          {"loss", "accuracy"}: (sum, number of examples). Right is the likeliest class of a distribution.
        """
        known = labels.mask & logits.mask
        log_probability = jax.nn.log_softmax(logits.features.astype(jnp.float32))
        if labels.features.ndim == 3:
            share = jnp.where(known[..., None], labels.features, 0.0)
            of_label, target = (share * log_probability).sum(-1), share.argmax(-1)
        else:
            target = jnp.where(known, labels.features, 0)
            of_label = jnp.take_along_axis(log_probability, target[..., None], axis=-1)[..., 0]
        loss = -(1.0 - self.label_smoothing) * of_label - self.label_smoothing * log_probability.mean(-1)
        loss = loss * focus(of_label, self.gamma)
        right = log_probability.argmax(-1) == target
        count = known.sum().astype(jnp.float32)
        return {
            "loss": (jnp.where(known, loss, 0.0).sum(), count),
            "accuracy": ((known & right).sum().astype(jnp.float32), count),
        }


@part
class MultiLabel(Objective):
    """Sigmoid cross-entropy in float32: every class is a question of its own, answered by 0 or 1.

    Attributes:
      gamma: focuses on decisions that are not yet right (Lin et al. 2017, equation 4); 0 is plain cross-entropy.
    """

    gamma: float = 0.0

    labelled: ClassVar[bool] = True

    def __call__(self, logits: Stream, labels: Stream) -> dict[str, SumWeight]:
        """Logits [B, N, C] and labels [B, N, C] of 0 and 1 -> {"loss", "accuracy"}: (sum, examples x classes)."""
        known = (labels.mask & logits.mask)[..., None]
        positive = labels.features > 0
        score = jnp.where(known, logits.features.astype(jnp.float32), 0.0)
        of_label = jax.nn.log_sigmoid(jnp.where(positive, score, -score))
        count = (known.sum() * score.shape[-1]).astype(jnp.float32)
        return {
            "loss": (jnp.where(known, -of_label * focus(of_label, self.gamma), 0.0).sum(), count),
            "accuracy": ((known & ((score > 0) == positive)).sum().astype(jnp.float32), count),
        }


def focus(log_probability: jax.Array, gamma: float) -> jax.Array | float:
    """(1 - p)^gamma: how much an example counts whose label has the probability p."""
    if gamma == 0:
        return 1.0
    # Not quite 0, where the power has no finite gradient for gamma < 1.
    return jnp.maximum(-jnp.expm1(log_probability), 1e-12) ** gamma
