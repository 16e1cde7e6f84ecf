"""Alignment of a projector with the token embeddings of a language model, before the model reads its vectors."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmjax.errors import UserError
from mmjax.models.blocks import by_rows
from mmjax.models.layers import dense
from mmjax.models.projectors import MLP, Projector
from mmjax.models.roles import parameter
from mmjax.models.task import Encoded, Facts, Output
from mmjax.stream import BLANK
from mmjax.tasks.ctc import CTC


class EmbeddingCTC(CTC, kw_only=True):
    """Connectionist temporal classification (Graves et al. 2006) of a projector's vectors by a table of token embeddings.

    The vectors of a recording become similar to the embeddings of the tokens that are spoken there. A language model with
    this table then reads them almost like text, after far fewer steps than from a random projector. A step is cheap, since
    it does not run the language model. (LegoSLM, Ma et al. 2025, arXiv:2505.11352, also connects an encoder and a language
    model by CTC over the tokens of the latter.)

    A logit is the product of a vector with an embedding, divided by the mean square of the table and by the square root of the
    width: for a vector that equals an embedding, it is about the square root of the width. The blank has a linear layer.
    """

    projector: Projector = MLP()  # makes the vectors
    width: int = 576  # features of an embedding
    embeddings: int | None = None  # rows of the table; None: one for each id. Language models often have more
    scale: float = 0.1  # initial factor of the vectors, which is learned, as in SoftTokens

    aligns = False
    teaches = False

    def align(self, name: str, encoder: Any) -> int:
        return self.projector.window(encoder)

    def check(self, path: str, config: Any) -> None:
        super().check(path, config)
        self.projector.check(f"{path}.projector", self.reads, config.model.encoders[self.reads])

    def check_data(self, path: str, facts: Facts, source: Any) -> None:
        super().check_data(path, facts, source)
        if self.embeddings is not None and self.embeddings < self._ids:
            raise UserError(f"{path}.embeddings={self.embeddings}, but each of {self._ids} ids needs one")

    @nn.compact
    def __call__(self, encoded: Encoded, train: bool = False) -> Output:
        """Encoded tokens [B, T, W] -> logits [B, S, outputs] of the vectors, and labels [B, U]."""
        vectors = self.projector(encoded.streams[self.reads], encoded.encoders[self.reads], self.width)
        init = parameter("gate", nn.initializers.constant(self.scale), ("embed",))
        x = vectors.features.astype(jnp.float32) * self.param("scale", init, (self.width,))
        init = parameter("embedding", nn.initializers.normal(self.width**-0.5), ("vocabulary", "embed"))
        rows = self.embeddings or self._ids
        table = nn.Embed(rows, self.width, embedding_init=init, name="embedding").embedding
        table = table[: self._ids].astype(jnp.float32)
        size = jax.lax.stop_gradient(jnp.square(table).mean())
        if self.blank:  # the ids before the blank have a class more
            ids = [i for i in range(self._ids) if i != self.blank]
            table = table[jnp.array([0, *ids])]
        blank = dense(1, ("embed", None), jnp.float32, "blank")(x / size**0.5)
        logits = jnp.where(jnp.arange(self.outputs) == BLANK, blank, x @ table.T / (size * self.width**0.5))
        logits = by_rows(logits)  # XLA computes wrong gradients of the loss where the classes are divided over devices
        return Output(vectors._replace(features=logits), self.classes(encoded.batch.get(self.label)))

    @property
    def _ids(self) -> int:
        """The number of embeddings. A blank after all ids has no embedding."""
        return self.outputs - (self.blank == self.outputs - 1)

    def heard(self, facts: Facts) -> str | None:
        return None  # a vector is longer than a token of the encoder, so words have no times

    def begin_stream(self, rows: int) -> Any:
        raise UserError("EmbeddingCTC writes no text while a recording goes on; use CTC or Transducer")
