"""The cross-attention weights of a fusion or of a text decoder for one example: where the model looks.

Models do not keep attention weights, and some backends never compute them. So an interceptor (`flax.linen.intercept_methods`)
takes the projected queries and keys of each layer, and the weights are computed again.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from mmjax.models import Multimodal
from mmjax.models.attend.inputs import Inputs
from mmjax.models.attention import KeyValue, MultiHeadAttention
from mmjax.models.encoder import Encoder
from mmjax.models.remat import with_remat
from mmjax.models.roles import part_name
from mmjax.stream import PICTURE, RECORDING, Batch


class Looks(NamedTuple):
    """Where the queries of one example look, for one stream of keys.

    Attributes:
      weights: [Q, K] mean over layers and heads. Over the keys of all streams together, the weights of a query sum to 1.
      places: [K] or [K, 2] positions of the keys: encoder tokens in time, or patch row and column; -1: not a patch.
    """

    weights: np.ndarray
    places: np.ndarray


class _Seen(NamedTuple):
    """What the interceptor has taken: of each layer, weights [B, T, S] and segments [B, T]; of encoders, the output's tokens."""

    layers: dict[str, list[tuple[np.ndarray, np.ndarray]]]
    tokens: dict[str, tuple[np.ndarray, np.ndarray]]


class Watcher:
    """Computes where a model looks. It compiles once for each shape of a batch."""

    def __init__(self, model: Multimodal):
        self._model = with_remat(model, "none")  # a rematerialised block must not have effects
        self._seen = _Seen({}, {})
        self._program = jax.jit(self._watched)

    def looks(self, params: Any, batch: Batch) -> dict[str, dict[str, Looks]]:
        """Where each part of the model looks, by "fusion" or the name of a task, and by stream.

        The weights of a task that writes a text are those while it writes the label of the batch.

        Args:
          batch: one row with one example.
        """
        for found in self._seen:
            found.clear()
        jax.block_until_ready(self._program(params, batch))
        jax.effects_barrier()
        return {part: looks for part, layers in self._seen.layers.items() if (looks := self._by_stream(part, layers))}

    def _watched(self, params: Any, batch: Batch) -> Any:
        with nn.intercept_methods(self._intercept):
            return self._model.apply({"params": params}, batch)

    def _intercept(self, following: Any, arguments: tuple, options: Mapping[str, Any], context: Any) -> Any:
        module, result = context.module, following(*arguments, **options)
        # The calls that are watched are those of these classes, in any model; no kind of encoder is told apart.
        if isinstance(module, Encoder) and context.method_name == "__call__" and len(module.path) == 1:
            jax.debug.callback(self._note_tokens, part_name(module.name), result.segments, result.positions)
        if isinstance(module, MultiHeadAttention) and context.method_name == "attend" and module.path:
            query, keys, segments, key_segments, *_ = arguments
            if segments is not key_segments:  # self-attention passes one array twice
                weights = _weights(module, query, keys, segments, key_segments)
                # In order, so that the layers of a loop follow each other.
                jax.debug.callback(self._note_layer, part_name(module.path[0]), weights, segments, ordered=True)
        return result

    def _note_tokens(self, name: str, segments: Any, positions: Any) -> None:
        self._seen.tokens[name] = np.asarray(segments), np.asarray(positions)

    def _note_layer(self, part: str, weights: Any, segments: Any) -> None:
        self._seen.layers.setdefault(part, []).append((np.asarray(weights), np.asarray(segments)))

    def _by_stream(self, part: str, layers: list[tuple[np.ndarray, np.ndarray]]) -> dict[str, Looks]:
        """The weights of a part, divided into those of the streams whose tokens are its keys, in alphabetical order."""
        tokens, read = self._seen.tokens, {name: set(task.sources) for name, task in self._model.tasks.items()}
        names = sorted(tokens.keys() & {"fusion": tokens.keys(), **read}.get(part, set()))
        weights = np.mean([weights[0] for weights, _ in layers], axis=0)
        queries, first, found = layers[0][1][0] == 1, 0, {}
        for name in names:
            segments, positions = (array[0] for array in tokens[name])
            own = np.flatnonzero(segments == 1)
            if first + len(segments) > weights.shape[1]:  # the part reads its streams in another form
                return {}
            if len(own):
                found[name] = Looks(weights[np.ix_(queries, first + own)], _places(positions[own]))
            first += len(segments)
        return found


def _places(positions: np.ndarray) -> np.ndarray:
    if positions.ndim == 1:
        return positions % RECORDING
    return np.where(positions[:, :1] < 0, -1, np.stack([positions[:, 0], positions[:, 1] % PICTURE], axis=1))


def _weights(
    module: MultiHeadAttention, query: jax.Array, keys: KeyValue, segments: jax.Array, key_segments: jax.Array
) -> jax.Array:
    """[B, T, S] the weights of cross-attention, the mean over heads; zeros for a query that sees no key."""
    style, groups = module.style, query.shape[1] // keys.key.shape[1]
    inputs = Inputs(query, *keys, segments, key_segments, scale=style.scale, soft_cap=style.soft_cap)
    key = jnp.repeat(keys.key, groups, axis=1)
    products = jnp.einsum("bhtd,bhsd->bhts", query, key, preferred_element_type=jnp.float32)
    seen = inputs.seen()[:, None]
    scores = jnp.where(seen, inputs.scores(products), -jnp.inf)
    top = jnp.where(seen.any(axis=-1, keepdims=True), scores.max(axis=-1, keepdims=True), 0.0)
    powers = jnp.exp(scores - top)
    return (powers / jnp.maximum(powers.sum(axis=-1, keepdims=True), 1e-30)).mean(axis=1)
