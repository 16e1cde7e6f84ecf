"""Prefix scores of CTC for texts that an attention decoder writes (Watanabe et al. 2017, "Hybrid CTC/attention architecture")."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from mmjax.decode.scorers import chosen
from mmjax.models.segments import belongs, same_segment, shift
from mmjax.models.texts import to_classes
from mmjax.stream import BLANK, EMPTY, Stream


class Prefixes(NamedTuple):
    """The paths of K texts of each example, whose frames lie side by side in packed rows.

    Attributes:
      on_label, on_blank: [B, T, K] log-probability of all paths of the frames of an example, up to this one, that write the text
        and end with its last token, or with a blank.
      total: [B * N, K] log-probability of all texts that begin with this one.
      last: [B * N, K] the last token; `EMPTY`: there is none.
    """

    on_label: jax.Array
    on_blank: jax.Array
    total: jax.Array
    last: jax.Array


class CTCPrefixes(NamedTuple):
    """The outputs of CTC for the frames of a batch.

    All examples of all rows are computed together, and all frames: the recurrences over frames are associative scans.

    Attributes:
      tokens: [B, T, V] log-probabilities of the ids of the tokenizer; blank: [B, T].
      goes_on: [B, T] bool, whether a frame follows another frame of its example.
      segments: [B, N] of the examples in their slots; slots: [B, T] the slot of each frame, N for none.
      final: [B, N] the last frame of each example.
    """

    tokens: jax.Array
    blank: jax.Array
    goes_on: jax.Array
    segments: jax.Array
    slots: jax.Array
    final: jax.Array

    @classmethod
    def of(cls, logits: Stream, blank: int, vocabulary: int, segments: jax.Array) -> "CTCPrefixes":
        """From the logits [B, T, C] of a CTC task.

        Args:
          blank: the id in whose place the blank is (`mmjax.models.texts.to_classes`).
          vocabulary: number of ids; those without a class have no probability.
          segments: [B, N] of the examples in their slots.
        """
        found = jax.nn.log_softmax(logits.features.astype(jnp.float32))
        ids = jnp.arange(vocabulary)
        tokens = jnp.take(found, to_classes(ids, blank), axis=-1, mode="fill", fill_value=-jnp.inf)
        tokens = jnp.where(ids == blank, -jnp.inf, tokens)
        own = belongs(segments, logits.segments)
        slots = jnp.where(own.any(1), own.argmax(1), segments.shape[1])
        final = jnp.where(own, jnp.arange(own.shape[2]), 0).max(2)
        return cls(tokens, found[..., BLANK], same_segment(logits.segments, -1), segments, slots, final)

    @property
    def heard(self) -> jax.Array:
        """[B * N] bool: whether an example has frames."""
        return (self.slots[:, None] == jnp.arange(self.segments.shape[1])[:, None]).any(-1).reshape(-1)

    def start(self, beams: int) -> Prefixes:
        """The prefixes of empty texts, with which all paths begin."""
        blanks = _recurrence(
            jnp.where(self.goes_on, self.blank, -jnp.inf), jnp.where(self.goes_on, -jnp.inf, self.blank)
        )
        on_blank = jnp.repeat(blanks[..., None], beams, axis=-1)
        total = jnp.zeros((self.segments.size, beams))
        return Prefixes(jnp.full_like(on_blank, -jnp.inf), on_blank, total, jnp.full(total.shape, EMPTY))

    def score(self, prefixes: Prefixes, tokens: jax.Array) -> jax.Array:
        """What further tokens [B * N, K, C] add to `total`; 0 for examples without frames."""
        of_frame = self._of_frames(tokens)  # [B, T, K, C]
        emitted = self._emitted(of_frame)
        entered = self._entering(prefixes)
        repeats = of_frame == self._of_frames(prefixes.last)[..., None]
        entered = jnp.where(repeats, entered[1][..., None], entered[0][..., None])
        return self._added(prefixes, self._sum(entered + emitted))

    def end(self, prefixes: Prefixes) -> jax.Array:
        """[B * N, K]: what the ends of the texts add to `total`."""
        paths = jnp.logaddexp(prefixes.on_label, prefixes.on_blank)
        return self._added(
            prefixes, jnp.take_along_axis(paths, self.final[..., None], axis=1).reshape(prefixes.total.shape)
        )

    def advance(self, prefixes: Prefixes, rows: jax.Array, tokens: jax.Array) -> Prefixes:
        """The prefixes after one more token: the beams `rows` [B * N, K] of each example go on with `tokens` [B * N, K]."""
        of_frame = self._of_frames(rows)
        on_label, on_blank = (jnp.take_along_axis(x, of_frame, axis=2) for x in prefixes[:2])
        prefixes = Prefixes(on_label, on_blank, *(chosen(x, rows) for x in prefixes[2:]))
        written, goes_on = self._of_frames(tokens), self.goes_on[..., None]
        emitted = self._emitted(written[..., None])[..., 0]
        either, after_blank = self._entering(prefixes)
        entered = jnp.where(written == self._of_frames(prefixes.last), after_blank, either) + emitted
        on_label = _recurrence(jnp.where(goes_on, emitted, -jnp.inf), entered)
        stays = jnp.where(goes_on, self.blank[..., None], -jnp.inf)
        on_blank = _recurrence(stays, jnp.where(goes_on, shift(on_label, -1), -jnp.inf) + stays)
        return Prefixes(on_label, on_blank, self._sum(entered[..., None])[..., 0], tokens)

    def _entering(self, prefixes: Prefixes) -> tuple[jax.Array, jax.Array]:
        """The paths up to the frame before [B, T, K]: all paths; and the paths that end with a blank or have no frame yet."""
        first = jnp.where(self._of_frames(prefixes.last) == EMPTY, 0.0, -jnp.inf)
        either = jnp.logaddexp(prefixes.on_label, prefixes.on_blank)
        goes_on = self.goes_on[..., None]
        return tuple(jnp.where(goes_on, shift(x, -1), first) for x in (either, prefixes.on_blank))

    def _of_frames(self, x: jax.Array) -> jax.Array:
        """[B * N, K, ...] of examples -> [B, T, K, ...] of their frames."""
        x = x.reshape(*self.segments.shape, *x.shape[1:])
        return jax.vmap(lambda one, slots: one.at[slots].get(mode="fill", fill_value=0))(x, self.slots)

    def _emitted(self, tokens: jax.Array) -> jax.Array:
        """[B, T, K, C] log-probabilities of the tokens."""
        flat = tokens.reshape(*self.slots.shape, -1)
        return jnp.take_along_axis(self.tokens, flat, axis=2).reshape(tokens.shape)

    def _sum(self, paths: jax.Array) -> jax.Array:
        """The logarithm of the sum over frames of each example: [B, T, K, C] -> [B * N, K, C]."""
        slots = self.segments.shape[1]

        def of_row(x, where):
            top = jax.ops.segment_max(x, where, slots + 1)
            top = jnp.where(jnp.isfinite(top), top, 0.0)
            return (jnp.log(jax.ops.segment_sum(jnp.exp(x - top[where]), where, slots + 1)) + top)[:slots]

        return jax.vmap(of_row)(paths, self.slots).reshape(-1, *paths.shape[2:])

    def _added(self, prefixes: Prefixes, total: jax.Array) -> jax.Array:
        """New totals [B * N, K, ...] minus the totals before; -inf for what is impossible."""
        before = prefixes.total.reshape(prefixes.total.shape + (1,) * (total.ndim - 2))
        added = jnp.where(jnp.isfinite(before), total - before, -jnp.inf)
        return jnp.where(self.heard.reshape(-1, *(1,) * (total.ndim - 1)), added, 0.0)


def _recurrence(stay: jax.Array, enter: jax.Array) -> jax.Array:
    """y[:, t] = log(exp(y[:, t - 1] + stay[:, t]) + exp(enter[:, t])), for all t at once."""

    def joined(before, after):
        return before[0] + after[0], jnp.logaddexp(before[1] + after[0], after[1])

    return jax.lax.associative_scan(joined, (stay, enter), axis=1)[1]
