"""Contrastive losses between two modalities, over all examples of a batch on all devices.

Logit (i, j) is the product of the first vector of example i and the second vector of example j. Every other example of the
batch is a negative. If two examples of a batch have equal captions, each counts as wrong for the other, so the data should
not put them into one batch. Micro-batches would not see each other, so a contrastive config cannot accumulate gradients.
"""

import functools
import math
from typing import Literal

import jax
import jax.numpy as jnp

from mmjax.losses.base import ACCURACY, NEVER, SumWeight
from mmjax.stream import Stream

Rule = Literal["sigmoid", "softmax"]
OF_PAIRS = {"accuracy": ACCURACY}


def contrastive(pairs: Stream, rule: Rule = "sigmoid", chunks: int = 8) -> dict[str, SumWeight]:
    """The loss of SigLIP ("sigmoid") or of CLIP ("softmax").

    Args:
      pairs: [B, N, 2, D], empty where an example lacks a modality. The last feature holds the bias of the logits.
      rule: "sigmoid": each pair is a binary decision (Zhai et al. 2023, arXiv:2303.15343, algorithm 1). "softmax": each
        example finds its partner in the batch, in both directions (Radford et al. 2021, figure 3). The bias does not change
        a softmax, so it is not read: its gradient would be rounding errors, which Adam would scale up.
      chunks: number of steps in which the batch is compared. In each step, a chunk of the second modality's vectors moves
        on around the ring of devices. A multiple of the number of devices is best; the nearest divisor of the rows is used.

    Returns:
      {"loss": (sigmoid: sum over all pairs; softmax: mean of both cross-entropies, summed over examples; number of
      examples), "accuracy": (examples that their partner finds, in both directions; 2 x examples)}.
    """
    if rule == "softmax":
        pairs = pairs._replace(features=pairs.features[..., :-1])
    rows = pairs.segments.shape[0]
    # Rows are divided among devices, so the axis of the chunks is, too.
    chunks = math.gcd(chunks, rows)
    vectors = jnp.where(pairs.mask[..., None, None], pairs.features.astype(jnp.float32), 0.0)
    first, second = (vectors[..., i, :].reshape(chunks, -1, vectors.shape[-1]) for i in range(2))
    known = pairs.mask.reshape(chunks, -1)
    loss, right = _total(first, second, known, rule)
    count = pairs.mask.sum().astype(jnp.float32)
    return {"loss": (loss, count), "accuracy": (right, 2.0 * count)}


def _ring(step, still, moving):
    """Calls step(shift, still, moving) once for each chunk. `moving` shifts by one chunk each time, and ends where it began.

    If chunks are divided among devices, a shift is a message to the neighbour.
    """

    def turn(carry, shift):
        still, moving = step(shift, *carry)
        return (still, jax.tree.map(lambda x: jnp.roll(x, 1, axis=0), moving)), None

    shifts = jnp.arange(jax.tree.leaves(moving)[0].shape[0])
    return jax.lax.scan(turn, (still, moving), shifts)[0]


def _logits(shift, first, second, known, known_second):
    """Logits [n, i, j] of the current pairs of chunks, which of them belong to one example, and which exist."""
    logits = jnp.einsum("nid,njd->nij", first, second, precision=jax.lax.Precision.HIGHEST)
    own = jnp.eye(logits.shape[-1], dtype=bool) & (shift == 0)
    return logits, own, known[:, :, None] & known_second[:, None, :]


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _total(first, second, known, rule: Rule):
    """Vectors [n, m, D] of both modalities, known [n, m] -> the loss, and the number of partners found."""
    return _survey(first, second, known, rule)[:2]


def _survey(first, second, known, rule):
    def step(shift, still, moving):
        (sums, best), (second, known_second, sums_second, best_second) = still, moving
        logits, own, exist = _logits(shift, first, second, known, known_second)
        if rule == "sigmoid":
            sums += jnp.where(exist, jax.nn.softplus(jnp.where(own, -logits, logits)), 0.0).sum(2)
        else:
            masked = jnp.where(exist, logits, NEVER)
            sums = jnp.logaddexp(sums, jax.nn.logsumexp(masked, axis=2))
            sums_second = jnp.logaddexp(sums_second, jax.nn.logsumexp(masked, axis=1))
        others = jnp.where(exist & ~own, logits, NEVER)
        best, best_second = jnp.maximum(best, others.max(2)), jnp.maximum(best_second, others.max(1))
        return (sums, best), (second, known_second, sums_second, best_second)

    never = jnp.full(known.shape, NEVER)
    start = jnp.zeros(known.shape) if rule == "sigmoid" else never
    still, moving = _ring(step, (start, never), (second, known, start, never))
    (sums, best), (_, _, sums_second, best_second) = still, moving
    own = (first * second).sum(-1)
    losses = sums if rule == "sigmoid" else 0.5 * (sums + sums_second) - own
    right = (known & (own > best)).sum() + (known & (own > best_second)).sum()
    return jnp.where(known, losses, 0.0).sum(), right.astype(jnp.float32), (sums, sums_second)


def _survey_and_gradients(first, second, known, rule):
    """Computes the gradients in a second ring, because the automatic one would store every chunk of the first."""
    loss, right, (sums, sums_second) = _survey(first, second, known, rule)

    def step(shift, by_first, moving):
        second, known_second, sums_second, by_second = moving
        logits, own, exist = _logits(shift, first, second, known, known_second)
        if rule == "sigmoid":
            slopes = jax.nn.sigmoid(logits) - own
        else:
            slopes = 0.5 * (jnp.exp(logits - sums[:, :, None]) + jnp.exp(logits - sums_second[:, None, :])) - own
        slopes = jnp.where(exist, slopes, 0.0)
        product = functools.partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)
        by_first += product("nij,njd->nid", slopes, second)
        by_second += product("nij,nid->njd", slopes, first)
        return by_first, (second, known_second, sums_second, by_second)

    start = second, known, sums_second, jnp.zeros_like(second)
    by_first, (*_, by_second) = _ring(step, jnp.zeros_like(first), start)
    return (loss, right), (by_first, by_second)


def _gradients(rule, gradients, cotangents):
    return *(cotangents[0] * gradient for gradient in gradients), None


_total.defvjp(_survey_and_gradients, _gradients)
