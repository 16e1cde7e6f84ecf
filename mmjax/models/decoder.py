"""The text decoder: logits of the next token, for whole texts in training or token by token with a cache."""

from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmjax.models.adapters import as_array, seen_by, sees_media
from mmjax.models.attend.inputs import capped
from mmjax.models.attention import KeyValue, MultiHeadAttention, prefix_times
from mmjax.models.blocks import BlockSettings, BlockStyle, Tower
from mmjax.models.encoder import check_attention
from mmjax.models.layer_attention import LayerAttention, SlidingWindow, check_layers, layer_attention
from mmjax.models.layers import dense
from mmjax.models.media import TEXT_ALONE, Joined
from mmjax.models.positions import DistanceBuckets, Learned, Rotary
from mmjax.models.published import published
from mmjax.models.rotary_scaling import Llama3Scaling, RotaryScaling
from mmjax.models.soft_tokens import merged
from mmjax.models.transformer import embed, feed_forward
from mmjax.stream import Factors, Stream, only_tokens

# Under this name blocks sow the queries [B, H, T, D] and keys [B, K, C, D] of cross-attention, for alignments.
CROSS_ATTENTION = "cross_attention_scores"


class Cache(NamedTuple):
    """Keys and values of the tokens so far: a plain pytree.

    Its rows are those of the tokens (R = B), or each text has a row of its own (R = B * M, `unfolded`).

    Attributes:
      layers: keys and values [L, R, K, S, D] of the tokens, and those [L, B, K, C, D] of the context or None.
      segments, times: [R, S] of the tokens; empty slots have segment 0, so rows may have different lengths.
      context: segments [B, C] of the context, or None.
      used: number of slots that are written, equal in all rows.
    """

    layers: tuple[KeyValue, KeyValue | None]  # number of blocks
    segments: jax.Array
    times: jax.Array
    context: jax.Array | None
    used: jax.Array

    def grown(self, room: int) -> "Cache":
        """The cache with `room` more slots in each row."""

        def padded(x: jax.Array, axis: int) -> jax.Array:
            return jnp.pad(x, [(0, room if axis == one else 0) for one in range(x.ndim)])

        own = jax.tree.map(lambda x: padded(x, 3), self.layers[0])
        return Cache((own, self.layers[1]), padded(self.segments, 1), padded(self.times, 1), self.context, self.used)

    def first(self, count: jax.Array) -> "Cache":
        """The cache with the first `count` slots of each row; the others are free again."""
        own = jnp.where(jnp.arange(self.segments.shape[1]) < count, self.segments, 0)
        return self._replace(segments=own, used=jnp.asarray(count, jnp.int32))

    def unfolded(self, examples: int, beams: int) -> "Cache":
        """A row of its own for each of `beams` texts of each example, which begin with the tokens so far.

        A step then has the tokens of the texts, one each: [B, examples * beams], beside each other if of one example.

        Args:
          examples: of a row. They have as many tokens each, one after the other.
        """

        def split(x: jax.Array, rows: int, slots: int) -> jax.Array:
            x = x.reshape(*x.shape[:slots], examples, -1, *x.shape[slots + 1 :])
            x = jnp.moveaxis(x, slots, rows + 1)
            return jnp.repeat(x.reshape(*x.shape[:rows], -1, *x.shape[rows + 2 :]), beams, axis=rows)

        layers = (jax.tree.map(lambda x: split(x, 1, 3), self.layers[0]), self.layers[1])
        segments, times = (split(x, 0, 1) for x in (self.segments, self.times))
        return Cache(layers, segments, times, self.context, self.used // examples)

    def fold(self, x: jax.Array) -> jax.Array:
        """Something of tokens [B, T, ...] in the rows of the cache: [R, B * T / R, ...]."""
        return x.reshape(len(self.segments), -1, *x.shape[2:])

    def rows(self, order: jax.Array) -> "Cache":
        """The texts in another order [R], each with another one of its example; a text may occur several times."""
        own, context = self.layers
        own = jax.tree.map(lambda x: x[:, order], own)
        return Cache((own, context), self.segments[order], self.times[order], self.context, self.used)


class DecoderBlock(nn.Module):
    """Causal self-attention, cross-attention to a context where there is one, feed-forward (Vaswani et al. 2017)."""

    settings: BlockSettings
    cross_attention: bool  # blocks attend to the encoders, too

    @nn.compact
    def __call__(
        self, x, text: Stream, times, bias, context: Stream | None, cache: Cache | None, cached, layer: LayerAttention
    ):
        """Returns the tokens [B, T, W] and, with a cache, this layer's keys and values (of tokens, of context).

        Args:
          text: segments and positions of the tokens (its features are not read).
          times: [B, T] of the tokens for causality; None: their positions.
          bias: [B, H, T, S] of self-attention, from positions; None: there is none.
          context: features (None if the cache has their keys and values) and segments.
          cache: segments and times of all slots, including these tokens, and the first slot of these tokens.
          cached: this layer's part of `Cache.layers`.
          layer: this layer's window and rotation.
        """
        its = self.settings
        attend = partial(MultiHeadAttention, x.shape[-1], its.heads, its.dtype, its.block, backend=its.backend)
        residual = partial(its.block.residual, dtype=its.dtype)
        own, other = cached or (None, None)

        def self_attention(y):
            nonlocal own
            module = attend(its.positions, name="self_attention")
            tokens = text._replace(features=y)
            if cache is not None:
                tokens = jax.tree.map(cache.fold, tokens)
            query, new = module.project(tokens, layer.rotation)
            segments, own_times = tokens.segments, tokens.positions if times is None else times
            if cache is None:
                in_order = times is None
                tokens = (query, new, segments, segments, own_times, own_times, bias)
                return module.attend(*tokens, window=layer.window, in_order=in_order, packed=True)
            own = own.write(new, cache.used)
            tokens = (query, own, segments, cache.segments, own_times, cache.times, bias)
            return module.attend(*tokens, window=layer.window).reshape(y.shape)

        def cross_attention(y):
            nonlocal other
            module = attend(name="cross_attention")
            keys = module.key_values(context) if other is None else other
            other = None if cache is None else keys
            query = module.queries(text._replace(features=y))
            self.sow("intermediates", CROSS_ATTENTION, (query, keys.key))
            return module.attend(query, keys, text.segments, context.segments)

        x = residual(x, "self_attention", self_attention, its.drop())
        if self.cross_attention:
            x = residual(x, "cross_attention", cross_attention, its.drop())
        x = residual(x, "mlp", feed_forward(its), its.drop())
        return x, (own, other)


def _like_llama(
    layers: int,
    width: int,
    heads: int,
    key_value_heads: int,
    mlp: int,
    head_width: int = 128,
    base: float = 10_000.0,
    scaling: RotaryScaling | None = None,
    style: Mapping[str, Any] = MappingProxyType({}),
    **fields: Any,
) -> dict[str, Any]:
    """The fields of a decoder of Llama's kind (Touvron et al. 2023, arXiv:2302.13971); `style` are those of its blocks."""
    llama = dict(norm="rms", epsilon=1e-5, activation="silu", gated=True, bias=False)
    block = BlockStyle(**llama | dict(head_width=head_width, key_value_heads=key_value_heads) | dict(style))
    sizes = dict(layers=layers, width=width, heads=heads, mlp=mlp)
    return dict(**sizes, positions=Rotary(base=base, scaling=scaling), block=block, **fields)


# Published language models: Radford et al. 2019; Touvron et al. 2023 (arXiv:2307.09288). Sizes of the others are those of the
# config.json that is published with them: Llama 3 (arXiv:2407.21783), Mistral (arXiv:2310.06825, table 1; version 0.1), Qwen3
# (arXiv:2505.09388), Gemma 3 (arXiv:2503.19786), SmolLM2 (arXiv:2502.02737).
GPT_2 = dict(vocabulary=50_257, positions=Learned(length=1024), block=BlockStyle(activation="gelu_tanh", epsilon=1e-5))
LLAMA_2 = dict(vocabulary=32_000, tied=False)
LLAMA_3 = dict(vocabulary=128_256, base=500_000.0)
QWEN_3 = dict(vocabulary=151_936, base=1e6, style=dict(qk_norm=True, epsilon=1e-6))
GEMMA_3 = dict(
    norm="rms_plus_one", sandwich_norm=True, epsilon=1e-6, activation="gelu_tanh", qk_norm=True, scale=256**-0.5
)
GEMMA_3_1B = SlidingWindow(window=512, full_layers=(5, 11, 17, 23), positions=Rotary(base=10_000.0))
SMOLLM_2 = dict(vocabulary=49_152, head_width=64)
DECODERS = {
    "GPT-2": dict(layers=12, width=768, heads=12, mlp=3072, **GPT_2),
    "GPT-2 XL": dict(layers=48, width=1600, heads=25, mlp=6400, **GPT_2),
    "Llama 2 7B": _like_llama(32, 4096, 32, 32, 11_008, **LLAMA_2),
    "Llama 2 70B": _like_llama(80, 8192, 64, 8, 28_672, **LLAMA_2),
    "Llama 3.1 8B": _like_llama(32, 4096, 32, 8, 14_336, scaling=Llama3Scaling(factor=8.0), tied=False, **LLAMA_3),
    "Llama 3.2 1B": _like_llama(16, 2048, 32, 8, 8192, head_width=64, scaling=Llama3Scaling(factor=32.0), **LLAMA_3),
    "Llama 3.2 3B": _like_llama(28, 3072, 24, 8, 8192, scaling=Llama3Scaling(factor=32.0), **LLAMA_3),
    "Mistral 7B": _like_llama(32, 4096, 32, 8, 14_336, sliding_window=SlidingWindow(window=4096), **LLAMA_2),
    "Qwen3 0.6B": _like_llama(28, 1024, 16, 8, 3072, **QWEN_3),
    "Qwen3 1.7B": _like_llama(28, 2048, 16, 8, 6144, **QWEN_3),
    "Qwen3 8B": _like_llama(36, 4096, 32, 8, 12_288, tied=False, **QWEN_3),
    "Gemma 3 1B": _like_llama(
        26,
        1152,
        4,
        1,
        6912,
        head_width=256,
        base=1e6,
        style=GEMMA_3,
        vocabulary=262_144,
        sliding_window=GEMMA_3_1B,
        scaled_embeddings=True,
    ),
    "SmolLM2 135M": _like_llama(30, 576, 9, 3, 1536, base=100_000.0, **SMOLLM_2),
    "SmolLM2 360M": _like_llama(32, 960, 15, 5, 2560, base=100_000.0, **SMOLLM_2),
    "SmolLM2 1.7B": _like_llama(24, 2048, 32, 32, 8192, base=130_000.0, **SMOLLM_2),
}


class TextDecoder(Tower, kw_only=True):
    """Autoregressive text decoder: token ids in, logits of the next token out.

    A token attends to itself and the earlier tokens of its example. With a prefix, the tokens of the prefix also attend to
    each other. With cross-attention, a token also attends to the tokens of its example in a context, such as an encoder's
    result. Without cross-attention it is a language model: GPT-2, Llama or Gemma, by the style of its blocks.

    Attributes:
      sliding_window: layers in which a token sees only the last tokens; None: in all layers it sees all earlier tokens.
      unrotated: layers without rotary positions (Yang et al. 2025, arXiv:2501.18795).
      tied: the logits are products with the table of embeddings (Press and Wolf 2017, arXiv:1608.05859).
      scaled_embeddings: embeddings are multiplied by the square root of the width (Vaswani et al. 2017, section 3.4).
      soft_cap: logits x become soft_cap tanh(x / soft_cap) (Gemma 2, arXiv:2408.00118); None: no cap.
      logit_scale: factor of the logits; 1 / sqrt(width) in T5 with tied embeddings.
    """

    vocabulary: int | None = None  # number of ids; None: as many as the tokenizer of the data has
    layers: int = 6  # number of blocks
    width: int = 256  # features of a token
    heads: int = 4  # attention heads
    mlp: int = 1024  # hidden features of the feed-forward
    positions: Rotary | Learned | DistanceBuckets = Rotary()  # how positions enter the computation
    sliding_window: SlidingWindow | None = None  # layers in which a token sees only the last tokens
    unrotated: tuple[int, ...] = ()  # layers, from 0, without rotary positions
    cross_attention: bool = True  # blocks attend to the encoders, too
    tied: bool = True  # the logits are products with the table of embeddings
    scaled_embeddings: bool = False  # multiply embeddings by the square root of the width
    soft_cap: float | None = None  # logits stay between -soft_cap and soft_cap; None: no cap
    block: BlockStyle = BlockStyle()  # the style of the blocks
    logit_scale: float = 1.0  # factor of the logits

    def resolved(self, needed: int) -> "TextDecoder":
        """The decoder with `needed` ids, if its vocabulary is left to the data."""
        return self if self.vocabulary else self.clone(vocabulary=needed)

    def check(self, path: str) -> None:
        """Checks that its sizes suit each other; `path` is its key in the config.

        Raises:
          UserError: they do not.
        """
        check_attention(path, self)
        check_layers(path, self)

    @property
    def head_width(self) -> int:
        """Features of an attention head."""
        return self.block.width_of_heads(self.width, self.heads)

    @classmethod
    def preset(cls, name: str, **changes: Any) -> "TextDecoder":
        """A published language model, such as "Qwen3 1.7B"; any field may be changed, such as cross_attention=True."""
        return cls(**dict(cross_attention=False) | published(name, DECODERS, "TextDecoder") | changes)

    def __call__(
        self,
        text: Stream,
        context: Stream | None = None,
        prefix: jax.Array | None = None,
        train: bool = False,
        joined: Joined = TEXT_ALONE,
        factors: bool = False,
    ) -> Stream:
        """[B, T] token ids -> [B, T, vocabulary] float32 logits of all tokens.

        Args:
          context: [B, C, W'], for cross-attention; its rows and segments correspond to those of the text.
          prefix: number of tokens at the start of an example that attend to each other, per position [B, T] or for all.
          joined: media that enter the decoder.
          factors: return `Factors` of the logits, since those of a large vocabulary may not fit into memory; without effect
            if there is a soft cap.
        """
        return self._run(text, context, prefix, None, train, joined, factors=factors)[0]

    def begin(
        self,
        text: Stream,
        room: int,
        context: Stream | None = None,
        prefix: jax.Array | None = None,
        joined: Joined = TEXT_ALONE,
        chosen: jax.Array | None = None,
    ) -> tuple[Stream, Cache]:
        """Like a call, for the first tokens of texts (a start token, a prefix), with a cache for `step`.

        Args:
          room: tokens per row of the cache, for the first tokens (soft tokens too) and all steps. The caller must not
            exceed it: further tokens silently overwrite the last slots.
          joined: media that enter the decoder.
          chosen: [B, N] places in the text whose logits are wanted; None: all of them.
        """
        cache = self.empty(text.segments.shape[0], room)._replace(context=None if context is None else context.segments)
        return self._run(text, context, prefix, cache, False, joined, chosen)

    def empty(self, rows: int, room: int) -> Cache:
        """A cache without tokens, with `room` slots in each row."""
        shape = (self.layers, rows, self.block.key_value_heads or self.heads, room, self.head_width)
        own = KeyValue(*(jnp.zeros(shape, self.dtype) for _ in range(2)))
        segments, times = (jnp.zeros((rows, room), jnp.int32) for _ in range(2))
        return Cache((own, None), segments, times, None, jnp.zeros((), jnp.int32))

    def step(
        self, text: Stream, cache: Cache, joined: Joined = TEXT_ALONE, chosen: jax.Array | None = None
    ) -> tuple[Stream, Cache]:
        """The next tokens [B, n] of every row, usually one per example; the tokens of a finished example have segment 0.

        Args:
          joined: media that enter the decoder. Soft tokens may enter if each row is one text whose tokens fill the first
            slots of the cache.
          chosen: as for `begin`.

        Returns:
          Logits [B, n, vocabulary], equal to the logits of a call with the whole text; and the cache with these tokens.
        """
        return self._run(text, None, None, cache, False, joined, chosen)

    @nn.compact
    def _run(
        self, text, context, prefix, cache, train, joined=TEXT_ALONE, chosen=None, factors=False
    ) -> tuple[Stream, Cache | None]:
        text = only_tokens(text)
        if prefix is not None and self.sliding_window is not None:
            raise ValueError("a decoder with a sliding window has no prefix, since its window counts times")
        times = None if prefix is None else prefix_times(text.positions, prefix)
        # With a tied table of unit variance, initial logits would be as large as the square root of the width.
        table, x = embed(text, self, self.width**-0.5 if self.tied or self.scaled_embeddings else 1.0)
        seen = None if joined.count is None else joined.count > 0
        if joined.soft is not None:
            soft = jnp.ones_like(joined.soft.segments, bool)
            whole = merged(text, joined.count, joined.soft, 0 if cache is None else cache.used)
            x, text = whole.in_order(x, joined.soft.features), Stream(None, whole.segments, whole.positions)
            seen = whole.in_order(seen, soft)
            chosen = whole.of_text if chosen is None else jnp.take_along_axis(whole.of_text, chosen, axis=1)
        norm = self.block.normalise(self.dtype, "norm")
        x = nn.Dropout(self.dropout, deterministic=not train)(norm(x) if self.block.post_norm else x)
        if cache is not None:
            put = partial(jax.lax.dynamic_update_slice_in_dim, start_index=cache.used, axis=1)
            segments, places = (cache.fold(x) for x in (text.segments, text.positions))
            new_times = put(cache.times, places if times is None else times)
            cache = cache._replace(segments=put(cache.segments, segments), times=new_times)
            bias = self.positions.bias(places, self, True, cache.times)
        else:
            bias = self.positions.bias(text.positions, self, True)
        if bias is not None and cache is not None and prefix is not None:
            raise ValueError("a decoder with distances of tokens has no prefix in its cache, which has times alone")
        blocks = self.stack(
            DecoderBlock,
            self.settings(train),
            constants=5,
            per_layer=2,
            inserted=joined.inserted,
            with_params=self._seeing(seen),
            cross_attention=self.cross_attention,
        )
        shared = (text, times, bias, self._context(context, cache), cache and cache._replace(layers=None))
        x, layers = blocks(x, *shared, cache and cache.layers, layer_attention(self))
        if cache is not None:
            cache = cache._replace(layers=layers, used=cache.used + segments.shape[1])
        x = (x if self.block.post_norm else norm(x)).astype(jnp.float32)
        x = x if self.logit_scale == 1.0 else x * self.logit_scale
        if chosen is not None:
            x = jnp.take_along_axis(x, chosen[..., None], axis=1)
            text = Stream(None, *(jnp.take_along_axis(a, chosen, axis=1) for a in text[1:]))
        if self.tied:
            kernel = table.embedding.astype(jnp.float32).T
            logits = x @ kernel
        else:
            head = dense(self.vocabulary, ("embed", "vocabulary"), jnp.float32, "logits", bias=False)
            logits, kernel = head(x), as_array(head.variables["params"]["kernel"])
        if factors and self.soft_cap is None:
            return text._replace(features=Factors(x, kernel)), cache
        return only_tokens(text._replace(features=capped(logits, self.soft_cap))), cache

    def _seeing(self, seen: jax.Array | None) -> Callable[[Any], Any] | None:
        """What adapters with `after_media` need of the tokens [B, T] after media; None: there are no such adapters."""
        if seen is None or self.is_initializing() or not sees_media(self.variables["params"]["layers"]):
            return None
        return partial(seen_by, where=seen)

    def _context(self, context: Stream | None, cache: Cache | None) -> Stream | None:
        if not self.cross_attention:
            return None
        if context is not None:
            return only_tokens(context)
        if cache is None or cache.context is None:
            raise ValueError("a decoder with cross-attention needs a context; it may be empty")
        return Stream(None, cache.context, None)
