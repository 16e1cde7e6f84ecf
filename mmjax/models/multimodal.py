"""The whole model: encoders by modality, a fusion, tasks."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmjax.models.encoder import Encoder
from mmjax.models.fusion import Fusion
from mmjax.models.remat import rematerialised_whole
from mmjax.models.segments import mean
from mmjax.models.task import Encoded, Output, Task
from mmjax.stream import Batch, Stream, only_tokens
from mmjax.tree import setting


class Multimodal(nn.Module, kw_only=True):
    """Encoders -> fusion -> tasks. The modalities of a batch decide what is computed."""

    encoders: Mapping[str, Encoder]  # by the name of the stream that each reads
    fusion: Fusion | None = None  # None: no task reads "fused"
    tasks: Mapping[str, Task]  # by the name of their predictions and metrics
    dtype: Literal["float32", "bfloat16"] = "float32"  # of the compute; parameters have optimizer.parameters
    unroll: bool = False  # the layers: the same numbers, faster on CPU, longer to compile
    # The attention backend. "auto" takes the first of cudnn, splash, block_diagonal (rows of 512 to 4,095 tokens on CPU),
    # chunked (for large scores) and xla that can. If a backend that is named here cannot, another one replaces it, unless
    # strict_attention is set.
    attention: Literal["auto", "cudnn", "splash", "block_diagonal", "chunked", "xla"] = "auto"
    strict_attention: bool = False
    encoded: tuple[str, ...] = setting(())  # encoders whose streams hold their outputs already (`mmjax data encode`)
    matrix_products: Literal["full", "int8", "fp8"] = "full"  # with weights, in the blocks of encoders and fusion

    def __call__(self, batch: Batch, train: bool = False) -> dict[str, Output]:
        """Predictions and labels by task. A task is left out if the batch lacks what it reads."""
        batch = jax.tree.map(jnp.asarray, batch)
        streams, seen, hidden = self._streams(batch, train)
        streams, outputs = self._fused(streams, batch, train), {}
        for name, task in self._available(streams):
            output = task(Encoded(batch, streams, seen, hidden.get(name), self.encoders), train)
            if output is not None:
                outputs[name] = output
        return outputs

    def predict(
        self, batch: Batch, rooms: Mapping[str, int], tables: Mapping[str, Any] | None = None
    ) -> tuple[dict[str, Output], dict[str, Stream]]:
        """The result of `__call__`, and what each task predicts (`Task.decode`).

        Args:
          rooms: the largest number of tokens of a text, by label.
          tables: what the decoding of each task reads besides parameters (`tables_of`).
        """
        batch = jax.tree.map(jnp.asarray, batch)
        return self.predict_parts(batch, {"all": batch}, rooms, tables)["all"]

    def predict_parts(
        self,
        batch: Batch,
        parts: Mapping[str, Batch],
        rooms: Mapping[str, int],
        tables: Mapping[str, Any] | None = None,
    ) -> dict[str, tuple[dict[str, Output], dict[str, Stream]]]:
        """The result of `predict` for parts of a batch. A part is, for example, what a subset of the modalities shows.

        Each encoder runs once, and so does a task that reads encoders alone, among parts with all examples of the batch.

        Args:
          parts: by name, some of the streams of the batch; some of its examples may be taken out of the others.
          rooms, tables: as for `predict`.
        """
        streams, seen, _ = self._streams(batch, False)
        known: tuple[dict[Any, Output | None], dict[Any, Stream | None]] = {}, {}
        results: dict[str, tuple[dict[str, Output], dict[str, Stream]]] = {}
        for part, shown in parts.items():
            fused = self._fused(_among(shown, streams), shown, False)
            encoded = Encoded(shown, fused, _among(shown, seen), None, self.encoders)
            tasks = dict(self._available(encoded.streams))
            keys = {name: (name, tuple(label in shown for label in task.labels())) for name, task in tasks.items()}
            whole = shown["examples"] is batch["examples"]
            kept = [name for name, task in tasks.items() if whole and "fused" not in task.sources and not task.media]
            outputs, predicted = ({name: one[key] for name, key in keys.items() if key in one} for one in known)
            for name in tasks.keys() - outputs.keys():
                outputs[name] = tasks[name](encoded)
            encoded = encoded._replace(tasks=self.tasks, outputs=_there(outputs))
            for name in tasks.keys() - predicted.keys():
                task, variables = tasks[name].unbind()
                given = encoded, outputs[name], rooms, (tables or {}).get(name)
                predicted[name] = task.decode(partial(task.apply, variables), *given)
            for one, values in zip(known, (outputs, predicted), strict=True):
                one.update({keys[name]: values[name] for name in kept})
            results[part] = _there(outputs), _there(predicted)
        return results

    def encode(self, batch: Batch, name: str) -> Stream:
        """The output of an encoder for its stream of a batch."""
        return self._encode(name, jax.tree.map(jnp.asarray, batch), False, {})[0]

    def spans(self, batch: Batch, task: str, texts: Sequence[Stream]) -> list[Stream]:
        """When the tokens of texts were spoken, each in the place of the task's label (`Task.spans`)."""
        batch = jax.tree.map(jnp.asarray, batch)
        streams, seen, _ = self._streams(batch, False)
        one, variables = self.tasks[task].unbind()
        every = (Encoded({**batch, one.label: text}, streams, seen, None, self.encoders) for text in texts)
        return [one.spans(partial(one.apply, variables), encoded) for encoded in every]

    def embed(self, batch: Batch, task: str | None = None) -> dict[str, jax.Array]:
        """One vector [B, N, W] per example, by encoder in the batch, in float32.

        Args:
          task: a task that makes vectors of the encoders (`Task.embeds`, such as `Contrast`). None: for each encoder the first
            one; without such a task, the mean of the encoder's tokens.
        """
        batch, found = jax.tree.map(jnp.asarray, batch), {}
        for name in (name for name in self.encoders if name in batch):
            able = [own for own, one in self.tasks.items() if name in one.embeds and task in (None, own)]
            if able or task is None:
                stream, examples = self.encode(batch, name), batch["examples"]
                one = self.tasks[able[0]] if able else None
                found[name] = one.embed(name, stream, examples) if one else mean(stream, examples.segments)
        return found

    def compared(self, batch: Batch) -> dict[str, dict[str, jax.Array]]:
        """The vectors [B, N, W] that tasks compare (`Task.embeds`), by task and encoder in the batch, in float32."""
        batch = jax.tree.map(jnp.asarray, batch)
        names = {name for task in self.tasks.values() for name in task.embeds if name in batch}
        streams, examples = {name: self.encode(batch, name) for name in sorted(names)}, batch["examples"]
        return {
            own: {name: task.embed(name, streams[name], examples) for name in task.embeds if name in streams}
            for own, task in self.tasks.items()
            if task.embeds
        }

    def begin(self, batch: Batch, task: str, length: int) -> tuple[Stream, Any]:
        """Reads prompts with a task that writes texts (`CausalLM`): see its `begin`.

        Returns:
          Logits [B, N, V] of the first token of each text, and what `step` needs.
        """
        batch = jax.tree.map(jnp.asarray, batch)
        streams, seen, _ = self._streams(batch, False)
        streams = self._fused(streams, batch, False)
        return self.tasks[task].begin(Encoded(batch, streams, seen, None, self.encoders), length)

    def vectors(self, batch: Batch, task: str) -> Stream:
        """The vectors of the media of a batch, as a task that writes texts reads them: see `CausalLM.vectors`."""
        streams, _, _ = self._streams(jax.tree.map(jnp.asarray, batch), False)
        return self.tasks[task].vectors(streams, self.encoders)

    def read(self, task: str, text: Stream, media: Stream | None, kept: Any, start: jax.Array) -> tuple[Stream, Any]:
        """Reads further tokens and media of one text with a task that writes texts: see `CausalLM.read`."""
        return self.tasks[task].read(text, media, kept, start)

    def step(self, task: str, tokens: Stream, kept: Any) -> tuple[Stream, Any]:
        """Logits [B, N, V] of the tokens after `tokens` [B, N], and what the next call needs."""
        return self.tasks[task].step(tokens, kept)

    def _available(self, streams: Mapping[str, Stream]) -> list[tuple[str, Task]]:
        """The tasks whose inputs are in the batch, by name."""
        return [(name, task) for name, task in self.tasks.items() if task.available(streams)]

    def _streams(self, batch: Batch, train: bool) -> tuple[dict[str, Stream], dict[str, Stream], dict[str, Stream]]:
        """The outputs of the encoders, and the fields `seen` and `hidden` (by task) of `Encoded`."""
        hiding = sorted(name for name, task in self.tasks.items() if task.hides) if train else []
        key = self.make_rng("augment") if hiding else None
        keys = {name: jax.random.fold_in(key, number) for number, name in enumerate(hiding)}
        streams, seen, hidden = {}, {}, {}
        for name in (name for name in self.encoders if name in batch):
            own = {task: keys[task] for task in hiding if self.tasks[task].reads == name}
            streams[name], seen[name], labels = self._encode(name, batch, train, own)
            hidden |= labels
        return streams, seen, hidden

    def _fused(self, streams: dict[str, Stream], batch: Batch, train: bool) -> dict[str, Stream]:
        """The outputs of the encoders, and that of the fusion."""
        if self.fusion is None:
            return streams
        fused = rematerialised_whole(lambda fusion, *x: fusion(*x, train), self.fusion, streams, batch["examples"])
        return {**streams, "fused": fused}

    def _encode(
        self, name: str, batch: Batch, train: bool, keys: Mapping[str, jax.Array]
    ) -> tuple[Stream, Stream, dict[str, Stream]]:
        """The output of an encoder, its input with hidden parts, and the labels of these parts by task.

        Args:
          keys: random keys of the tasks that hide a part of this input.
        """
        encoder, stream, examples, labels = self.encoders[name], batch[name], batch["examples"], {}
        length = stream.segments.shape[1]
        if name in self.encoded:
            stream = only_tokens(stream._replace(features=stream.features.astype(encoder.dtype)))
            return stream, stream, labels
        for task in (task for task in keys if self.tasks[task].hides == "input"):
            stream, labels[task] = self.tasks[task].hide(stream, examples, keys[task], encoder)
        # Frames are hidden last, because they are computed from the samples that remain.
        for task in (task for task in keys if self.tasks[task].hides == "frames"):
            frames = encoder.frames(stream, train, examples)
            frames, labels[task] = self.tasks[task].hide_frames(frames, examples, keys[task], encoder.subsampling)
            return (
                rematerialised_whole(lambda tower, x: tower.encode(x, train=train)[0], encoder, frames),
                stream,
                labels,
            )
        one_by_one = any(name in task.media for task in self.tasks.values())
        single, examples = encoder.apart(stream, examples) if one_by_one else (stream, examples)
        whose = (examples,) if encoder.reads_examples else ()
        visible = {}
        if (shorter := stream.segments.shape[1]) < length and encoder.tokens_per_image:
            visible["visible"] = encoder.tokens_per_image * shorter // length
        encoded = rematerialised_whole(
            lambda tower, x, *rest: tower(x, train, *rest, **visible), encoder, single, *whose
        )
        return encoder.rejoined(encoded, stream) if one_by_one else encoded, stream, labels


def _there(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values that are not None."""
    return {name: value for name, value in values.items() if value is not None}


def _among(batch: Batch, streams: Mapping[str, Stream]) -> dict[str, Stream]:
    """Those of the streams whose inputs are in a batch."""
    return {name: stream for name, stream in streams.items() if name in batch}
