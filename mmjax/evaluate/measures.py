"""What an evaluation collects batch by batch, and the metrics that it makes of it."""

import hashlib
from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np

from mmjax.data.text import Tokenizer
from mmjax.evaluate.decoding import by_example, texts
from mmjax.evaluate.retrieval import recalls
from mmjax.stream import Batch, Stream


class Measures:
    """Collects sums, texts, answers and vectors of a split's examples.

    Args:
      source: of the examples; its `groups`, if it has any, are what metrics are also told apart by:
        {"language": ([n] numbers, -1 for none; names)}.
      tokenizer: of what is written.
      pairs: by the name of a contrastive objective, the two modalities that it compares.
      writes: by head, the text of an example that it writes, where that is not called as the head: "transcript" or "target".
    """

    def __init__(
        self,
        source: Any,
        tokenizer: Tokenizer | None,
        pairs: Mapping[str, tuple[str, str]],
        writes: Mapping[str, str] | None = None,
    ):
        self._source, self._tokenizer, self._pairs, self._writes = source, tokenizer, pairs, writes or {}
        self._groups = getattr(source, "groups", {})
        self._sums: dict[str, list[float]] = {}
        self._written: dict[str, list[tuple[int, str, str]]] = {}  # example, reference, hypothesis
        self._right: dict[str, list[tuple[int, bool]]] = {}
        self._vectors: dict[str, list[tuple[int, np.ndarray]]] = {}
        self.examples = 0

    def add(
        self,
        examples: Stream,
        sums: Mapping[str, tuple[Any, Any]],
        written: Mapping[str, tuple[Stream, Stream]],
        right: Mapping[str, tuple[np.ndarray, np.ndarray]],
        vectors: Batch,
    ) -> None:
        """Adds a batch.

        Args:
          examples: slots [B, N] with the numbers of the examples.
          sums: of the objectives.
          written: by head, the ids written and the ids that are right.
          right: by head, [B, N] segments of the labels and whether the class is right.
          vectors: by head, pairs [B, N, 2, D].
        """
        self.examples += int(np.count_nonzero(examples.segments))
        for name, (total, weight) in sums.items():
            entry = self._sums.setdefault(name, [0.0, 0.0])
            entry[0] += float(total)
            entry[1] += float(weight)
        for name, (ours, labels) in written.items():
            found = texts(ours.features, ours.segments, self._tokenizer)
            for (row, segment), tokens in by_example(labels.features, labels.segments):
                number = int(examples.features[row, segment - 1])
                reference, hypothesis = self._reference(name, number, tokens), found.get((row, segment), "")
                self._written.setdefault(name, []).append((number, reference, hypothesis))
        there = examples.segments > 0
        for name, (labelled, hits) in right.items():
            known = there & (labelled > 0)
            pairs = zip(examples.features[known].tolist(), hits[known].tolist(), strict=True)
            self._right.setdefault(name, []).extend(pairs)
        for name, pairs in vectors.items():
            known = pairs.segments > 0
            found = zip(examples.features[known].tolist(), pairs.features[known], strict=True)
            self._vectors.setdefault(name, []).extend(found)

    def _reference(self, head: str, number: int, tokens: list[int]) -> str:
        """The text that a head should have written; what the tokenizer does not know is in it as it stands in the data."""
        tokenizer = self._tokenizer
        if tokenizer.unknown not in tokens and tokenizer.zero != "unknown":  # which labels would leave out
            return tokenizer.decode(tokens)
        example = self._source[number]
        stream = self._writes.get(head, head)
        text = getattr(example, stream, None)
        text = example.text if text is None and stream == "transcript" else text  # as `Layout.tokens` takes it
        return tokenizer.decode(tokens) if text is None else tokenizer.reference(text)

    def metrics(self) -> dict[str, float]:
        """By name: "answer/accuracy", "transcript/cer", "transcript/cer/language/fr", "pairs/speech_to_image/recall@1"."""
        metrics = {name: total / weight for name, (total, weight) in self._sums.items() if weight}
        for name, found in self._written.items():
            for part, chosen in self._parts([number for number, *_ in found]):
                rates = error_rates([found[i][1] for i in chosen], [found[i][2] for i in chosen])
                metrics |= {f"{name}/{metric}{part}": value for metric, value in rates.items()}
        for name, found in self._right.items():
            for part, chosen in self._parts([number for number, _ in found]):
                if part:
                    metrics[f"{name}/accuracy{part}"] = float(np.mean([found[i][1] for i in chosen]))
        for name, found in self._vectors.items():
            metrics |= self._retrieval(name, found)
        return metrics

    def _parts(self, numbers: list[int]) -> list[tuple[str, list[int]]]:
        """All of them, and those of each group: what the metric's name ends in, and places in `numbers`."""
        parts = [("", list(range(len(numbers))))]
        for kind, (group, names) in self._groups.items():
            of_each = np.asarray(group)[numbers]
            for number, name in enumerate(names):
                if len(chosen := np.flatnonzero(of_each == number)):
                    parts.append((f"/{kind}/{name}", chosen.tolist()))
        return parts

    def _retrieval(self, name: str, found: list[tuple[int, np.ndarray]]) -> dict[str, float]:
        vectors, metrics = np.stack([pair for _, pair in found]), {}
        keys = {kind: [self._key(kind, number) for number, _ in found] for kind in self._pairs[name]}
        for this, that in ((0, 1), (1, 0)):
            one, other = self._pairs[name][this], self._pairs[name][that]
            result = recalls(vectors[:, this], vectors[:, that], keys[one], keys[other])
            metrics |= {f"{name}/{one}_to_{other}/{metric}": value for metric, value in result.items()}
        return metrics

    def _key(self, kind: str, number: int) -> Hashable:
        """What tells one picture or text from another; each recording is taken for another."""
        part = getattr(self._source[number], kind, None) if kind in ("image", "text") else None
        if part is None:
            return number
        return hashlib.sha256(part).digest() if isinstance(part, bytes) else part


def error_rates(references: list[str], hypotheses: list[str]) -> dict[str, float]:
    """Character and word error rate over the whole corpus: all edits over all reference units (jiwer)."""
    import jiwer

    if not any(references):
        return {}
    return {"cer": float(jiwer.cer(references, hypotheses)), "wer": float(jiwer.wer(references, hypotheses))}
