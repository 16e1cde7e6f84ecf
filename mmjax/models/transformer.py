"""The text encoders, and the block that the image encoder shares with them."""

from functools import partial
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmjax.errors import UserError
from mmjax.models.attention import MultiHeadAttention
from mmjax.models.encoder import TextEncoder
from mmjax.models.layers import ACTIVATIONS, BlockStyle, FeedForward, stack
from mmjax.models.positions import bucket_of
from mmjax.models.published import published
from mmjax.models.remat import Remat
from mmjax.models.roles import parameter
from mmjax.models.segments import mean
from mmjax.stream import Stream, only_tokens
from mmjax.tree import setting


class TransformerBlock(nn.Module):
    """Self-attention and feed-forward (Vaswani et al. 2017); by default pre-norm with exact GELU, as in ViT."""

    heads: int
    mlp: int
    rotary: bool
    dropout: float = 0.0
    train: bool = False
    dtype: Any = jnp.float32
    key_value_heads: int | None = None
    causal: bool = False
    style: BlockStyle = BlockStyle()
    packed: bool = False

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        segments: jax.Array,
        positions: jax.Array,
        bias: jax.Array | None = None,
    ) -> tuple[jax.Array, None]:
        drop = partial(nn.Dropout, self.dropout, deterministic=not self.train)
        style, width = self.style, x.shape[-1]
        attend = MultiHeadAttention(
            width, self.heads, self.rotary, self.dtype, self.key_value_heads, style, name="attention"
        )

        def look(y):
            return attend(Stream(y, segments, positions), causal=self.causal, bias=bias, packed=self.packed)

        x = style.residual(x, "attention", look, drop(), self.dtype)
        return style.residual(x, "mlp", feed_forward(self), drop(), self.dtype), None


def feed_forward(block: Any) -> FeedForward:
    """The feed-forward of a Transformer block, by the block's fields."""
    style = block.style
    return FeedForward(
        block.mlp,
        ACTIVATIONS[style.activation],
        block.dropout,
        block.train,
        style.gated,
        block.dtype,
        style.bias,
        name="mlp",
    )


def embed(text: Stream, tower: Any, scale: float = 1.0) -> tuple[nn.Embed, jax.Array]:
    """The table of token embeddings of a text tower, and its text embedded, with learned positions if it has any.

    The table is normally distributed with a standard deviation of `scale`.
    """
    init = parameter("embedding", nn.initializers.normal(scale), ("vocabulary", "embed"))
    table = nn.Embed(tower.vocabulary, tower.width, embedding_init=init, dtype=tower.dtype, name="embedding")
    x = table(text.features)
    if tower.positions == "learned":
        init = parameter("embedding", nn.initializers.normal(0.02), (None, "embed"))
        places = nn.Embed(tower.length, tower.width, embedding_init=init, dtype=tower.dtype, name="place")
        x = x + places(text.positions)
    if getattr(tower, "types", 0):
        # BERT was trained on pairs of texts, and says of each token which text it belongs to; here it is the first.
        init = parameter("embedding", nn.initializers.normal(0.02), (None, "embed"))
        x = x + nn.Embed(tower.types, tower.width, embedding_init=init, dtype=tower.dtype, name="type")(
            jnp.zeros_like(text.segments)
        )
    return table, x


BERT = BlockStyle(post_norm=True, epsilon=1e-12)
# Published text encoders: Devlin et al. 2019; MiniLM (Wang et al. 2020), as sentence embedders have it.
TRANSFORMERS = {
    "BERT base": dict(layers=12, width=768, heads=12, mlp=3072),
    "BERT large": dict(layers=24, width=1024, heads=16, mlp=4096),
    "MiniLM L6": dict(layers=6, width=384, heads=12, mlp=1536),
}


class Transformer(TextEncoder, kw_only=True):
    """Text encoder: token ids in, vectors out.

    Every token sees its whole text, or, `causal`, what stands before it and itself. Positions are rotary; or learned
    for texts of up to `length` tokens; or bucketed: what all layers add to their attention scores is learned, per
    head, for distances sorted into buckets (T5, Raffel et al. 2020, arXiv:1910.10683). The style of the blocks makes it
    BERT's encoder (post-norm: then the embeddings are normalised instead of the result), T5's, or CLIP's text tower.

    Attributes:
      buckets, max_distance: see `bucket_of`.
      types: kinds of text that BERT tells apart (it has 2); every text here is of the first.
      key_value_heads: fewer heads of keys and values than of queries (grouped-query attention); None: as many.
    """

    class_token = True  # a tokenizer may put one first, as BERT's does

    vocabulary: int = 128
    layers: int = 6
    width: int = 256
    heads: int = 4
    mlp: int = 1024
    positions: Literal["rotary", "learned", "bucketed"] = "rotary"
    length: int = 512  # tokens of the longest text, with learned positions
    buckets: int = 32  # of distances between tokens, with bucketed positions
    max_distance: int = 128  # tokens, from which on all distances are alike, with bucketed positions
    types: int = 0  # kinds of text that an imported BERT tells apart
    key_value_heads: int | None = None  # each shared by a group of heads; None: as many as heads
    causal: bool = False
    block: BlockStyle = BlockStyle()
    dropout: float = 0.0
    unroll: bool = setting(False)
    remat: Remat = "none"
    dtype: Any = setting(jnp.float32)

    hideable = ("tokens",)

    @classmethod
    def preset(cls, name: str, **changes: Any) -> "Transformer":
        """A published size, such as "BERT base"; any field may be changed, the vocabulary of 30,522 first of all."""
        common = dict(vocabulary=30_522, positions="learned", length=512, types=2, block=BERT)
        return cls(**common | published(name, TRANSFORMERS, "Transformer") | changes)

    def check(self, path: str) -> None:
        super().check(path)
        if self.positions == "bucketed" and not 4 <= self.buckets < 2 * self.max_distance:
            raise UserError(f"{path}.buckets={self.buckets} must be at least 4, and less than twice max_distance")

    def check_row(self, path: str, key: str, room: int) -> None:
        if self.positions == "learned" and self.length < room:
            raise UserError(f"{path}.length={self.length}, but a text may fill its row of {room}")

    @nn.compact
    def __call__(self, text: Stream, train: bool = False) -> Stream:
        """[B, T] token ids -> [B, T, width]."""
        text = only_tokens(text)
        _, x = embed(text, self)
        norm = self.block.normalise(self.dtype, "norm")
        x = nn.Dropout(self.dropout, deterministic=not train)(norm(x) if self.block.post_norm else x)
        blocks = stack(
            TransformerBlock,
            self.layers,
            3,
            self.unroll,
            self.remat,
            heads=self.heads,
            mlp=self.mlp,
            rotary=self.positions == "rotary",
            dropout=self.dropout,
            train=train,
            dtype=self.dtype,
            key_value_heads=self.key_value_heads,
            causal=self.causal,
            style=self.block,
            packed=True,
        )
        x, _ = blocks(x, text.segments, text.positions, self._bias(text.positions))
        return only_tokens(text._replace(features=x if self.block.post_norm else norm(x)))

    def _bias(self, positions: jax.Array) -> jax.Array | None:
        """What bucketed positions [B, T] add to the attention scores, float32 [B, H, T, T]."""
        if self.positions != "bucketed":
            return None
        init = parameter("embedding", nn.initializers.normal(0.02), (None, "heads"))
        table = nn.Embed(self.buckets, self.heads, embedding_init=init, name="bucket")
        buckets = bucket_of(positions[:, None, :] - positions[:, :, None], self.buckets, self.max_distance, self.causal)
        return table(buckets).transpose(0, 3, 1, 2)


class MeanEmbedding(TextEncoder, kw_only=True):
    """The mean of a text's token embeddings: one vector per text, blind to the order of words. A baseline.

    (The continuous bag of words of Mikolov et al. 2013, arXiv:1301.3781.) The vector stands where the text's first
    token stood; the other positions are empty.
    """

    vocabulary: int = 128
    width: int = 256
    dropout: float = 0.0
    dtype: Any = setting(jnp.float32)

    @nn.compact
    def __call__(self, text: Stream, train: bool = False) -> Stream:
        """[B, T] token ids -> [B, T, width], a token at the start of each text."""
        text = only_tokens(text)
        init = parameter("embedding", nn.initializers.normal(1.0), ("vocabulary", "embed"))
        table = nn.Embed(self.vocabulary, self.width, embedding_init=init, dtype=self.dtype, name="embedding")
        x = table(text.features)
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        x = mean(text._replace(features=x), text.segments).astype(self.dtype)
        first = jnp.where(text.positions == 0, text.segments, 0)
        return only_tokens(Stream(x, first, text.positions))
