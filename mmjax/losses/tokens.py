"""Cross-entropy over packed tokens, for vocabularies whose logits would not fit into memory."""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from mmjax.losses.base import ACCURACY, NEVER, SumWeight
from mmjax.metric import Metric
from mmjax.stream import Factors, Stream

OF_TOKENS = {"nll": Metric("lower", shown="never"), "accuracy": ACCURACY}


def token_cross_entropy(
    logits: Stream, labels: Stream, label_smoothing: float = 0.0, chunk: int = 8192, next_token: bool = False
) -> dict[str, SumWeight]:
    """Softmax cross-entropy per token, in float32, with label smoothing (Szegedy et al. 2016, section 7).

    Args:
      logits: [B, T, V], as an array or as `Factors`.
      labels: [B, T] ids.
      label_smoothing: the probability that is spread over the whole vocabulary.
      chunk: for `Factors`, the number of columns of the vocabulary that are computed at a time.
      next_token: the label of a token is the token after it (a language model); the last token of an example has none.
        Otherwise the label is at the position of the token (teacher forcing, masked tokens).

    Returns:
      {"loss", "nll", "accuracy"}: (sum, tokens). `nll` is the negative log-likelihood without smoothing; its exponential
      is the perplexity.
    """
    known, target, (total, of_label, mean, best) = _compared(logits, labels, chunk, next_token)
    nll = total - of_label
    loss = (1.0 - label_smoothing) * nll + label_smoothing * (total - mean)
    count = known.sum().astype(jnp.float32)
    return {
        "loss": (jnp.where(known, loss, 0.0).sum(), count),
        "nll": (jnp.where(known, nll, 0.0).sum(), count),
        "accuracy": ((known & (best == target)).sum().astype(jnp.float32), count),
    }


def token_nll(logits: Stream, labels: Stream, chunk: int = 8192, next_token: bool = False) -> Stream:
    """The negative log-likelihood [B, T] of each label, in float32; a token without a label has segment 0.

    The arguments are those of `token_cross_entropy`.
    """
    known, _, (total, of_label, *_) = _compared(logits, labels, chunk, next_token)
    return Stream(total - of_label, jnp.where(known, logits.segments, 0), logits.positions)


def _compared(logits: Stream, labels: Stream, chunk: int, next_token: bool) -> tuple[jax.Array, jax.Array, Any]:
    """Which tokens have a label, the labels, and the statistics of `chunked_logits`: all [B, T]."""
    ids, segments = labels.features, labels.segments
    if next_token:
        ids, segments = (jnp.pad(x, ((0, 0), (0, 1)))[:, 1:] for x in (ids, segments))
    known = (segments == logits.segments) & logits.mask
    target = jnp.where(known, ids, 0)
    if isinstance(logits.features, Factors):
        # Zeros, because 0 x NaN would reach the kernel's gradient.
        features = jnp.where(known[..., None], logits.features.features, 0.0)
        return known, target, chunked_logits(features, logits.features.kernel, target, chunk)
    whole = jnp.where(known[..., None], logits.features.astype(jnp.float32), 0.0)
    of_label = jnp.take_along_axis(whole, target[..., None], axis=-1)[..., 0]
    return known, target, (jax.nn.logsumexp(whole, axis=-1), of_label, whole.mean(-1), whole.argmax(-1))


def chunked_cross_entropy(features: jax.Array, kernel: jax.Array, labels: jax.Array, chunk: int) -> jax.Array:
    """-log softmax(features @ kernel)[label]; at most `chunk` columns of logits are in memory.

    Args:
      features: [..., W].
      kernel: [W, V].
      labels: [...] ids.
      chunk: columns of the vocabulary at a time.

    Returns:
      [...] float32.
    """
    total, of_label, *_ = chunked_logits(features, kernel, labels, chunk)
    return total - of_label


def chunked_logits(features: jax.Array, kernel: jax.Array, labels: jax.Array, chunk: int) -> tuple[jax.Array, ...]:
    """Statistics of the logits features @ kernel: log-sum-exp, logit of the label, mean, and id of the largest.

    All are [...]; the first three are float32 and differentiable. The arguments are those of `chunked_cross_entropy`.
    """
    total, of_label, best = _summary(features, kernel, labels, min(chunk, kernel.shape[1]))
    mean = jnp.einsum("...w,w->...", features, kernel.mean(-1).astype(features.dtype))
    return total, of_label, mean.astype(jnp.float32), best


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _summary(features, kernel, labels, chunk):
    vocabulary = kernel.shape[1]

    def step(number, carry):
        top, total, of_label, best = carry
        columns, fresh, logits = _columns(features, kernel, number, chunk)
        logits = jnp.where(fresh, logits, NEVER)
        highest = logits.max(-1)
        best = jnp.where(highest > top, columns[logits.argmax(-1)], best)
        new_top = jnp.maximum(top, highest)
        total = total * jnp.exp(top - new_top) + jnp.exp(logits - new_top[..., None]).sum(-1)
        of_label = of_label + jnp.where(columns == labels[..., None], jnp.where(fresh, logits, 0.0), 0.0).sum(-1)
        return new_top, total, of_label, best

    zero = jnp.zeros(labels.shape, jnp.float32)
    start = jnp.full(labels.shape, NEVER), zero, zero, jnp.zeros(labels.shape, jnp.int32)
    top, total, of_label, best = jax.lax.fori_loop(0, -(-vocabulary // chunk), step, start)
    return top + jnp.log(total), of_label, best


def _columns(features, kernel, number, chunk):
    """The ids of a chunk's columns, which of them no earlier chunk had, and their logits in float32.

    The last chunk overlaps the one before it, so the kernel needs no padding.
    """
    start = jnp.minimum(number * chunk, kernel.shape[1] - chunk)
    columns = start + jnp.arange(chunk)
    part = jax.lax.dynamic_slice_in_dim(kernel, start, chunk, axis=1).astype(features.dtype)
    logits = jnp.einsum("...w,wv->...v", features, part, preferred_element_type=jnp.float32)
    return columns, columns >= number * chunk, logits


def _summary_and_residuals(features, kernel, labels, chunk):
    summary = _summary(features, kernel, labels, chunk)
    return summary, (features, kernel, labels, summary[0])


def _gradient(chunk, residuals, cotangents):
    features, kernel, labels, total = residuals
    by_total, by_label, _ = cotangents

    def step(number, carry):
        by_features, by_kernel = carry
        columns, fresh, logits = _columns(features, kernel, number, chunk)
        softmax = jnp.where(fresh, jnp.exp(logits - total[..., None]), 0.0)
        by_logits = by_total[..., None] * softmax
        by_logits = by_logits + jnp.where(fresh & (columns == labels[..., None]), by_label[..., None], 0.0)
        by_logits = by_logits.astype(features.dtype)
        start = columns[0]
        part = jax.lax.dynamic_slice_in_dim(kernel, start, chunk, axis=1).astype(features.dtype)
        by_features += jnp.einsum("...v,wv->...w", by_logits, part, preferred_element_type=jnp.float32)
        by_part = jnp.einsum("...w,...v->wv", features, by_logits, preferred_element_type=jnp.float32)
        by_part += jax.lax.dynamic_slice_in_dim(by_kernel, start, chunk, axis=1)
        return by_features, jax.lax.dynamic_update_slice_in_dim(by_kernel, by_part, start, axis=1)

    start = jnp.zeros(features.shape, jnp.float32), jnp.zeros(kernel.shape, jnp.float32)
    by_features, by_kernel = jax.lax.fori_loop(0, -(-kernel.shape[1] // chunk), step, start)
    return by_features.astype(features.dtype), by_kernel.astype(kernel.dtype), None


_summary.defvjp(_summary_and_residuals, _gradient)
