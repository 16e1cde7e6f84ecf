"""Heads that write text: an attention decoder, and a transducer.

A text begins and ends with `BLANK`, which never stands in one: a decoder reads (0, a, b) and writes (a, b, 0). An empty
text comes as its end alone: a decoder reads (0) and writes (0).
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmjax.models.decoder import Cache, TextDecoder
from mmjax.models.fusion.base import Fusion
from mmjax.models.layers import dense
from mmjax.models.remat import rematerialised_whole
from mmjax.models.segments import belongs, having, neighbour, same_segment
from mmjax.stream import BLANK, Joint, Stream, concatenate, only_tokens


def begun_and_ended(text: Stream, slots: int) -> tuple[Stream, Stream]:
    """What a decoder reads, and what it writes in the same places.

    Args:
      text: [B, T] ids; the tokens of an example stand together. An example whose text is empty has one `BLANK` there;
        one without a position has no text, and is left out.
      slots: how many examples a row may have.

    Returns:
      Two streams [B, T + slots], each text begun by `BLANK`, and ended by it: one token longer, but for empty ones.
    """
    text = only_tokens(text)
    rows, length = text.segments.shape
    last = text.mask & ~same_segment(text.segments, 1) & (text.features != BLANK)  # whose end is still missing
    # Each end that was added before a token has moved it by one place.
    place = jnp.arange(length) + jnp.cumsum(last, axis=1) - last
    nowhere = length + slots

    def put(into: jax.Array, values: jax.Array, where: jax.Array, by: int) -> jax.Array:
        where = jnp.where(where, place + by, nowhere)
        return jax.vmap(lambda x, i, v: x.at[i].set(v, mode="drop"))(into, where, values)

    empty = jnp.zeros((rows, length + slots), jnp.int32)
    ids, segments, positions = text.features.astype(jnp.int32), text.segments, text.positions
    segments, positions = (
        put(put(empty, x, text.mask, 0), x + more, last, 1) for x, more in ((segments, 0), (positions, 1))
    )
    read, written = put(empty, ids, text.mask, 1), put(empty, ids, text.mask, 0)
    return Stream(read, segments, positions), Stream(written, segments, positions)


class AttentionDecoder(Fusion):
    """Writes an example's text token by token, attending to its tokens of one or several modalities.

    (Chan et al. 2016, arXiv:1508.01211, with the decoder of Vaswani et al. 2017.) With a CTC head on the same encoder
    it is the joint training of Watanabe et al. 2017 ("Hybrid CTC/attention architecture").

    Attributes:
      reads: encoders; whichever of them an example has. One that has none of them is left out.
      writes: the stream of labels: "transcript" or "target".
    """

    reads: tuple[str, ...]
    decoder: TextDecoder
    writes: str = "transcript"
    dtype: Any = jnp.float32

    width = property(lambda self: self.decoder.width)
    inputs = property(lambda self: self.reads)

    def __call__(
        self, streams: dict[str, Stream], text: Stream, examples: Stream, train: bool = False
    ) -> tuple[Stream, Stream]:
        """Encoded streams [B, T_m, W_m], texts [B, T] and slots [B, N] -> logits and labels [B, T + N]."""
        context = self._context(streams)
        read, written = begun_and_ended(text, examples.segments.shape[1])
        known = belongs(written.segments, having(context, examples)).any(axis=-1)
        decode = lambda decoder, *inputs: decoder(*inputs, train=train)  # noqa: E731
        logits = rematerialised_whole(decode, self.decoder, read, context)
        return logits, written._replace(segments=jnp.where(known, written.segments, 0))

    def begin(self, streams: dict[str, Stream], examples: Stream, room: int) -> tuple[Stream, Cache]:
        """Logits [B, N, V] of the first token of every example, and the cache for `room` tokens of a row."""
        context = self._context(streams)
        segments = having(context, examples)
        start = Stream(jnp.full_like(segments, BLANK), segments, jnp.zeros_like(segments))
        return self.decoder.begin(start, room, context)

    def step(self, tokens: Stream, cache: Cache) -> tuple[Stream, Cache]:
        """As `TextDecoder.step`."""
        return self.decoder.step(tokens, cache)

    @nn.compact
    def _context(self, streams: dict[str, Stream]) -> Stream:
        return concatenate(list(self.common(streams).values()))


class TransducerDecoder(nn.Module):
    """Prediction and joint network of a transducer (Graves 2012, arXiv:1211.3711).

    The prediction network has no state: it sees the last few labels (Ghodsi et al. 2020, "RNN-Transducer with
    stateless prediction network"). All is float32.

    Attributes:
      outputs: ids, the blank included.
      width: of the joint network, and of the labels' embeddings.
      context: labels that the prediction network sees.
    """

    reads: str
    outputs: int
    writes: str = "transcript"
    width: int = 256
    context: int = 2

    inputs = property(lambda self: (self.reads,))

    def setup(self):
        init = nn.with_logical_partitioning(nn.initializers.normal(1.0), ("vocabulary", "embed"))
        self.embedding = nn.Embed(self.outputs, self.width, embedding_init=init)
        self.states = dense(self.width, (None, "embed"), jnp.float32, "states")
        self.frames = dense(self.width, ("embed", None), jnp.float32, "frames")
        init = nn.with_logical_partitioning(nn.initializers.xavier_uniform(), ("embed", "vocabulary"))
        self.kernel = self.param("kernel", init, (self.width, self.outputs))
        init = nn.with_logical_partitioning(nn.initializers.zeros, ("vocabulary",))
        self.bias = self.param("bias", init, (self.outputs,))

    def __call__(
        self, streams: dict[str, Stream], text: Stream, examples: Stream, train: bool = False
    ) -> tuple[Stream, Stream]:
        """The encoded stream [B, T, W], texts [B, S] and slots [B, N] -> a `Joint` of the states, and labels [B, S + N]."""
        read, written = begun_and_ended(text, examples.segments.shape[1])
        embedded = read._replace(features=self.embedding(read.features))
        states = self._predict([neighbour(embedded, -ago) for ago in range(self.context)])
        states = only_tokens(read._replace(features=states))
        joint = Joint(states, self.project(streams[self.reads]), self.kernel, self.bias)
        return states._replace(features=joint), written

    def project(self, stream: Stream) -> Stream:
        """Encoded tokens [B, T, W] as the joint network's frames [B, T, width]."""
        return only_tokens(stream._replace(features=self.frames(stream.features.astype(jnp.float32))))

    def logits(self, frame: jax.Array, recent: jax.Array) -> jax.Array:
        """Of one frame [B, width] of each row after its labels [B, context], the last one first; -1 where is none."""
        embedded = jnp.where((recent >= 0)[..., None], self.embedding(jnp.maximum(recent, 0)), 0.0)
        return jnp.tanh(frame + self._predict(list(jnp.moveaxis(embedded, 1, 0)))) @ self.kernel + self.bias

    def _predict(self, embedded: list[jax.Array]) -> jax.Array:
        return self.states(jnp.concatenate(embedded, axis=-1))
