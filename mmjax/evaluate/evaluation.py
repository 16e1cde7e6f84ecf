"""Metrics on a split, from any subset of modalities."""

from itertools import combinations
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from mmjax import config as c
from mmjax import progress
from mmjax.data.loader import Batches, prefetch
from mmjax.data.sampler import Sampler
from mmjax.evaluate.decoding import by_example, texts, written
from mmjax.evaluate.run import Run
from mmjax.parallel.mesh import make_mesh, to_devices
from mmjax.train.build import build_layout, build_objectives, build_source
from mmjax.train.step import score

ORDER = ("speech", "image", "text")


def ordered(modalities) -> list[str]:
    """Speech, image, text, then others."""
    return [n for n in ORDER if n in modalities] + [n for n in modalities if n not in ORDER]


def canonical(subset: str) -> str:
    """A subset's one name: "text+image" is "image+text"."""
    return "+".join(ordered(subset.split("+")))


def all_subsets(modalities) -> list[str]:
    """Every non-empty subset by its canonical name, the largest last."""
    names = ordered(modalities)
    return ["+".join(s) for size in range(1, len(names) + 1) for s in combinations(names, size)]


class Evaluator:
    """Measures a model on one split; compiles once per subset of modalities.

    A modality outside the subset is not in the batch at all: its encoder is not run.
    """

    def __init__(
        self, config: c.Experiment, model: Any, objectives: dict[str, Any], mesh: jax.sharding.Mesh, split: str
    ):
        self._config, self._model, self._objectives, self._mesh = config, model, objectives, mesh
        self._source = build_source(config.data, split)
        self._steps: dict[str, Any] = {}

    def evaluate(self, params: Any, subset: str, examples: int | None = None) -> dict[str, float]:
        """Metrics over all (or the first so many) examples of the split, each counted exactly once.

        Returns:
          "answer/accuracy", "answer/loss", "transcript/cer", "transcript/wer", ... as far as the subset allows,
          and "examples": how many were measured.
        """
        data = self._config.data
        missing = set(self._config.model.encoders) - set(subset.split("+"))
        layout = build_layout(self._config, self._source.tokenizer).without(*missing)
        sizes = {name: values[:examples] for name, values in self._source.sizes.items()}
        sampler = Sampler(
            layout.positions(sizes),
            layout.rows,
            {subset: 1.0},
            data.batch_rows,
            shuffle=False,
            epochs=1,
            window=data.window,
        )
        batches = Batches(self._source, layout, sampler, jax.process_index(), jax.process_count())
        step = self._steps.setdefault(subset, self._make_step())
        totals: dict[str, list[float]] = {}
        pairs: dict[str, tuple[list[str], list[str]]] = {}  # references and hypotheses
        count = 0
        with progress.bar(f"evaluating {subset}", len(sampler), "batches", transient=True) as bar:
            for batch in prefetch(batches, 0, len(sampler), data.threads):
                sums, decoded, seen = jax.device_get(step(params, to_devices(batch, self._mesh)))
                count += int(seen)
                for name, (total, weight) in sums.items():
                    entry = totals.setdefault(name, [0.0, 0.0])
                    entry[0] += float(total)
                    entry[1] += float(weight)
                for name, (ours, labels) in decoded.items():
                    references, hypotheses = pairs.setdefault(name, ([], []))
                    found = texts(ours.features, ours.segments, layout.tokenizer)
                    for place, tokens in by_example(labels.features, labels.segments):
                        references.append(layout.tokenizer.decode(tokens))
                        hypotheses.append(found.get(place, ""))
                bar.advance()
        metrics = {name: total / weight for name, (total, weight) in totals.items() if weight}
        for name, (references, hypotheses) in pairs.items():
            metrics |= {f"{name}/{metric}": value for metric, value in error_rates(references, hypotheses).items()}
        skipped = len(batches.skipped) + sampler.too_long
        return metrics | {"examples": count} | ({"skipped": skipped} if skipped else {})

    def _make_step(self):
        @jax.jit(out_shardings=NamedSharding(self._mesh, P()))  # every process sees all
        def eval_step(params, batch):
            outputs = self._model.apply({"params": params}, batch)
            ours = written(self._model, self._objectives, params, batch, outputs, self._config.data.rows)
            labels = {name: batch.get(getattr(self._model.heads[name], "writes", name)) for name in ours}
            decoded = {name: (ours[name], labels[name]) for name in ours if labels[name] is not None}
            return score(self._objectives, outputs, batch), decoded, jnp.count_nonzero(batch["examples"].segments)

        return eval_step


def evaluate_run(directory: str, split: str | None = None, examples: int | None = None) -> dict[str, Any]:
    """The newest checkpoint of a run on a split, from every subset of its modalities.

    Returns:
      {"step", "split", "subsets": {"speech+image": {"answer/accuracy": ..., ...}, ...}}.
    """
    run = Run(directory)
    split = split or run.config.evaluation.split
    mesh = make_mesh(run.config.mesh.data, run.config.mesh.fsdp)
    evaluator = Evaluator(run.config, run.model, build_objectives(run.config), mesh, split)
    subsets = all_subsets(run.config.model.encoders)
    return {
        "step": run.step,
        "split": split,
        "subsets": {s: evaluator.evaluate(run.params, s, examples) for s in subsets},
    }


def error_rates(references: list[str], hypotheses: list[str]) -> dict[str, float]:
    """Character and word error rate over the whole corpus: all edits over all reference units (jiwer)."""
    import jiwer

    if not references:
        return {}
    return {"cer": float(jiwer.cer(references, hypotheses)), "wer": float(jiwer.wer(references, hypotheses))}


def table(subsets: dict[str, dict[str, float]], title: str):
    """The metrics of several subsets as a rich table."""
    from rich.table import Table

    names = ["answer/accuracy", "transcript/cer", "transcript/wer"]
    found = sorted({n for metrics in subsets.values() for n in metrics})
    others = [n for n in found if n.endswith(("/accuracy", "/cer", "/wer")) and n not in names]
    names = [n for n in names if n in found] + others
    result = Table(title=title)
    result.add_column("modalities", no_wrap=True)
    for name in (*names, "examples"):
        task, _, metric = name.partition("/")
        result.add_column(f"{task} {metric.upper()}" if metric not in ("", "accuracy") else task, justify="right")
    for subset, metrics in subsets.items():
        shown = [f"{100 * metrics[n]:.2f} %" if n in metrics and np.isfinite(metrics[n]) else "" for n in names]
        result.add_row(subset, *shown, f"{metrics['examples']:,}")
    return result
