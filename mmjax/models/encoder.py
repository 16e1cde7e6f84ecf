"""The base classes of encoders: a Stream of one modality in, a Stream of vectors out."""

from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmjax.errors import UserError
from mmjax.models.segments import recording_numbers, samples_in, single_recordings
from mmjax.stream import RECORDING, Stream, only_tokens


class Encoder(nn.Module):
    """The base class of encoders. A subclass has the fields `width`, the features of its output, and `dtype`.

    Attributes:
      subsampling: number of input tokens per output token.
      reads_examples: it also takes the stream of examples, which holds their numbers.
      causal: no output token depends on a later input token.
      tokens_per_image: the number of tokens of each example if all have the same number, else None.
      class_token: each example begins with a class token.
      hideable: what tasks may hide of its input in training: "tokens", "patches", "samples" or "frames".
      stream: the usual name of the stream that it reads; None: there is none.
      passes_ids: its output is its input, token ids.
    """

    kind = "encoder"
    subsampling = 1
    reads_examples = False
    causal = False
    tokens_per_image = None
    class_token = False
    hideable: ClassVar[tuple[str, ...]] = ()
    stream: ClassVar[str | None] = None
    passes_ids: ClassVar[bool] = False

    def check(self, path: str) -> None:
        """Checks the fields together, after each was checked against its type.

        Args:
          path: the encoder's key in the config.

        Raises:
          UserError: they do not agree; the message names the key and the remedy.
        """
        check_attention(path, self)

    def resolved(self, facts: Any) -> "Encoder":
        """The encoder with sizes from the data (`mmjax.models.task.Facts`), where the config leaves them open."""
        return self

    def geometry(self) -> dict[str, Any]:
        """Fields of a class in `mmjax.data.streams`: how the input of this encoder is stored in rows."""
        return {}

    @property
    def tokens_per_second(self) -> float | None:
        """Tokens of its output per second of a recording; None: it reads no recordings."""
        return None

    def apart(self, stream: Stream, examples: Stream) -> tuple[Stream, Stream]:
        """A stream in which every piece of an example (recording, picture) is a segment of its own, and their slots.

        Args:
          examples: [B, N] numbers of the examples by slot.
        """
        return stream, examples

    def rejoined(self, encoded: Stream, stream: Stream) -> Stream:
        """The inverse of `apart` for the encoder's output; positions hold the number of each token's piece.

        Args:
          stream: as it was before `apart`.
        """
        return encoded

    def recorded(self, encoded: Stream, stream: Stream) -> jax.Array:
        """[B, S] segments of the output tokens that hold a part of a recording, not silence that was added.

        Args:
          encoded, stream: its output and its input.
        """
        return jnp.zeros_like(encoded.segments)

    def room(self, seconds: float, tokens: int) -> int:
        """The positions of a row for one example: a recording of `seconds`, one image, or a text of `tokens`."""
        length = getattr(getattr(self, "positions", None), "length", None)  # of learned positions
        return min(tokens, length or tokens)

    def adapted(self, path: str, value: Any, source: "Encoder") -> Any:
        """A parameter of another encoder for this one, which may have another `image_size`.

        Args:
          path: of the parameter in the encoder, such as "place.embedding".
          source: the encoder that it was trained in.
        """
        return value

    def check_row(self, path: str, key: str, room: int) -> None:
        """Checks that rows of `room` positions suit this encoder.

        Args:
          path: the encoder's key in the config.
          key: the key of `room`.

        Raises:
          UserError: they do not; the message names the remedy.
        """


class SpeechEncoder(Encoder):
    """The base class of encoders of speech in hops of samples. A subclass has `front_end` and `subsampling`."""

    kind = "speech encoder"
    hideable = ("samples",)
    stream = "speech"

    @property
    def tokens_per_second(self) -> float:
        return self.front_end.sample_rate / self.front_end.hop / self.subsampling

    def apart(self, stream: Stream, examples: Stream) -> tuple[Stream, Stream]:
        single = single_recordings(stream)
        slots = stream.segments.shape[1] // self.subsampling  # every recording has at least one token

        def of_row(numbers: jax.Array, of_example: jax.Array, of_recording: jax.Array) -> jax.Array:
            number = numbers[of_example - 1]  # slot n holds segment n + 1
            return jax.ops.segment_max(number, of_recording, slots + 1)[1:]

        numbers = jax.vmap(of_row)(examples.features, stream.segments, single.segments)
        segments = jnp.broadcast_to(jnp.arange(1, slots + 1), numbers.shape)
        there = segments <= single.segments.max(axis=1, keepdims=True)
        return single, Stream(jnp.where(there, numbers, 0), jnp.where(there, segments, 0), jnp.zeros_like(segments))

    def rejoined(self, encoded: Stream, stream: Stream) -> Stream:
        # Recordings begin at multiples of the subsampling, so token i is of the recording of block i * subsampling.
        segments, number = (x[:, :: self.subsampling] for x in (stream.segments, recording_numbers(stream)))
        segments = jnp.where(encoded.mask, segments, 0)
        return only_tokens(Stream(encoded.features, segments, encoded.positions + number * RECORDING))

    def recorded(self, encoded: Stream, stream: Stream) -> jax.Array:
        # Recordings begin at multiples of the subsampling, so token i begins with block i * subsampling.
        return jnp.where(samples_in(stream)[:, :: self.subsampling] > 0, encoded.segments, 0)

    def geometry(self) -> dict[str, Any]:
        return {"hop": self.front_end.hop, "window": self.front_end.window, "align": self.subsampling}

    def room(self, seconds: float, tokens: int) -> int:
        hops = int(seconds * self.front_end.sample_rate) // self.front_end.hop
        return self.geometry().get("pad") or -(-hops // self.subsampling) * self.subsampling

    def check_row(self, path: str, key: str, room: int) -> None:
        if room % self.subsampling:
            whole = max(1, round(room / self.subsampling)) * self.subsampling
            raise UserError(f"{key}={room} is not a multiple of {self.subsampling} hops; write {whole}")


class ImageEncoder(Encoder):
    """The base class of encoders of patches of images. A subclass has the fields `patch` and `image_size`.

    Attributes:
      registers: further tokens of each image, which only the encoder sees.
      max_patches: the largest number of patches of an image that keeps its aspect ratio; None: all images are squares of
        `image_size`.
    """

    kind = "image encoder"
    registers = 0
    max_patches = None
    stream = "image"

    def rejoined(self, encoded: Stream, stream: Stream) -> Stream:
        return only_tokens(encoded._replace(positions=stream.positions))

    def geometry(self) -> dict[str, Any]:
        keys = ("patch", "image_size", "max_patches", "class_token", "registers")
        return {key: getattr(self, key) for key in keys}

    def room(self, seconds: float, tokens: int) -> int:
        return self.tokens_per_image or self.max_patches + self.class_token + self.registers

    def check_row(self, path: str, key: str, room: int) -> None:
        patches = self.max_patches or (self.image_size // self.patch) ** 2
        tokens = patches + self.class_token + self.registers
        if room < tokens or (self.max_patches is None and room % tokens):
            whole = max(1, round(room / tokens)) * tokens
            raise UserError(f"{key}={room} is no multiple of {tokens}, the tokens of one image; write {whole}")


class TextEncoder(Encoder):
    """The base class of encoders of token ids. A subclass has the field `vocabulary`."""

    kind = "text encoder"
    stream = "text"

    def resolved(self, facts: Any) -> Encoder:
        return self if self.vocabulary or facts.tokenizer is None else self.clone(vocabulary=len(facts.tokenizer))

    def geometry(self) -> dict[str, Any]:
        return {"vocabulary": self.vocabulary}


def check_attention(path: str, tower: Any, dimensions: int = 1) -> None:
    """Checks that the width of a tower divides among its attention heads, and suits its positions.

    Args:
      path: the key of the tower in the config.
      dimensions: numbers per position, 2 for images.

    Raises:
      UserError: it does not.
    """
    heads, style = getattr(tower, "heads", 1), getattr(tower, "block", None)
    head_width = getattr(style, "head_width", None)
    if head_width is None and tower.width % heads:
        raise UserError(f"{path}.width={tower.width} does not divide among {heads} heads")
    shared = getattr(style, "key_value_heads", None)
    if shared and heads % shared:
        raise UserError(f"{path}.heads={heads} do not divide among block.key_value_heads={shared}")
    if positions := getattr(tower, "positions", None):
        positions.check(path, tower.width, head_width or tower.width // heads, dimensions)
