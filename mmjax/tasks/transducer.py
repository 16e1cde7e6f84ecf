"""Recognition by a transducer."""

from collections.abc import Mapping
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmjax.decode import GreedyTransducer, TransducerDecoding
from mmjax.errors import UserError
from mmjax.losses import tdt, transducer
from mmjax.models.adapters import as_array
from mmjax.models.layers import dense
from mmjax.models.prediction import PredictionNetwork, StatelessPrediction
from mmjax.models.roles import parameter, projection
from mmjax.models.task import Encoded, Output, Sums
from mmjax.models.texts import inputs_and_targets
from mmjax.stream import Joint, Stream, only_tokens
from mmjax.tasks.text import WithBlank


class Transducer(WithBlank, kw_only=True):
    """Prediction network, joint network and loss of a transducer (Graves 2012, arXiv:1211.3711). All is float32."""

    reads: str = "speech"  # an encoder
    label: str = "transcript"  # the name of the text in the data
    outputs: int | None = None  # ids of the tokenizer, and the blank; None: as the data's tokenizer has
    width: int = 256  # features of the joint network, and of the prediction network
    predictor: PredictionNetwork = StatelessPrediction()  # reads the labels that were written
    activation: Literal["tanh", "relu"] = "tanh"  # of the joint network
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
        self.predictor.check(f"{path}.predictor")
        if self.durations and (not {0, 1} <= set(self.durations) or min(self.durations) < 0):
            raise UserError(f"{path}.durations={self.durations} must have 0 and 1, such as (0, 1, 2, 3, 4)")

    def setup(self):
        self.network = self.predictor.clone(outputs=self.outputs, width=self.width)
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
        states = self.network(inputs)
        joint = Joint(states, self.project(encoded.streams[self.reads]), self.kernel, self.bias)
        return Output(states._replace(features=joint), targets)

    def project(self, stream: Stream) -> Stream:
        """Encoded tokens [B, T, W] -> frames of the joint network [B, T, width]."""
        return only_tokens(stream._replace(features=self.frames(stream.features.astype(jnp.float32))))

    def logits(self, frame: jax.Array, labels: jax.Array, memory: Any) -> tuple[jax.Array, Any]:
        """Logits of a frame [B, width] of each row after one more class [B] of its text; `memory`: of the classes before.

        Returns:
          [B, outputs + D], of the classes, then of the D durations; and the state after the class.
        """
        state, memory = self.network.step(labels, memory)
        return getattr(jax.nn, self.activation)(frame + state) @ self.kernel + self.bias, memory

    def memory(self, shape: tuple[int, ...]) -> Any:
        """The state before a text begins: arrays [*shape, ...]."""
        return self.predictor.clone(outputs=self.outputs, width=self.width).memory(shape)

    def loss(self, output: Output) -> Sums:
        if self.durations:
            return tdt(*output, self.durations, self.chunk, self.activation)
        return transducer(*output, self.chunk, self.activation)

    def decode(
        self, apply: Any, encoded: Encoded, output: Output | None, rooms: Mapping[str, int], tables: Any = None
    ) -> Stream:
        stream, segments = encoded.streams[self.reads], encoded.batch["examples"].segments
        room, blank = rooms[self.label], self.blank or 0
        return self.ids(self.decoding(apply, stream, segments, room, self.memory, blank, self.durations, tables))

    def begin_stream(self, rows: int) -> Any:
        return self.decoding.begin(rows, self.memory)

    def stream(self, apply: Any, encoded: Encoded, state: Any) -> tuple[Stream, Any]:
        classes, state = self.decoding.advance(apply, encoded.streams[self.reads], state, self.memory, self.durations)
        return self.ids(classes), state
