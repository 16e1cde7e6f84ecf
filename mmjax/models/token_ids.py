"""Token ids for a task that embeds them itself."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from mmjax.models.encoder import TextEncoder
from mmjax.stream import Stream, only_tokens
from mmjax.tree import setting


class TokenIds(TextEncoder, kw_only=True):
    """Passes the ids of a text on to a task whose decoder embeds them (`CausalLM`). It has no parameters."""

    vocabulary: int | None = None  # number of ids; None: not checked
    dtype: Any = setting(jnp.float32)

    passes_ids = True

    def check(self, path: str) -> None:
        pass

    @nn.compact
    def __call__(self, text: Stream, train: bool = False) -> Stream:
        """[B, T] ids -> the same."""
        return only_tokens(text)
