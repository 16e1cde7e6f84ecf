"""Contrastive losses between two modalities, over all examples of a batch, whichever devices hold them.

Both read the output of the head `Contrast`: logit(i, j) is the product of the first vector of example i and the second
of example j. Every other example of the batch is a negative: of two equal captions in one batch each counts as wrong
for the other, so the data should not put them there. Micro-batches would not see each other, so a config with a
contrastive objective cannot accumulate gradients.
"""

import functools
import math
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp

from mmjax.objectives.base import NEVER, Objective, SumWeight
from mmjax.stream import Stream
from mmjax.tree import part

Rule = Literal["sigmoid", "softmax"]


@part
class SigLIP(Objective):
    """Every pair of examples is a yes-or-no question (Zhai et al. 2023, arXiv:2303.15343, algorithm 1).

    Attributes:
      chunks: the batch is compared in so many steps, a chunk of the second modality's vectors passed on around the
        ring at each; a multiple of the devices is best. The nearest divisor of the number of rows is taken.
    """

    chunks: int = 8

    labelled: ClassVar[bool] = False

    def __call__(self, pairs: Stream) -> dict[str, SumWeight]:
        """Pairs [B, N, 2, D], empty where an example lacks a modality -> {"loss", "accuracy"}.

        Returns:
          {"loss": (sum over all pairs, examples), "accuracy": (examples found by their partner, in both directions,
          2 x examples)}.
        """
        return _contrast(pairs, "sigmoid", self.chunks)


@part
class CLIP(Objective):
    """Each example finds its partner among all of the batch, in both directions (Radford et al. 2021, figure 3).

    A bias of the logits changes nothing here, so the loss does not read it: its gradient would be rounding errors, of
    which Adam makes steps.

    Attributes:
      chunks: see SigLIP.
    """

    chunks: int = 8

    labelled: ClassVar[bool] = False

    def __call__(self, pairs: Stream) -> dict[str, SumWeight]:
        """Pairs [B, N, 2, D], the last feature for the bias, empty where an example lacks a modality -> {"loss", "accuracy"}.

        Returns:
          {"loss": (mean of both cross-entropies, summed over examples; examples), "accuracy": as SigLIP's}.
        """
        pairs = pairs._replace(features=pairs.features[..., :-1])
        return _contrast(pairs, "softmax", self.chunks)


def _contrast(pairs: Stream, rule: Rule, chunks: int) -> dict[str, SumWeight]:
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
    """Calls step(shift, still, moving) once for each chunk; what moves goes on by one chunk, and ends where it began.

    Where chunks are divided among devices, going on is a message to the neighbour.
    """

    def turn(carry, shift):
        still, moving = step(shift, *carry)
        return (still, jax.tree.map(lambda x: jnp.roll(x, 1, axis=0), moving)), None

    shifts = jnp.arange(jax.tree.leaves(moving)[0].shape[0])
    return jax.lax.scan(turn, (still, moving), shifts)[0]


def _logits(shift, first, second, known, known_second):
    """Logits [n, i, j] of the chunks that have met, which of them are of one example's own pair, and which exist."""
    logits = jnp.einsum("nid,njd->nij", first, second, precision=jax.lax.Precision.HIGHEST)
    own = jnp.eye(logits.shape[-1], dtype=bool) & (shift == 0)
    return logits, own, known[:, :, None] & known_second[:, None, :]


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _total(first, second, known, rule: Rule):
    """Vectors [n, m, D] of both modalities, known [n, m] -> the loss, and how many partners were found."""
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
    """The gradients are found in a ring of their own: one that JAX makes would store every chunk that passed by."""
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
