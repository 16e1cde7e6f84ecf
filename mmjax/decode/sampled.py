"""Writing one text for each example, token by token: the most probable tokens, or tokens at random."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from mmjax.decode.base import TextDecoding
from mmjax.decode.sampling import Sampling, choose
from mmjax.decode.stages import written_in_stages
from mmjax.decode.written import one_text
from mmjax.stream import EMPTY, Stream
from mmjax.tree import part


@part
class Sampled(TextDecoding):
    """Tokens at random. The same seed gives the same text for an example, whatever else is in the batch."""

    sampling: Sampling = Sampling(temperature=1.0)

    def check(self, path: str, config: Any) -> None:
        self.sampling.check()

    def __call__(self, step, logits, cache, length, ends, tables=None, ctc=None) -> Stream:
        return sample(step, logits, cache, length, ends, self.sampling)


def sample(
    step: Callable[..., Any], logits: Stream, cache: Any, length: int, ends: tuple[int, ...], sampling: Sampling
) -> Stream:
    """Writes one text for each example; `sampling` chooses each token. The arguments are those of `TextDecoding`.

    Scores and confidence are those of the model, without the limits of the sampling.
    """
    rows, slots, vocabulary = logits.features.shape
    examples, segments, start = rows * slots, logits.segments, logits.positions
    ids, scores = jnp.full((rows, slots, length), EMPTY), jnp.zeros((rows, slots, length))
    seen = jnp.zeros((examples, vocabulary if sampling.repetition_penalty != 1 else 1), bool)

    def goes_on(carry, room):
        number, logits, *_ = carry
        return (number < room) & logits.mask.any()

    def write(carry, cache):
        number, logits, seen, ids, scores = carry
        token = choose(logits.features.reshape(examples, vocabulary), seen, number, sampling)
        seen = seen.at[jnp.arange(examples), token].set(True, mode="drop")
        token = token.reshape(rows, slots)
        logs = jax.nn.log_softmax(logits.features.astype(jnp.float32))
        score = jnp.take_along_axis(logs, token[..., None], axis=-1)[..., 0]
        going = logits.mask & ~jnp.isin(token, jnp.array(ends, jnp.int32))
        ids = ids.at[:, :, number].set(jnp.where(going, token, EMPTY))
        scores = scores.at[:, :, number].set(jnp.where(logits.mask, score, 0.0))
        token = Stream(token, jnp.where(going, logits.segments, 0), start + number + 1)
        logits, cache = step(token, cache)
        return (number + 1, logits, seen, ids, scores), cache

    *_, ids, scores = written_in_stages(goes_on, write, (0, logits, seen, ids, scores), cache, length)
    segments = jnp.repeat(segments, length, axis=1)
    return one_text(ids.reshape(rows, -1), scores.reshape(rows, -1), segments, None)
