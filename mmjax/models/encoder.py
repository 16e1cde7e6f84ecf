"""What every encoder is: a Stream of one modality in, a Stream of vectors out."""

import flax.linen as nn


class Encoder(nn.Module):
    """The base class of encoders, which have the fields `width`, the features of their output, and `dtype`.

    Attributes:
      subsampling: tokens of the stream that it reads for one token of its output.
    """

    kind = "encoder"
    subsampling = 1


class SpeechEncoder(Encoder):
    """The base class of encoders that read hops of samples; they have the fields `front_end` and `subsampling`."""

    kind = "speech encoder"


class ImageEncoder(Encoder):
    """The base class of encoders that read patches of images; they have the fields `patch` and `image_size`.

    Attributes:
      class_token, registers: tokens of each image besides its patches.
      max_patches: of an image that keeps its aspect ratio; None: all images are squares of `image_size`.
    """

    kind = "image encoder"
    class_token = False
    registers = 0
    max_patches = None


class TextEncoder(Encoder):
    """The base class of encoders that read token ids; they have the field `vocabulary`."""

    kind = "text encoder"
