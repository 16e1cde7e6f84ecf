"""Recognition by connectionist temporal classification."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from flax import linen as nn

from mmjax.decode import BestPath, CTCDecoding, forced_alignment
from mmjax.errors import UserError
from mmjax.losses import OF_CTC, ctc
from mmjax.models.layers import dense
from mmjax.models.masking import without
from mmjax.models.task import Encoded, Output, Sums
from mmjax.stream import BLANK, Stream
from mmjax.tasks.text import WithBlank


class CTC(WithBlank, kw_only=True):
    """Writes a text with a linear layer on each token of an encoder (Graves et al. 2006; `mmjax.losses.ctc`).

    Class 0 is the blank. The head is in float32.
    """

    reads: str = "speech"  # an encoder
    label: str = "transcript"  # the name of the text in the data
    outputs: int | None = None  # ids of the tokenizer, and the blank; None: as the data's tokenizer has
    decoding: CTCDecoding = BestPath()  # how texts are found

    aligns = True
    loss_metrics = OF_CTC
    classes_per_token = True
    teaches = True

    def check(self, path: str, config: Any) -> None:
        super().check(path, config)
        if self.reads == "fused":
            raise UserError(f"{path}.reads is 'fused', but CTC needs an output per token; read an encoder")

    @nn.compact
    def __call__(self, encoded: Encoded, train: bool = False) -> Output:
        """Encoded tokens [B, T, W] -> logits [B, T, outputs], and labels [B, U]."""
        stream = encoded.streams[self.reads]
        logits = dense(self.outputs, ("embed", None), jnp.float32, "logits")(stream.features.astype(jnp.float32))
        return Output(stream._replace(features=logits), self.classes(encoded.batch.get(self.label)))

    def spans(self, apply: Any, encoded: Encoded) -> Stream:
        return self.ids(forced_alignment(*apply(encoded)))

    def loss(self, output: Output) -> Sums:
        return ctc(*output)

    def as_labels(self, prediction: Stream) -> Stream:
        """Classes [B, T] of the most probable alignment, without blanks; an example of blanks alone has no label."""
        found = BestPath()(prediction)
        classes = found.features.ids.reshape(found.segments.shape)
        return without(found._replace(features=classes), classes == BLANK, classes.shape[1])

    def decode(
        self, apply: Any, encoded: Encoded, output: Output, rooms: Mapping[str, int], tables: Any = None
    ) -> Stream:
        return self.ids(self.decoding(output.prediction, self.blank or 0, tables))

    def begin_stream(self, rows: int) -> Any:
        return self.decoding.begin(rows)

    def stream(self, apply: Any, encoded: Encoded, state: Any) -> tuple[Stream, Any]:
        classes, state = self.decoding.advance(apply(encoded).prediction, state)
        return self.ids(classes), state
