"""Rescoring of recognised texts with a language model."""

import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from mmjax.data.text import Tokenizer
from mmjax.decode.rescoring import Rescorer, next_tokens
from mmjax.errors import UserError
from mmjax.files import local
from mmjax.losses import chunked_cross_entropy
from mmjax.models.adapters import merged_kernels
from mmjax.stream import Factors
from mmjax.tree import part


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
        own, (_, _, params) = Tokenizer.of_run(local(self.run, "the language model")), _opened(self.run)
        other = own.other_meaning(tokenizer)
        if other is not None or len(own) != len(tokenizer):
            place = f"its id {other} is another piece" if other is not None else f"it has {len(own)} pieces"
            raise UserError(
                f"the language model {self.run} has another tokenizer than the recogniser ({place}); train the recogniser "
                "with the language model's tokenizer, or use NGram"
            )
        return {"params": params, "weight": jnp.float32(self.weight), "bonus": jnp.float32(self.bonus)}

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


@functools.lru_cache(1)
def _opened(run: str) -> tuple[Any, int | None, Any]:
    """The `CausalLM` of a run, the id before its texts, and the parameters of its decoder."""
    from mmjax.train.build import build_model  # here, because a config may name a rescorer
    from mmjax.train.directory import read_run

    directory = Path(run)
    config, _, params = read_run(directory)
    found = [name for name, task in config.model.tasks.items() if task.generates]
    if len(found) != 1:
        raise UserError(f"{run} has {len(found)} language models; name a run with one CausalLM")
    task = build_model(config.model).tasks[found[0]]
    begin = next(iter(Tokenizer.of_run(directory).read("")), None)
    return task, begin, jax.device_get(merged_kernels(params[f"tasks_{found[0]}"]["decoder"]))
