"""Gated cross-attention: layers between the blocks of a language model, in which its text attends to media."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmjax.errors import UserError
from mmjax.models.attend import AUTO, Selection
from mmjax.models.attention import KeyValue, MultiHeadAttention
from mmjax.models.blocks import BlockSettings, Inserted
from mmjax.models.media import NEVER, Joined, MediaFusion, first_number
from mmjax.models.remat import Remat, rematerialised
from mmjax.models.roles import parameter
from mmjax.models.transformer import feed_forward
from mmjax.stream import Stream
from mmjax.tree import setting


class Reader(nn.Module):
    """A layer in which text attends to media: x + tanh(g) attention(norm(x)), then x + tanh(h) feed_forward(norm(x)).

    g and h are learned numbers. If they are 0, the layer returns x to the bit.
    """

    settings: BlockSettings
    width: int
    gate: float = 0.0  # initial value of g and h

    def setup(self):
        its = self.settings
        self.norm, self.mlp_norm = (its.block.normalise(its.dtype, None) for _ in range(2))
        self.attention = MultiHeadAttention(self.width, its.heads, its.dtype, its.block, backend=its.backend)
        self.mlp = feed_forward(its, name=None)
        init = parameter("gate", nn.initializers.constant(self.gate), ())
        self.attention_gate, self.mlp_gate = (self.param(f"{name}_gate", init, ()) for name in ("attention", "mlp"))

    def key_values(self, media: Stream) -> KeyValue:
        """Keys and values [B, K, S, D] of media [B, S, W], to keep for later tokens."""
        return self.attention.key_values(media)

    def __call__(
        self, x: jax.Array, text: Stream, reads: jax.Array, media: Stream, keys: KeyValue | None
    ) -> tuple[jax.Array, None]:
        """[B, T, W] -> [B, T, W].

        Args:
          text: segments, and as positions the number of the last medium that each token attends to.
          reads: [B, T] bool, whether a token attends to any medium; the others are not changed.
          media: vectors [B, S, W] (not read if there are `keys`), segments, and as positions the numbers of the media.
        """
        dtype = self.settings.dtype
        keys = self.key_values(media) if keys is None else keys
        queries = self.attention.queries(text._replace(features=self.norm(x)))
        read = self.attention.attend(queries, keys, text.segments, media.segments, text.positions, media.positions)
        y = x + jnp.tanh(self.attention_gate).astype(dtype) * read
        y = y + jnp.tanh(self.mlp_gate).astype(dtype) * self.mlp(self.mlp_norm(y))
        return jnp.where(reads[..., None], y, x), None


class GatedCrossAttention(MediaFusion, kw_only=True):
    """Layers with gates before every few blocks of a language model, in which its text attends to media.

    Flamingo (Alayrac et al. 2022, arXiv:2204.14198); Llama 3.2 Vision. The gates begin at 0, so that training begins with the
    language model as it is. A token attends to the media of its own conversation alone. A token that attends to none is
    computed by the language model alone.
    """

    every: int = 4  # blocks of the language model from one layer to the next
    gate: float = 0.0  # initial value of the gates; tanh of it multiplies what a layer adds
    heads: int | None = None  # of the attention; None: as the language model
    mlp: int | None = None  # hidden features of the feed-forward; None: as the language model
    in_order: bool = True  # a token attends only to the media before it; False: to all those of its conversation
    remat: Remat = "none"  # what the backward pass keeps and what it computes again: see docs/plan.md
    unroll: bool = setting(False)
    backend: Selection = setting(AUTO)  # of attention

    @property
    def causal(self) -> bool:
        return self.in_order

    def check(self, path: str, encoders: Mapping[str, Any], decoder: Any) -> None:
        super().check(path, encoders, decoder)
        if self.every < 1:
            raise UserError(f"{path}.every={self.every} must be at least 1")

    @nn.compact
    def project(self, streams: Mapping[str, Stream], encoders: Mapping[str, Any], decoder: Any) -> Stream:
        media = self.projected(streams, encoders, decoder.width)
        if self.is_initializing():
            layers = nn.scan(
                Reader,
                variable_axes={"params": 0},
                split_rngs={"params": True, "dropout": True},
                in_axes=(nn.broadcast,) * 4,
                length=Inserted.count(decoder.layers, self.every),
                metadata_params={nn.PARTITION_NAME: "layers"},
            )(self._settings(decoder, False), decoder.width, self.gate, name="layers")
            nothing = jnp.zeros_like(media.segments)
            x = jnp.zeros((*nothing.shape, decoder.width), self.dtype)
            layers(x, Stream(None, nothing, nothing), nothing > 0, media, None)
        return media

    def join(
        self, media: Stream, text: Stream, count: jax.Array, decoder: Any, train: bool = False, kept: Any = None
    ) -> Joined:
        if self.is_initializing():
            return Joined()
        reader = self._reader(decoder, train)
        if not self.in_order:
            count = jnp.full_like(count, NEVER)
        reads = text.mask & (first_number(media, text.segments) < count)
        queries = Stream(None, text.segments, count - 1)
        key = self.make_rng("dropout") if train and self.has_rng("dropout") else None

        def layer(x: jax.Array, values: Any) -> jax.Array:
            number, params, own_keys = values
            rngs = {} if key is None else {"dropout": jax.random.fold_in(key, number)}
            with jax.named_scope("gated_cross_attention"):
                return reader.apply({"params": params}, x, queries, reads, media, own_keys, rngs=rngs)[0]

        numbers = jnp.arange(Inserted.count(decoder.layers, self.every))
        return Joined(inserted=Inserted(layer, (numbers, self._params(), kept and kept[1]), self.every))

    def kept(self, media: Stream, decoder: Any) -> tuple[Stream, KeyValue]:
        reader = self._reader(decoder, False)
        keys = jax.vmap(lambda params: reader.apply({"params": params}, media, method="key_values"))(self._params())
        return media._replace(features=None), keys

    def join_further(
        self, kept: Any, media: Stream, text: Stream, count: jax.Array, decoder: Any
    ) -> tuple[Joined, Any]:
        further = self.kept(media, decoder)
        if kept is not None:
            (known, keys), (new, new_keys) = kept, further
            first = jnp.where(media.mask, media.positions, NEVER).min(axis=1, keepdims=True)
            stays = jnp.where(known.positions < first, known.segments, 0)
            segments, positions = (
                jnp.concatenate(pair, axis=1) for pair in ((stays, new.segments), (known.positions, new.positions))
            )
            further = (
                Stream(None, segments, positions),
                KeyValue(*(jnp.concatenate(pair, axis=3) for pair in zip(keys, new_keys, strict=True))),
            )
        return self.rejoin(further, text, count, decoder), further

    def rejoin(self, kept: Any, text: Stream, count: jax.Array, decoder: Any) -> Joined:
        return self.join(kept[0], text, count, decoder, kept=kept)

    def _params(self) -> Any:
        return nn.unbox(self.variables["params"]["layers"])

    def _reader(self, decoder: Any, train: bool) -> nn.Module:
        reader = rematerialised(Reader, self.remat, looped=not self.unroll)
        return reader(self._settings(decoder, train), decoder.width, self.gate, parent=None)

    def _settings(self, decoder: Any, train: bool) -> BlockSettings:
        return BlockSettings(
            heads=self.heads or decoder.heads,
            mlp=self.mlp or decoder.mlp,
            block=decoder.block,
            dropout=decoder.dropout,
            train=train,
            dtype=self.dtype,
            backend=self.backend,
        )
