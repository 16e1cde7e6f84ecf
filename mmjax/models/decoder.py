"""The text decoder: next-token logits, all at once for training or token by token with a cache."""

from functools import partial
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmjax.models.attention import KeyValue, MultiHeadAttention, prefix_times
from mmjax.models.layers import BlockStyle, dense, stack
from mmjax.models.published import published
from mmjax.models.remat import Remat
from mmjax.models.transformer import embed, feed_forward
from mmjax.stream import Stream, only_tokens
from mmjax.tree import setting


class Cache(NamedTuple):
    """What a decoder remembers of the tokens so far; a plain pytree, whose rows may be permuted (axis 1 of `layers`).

    Attributes:
      layers: keys and values [L, B, K, S, D] of the tokens, and of the context or None.
      segments, times: [B, S] of the tokens; empty slots have segment 0, so rows may be of unequal length.
      context: [B, C] segments of the context, or None.
      used: slots written, the same in every row.
    """

    layers: tuple[KeyValue, KeyValue | None]
    segments: jax.Array
    times: jax.Array
    context: jax.Array | None
    used: jax.Array


class DecoderBlock(nn.Module):
    """Causal self-attention, cross-attention to a context where there is one, feed-forward (Vaswani et al. 2017)."""

    heads: int
    mlp: int
    rotary: bool
    cross_attention: bool
    dropout: float = 0.0
    train: bool = False
    dtype: Any = jnp.float32
    key_value_heads: int | None = None
    style: BlockStyle = BlockStyle()

    @nn.compact
    def __call__(self, x, text: Stream, times, context: Stream | None, cache: Cache | None, remembered):
        """Returns the tokens [B, T, W] and, with a cache, this layer's keys and values (of tokens, of context).

        Args:
          text: segments and positions of the tokens (its features are not read).
          times: [B, T] of the tokens; None: their positions.
          context: features (None where the cache has their keys and values) and segments.
          cache: segments and times of all slots, those of these tokens included, and where these tokens begin.
          remembered: this layer's part of `Cache.layers`.
        """
        drop = partial(nn.Dropout, self.dropout, deterministic=not self.train)
        attend = partial(
            MultiHeadAttention,
            x.shape[-1],
            self.heads,
            dtype=self.dtype,
            key_value_heads=self.key_value_heads,
            style=self.style,
        )
        own, other = remembered or (None, None)
        residual = partial(self.style.residual, dtype=self.dtype)

        def look_back(y):
            nonlocal own
            module = attend(rotary=self.rotary, name="self_attention")
            query, known = module.project(text._replace(features=y))
            own_times = text.positions if times is None else times
            if cache is None:
                segments, in_order = text.segments, times is None
                return module.mix(
                    query, known, segments, segments, own_times, own_times, in_order=in_order, packed=True
                )
            own = own.write(known, cache.used)
            return module.mix(query, own, text.segments, cache.segments, own_times, cache.times)

        def look_aside(y):
            nonlocal other
            module = attend(name="cross_attention")
            known = module.key_values(context) if other is None else other
            other = None if cache is None else known
            return module.mix(module.queries(text._replace(features=y)), known, text.segments, context.segments)

        x = residual(x, "self_attention", look_back, drop())
        if self.cross_attention:
            x = residual(x, "cross_attention", look_aside, drop())
        x = residual(x, "mlp", feed_forward(self), drop())
        return x, (own, other)


# Published language models: Radford et al. 2019; Touvron et al. 2023 (arXiv:2307.09288).
GPT_2 = dict(
    vocabulary=50_257,
    positions="learned",
    length=1024,
    block=BlockStyle(activation="gelu_tanh", epsilon=1e-5),
)
LLAMA_2 = dict(
    vocabulary=32_000,
    tied=False,
    length=4096,
    block=BlockStyle(norm="rms", epsilon=1e-5, activation="silu", gated=True, bias=False),
)
DECODERS = {
    "GPT-2": dict(layers=12, width=768, heads=12, mlp=3072, **GPT_2),
    "GPT-2 XL": dict(layers=48, width=1600, heads=25, mlp=6400, **GPT_2),
    "Llama 2 7B": dict(layers=32, width=4096, heads=32, mlp=11_008, **LLAMA_2),
    "Llama 2 70B": dict(layers=80, width=8192, heads=64, key_value_heads=8, mlp=28_672, **LLAMA_2),
}


class TextDecoder(nn.Module, kw_only=True):
    """Autoregressive text decoder: token ids in, logits of the next token out.

    A token sees the tokens of its example up to itself (and a prefix, which sees itself whole) and, with
    cross-attention, the tokens of its example in a context, such as an encoder's result. Without cross-attention it is
    a language model: GPT-2 or Llama, by the style of its blocks.

    Attributes:
      length: of the longest text, with learned positions.
      tied: read out through the table of embeddings (Press and Wolf 2017, arXiv:1608.05859).
    """

    vocabulary: int = 128
    layers: int = 6
    width: int = 256
    heads: int = 4
    mlp: int = 1024
    positions: Literal["rotary", "learned"] = "rotary"
    length: int = 512  # tokens of the longest text, with learned positions
    key_value_heads: int | None = None
    cross_attention: bool = True
    tied: bool = True  # read out through the table of embeddings
    block: BlockStyle = BlockStyle()
    dropout: float = 0.0
    unroll: bool = setting(False)
    remat: Remat = "none"
    dtype: Any = setting(jnp.float32)

    @classmethod
    def preset(cls, name: str, **changes: Any) -> "TextDecoder":
        """A published language model, such as "GPT-2"; any field may be changed, cross_attention=True for a decoder."""
        return cls(**dict(cross_attention=False) | published(name, DECODERS, "TextDecoder") | changes)

    def __call__(
        self, text: Stream, context: Stream | None = None, prefix: jax.Array | None = None, train: bool = False
    ) -> Stream:
        """[B, T] token ids -> [B, T, vocabulary] float32 logits, all tokens at once.

        Args:
          context: [B, C, W'], with cross-attention; rows and segments are those of the text.
          prefix: tokens at the start of each example that see each other, per position [B, T] or for all.
        """
        return self._run(text, context, prefix, None, train)[0]

    def begin(
        self, text: Stream, room: int, context: Stream | None = None, prefix: jax.Array | None = None
    ) -> tuple[Stream, Cache]:
        """As a call, and remembers: the first tokens (a start token, a prefix) of texts that go on in `step`.

        Args:
          room: for how many tokens per row the cache is made, all steps included. Writing more is an error that
            cannot be seen: the last slots are overwritten.
        """
        rows, few = text.segments.shape[0], self.key_value_heads or self.heads
        head_width = self.block.head_width or self.width // self.heads
        empty = jnp.zeros((self.layers, rows, few, room, head_width), self.dtype)
        slots = jnp.zeros((rows, room), jnp.int32)
        segments = None if context is None else context.segments
        cache = Cache((KeyValue(empty, empty), None), slots, slots, segments, jnp.zeros((), jnp.int32))
        return self._run(text, context, prefix, cache, False)

    def step(self, text: Stream, cache: Cache) -> tuple[Stream, Cache]:
        """The next tokens [B, n] of every row, usually one per example; an example that has ended gives segment 0.

        Returns:
          Logits [B, n, vocabulary], equal to those of the whole text at once, and the cache with these tokens.
        """
        return self._run(text, None, None, cache, False)

    @nn.compact
    def _run(self, text, context, prefix, cache, train) -> tuple[Stream, Cache | None]:
        text = only_tokens(text)
        times = None if prefix is None else prefix_times(text.positions, prefix)
        # The read-out of a tied table of unit variance would begin with logits as large as the root of the width.
        table, x = embed(text, self, self.width**-0.5 if self.tied else 1.0)
        norm = self.block.normalise(self.dtype, "norm")
        x = nn.Dropout(self.dropout, deterministic=not train)(norm(x) if self.block.post_norm else x)
        if cache is not None:
            put = partial(jax.lax.dynamic_update_slice_in_dim, start_index=cache.used, axis=1)
            written = put(cache.times, text.positions if times is None else times)
            cache = cache._replace(segments=put(cache.segments, text.segments), times=written)
        blocks = stack(
            DecoderBlock,
            self.layers,
            4,
            self.unroll,
            self.remat,
            1,
            heads=self.heads,
            mlp=self.mlp,
            rotary=self.positions == "rotary",
            cross_attention=self.cross_attention,
            dropout=self.dropout,
            train=train,
            dtype=self.dtype,
            key_value_heads=self.key_value_heads,
            style=self.block,
        )
        x, layers = blocks(
            x, text, times, self._context(context, cache), cache and cache._replace(layers=None), cache and cache.layers
        )
        x = (x if self.block.post_norm else norm(x)).astype(jnp.float32)
        if self.tied:
            logits = x @ table.embedding.astype(jnp.float32).T
        else:
            logits = dense(self.vocabulary, ("embed", "vocabulary"), jnp.float32, "logits", bias=False)(x)
        if cache is not None:
            cache = cache._replace(layers=layers, used=cache.used + text.segments.shape[1])
        return only_tokens(text._replace(features=logits)), cache

    def _context(self, context: Stream | None, cache: Cache | None) -> Stream | None:
        if not self.cross_attention:
            return None
        if context is not None:
            return only_tokens(context)
        if cache is None or cache.context is None:
            raise ValueError("a decoder with cross-attention needs a context; one without tokens will do")
        return Stream(None, cache.context, None)
