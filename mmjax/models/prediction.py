"""Prediction networks of transducers: what a transducer knows of the labels that it has written."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmjax.errors import UserError
from mmjax.models.adapters import as_array
from mmjax.models.layers import dense
from mmjax.models.recurrent import lstm, lstm_step
from mmjax.models.roles import parameter, projection
from mmjax.models.segments import neighbour
from mmjax.stream import Stream, only_tokens
from mmjax.tree import setting


class PredictionNetwork(nn.Module, kw_only=True):
    """The base class of prediction networks. A text begins with the blank, whose embedding stands for "nothing yet".

    Attributes:
      outputs: number of classes; width: features of embeddings and of the result. The task sets both.
    """

    outputs: int = setting(0)
    width: int = setting(0)

    kind = "prediction network"

    def check(self, path: str) -> None:
        """Checks the fields; `path` is their key. Raises UserError."""

    def memory(self, shape: tuple[int, ...]) -> Any:
        """The state before the blank that begins a text: a pytree of arrays [*shape, ...]."""
        raise NotImplementedError

    def __call__(self, labels: Stream) -> Stream:
        """Classes [B, S] of texts, each begun by a blank -> states [B, S, width] after each of them."""
        raise NotImplementedError

    def step(self, labels: jax.Array, memory: Any) -> tuple[jax.Array, Any]:
        """Reads one more class [B] of each text. Returns its output [B, width] and the next state."""
        raise NotImplementedError

    def embedding(self) -> nn.Embed:
        """The table of the classes; for `setup`."""
        init = parameter("embedding", nn.initializers.normal(1.0), ("vocabulary", "embed"))
        return nn.Embed(self.outputs, self.width, embedding_init=init)


class StatelessPrediction(PredictionNetwork, kw_only=True):
    """Reads the last few labels alone (Ghodsi et al. 2020, "RNN-Transducer with stateless prediction network")."""

    context: int = 2  # number of labels

    def check(self, path: str) -> None:
        if self.context < 1:
            raise UserError(f"{path}.context={self.context} must be 1 or more")

    def setup(self):
        self.embed = self.embedding()
        self.out = dense(self.width, (None, "embed"), jnp.float32, None)

    def memory(self, shape: tuple[int, ...]) -> jax.Array:
        """The labels before the last one, the newest first; -1: none."""
        return jnp.full((*shape, self.context - 1), -1)

    def __call__(self, labels: Stream) -> Stream:
        embedded = labels._replace(features=self.embed(labels.features))
        recent = [neighbour(embedded, -ago) for ago in range(self.context)]
        return only_tokens(labels._replace(features=self.out(jnp.concatenate(recent, axis=-1))))

    def step(self, labels: jax.Array, memory: jax.Array) -> tuple[jax.Array, jax.Array]:
        recent = jnp.concatenate([labels[:, None], memory], axis=-1)
        embedded = jnp.where((recent >= 0)[..., None], self.embed(jnp.maximum(recent, 0)), 0.0)
        return self.out(embedded.reshape(len(labels), -1)), recent[:, :-1]


class LSTMPrediction(PredictionNetwork, kw_only=True):
    """Reads all labels, with LSTM layers and a linear one (Graves 2012; Conformer: one layer). Two biases, as PyTorch has."""

    layers: int = 1  # number of LSTM layers

    def setup(self):
        self.embed = self.embedding()
        init = projection(nn.initializers.orthogonal(), ("embed", "mlp"))
        zeros = parameter("bias", nn.initializers.zeros, ("mlp",))
        numbers, size = range(self.layers), 4 * self.width
        self.inputs = [dense(size, ("embed", "mlp"), jnp.float32, f"input_{one}") for one in numbers]
        self.recurrent = [as_array(self.param(f"recurrent_{one}", init, (self.width, size))) for one in numbers]
        self.biases = [self.param(f"recurrent_bias_{one}", zeros, (size,)) for one in numbers]
        self.out = dense(self.width, ("embed", "embed"), jnp.float32, None)

    def memory(self, shape: tuple[int, ...]) -> tuple[jax.Array, jax.Array]:
        """Hidden and cell states [*shape, layers, width]."""
        zeros = jnp.zeros((*shape, self.layers, self.width))
        return zeros, zeros

    def __call__(self, labels: Stream) -> Stream:
        x = self.embed(labels.features)
        for inputs, recurrent, bias in zip(self.inputs, self.recurrent, self.biases, strict=True):
            x = lstm(inputs(x) + bias, recurrent, labels.segments)
        return only_tokens(labels._replace(features=self.out(x)))

    def step(self, labels: jax.Array, memory: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, Any]:
        x, states = self.embed(labels), []
        for number, (inputs, recurrent, bias) in enumerate(zip(self.inputs, self.recurrent, self.biases, strict=True)):
            states.append(lstm_step(inputs(x) + bias, tuple(one[:, number] for one in memory), recurrent))
            x = states[-1][0]
        return self.out(x), tuple(jnp.stack(one, axis=1) for one in zip(*states, strict=True))
