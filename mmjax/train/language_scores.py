"""Scores of a language model for the texts of a recogniser: while they are searched (shallow fusion), or afterwards."""

import dataclasses
import functools
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mmjax.data.text import Tokenizer
from mmjax.decode.rescoring import Rescorer, next_tokens
from mmjax.decode.scorers import Place, Scorer
from mmjax.errors import UserError
from mmjax.files import local
from mmjax.losses import chunked_cross_entropy
from mmjax.models.adapters import merged_kernels
from mmjax.models.attend import with_backend
from mmjax.models.decoder import Cache, TextDecoder
from mmjax.stream import Factors, Stream
from mmjax.tree import part

AT_ONCE = 32  # texts whose next token the model reads together


@part
class LanguageModelRescorer(Rescorer):
    """Adds weight * ln p + bonus for each token of a text, with the language model (`CausalLM`) of a run or an import.

    The first token is predicted from the token that the model's tokenizer puts before texts; if it puts none there, the first
    token has no score. The end of a text has none.
    """

    run: str  # a directory; its tokenizer has the same pieces as that of the recogniser
    weight: float = 0.5  # factor of the natural logarithm of probabilities
    bonus: float = 0.0  # added for each token, since every one makes a text less probable

    def tables(self, tokenizer: Any) -> dict[str, Any]:
        return _tables(self, tokenizer)

    def __call__(self, tables: Any, ids: jax.Array, segments: jax.Array) -> jax.Array:
        task, begin, _ = _opened(self.run)
        inputs, following, place = next_tokens(ids, segments, begin)
        logits = task.decoder.apply({"params": tables["params"]}, inputs, factors=True).features
        if isinstance(logits, Factors):
            likelihood = -chunked_cross_entropy(*logits, following, task.chunk)
        else:
            likelihood = jnp.take_along_axis(jax.nn.log_softmax(logits), following[..., None], axis=-1)[..., 0]
        added = jnp.pad(tables["weight"] * likelihood + tables["bonus"], ((0, 0), (0, 1)))
        return jnp.take_along_axis(added, place, axis=1)


class Heard(NamedTuple):
    """What a language model knows of texts [*shape].

    Attributes:
      likelihood: [*shape, V] float32, the natural logarithm of the probability of each next token.
      cache: keys and values of the last tokens, with `shape` in front; each text is a row of its own.
      count: [*shape] int32, the tokens that the model has read.
    """

    likelihood: jax.Array
    cache: Cache
    count: jax.Array


@part
class LanguageModelScorer(Scorer):
    """Shallow fusion: adds weight * ln p + bonus for each token, with the language model (`CausalLM`) of a run or an import.

    The first token is predicted from the token that the model's tokenizer puts before texts; if it puts none there, the
    probability of the first token counts as 1. The end of a text adds nothing.
    """

    run: str  # a directory; its tokenizer has the same pieces as that of the recogniser
    weight: float = 0.3  # factor of the natural logarithm of probabilities
    bonus: float = 0.0  # added for each token, since every one makes a text less probable
    context: int = (
        64  # the last tokens of a text, whose keys and values are kept; the next token depends on these alone
    )

    def tables(self, tokenizer: Any) -> dict[str, Any]:
        if self.context < 1:
            raise UserError(f"LanguageModelScorer.context={self.context}; write 1 or more")
        tables = _tables(self, tokenizer)
        return tables | {"start": jax.device_get(jax.jit(self._begun)(tables["params"]))}

    def start(self, tables: Any, shape: tuple[int, ...], place: Place) -> Heard:
        return jax.tree.map(lambda x: jnp.broadcast_to(x, (*shape, *jnp.shape(x))), tables["start"])

    def score(self, tables: Any, state: Heard, tokens: jax.Array) -> jax.Array:
        likelihood = jnp.take_along_axis(state.likelihood, jnp.maximum(tokens, 0), axis=-1)
        return tables["weight"] * likelihood + tables["bonus"]

    def advance(self, tables: Any, state: Heard, tokens: jax.Array, grows: jax.Array) -> Heard:
        shape, texts = tokens.shape, tokens.size
        flat, tokens, grows = jax.tree.map(lambda x: x.reshape(-1, *x.shape[len(shape) :]), (state, tokens, grows))
        read, size = jax.vmap(functools.partial(self._read, tables["params"])), min(AT_ONCE, texts)
        order, count = jnp.argsort(~grows), grows.sum()  # those that grow come first

        def some(number: jax.Array, state: Heard) -> Heard:
            place = number * size + jnp.arange(size)
            row = jnp.where(place < count, order[jnp.minimum(place, texts - 1)], texts)
            new = read(jax.tree.map(lambda x: x.at[row].get(mode="clip"), state), tokens.at[row].get(mode="clip"))
            return jax.tree.map(lambda old, x: old.at[row].set(x, mode="drop"), state, new)

        # In most frames of CTC few texts grow.
        found = jax.lax.fori_loop(0, (count + size - 1) // size, some, flat)
        return jax.tree.map(lambda x: x.reshape(*shape, *x.shape[1:]), found)

    def end(self, tables: Any, state: Heard) -> jax.Array:
        return jnp.zeros(state.count.shape)

    def _begun(self, params: Any) -> Heard:
        """What is known of one text before its first token."""
        begin = _opened(self.run)[1]
        there = jnp.full((1, 1), begin is not None, jnp.int32)
        first = Stream(jnp.full((1, 1), begin or 0), there, jnp.zeros((1, 1), jnp.int32))
        logits, cache = self._decoder.apply({"params": params}, first, self.context, method="begin")
        likelihood = jax.nn.log_softmax(logits.features[0, 0])
        return Heard(likelihood if begin is not None else jnp.zeros_like(likelihood), cache, there[0, 0])

    def _read(self, params: Any, state: Heard, token: jax.Array) -> Heard:
        """What is known of one text after a token, which takes the place of the oldest if all places are taken."""
        last = getattr(
            self._decoder.positions, "length", None
        )  # of learned positions; further tokens share the last one
        position = state.count if last is None else jnp.minimum(state.count, last - 1)
        text = Stream(*(x.reshape(1, 1) for x in (jnp.maximum(token, 0), jnp.ones((), jnp.int32), position)))
        cache = state.cache._replace(used=state.count % self.context)
        logits, cache = self._decoder.apply({"params": params}, text, cache, method="step")
        return Heard(jax.nn.log_softmax(logits.features[0, 0]), cache, state.count + 1)

    @property
    def _decoder(self) -> TextDecoder:
        return with_backend(_opened(self.run)[0].decoder, "xla")


def _tables(scorer: LanguageModelRescorer | LanguageModelScorer, tokenizer: Any) -> dict[str, Any]:
    """The parameters of the language model, and the numbers of the scorer.

    Raises:
      UserError: the run has not one language model, or another tokenizer.
    """
    run = scorer.run
    own, (_, _, params) = Tokenizer.of_run(local(run, "the language model")), _opened(run)
    other = own.other_meaning(tokenizer)
    if other is not None or len(own) != len(tokenizer):
        place = f"its id {other} is another piece" if other is not None else f"it has {len(own)} pieces"
        raise UserError(
            f"the language model {run} has another tokenizer than the recogniser ({place}); train the recogniser "
            "with the language model's tokenizer, or use NGram"
        )
    return {"params": params, "weight": jnp.float32(scorer.weight), "bonus": jnp.float32(scorer.bonus)}


@functools.lru_cache(2)
def _opened(run: str) -> tuple[Any, int | None, Any]:
    """The `CausalLM` of a run, the id before its texts, and the parameters of its decoder."""
    from mmjax.train.build import build_model  # here, because a config may name a scorer
    from mmjax.train.directory import read_run

    directory = Path(run)
    config, _, params = read_run(directory)
    found = [name for name, task in config.model.tasks.items() if task.generates]
    if len(found) != 1:
        raise UserError(f"{run} has {len(found)} language models; name a run with one CausalLM")
    task = build_model(dataclasses.replace(config.model, strict_attention=False)).tasks[found[0]]
    begin = next(iter(Tokenizer.of_run(directory).read("")), None)
    return task, begin, jax.device_get(merged_kernels(params[f"tasks_{found[0]}"]["decoder"]))
