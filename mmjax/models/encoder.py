"""What every encoder is: a Stream of one modality in, a Stream of vectors out."""

from typing import Any, ClassVar

import flax.linen as nn

from mmjax.errors import UserError


class Encoder(nn.Module):
    """The base class of encoders, which have the fields `width`, the features of their output, and `dtype`.

    Attributes:
      subsampling: tokens of the stream that it reads for one token of its output.
      reads_examples: it is called with the numbers of the examples, too.
      causal: no token of its output depends on a later one.
      tokens_per_image: where all examples have as many tokens, that number.
      class_token: whether each example begins with a token that stands for the whole.
      hideable: what tasks may hide of its input in training: "tokens", "patches", "samples" or "frames".
    """

    kind = "encoder"
    subsampling = 1
    reads_examples = False
    causal = False
    tokens_per_image = None
    class_token = False
    hideable: ClassVar[tuple[str, ...]] = ()

    def check(self, path: str) -> None:
        """Checks what types cannot say: that the fields agree with each other.

        Args:
          path: the encoder's key in the config.

        Raises:
          UserError: they do not; the message names the key and what to write.
        """
        check_attention(path, self)

    def geometry(self) -> dict[str, Any]:
        """What decides how the input of this encoder stands in rows: fields of a class in `mmjax.data.streams`."""
        return {}

    def check_row(self, path: str, key: str, room: int) -> None:
        """Checks that rows of `room` positions suit this encoder; `key` is the key of that number.

        Raises:
          UserError: they do not; the message says what to write.
        """


class SpeechEncoder(Encoder):
    """The base class of encoders that read hops of samples; they have the fields `front_end` and `subsampling`."""

    kind = "speech encoder"
    hideable = ("samples",)

    def geometry(self) -> dict[str, Any]:
        return {"hop": self.front_end.hop, "window": self.front_end.window, "align": self.subsampling}

    def check_row(self, path: str, key: str, room: int) -> None:
        if room % self.subsampling:
            whole = max(1, round(room / self.subsampling)) * self.subsampling
            raise UserError(f"{key}={room} is not a multiple of {self.subsampling} hops; write {whole}")


class ImageEncoder(Encoder):
    """The base class of encoders that read patches of images; they have the fields `patch` and `image_size`.

    Attributes:
      registers: further tokens of each image besides its patches.
      max_patches: of an image that keeps its aspect ratio; None: all images are squares of `image_size`.
    """

    kind = "image encoder"
    registers = 0
    max_patches = None

    def geometry(self) -> dict[str, Any]:
        keys = ("patch", "image_size", "max_patches", "class_token", "registers")
        return {key: getattr(self, key) for key in keys}

    def check_row(self, path: str, key: str, room: int) -> None:
        patches = self.max_patches or (self.image_size // self.patch) ** 2
        tokens = patches + self.class_token + self.registers
        if room < tokens or (self.max_patches is None and room % tokens):
            whole = max(1, round(room / tokens)) * tokens
            raise UserError(f"{key}={room} is no multiple of {tokens}, the tokens of one image; write {whole}")


class TextEncoder(Encoder):
    """The base class of encoders that read token ids; they have the field `vocabulary`."""

    kind = "text encoder"

    def geometry(self) -> dict[str, Any]:
        return {"vocabulary": self.vocabulary}


def check_attention(path: str, part: Any, pairs: int = 2) -> None:
    """Checks that the width of a part divides among its attention heads, and a head's width as rotary positions need it.

    Args:
      path: the key of the part in the config.
      pairs: the features of a head that rotary positions rotate together: 2 for each dimension of a position.

    Raises:
      UserError: it does not.
    """
    heads = getattr(part, "heads", 1)
    head_width = getattr(getattr(part, "block", None), "head_width", None)
    if head_width is None and part.width % heads:
        raise UserError(f"{path}.width={part.width} does not divide among {heads} heads")
    shared = getattr(part, "key_value_heads", None)
    if shared and heads % shared:
        raise UserError(f"{path}.heads={heads} do not divide among key_value_heads={shared}")
    rotary = getattr(part, "positions", None) in ("rotary", "rotary_input")
    if rotary and (head_width or part.width // heads) % pairs:
        raise UserError(f"{path}: rotary positions need heads whose width divides by {pairs}")
