"""The whole model: encoders by modality, a fusion, heads by objective."""

from collections.abc import Mapping
from functools import partial
from operator import call
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.core import FrozenDict

from mmjax.models.attend import as_the_model_wants
from mmjax.models.contrast import Contrast
from mmjax.models.denoiser import Denoiser
from mmjax.models.encoder import Encoder
from mmjax.models.fusion import Fusion
from mmjax.models.layers import dense
from mmjax.models.masking import MaskedPatches, MaskedText, NoisySpeech, RandomProjectionQuantizer
from mmjax.models.patch_decoder import PatchDecoder
from mmjax.models.pooling import AttentionPool, ClassPool, MeanPool
from mmjax.models.remat import rematerialised_whole
from mmjax.models.roles import projection
from mmjax.models.writers import AttentionDecoder, TransducerDecoder
from mmjax.stream import Batch, Factors, Stream


class Head(nn.Module, kw_only=True):
    """A linear read-out of one stream, in float32: losses and their softmax are not for bfloat16.

    With a pool, of one vector per example instead of one per token.
    """

    reads: str  # "fused" or the name of an encoder
    outputs: int
    pool: MeanPool | ClassPool | AttentionPool | None = None  # of an encoder's tokens; None: an output for each

    @property
    def inputs(self) -> tuple[str, ...]:
        return (self.reads, "examples") if self.pool else (self.reads,)

    @nn.compact
    def __call__(self, stream: Stream, examples: Stream | None = None) -> Stream:
        if self.pool:
            stream = self.pool(stream, examples)
        # Outputs are few: not divided, as those of `Vocabulary` are.
        logits = dense(self.outputs, ("embed", None), jnp.float32, "logits")(stream.features.astype(jnp.float32))
        return stream._replace(features=logits)


class Vocabulary(nn.Module, kw_only=True):
    """A linear read-out without bias, over so many outputs that the logits are left to the loss, chunk by chunk."""

    reads: str
    outputs: int

    @property
    def inputs(self) -> tuple[str, ...]:
        return (self.reads,)

    @nn.compact
    def __call__(self, stream: Stream) -> Stream:
        """[B, T, W] -> `Factors` of the logits [B, T, outputs], in float32."""
        init = projection(nn.initializers.xavier_uniform(), ("embed", "vocabulary"))
        kernel = self.param("kernel", init, (stream.features.shape[-1], self.outputs))
        return stream._replace(features=Factors(stream.features.astype(jnp.float32), kernel))


AnyHead = Head | Vocabulary | Contrast | PatchDecoder | Denoiser | AttentionDecoder | TransducerDecoder
Masked = MaskedText | MaskedPatches | NoisySpeech | RandomProjectionQuantizer


class Multimodal(nn.Module, kw_only=True):
    """Encoders -> fusion -> heads. Which modalities a batch carries decides what is computed."""

    encoders: Mapping[str, Encoder]  # by the name of the stream that each reads
    fusion: Fusion | None = None  # None: no head reads "fused"
    heads: Mapping[str, AnyHead]  # by the name of their output; each reads "fused", or the streams of encoders
    # What is hidden from an encoder in training, by the name of the head that predicts it.
    masked: Mapping[str, Masked] = FrozenDict()
    dtype: Literal["float32", "bfloat16"] = "float32"  # of the compute; what is kept has optimizer.parameters
    unroll: bool = False  # the layers: the same numbers, faster on CPU, longer to compile
    # What computes attention: the first of cudnn, splash, block_diagonal (rows of 512 to 4,095 tokens on CPU), chunked
    # (once scores are many) and xla that can; or one by name, in whose place another is taken where it cannot, unless strict.
    attention: Literal["auto", "cudnn", "splash", "block_diagonal", "chunked", "xla"] = "auto"
    strict_attention: bool = False
    matrix_products: Literal["full", "int8", "fp8"] = "full"  # with weights, in the blocks of encoders and fusion

    @nn.compact
    @as_the_model_wants
    def __call__(self, batch: Batch, train: bool = False) -> dict[str, Stream]:
        """Returns the heads' outputs as streams; a head is left out if what it reads is not in the batch.

        Beside an output stand its labels, "NAME/labels", where the model makes them itself.
        `batch["examples"]` says which slots of each row hold an example.
        """
        batch = jax.tree.map(jnp.asarray, batch)
        key = self.make_rng("augment") if train and self.masked else None
        streams, seen, labels = {}, {}, {}
        for name in (name for name in self.encoders if name in batch):
            streams[name], seen[f"{name}/seen"], hidden = self._encode(name, batch, train, key)
            labels |= hidden
        fused = {}
        if self.fusion is not None:
            fuse = lambda fusion, *inputs: fusion(*inputs, train)  # noqa: E731
            fused = {"fused": rematerialised_whole(fuse, self.fusion, streams, batch["examples"])}
        inputs = {f"{name}/input": batch[name] for name in streams}
        sources = {**streams, **inputs, **seen, **fused, "examples": batch["examples"]}
        outputs = {}
        for name, head in self.heads.items():
            if isinstance(head, AttentionDecoder | TransducerDecoder):
                read = {source: streams[source] for source in head.inputs if source in streams}
                if read and head.writes in batch:
                    written = head(read, batch[head.writes], batch["examples"], train)
                    outputs[name], labels[f"{name}/labels"] = written
            elif all(source in sources for source in head.inputs):
                read = [sources[source] for source in head.inputs]
                know = {}
                if isinstance(head, PatchDecoder):
                    know["block"] = getattr(self.encoders[head.reads], "tokens_per_image", None)
                outputs[name] = rematerialised_whole(partial(call, **know), head, *read)
        return outputs | labels

    @as_the_model_wants
    def encode(self, batch: Batch) -> dict[str, Stream]:
        """The encoders' streams alone, for heads that write."""
        batch = jax.tree.map(jnp.asarray, batch)
        return {name: self._encode(name, batch, False, None)[0] for name in self.encoders if name in batch}

    def _encode(
        self, name: str, batch: Batch, train: bool, key: jax.Array | None
    ) -> tuple[Stream, Stream, dict[str, Stream]]:
        """What an encoder makes of its stream, what it saw of it, and the labels "HEAD/labels" of what was hidden."""
        encode, stream, examples, labels = self.encoders[name], batch[name], batch["examples"], {}
        whose = (examples,) if getattr(encode, "reads_examples", False) else ()
        frames = None
        numbered = enumerate(sorted(self.masked.items()) if train else ())
        # Frames are hidden last: they are made of what the other masks have left of the samples.
        for number, (head, mask) in sorted(
            numbered, key=lambda item: isinstance(item[1][1], RandomProjectionQuantizer)
        ):
            if mask.reads != name:
                continue
            own = jax.random.fold_in(key, number)  # whatever other streams are there
            if isinstance(mask, RandomProjectionQuantizer):
                frames, labels[f"{head}/labels"] = mask(
                    encode.frames(stream, train, examples), examples, own, encode.subsampling
                )
            else:
                stream, labels[f"{head}/labels"] = mask(stream, examples, own)
        if frames is not None:
            run = lambda tower, x: tower.encode(x, train=train)[0]  # noqa: E731
            return rematerialised_whole(run, encode, frames), stream, labels
        run = lambda tower, x, *rest: tower(x, train, *rest)  # noqa: E731
        return rematerialised_whole(run, encode, stream, *whose), stream, labels
