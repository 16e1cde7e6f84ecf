"""Choosing the next token from its logits: greedy, or at random with limits."""

import jax
import jax.numpy as jnp

from mmjax.errors import UserError
from mmjax.tree import part


@part
class Sampling:
    """How the next token is chosen. The default is greedy: the most probable token.

    The limits apply in the order of the fields, to logits that were divided by the temperature.

    Attributes:
      repetition_penalty: divides the logits of tokens that are already in the text; negative logits are multiplied by it
        (CTRL, Keskar et al. 2019, arXiv:1909.05858); 1: no penalty.
      temperature: 0: greedy.
      top_k: only the k most probable tokens (Fan et al. 2018, arXiv:1805.04833); None: all.
      top_p: only the most probable tokens whose probabilities sum to p (Holtzman et al. 2020, arXiv:1904.09751).
      min_p: only tokens with at least this share of the largest probability (Nguyen et al. 2024, arXiv:2407.01082).
      seed: the same seed gives the same text for a prompt, whatever else is in the batch.

    Without a temperature nothing is random: top_k, top_p, min_p and a seed are then refused.
    """

    repetition_penalty: float = 1.0  # of tokens that are already in the text; 1: none
    temperature: float = 0.0  # 0: the most probable token
    top_k: int | None = None  # only the k most probable tokens
    top_p: float | None = None  # only the most probable tokens whose probabilities sum to p
    min_p: float | None = None  # only tokens with at least this share of the largest probability
    seed: int = 0  # of random numbers

    def check(self) -> None:
        """Raises UserError: a value is outside of its range, or has no effect."""
        ranges = {
            "repetition_penalty": self.repetition_penalty > 0,
            "temperature": self.temperature >= 0,
            "top_k": self.top_k is None or self.top_k >= 1,
            "top_p": self.top_p is None or 0 < self.top_p <= 1,
            "min_p": self.min_p is None or 0 <= self.min_p <= 1,
        }
        for name, fits in ranges.items():
            if not fits:
                raise UserError(f"{name} cannot be {getattr(self, name)}")
        limits = [name for name in ("top_k", "top_p", "min_p") if getattr(self, name) is not None]
        if not self.temperature and (idle := [*limits, *(["seed"] if self.seed else [])]):
            raise without_effect(idle[0])


def without_effect(name: str) -> UserError:
    """An error: a setting of random tokens is given, but the temperature is 0."""
    return UserError(
        f"{name} has no effect without a temperature: the most probable token is taken; give a temperature, such as 0.7, or "
        f"leave {name} out"
    )


GREEDY = Sampling()


def limited(logits: jax.Array, sampling: Sampling) -> jax.Array:
    """Logits [R, V], -inf where a token is excluded. The temperature is not 0."""
    logits = logits / sampling.temperature
    if sampling.top_k is not None and sampling.top_k < logits.shape[-1]:
        logits = jnp.where(logits < jax.lax.top_k(logits, sampling.top_k)[0][..., -1:], -jnp.inf, logits)
    if sampling.top_p is not None and sampling.top_p < 1:
        ordered = jnp.sort(logits, axis=-1, descending=True)
        probabilities = jax.nn.softmax(ordered, axis=-1)
        kept = jnp.cumsum(probabilities, axis=-1) - probabilities < sampling.top_p  # the first token is always kept
        logits = jnp.where(logits < jnp.min(jnp.where(kept, ordered, jnp.inf), -1, keepdims=True), -jnp.inf, logits)
    if sampling.min_p:
        logits = jnp.where(logits < logits.max(-1, keepdims=True) + jnp.log(sampling.min_p), -jnp.inf, logits)
    return logits


def choose(logits: jax.Array, seen: jax.Array, number: jax.Array, sampling: Sampling) -> jax.Array:
    """The next token of each text: logits [R, V] -> ids [R] int32.

    Args:
      seen: [R, V] bool, the tokens that are already in each text.
      number: of the token in what is written. All texts use the same random numbers, so that none depends on the others.
    """
    logits = logits.astype(jnp.float32)
    if sampling.repetition_penalty != 1:
        penalised = jnp.where(logits > 0, logits / sampling.repetition_penalty, logits * sampling.repetition_penalty)
        logits = jnp.where(seen, penalised, logits)
    if sampling.temperature > 0:
        key = jax.random.fold_in(jax.random.key(sampling.seed), number)
        logits = limited(logits, sampling) + jax.random.gumbel(key, logits.shape[-1:])
    return logits.argmax(-1).astype(jnp.int32)
