"""Recognition by a transducer."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmjax.decode import GreedyTransducer, TransducerDecoding
from mmjax.errors import UserError
from mmjax.losses import tdt, transducer
from mmjax.models.adapters import as_array
from mmjax.models.layers import dense
from mmjax.models.roles import parameter, projection
from mmjax.models.segments import neighbour
from mmjax.models.task import Encoded, Output, Sums
from mmjax.models.texts import inputs_and_targets
from mmjax.stream import Joint, Stream, only_tokens
from mmjax.tasks.text import WithBlank


class Transducer(WithBlank, kw_only=True):
    """Prediction network, joint network and loss of a transducer (Graves 2012, arXiv:1211.3711).

    The prediction network has no state: it reads the last few labels (Ghodsi et al. 2020, "RNN-Transducer with stateless
    prediction network"). All is float32.
    """

    reads: str = "speech"  # an encoder
    label: str = "transcript"  # the name of the text in the data
    outputs: int | None = None  # ids of the tokenizer, and the blank; None: as the data's tokenizer has
    width: int = 256  # features of the joint network, and of the embeddings of labels
    context: int = 2  # number of labels that the prediction network reads
    # The numbers of frames that an emission may skip, such as (0, 1, 2, 3, 4): a token-and-duration transducer (TDT, Xu et al.
    # 2023, arXiv:2304.06795). (): a blank goes on to the next frame, and a token does not.
    durations: tuple[int, ...] = ()
    chunk: int = 8192  # number of columns of the joint network that are computed at a time
    decoding: TransducerDecoding = GreedyTransducer()  # how texts are found

    def check(self, path: str, config: Any) -> None:
        super().check(path, config)
        if self.reads == "fused":
            raise UserError(
                f"{path}.reads is 'fused', but a Transducer needs the tokens of an encoder; read an encoder"
            )
        if self.durations and (not {0, 1} <= set(self.durations) or min(self.durations) < 0):
            raise UserError(f"{path}.durations={self.durations} must have 0 and 1, such as (0, 1, 2, 3, 4)")
        if self.durations and not self.decoding.skips:
            raise UserError(f"{path}.decoding does not know durations; set it to GreedyTransducer()")

    def setup(self):
        init = parameter("embedding", nn.initializers.normal(1.0), ("vocabulary", "embed"))
        self.embedding = nn.Embed(self.outputs, self.width, embedding_init=init)
        self.states = dense(self.width, (None, "embed"), jnp.float32, "states")
        self.frames = dense(self.width, ("embed", None), jnp.float32, "frames")
        init = projection(nn.initializers.xavier_uniform(), ("embed", "vocabulary"))
        columns = self.outputs + len(self.durations)
        self.kernel = as_array(self.param("kernel", init, (self.width, columns)))
        init = parameter("bias", nn.initializers.zeros, ("vocabulary",))
        self.bias = self.param("bias", init, (columns,))

    def __call__(self, encoded: Encoded, train: bool = False) -> Output | None:
        """Encoded tokens [B, T, W], texts [B, S] and slots [B, N] -> a `Joint` of the states, and labels [B, S + N]."""
        text = self.classes(encoded.batch.get(self.label))
        if text is None:
            return None
        inputs, targets = inputs_and_targets(text, encoded.batch["examples"].segments.shape[1])
        embedded = inputs._replace(features=self.embedding(inputs.features))
        states = self._predict([neighbour(embedded, -ago) for ago in range(self.context)])
        states = only_tokens(inputs._replace(features=states))
        joint = Joint(states, self.project(encoded.streams[self.reads]), self.kernel, self.bias)
        return Output(states._replace(features=joint), targets)

    def project(self, stream: Stream) -> Stream:
        """Encoded tokens [B, T, W] -> frames of the joint network [B, T, width]."""
        return only_tokens(stream._replace(features=self.frames(stream.features.astype(jnp.float32))))

    def logits(self, frame: jax.Array, recent: jax.Array) -> jax.Array:
        """Logits of one frame [B, width] of each row after its labels [B, context], newest first; -1: none.

        Returns:
          [B, outputs + D]: of the classes, then of the D durations.
        """
        embedded = jnp.where((recent >= 0)[..., None], self.embedding(jnp.maximum(recent, 0)), 0.0)
        return jnp.tanh(frame + self._predict(list(jnp.moveaxis(embedded, 1, 0)))) @ self.kernel + self.bias

    def _predict(self, embedded: list[jax.Array]) -> jax.Array:
        return self.states(jnp.concatenate(embedded, axis=-1))

    def loss(self, output: Output) -> Sums:
        if self.durations:
            return tdt(*output, self.durations, self.chunk)
        return transducer(*output, self.chunk)

    def decode(
        self, apply: Any, encoded: Encoded, output: Output | None, rooms: Mapping[str, int], tables: Any = None
    ) -> Stream:
        stream, segments = encoded.streams[self.reads], encoded.batch["examples"].segments
        room, blank = rooms[self.label], self.blank or 0
        return self.ids(self.decoding(apply, stream, segments, room, self.context, blank, self.durations, tables))

    def begin_stream(self, rows: int) -> Any:
        return self.decoding.begin(rows, self.context)

    def stream(self, apply: Any, encoded: Encoded, state: Any) -> tuple[Stream, Any]:
        classes, state = self.decoding.advance(apply, encoded.streams[self.reads], state, self.durations)
        return self.ids(classes), state
