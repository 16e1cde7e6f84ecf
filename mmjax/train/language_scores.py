"""Scores of a language model for the texts of a recogniser: while they are searched (shallow fusion), or afterwards."""

import dataclasses
import functools
import math
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mmjax.data.text import Tokenizer
from mmjax.decode.rescoring import Rescorer, next_tokens
from mmjax.decode.scorers import Place, Scorer, Shared
from mmjax.errors import UserError
from mmjax.files import local
from mmjax.losses import chunked_cross_entropy
from mmjax.models.adapters import merged_kernels, without_media
from mmjax.models.attend import with_backend
from mmjax.models.attention import KeyValue
from mmjax.models.decoder import Cache, TextDecoder
from mmjax.stream import Factors, Stream
from mmjax.tree import part

AT_ONCE = 32  # texts whose next token the model reads together
NOWHERE = 2**30  # a place that no array has, and no text


@part
class LanguageModelRescorer(Rescorer):
    """Adds weight * ln p + bonus for each token of a text, with the language model (`CausalLM`) of a run or an import.

    The first token is predicted from the token that the model's tokenizer puts before texts. If it puts no token there, the
    first token has no score. The end of a text has no score.
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


class Read(NamedTuple):
    """What a language model has read of texts [*shape].

    Attributes:
      likelihood: [*shape, V] float32, the natural logarithm of the probability of each next token.
      count: [*shape] int32, the number of tokens.
      slots: [*shape, C] int32, where the keys and values of the last C tokens are; token n is at n % C.
      memory: keys and values [S, L, K, D] of tokens in S slots. Texts that begin alike share slots, so a search copies only
        the numbers of slots, not keys and values. Slot 0 has the token before texts.
    """

    likelihood: jax.Array
    count: jax.Array
    slots: jax.Array
    memory: Shared


@part
class LanguageModelScorer(Scorer):
    """Shallow fusion: adds weight * ln p + bonus for each token, with the language model (`CausalLM`) of a run or an import.

    The first token is predicted from the token that the model's tokenizer puts before texts; if it puts none there, the
    probability of the first token counts as 1. The end of a text adds nothing.
    """

    run: str  # a directory; its tokenizer has the same pieces as that of the recogniser
    weight: float = 0.3  # factor of the natural logarithm of probabilities
    bonus: float = 0.0  # added for each token, since every one makes a text less probable
    context: int = 64  # the next token depends on so many of the last tokens of a text

    def tables(self, tokenizer: Any) -> dict[str, Any]:
        if self.context < 1:
            raise UserError(f"LanguageModelScorer.context={self.context}; write 1 or more")
        tables = _tables(self, tokenizer)
        return tables | {"start": jax.device_get(jax.jit(self._begun)(tables["params"]))}

    def start(self, tables: Any, shape: tuple[int, ...], place: Place) -> Read:
        likelihood, first, count = tables["start"]
        # Room for texts that share nothing, and for one more token of each.
        size = math.prod(shape) * (self.context + 1) + 1
        memory = jax.tree.map(lambda x: jnp.zeros((size, *x.shape), x.dtype).at[0].set(x), first)
        likelihood, count = (jnp.broadcast_to(x, (*shape, *jnp.shape(x))) for x in (likelihood, count))
        return Read(likelihood, count, jnp.zeros((*shape, self.context), jnp.int32), Shared(memory))

    def score(self, tables: Any, state: Read, tokens: jax.Array) -> jax.Array:
        likelihood = jnp.take_along_axis(state.likelihood, jnp.maximum(tokens, 0), axis=-1)
        return tables["weight"] * likelihood + tables["bonus"]

    def advance(self, tables: Any, state: Read, tokens: jax.Array, grows: jax.Array) -> Read:
        shape, texts = tokens.shape, tokens.size
        size, tokens = min(AT_ONCE, texts), jnp.maximum(tokens, 0).reshape(-1)
        order, growing = jnp.argsort(~grows.reshape(-1)), grows.sum()  # those that grow come first
        of_texts = (state.likelihood, state.count, state.slots)
        used = jnp.zeros(state.memory.value.key.shape[0], bool).at[state.slots].set(True).at[0].set(True)
        free = jnp.nonzero(~used, size=texts)[0]
        step = jax.vmap(functools.partial(self._step, tables["params"]))

        def some(number: jax.Array, carry: Any) -> Any:
            (likelihood, count, slots), memory = carry
            place = number * size + jnp.arange(size)
            row = order[jnp.minimum(place, texts - 1)]
            before = jax.tree.map(lambda x: x[slots[row]], memory)
            following, new = step(before, count[row], tokens[row])
            slot, at = free[jnp.minimum(place, texts - 1)], count[row] % self.context
            row, slot = (jnp.where(place < growing, x, NOWHERE) for x in (row, slot))
            memory = jax.tree.map(lambda x, y: x.at[slot].set(y, mode="drop"), memory, new)
            likelihood = likelihood.at[row].set(following, mode="drop")
            slots = slots.at[row, at].set(slot, mode="drop")
            return (likelihood, count.at[row].add(1, mode="drop"), slots), memory

        flat = jax.tree.map(lambda x: x.reshape(-1, *x.shape[len(shape) :]), of_texts)
        found, memory = jax.lax.fori_loop(0, (growing + size - 1) // size, some, (flat, state.memory.value))
        return Read(*jax.tree.map(lambda x: x.reshape(*shape, *x.shape[1:]), found), Shared(memory))

    def end(self, tables: Any, state: Read) -> jax.Array:
        return jnp.zeros(state.count.shape)

    def _begun(self, params: Any) -> tuple[jax.Array, KeyValue, jax.Array]:
        """What is read before the first token of a text.

        Returns:
          The likelihood of each first token; keys and values of what was read; and the number of tokens that were read.
        """
        begin = _opened(self.run)[1]
        there = jnp.full((1, 1), begin is not None, jnp.int32)
        text = Stream(jnp.full((1, 1), begin or 0), there, jnp.zeros((1, 1), jnp.int32))
        logits, cache = _decoder(self.run).apply({"params": params}, text, 1, method="begin")
        likelihood = jax.nn.log_softmax(logits.features[0, 0])
        first = jax.tree.map(lambda x: x[:, 0, :, 0], cache.layers[0])
        return likelihood if begin is not None else jnp.zeros_like(likelihood), first, there[0, 0]

    def _step(self, params: Any, before: KeyValue, count: jax.Array, token: jax.Array) -> tuple[jax.Array, KeyValue]:
        """After one more token of one text: the likelihood of each next token; and keys and values [L, K, D] of this token.

        Args:
          before: [C, L, K, D] of the last tokens; that of token n is at n % C.
          count: number of tokens before.
        """
        decoder, at = _decoder(self.run), count % self.context
        # The number of the token at each place; less than 0: none.
        number = count - 1 - (count - 1 - jnp.arange(self.context)) % self.context
        last = (decoder.positions.length or NOWHERE) - 1  # of learned positions; further tokens share it
        position, positions = jnp.minimum(count, last), jnp.minimum(number, last)
        text = Stream(*(x.reshape(1, 1) for x in (token, jnp.ones((), jnp.int32), position)))
        own = jax.tree.map(lambda x: jnp.moveaxis(x, 0, 2)[:, None], before)
        cache = Cache((own, None), (number >= 0).astype(jnp.int32)[None], positions[None], None, at)
        logits, cache = decoder.apply({"params": params}, text, cache, method="step")
        new = jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x[:, 0], at, 2, keepdims=False), cache.layers[0])
        return jax.nn.log_softmax(logits.features[0, 0]), new


def _tables(scorer: LanguageModelRescorer | LanguageModelScorer, tokenizer: Any) -> dict[str, Any]:
    """The parameters of the language model, and the numbers of the scorer.

    Raises:
      UserError: the run has no language model or several, or its tokenizer is another one.
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


@functools.lru_cache(8)
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
    return task, begin, jax.device_get(merged_kernels(without_media(params[f"tasks_{found[0]}"]["decoder"])))


@functools.lru_cache(8)  # so that no module is made while a program of other modules is traced
def _decoder(run: str) -> TextDecoder:
    """The decoder that reads one token of several texts at a time."""
    return with_backend(_opened(run)[0].decoder, "xla")
