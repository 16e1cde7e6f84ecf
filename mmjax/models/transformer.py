"""The text encoders, and the block that encoders and fusions share."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmjax.errors import UserError
from mmjax.models.attention import MultiHeadAttention
from mmjax.models.blocks import BlockSettings, BlockStyle, Tower
from mmjax.models.encoder import TextEncoder, check_attention
from mmjax.models.layer_attention import UNIFORM, LayerAttention, SlidingWindow, check_layers, layer_attention
from mmjax.models.layers import ACTIVATIONS, FeedForward
from mmjax.models.positions import Learned, Rotary, TextPositions
from mmjax.models.published import published
from mmjax.models.roles import parameter
from mmjax.models.segments import mean
from mmjax.stream import Stream, only_tokens
from mmjax.tree import setting


class TransformerBlock(nn.Module):
    """Self-attention and feed-forward (Vaswani et al. 2017); by default pre-norm with exact GELU, as in ViT."""

    settings: BlockSettings

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        segments: jax.Array,
        positions: jax.Array,
        bias: jax.Array | None = None,
        layer: LayerAttention = UNIFORM,
    ) -> tuple[jax.Array, None]:
        its = self.settings
        attend = MultiHeadAttention(
            x.shape[-1], its.heads, its.dtype, its.block, its.positions, its.backend, name="attention"
        )

        def attention(y):
            tokens = Stream(layer.input(x, y), segments, positions)
            return attend(tokens, causal=its.causal, bias=bias, packed=its.packed, layer=layer)

        x = its.block.residual(x, "attention", attention, its.drop(), its.dtype)
        return its.block.residual(x, "mlp", feed_forward(its), its.drop(), its.dtype), None


def feed_forward(settings: BlockSettings, name: str | None = "mlp") -> FeedForward:
    """The feed-forward of a Transformer block, a submodule of the calling module."""
    style = settings.block
    return FeedForward(
        settings.mlp,
        ACTIVATIONS[style.activation],
        settings.dropout,
        settings.train,
        style.gated,
        settings.dtype,
        style.bias,
        name=name,
    )


def embed(text: Stream, tower: Any, scale: float = 1.0) -> tuple[nn.Embed, jax.Array]:
    """The table of token embeddings of a text tower, and the embedded text with its positions added.

    Args:
      tower: the calling module, with the fields `vocabulary`, `width`, `positions` and `dtype`, and perhaps `types` and
        `scaled_embeddings`.
      scale: standard deviation of the initial table, which is normally distributed.
    """
    init = parameter("embedding", nn.initializers.normal(scale), ("vocabulary", "embed"))
    table = nn.Embed(tower.vocabulary, tower.width, embedding_init=init, dtype=tower.dtype, name="embedding")
    x = table(text.features)
    if getattr(tower, "scaled_embeddings", False):
        x = x * jnp.asarray(tower.width**0.5, x.dtype)
    x = tower.positions.add(x, text, tower)
    if getattr(tower, "types", 0):
        # BERT is trained on pairs of texts and marks the text of each token. Here every token is of the first text.
        init = parameter("embedding", nn.initializers.normal(0.02), (None, "embed"))
        x = x + nn.Embed(tower.types, tower.width, embedding_init=init, dtype=tower.dtype, name="type")(
            jnp.zeros_like(text.segments)
        )
    return table, x


BERT = BlockStyle(post_norm=True, epsilon=1e-12)
# Published text encoders: Devlin et al. 2019; MiniLM (Wang et al. 2020) in the size that sentence embedders use.
TRANSFORMERS = {
    "BERT base": dict(layers=12, width=768, heads=12, mlp=3072),
    "BERT large": dict(layers=24, width=1024, heads=16, mlp=4096),
    "MiniLM L6": dict(layers=6, width=384, heads=12, mlp=1536),
}


class Transformer(TextEncoder, Tower, kw_only=True):
    """Text encoder: token ids in, vectors out.

    Every token attends to its whole text; if `causal`, to itself and earlier tokens. By the style of its blocks and its
    positions it is the encoder of BERT, ModernBERT or T5, or CLIP's text tower. With post_norm, the embeddings are
    normalised instead of the result.

    Attributes:
      sliding_window: layers in which a token sees only the tokens near it; None: in all layers it sees its whole text.
      types: number of token types of BERT, which is 2; here every token is of the first type. 0: none.
      embedding_norm: the embeddings are normalised, and the input of the first attention is not (ModernBERT, Warner et al.
        2024, arXiv:2412.13663).
    """

    class_token = True  # a tokenizer may put one first, as BERT's does

    vocabulary: int | None = None  # number of ids; None: as many as the tokenizer of the data has
    layers: int = 6  # number of blocks
    width: int = 256  # features of a token
    heads: int = 4  # attention heads
    mlp: int = 1024  # hidden features of the feed-forward
    positions: TextPositions = Rotary()  # how positions enter the computation
    sliding_window: SlidingWindow | None = None  # layers in which a token sees only the tokens near it
    types: int = 0  # token types of an imported BERT; 0: none
    embedding_norm: bool = False  # normalise the embeddings, and not the input of the first attention
    causal: bool = False  # no token sees a later one
    block: BlockStyle = BlockStyle()  # the style of the blocks

    hideable = ("tokens",)

    @classmethod
    def preset(cls, name: str, **changes: Any) -> "Transformer":
        """A published size, such as "BERT base"; any field may be changed. The default vocabulary is BERT's, 30,522."""
        common = dict(vocabulary=30_522, positions=Learned(length=512), types=2, block=BERT)
        return cls(**common | published(name, TRANSFORMERS, "Transformer") | changes)

    def check(self, path: str) -> None:
        check_attention(path, self)
        check_layers(path, self)
        if self.embedding_norm and self.block.post_norm:
            raise UserError(f"{path}.embedding_norm has no effect, because block.post_norm normalises embeddings, too")

    def check_row(self, path: str, key: str, room: int) -> None:
        self.positions.check_length(f"{path}.positions", room)

    @nn.compact
    def __call__(self, text: Stream, train: bool = False) -> Stream:
        """[B, T] token ids -> [B, T, width]."""
        text = only_tokens(text)
        _, x = embed(text, self)
        norm = self.block.normalise(self.dtype, "norm")
        if self.embedding_norm:
            x = self.block.normalise(self.dtype, "embedding_norm")(x)
        x = nn.Dropout(self.dropout, deterministic=not train)(norm(x) if self.block.post_norm else x)
        blocks = self.stack(TransformerBlock, self.settings(train, packed=True), constants=3, per_layer=1)
        bias = self.positions.bias(text.positions, self, self.causal)
        x, _ = blocks(x, text.segments, text.positions, bias, layer_attention(self))
        return only_tokens(text._replace(features=x if self.block.post_norm else norm(x)))


class MeanEmbedding(TextEncoder, kw_only=True):
    """A baseline: the mean of a text's token embeddings, which ignores the order of words.

    This is the continuous bag of words of Mikolov et al. 2013, arXiv:1301.3781. The result has one vector per text, in the
    position of its first token; the other positions are empty.
    """

    vocabulary: int | None = None  # number of ids; None: as many as the tokenizer of the data has
    width: int = 256  # features of a token
    dropout: float = 0.0  # of activations, in training
    dtype: Any = setting(jnp.float32)

    @nn.compact
    def __call__(self, text: Stream, train: bool = False) -> Stream:
        """[B, T] token ids -> [B, T, width], one vector per text, in its first position."""
        text = only_tokens(text)
        init = parameter("embedding", nn.initializers.normal(1.0), ("vocabulary", "embed"))
        table = nn.Embed(self.vocabulary, self.width, embedding_init=init, dtype=self.dtype, name="embedding")
        x = table(text.features)
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        x = mean(text._replace(features=x), text.segments).astype(self.dtype)
        first = jnp.where(text.positions == 0, text.segments, 0)
        return only_tokens(Stream(x, first, text.positions))
