"""Stream: the one thing that flows through the model.

Nothing but NumPy's and JAX's common array operations is used here, so that data workers share this file
without loading JAX.
"""

from typing import Any, NamedTuple

import numpy as np

from mmjax.errors import UserError

# The class of the blank in the heads of CTC and transducer. Tokenizers that are trained here never produce the id 0.
BLANK = 0
# In place of an id: the text of this example is empty. (An example without a text has no position.)
EMPTY = -1

# The patch columns of an example's second picture begin at this number, those of its third at twice this, and so on.
PICTURE = 2**16
MOST_PICTURES = 2**12  # of an example
# The hops of the piece of media with the number 1 of a conversation begin at this number, those of number 2 at twice this.
RECORDING = 2**20
MOST_RECORDINGS = 2**11  # and pictures of a conversation together, so that positions are int32

Array = Any  # numpy.ndarray in data workers, jax.Array in the model


class Stream(NamedTuple):
    """Packed tokens of one modality; every Stream of a batch has the same rows.

    Example 3 of row 7 is segment 3 of row 7 in *every* Stream of the batch. No mask is passed around:
    tokens belong together where their segments are equal and not zero.

    Attributes:
      features: [B, T, ...] blocks of samples, patches, token ids or vectors; of a head's output also `Factors` or a `Joint`.
      segments: [B, T] int32, which example of its row a token belongs to, 1..N; 0 is an empty position.
      positions: [B, T] or [B, T, 2] int32, counted from the example's own start. Text and encoded speech: time.
        Samples of speech: the hop, and how many samples of the recording it holds (fewer than a hop only where the
        recording ends within it; [B, T] counts every hop as whole). Images: patch row and column, and `PICTURE` columns
        more for every earlier picture of the example. In a conversation, recordings and pictures are counted together:
        for each earlier one, a recording has `RECORDING` hops more, and a picture `PICTURE` columns.
    """

    features: Array
    segments: Array
    positions: Array

    @property
    def mask(self) -> Array:
        """[B, T] bool, True where a token stands."""
        return self.segments > 0


def rows_of_a_part(batch_rows: int, parts: int, accumulation: int = 1) -> int:
    """How many rows of a batch each of its equal parts has.

    Args:
      accumulation: micro-batches, of which each part has as many rows.

    Raises:
      UserError: they do not divide.
    """
    if batch_rows % (parts * accumulation):
        nearest = max(round(batch_rows / (parts * accumulation)), 1) * parts * accumulation
        micro = f" x optimizer.accumulation={accumulation} micro-batches" if accumulation > 1 else ""
        raise UserError(
            f"data.batch_rows={batch_rows} does not divide among {parts} device{'s' * (parts > 1)} (mesh.data x mesh.fsdp){micro}; write {nearest}"
        )
    return batch_rows // parts


class Share(NamedTuple):
    """Which of the equal parts of every batch's rows a process loads.

    Attributes:
      parts: their numbers, in order; count: of all parts.
    """

    parts: tuple[int, ...] = (0,)
    count: int = 1

    def rows(self, batch_rows: int) -> np.ndarray:
        """The numbers of this share's rows in a batch of `batch_rows` rows."""
        size = rows_of_a_part(batch_rows, self.count)
        return (np.array(self.parts)[:, None] * size + np.arange(size)).ravel()


WHOLE = Share()


class Factors(NamedTuple):
    """Logits that were not multiplied out, features @ kernel: a whole vocabulary may not fit into memory.

    Attributes:
      features: [B, T, W].
      kernel: [W, V].
    """

    features: Array
    kernel: Array


class Joint(NamedTuple):
    """Transducer logits that were not multiplied out: of frame t and state u, activation(frames[t] + states[u]) @ kernel
    + bias.

    Attributes:
      states: [B, S, H] of the prediction network: of each example one before its first label, and one after each.
      frames: [B, T, H] of the encoder.
      kernel, bias: [H, V], [V].
    """

    states: Stream
    frames: Stream
    kernel: Array
    bias: Array


Batch = dict[str, Stream]


def namespace(array: Array):
    """The array library (numpy or jax.numpy) that `array` belongs to."""
    return array.__array_namespace__()


def only_tokens(stream: Stream) -> Stream:
    """Replaces whatever stands in empty positions by zeros, so that it can change nothing, not even as NaN."""
    xp = namespace(stream.features)

    def clean(array):
        mask = stream.mask.reshape(stream.mask.shape + (1,) * (array.ndim - 2))
        return xp.where(mask, array, xp.zeros((), array.dtype))

    return Stream(clean(stream.features), stream.segments, clean(stream.positions))


def fold(stream: Stream, block: int) -> Stream:
    """Cuts rows of T tokens into T / block rows: [B, T, ...] -> [B * T / block, block, ...].

    Exact for an encoder in which examples do not see each other, as long as no example crosses a block's
    border (the packer promises that for images of one size); attention then costs block, not T, per token.
    """
    if stream.segments.shape[1] % block:
        raise ValueError(f"rows of {stream.segments.shape[1]} tokens do not divide into blocks of {block}")
    return Stream(*(x.reshape((-1, block) + x.shape[2:]) for x in stream))


def unfold(stream: Stream, rows: int) -> Stream:
    """The inverse of `fold`: [B * T / block, block, ...] -> [B, T, ...] with B = rows."""
    return Stream(*(x.reshape((rows, -1) + x.shape[2:]) for x in stream))


def concatenate(streams: list[Stream]) -> Stream:
    """Joins streams along the token axis (features of equal width): the keys of a cross-attention.

    Cross-attention compares segments alone, and positions of different modalities have nothing in common: they are zeros.
    """
    xp = namespace(streams[0].segments)
    segments = xp.concatenate([s.segments for s in streams], axis=1)
    features = xp.concatenate([s.features for s in streams], axis=1)
    return Stream(features, segments, xp.zeros_like(segments))
