"""Cross-entropy over classes."""

import dataclasses

import jax
import jax.numpy as jnp

from mmjax.stream import Stream

SumWeight = tuple[jax.Array, jax.Array]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Classification:
    """Softmax cross-entropy per example, in float32, with label smoothing (Szegedy et al. 2016, section 7).

    The mass of smoothing is spread over all classes. `accuracy` is reported beside the loss.
    """

    weight: float = 1.0
    label_smoothing: float = 0.0

    def __call__(self, logits: Stream, labels: Stream) -> dict[str, SumWeight]:
        """Logits [B, N, C] and labels [B, N] -> {"loss", "accuracy"}: (sum, number of examples)."""
        known = labels.mask & logits.mask
        target = jnp.where(known, labels.features, 0)
        log_probability = jax.nn.log_softmax(logits.features.astype(jnp.float32))
        of_label = jnp.take_along_axis(log_probability, target[..., None], axis=-1)[..., 0]
        loss = -(1.0 - self.label_smoothing) * of_label - self.label_smoothing * log_probability.mean(-1)
        right = log_probability.argmax(-1) == target
        count = known.sum().astype(jnp.float32)
        return {
            "loss": (jnp.where(known, loss, 0.0).sum(), count),
            "accuracy": ((known & right).sum().astype(jnp.float32), count),
        }
