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
        return {name: output for name, _, output in self._run(batch, train) if output is not None}

    def predict(
        self, batch: Batch, rooms: Mapping[str, int], tables: Mapping[str, Any] | None = None
    ) -> tuple[dict[str, Output], dict[str, Stream]]:
        """The result of `__call__`, and what each task predicts (`Task.decode`).

        Args:
          rooms: the largest number of tokens of a text, by label.
          tables: what the decoding of each task reads besides parameters (`tables_of`).
        """
        runs, predictions = self._run(batch, False), {}
        outputs = {name: output for name, _, output in runs if output is not None}
        for name, encoded, output in runs:
            encoded = encoded._replace(tasks=self.tasks, outputs=outputs)
            task, variables = self.tasks[name].unbind()
            predicted = task.decode(partial(task.apply, variables), encoded, output, rooms, (tables or {}).get(name))
            if predicted is not None:
                predictions[name] = predicted
        return outputs, predictions

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

    def embed(self, batch: Batch) -> dict[str, jax.Array]:
        """One vector [B, N, W] per example, by encoder in the batch, in float32.

        It is that of the first task that makes vectors of the encoder (`Task.embeds`, such as `Contrast`); without such a
        task, it is the mean of the encoder's tokens.
        """
        batch, found = jax.tree.map(jnp.asarray, batch), {}
        for name in (name for name in self.encoders if name in batch):
            stream, examples = self.encode(batch, name), batch["examples"]
            task = next((task for task in self.tasks.values() if name in task.embeds), None)
            found[name] = task.embed(name, stream, examples) if task else mean(stream, examples.segments)
        return found

    def begin(self, batch: Batch, task: str, length: int) -> tuple[Stream, Any]:
        """Reads prompts with a task that writes texts (`CausalLM`): see its `begin`.

        Returns:
          Logits [B, N, V] of the first token of each text, and what `step` needs.
        """
        batch = jax.tree.map(jnp.asarray, batch)
        streams, seen, _ = self._streams(batch, False)
        return self.tasks[task].begin(Encoded(batch, streams, seen, None, self.encoders), length)

    def step(self, task: str, tokens: Stream, kept: Any) -> tuple[Stream, Any]:
        """Logits [B, N, V] of the tokens after `tokens` [B, N], and what the next call needs."""
        return self.tasks[task].step(tokens, kept)

    def _run(self, batch: Batch, train: bool) -> list[tuple[str, Encoded, Output | None]]:
        """(name, what it reads, output) of every task whose inputs are in the batch."""
        batch = jax.tree.map(jnp.asarray, batch)
        streams, seen, hidden = self._streams(batch, train)
        runs = []
        for name, task in self.tasks.items():
            if task.available(streams):
                encoded = Encoded(batch, streams, seen, hidden.get(name), self.encoders)
                runs.append((name, encoded, task(encoded, train)))
        return runs

    def _streams(self, batch: Batch, train: bool) -> tuple[dict[str, Stream], dict[str, Stream], dict[str, Stream]]:
        """The fields `streams`, `seen` and `hidden` (by task) of `Encoded`."""
        hiding = sorted(name for name, task in self.tasks.items() if task.hides) if train else []
        key = self.make_rng("augment") if hiding else None
        keys = {name: jax.random.fold_in(key, number) for number, name in enumerate(hiding)}
        streams, seen, hidden = {}, {}, {}
        for name in (name for name in self.encoders if name in batch):
            own = {task: keys[task] for task in hiding if self.tasks[task].reads == name}
            streams[name], seen[name], labels = self._encode(name, batch, train, own)
            hidden |= labels
        if self.fusion is not None:
            fused = rematerialised_whole(lambda fusion, *x: fusion(*x, train), self.fusion, streams, batch["examples"])
            streams = {**streams, "fused": fused}
        return streams, seen, hidden

    def _encode(
        self, name: str, batch: Batch, train: bool, keys: Mapping[str, jax.Array]
    ) -> tuple[Stream, Stream, dict[str, Stream]]:
        """The output of an encoder, its input with hidden parts, and the labels of these parts by task.

        Args:
          keys: random keys of the tasks that hide a part of this input.
        """
        encoder, stream, examples, labels = self.encoders[name], batch[name], batch["examples"], {}
        if name in self.encoded:
            stream = only_tokens(stream._replace(features=stream.features.astype(encoder.dtype)))
            return stream, stream, labels
        for task in (task for task in keys if self.tasks[task].hides == "input"):
            stream, labels[task] = self.tasks[task].hide(stream, examples, keys[task])
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
        encoded = rematerialised_whole(lambda tower, x, *rest: tower(x, train, *rest), encoder, single, *whose)
        return encoder.rejoined(encoded, stream) if one_by_one else encoded, stream, labels
