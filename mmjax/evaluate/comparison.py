"""Compares models on the same examples: intervals of each metric, and the paired bootstrap against the first model."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.markup import escape
from rich.table import Table

from mmjax.data.labels import Alternatives
from mmjax.errors import UserError
from mmjax.evaluate.intervals import intervals, paired
from mmjax.evaluate.measures import Measures
from mmjax.evaluate.tables import shown_metrics
from mmjax.metric import Known, Metric, about, heading
from mmjax.tasks.metrics import OF_CLASSES, OF_NUMBERS, Statistic, evaluate, mean, regression
from mmjax.tasks.text_metrics import ERROR_RATES, known_of_texts, text_metrics


class Scores(NamedTuple):
    """The results of one model in one task, for a comparison.

    Attributes:
      numbers: [n] of the examples in the split, ascending.
      references: [n] the truths as values of JSON.
      statistics: the metrics by name.
      clusters: [n] the group of each example; None: each example is a group by itself.
      known: how the metrics are shown and compared, by name.
    """

    numbers: np.ndarray
    references: list[Any]
    statistics: Mapping[str, Statistic]
    clusters: np.ndarray | None = None
    known: Mapping[str, Metric] = {}


def scores_of(measures: Measures, by: str | None = None) -> dict[str, Scores]:
    """The scores of each task.

    Args:
      by: the kind of groups whose examples are drawn together.
    """
    found = {}
    for task in measures.tasks:
        numbers = np.array([item.number for item in measures.items(task)], np.int64)
        found[task] = Scores(
            numbers,
            measures.references(task),
            measures.statistics(task),
            measures.clusters(task, by),
            measures.known(task),
        )
    return found


def read_saved(path: Path, by: str | None = None) -> dict[str, dict[str, Scores]]:
    """The scores by subset and task of a file of `mmjax eval --save`.

    Texts have error rates, numbers their errors and correlations, and classes accuracy; other metrics need the run itself.

    Args:
      by: as for `scores_of`.

    Raises:
      UserError: the file cannot be read, its lines are not those of an evaluation, or they have no such groups.
    """
    found: dict[str, dict[str, list[dict[str, Any]]]] = {}
    try:
        lines = [json.loads(line) for line in path.read_bytes().splitlines()]
        for line in (line for line in lines if "error" not in line):  # of an example that could not be read
            group = line.get("groups", {}).get(by, f"{line['number']} alone")
            for task, one in line["tasks"].items():
                own = {"number": line["number"], "group": group, **one}
                found.setdefault(line["subset"], {}).setdefault(task, []).append(own)
        if by is not None and not any(by in line.get("groups", {}) for line in lines):
            raise UserError(
                f"the examples of {path} have no groups by '{by}': they have the tags that the run's prefixes use, and the "
                f"group of --intervals; save them with --intervals {by}, or compare the runs themselves"
            )
        return {subset: {t: s for t, own in tasks.items() if (s := _saved(own))} for subset, tasks in found.items()}
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"{path} is no saved evaluation: write one with `mmjax eval RUN --save {path}`") from None


def _saved(lines: list[dict[str, Any]]) -> Scores | None:
    """The scores of a task; None if its examples have no references."""
    lines = sorted(lines, key=lambda line: line["number"])
    numbers, groups, references, hypotheses = (
        [line[key] for line in lines] for key in ("number", "group", "reference", "hypothesis")
    )
    if None in references:
        return None
    if isinstance(references[0], dict):
        pair = ([[one[name] for name in references[0]] for one in ones] for ones in (references, hypotheses))
        statistics, known = regression(*map(np.array, pair)), OF_NUMBERS
    elif isinstance(hypotheses[0], str) and "probabilities" not in lines[0]:
        references = [Alternatives(one, one[0]) if isinstance(one, list) else one for one in references]
        statistics, known = text_metrics(references, hypotheses), known_of_texts(ERROR_RATES)
    else:
        right = [a == b for a, b in zip(references, hypotheses, strict=True)]
        statistics, known = {"accuracy": mean(right)}, OF_CLASSES
    return Scores(np.array(numbers), references, statistics, np.unique(groups, return_inverse=True)[1], known)


def known_of_scores(models: Mapping[str, Mapping[str, Scores]]) -> dict[str, Metric]:
    """How the metrics of several models are shown and compared, by name: "TASK/METRIC"."""
    return {
        f"{task}/{metric}": about
        for scores in models.values()
        for task, one in scores.items()
        for metric, about in one.known.items()
    }


def compare(models: Mapping[str, Mapping[str, Scores]]) -> dict[str, Any]:
    """Compares models on the examples that all have measured, with equal references.

    Args:
      models: by name, the scores of each task; the others are compared with the first model.

    Returns:
      {"metrics": {"transcript/wer": {NAME: {"value", "interval": (low, high), "difference": {"value", "interval", "p",
      "better"}}}}, "examples": {task: number}, "left_out": {task: number of examples that not all have, or with other
      references}}. "p" is two-sided; "better" is the share of the resamples in which the model is better than the
      first, or None if it is not known which values of the metric are better.

    Raises:
      UserError: no task is measured by all, or a task has no example in common.
    """
    names = list(models)
    tasks = [task for task in models[names[0]] if all(task in own for own in models.values())]
    if not tasks:
        raise UserError(f"{' and '.join(names)} have no task in common")
    result: dict[str, Any] = {"metrics": {}, "examples": {}, "left_out": {}}
    for task in tasks:
        scores = {name: own[task] for name, own in models.items()}
        places = _common(task, scores)
        count = len(places[names[0]])
        result["examples"][task] = count
        if left := max(len(one.numbers) for one in scores.values()) - count:
            result["left_out"][task] = left
        for name in names:
            for metric, found in _of_model(scores, places, names[0], name).items():
                result["metrics"].setdefault(f"{task}/{metric}", {})[name] = found
    return result


def _common(task: str, scores: Mapping[str, Scores]) -> dict[str, np.ndarray]:
    """The places of the common examples among those of each model."""
    truths = [dict(zip(one.numbers.tolist(), one.references, strict=True)) for one in scores.values()]
    first = truths[0]
    common = [n for n, truth in first.items() if all(n in other and other[n] == truth for other in truths[1:])]
    if not common:
        known = [number for number in first if all(number in other for other in truths[1:])]
        why = "with equal references" if known else "in common"
        raise UserError(f"{' and '.join(scores)} have no example of '{task}' {why}; measure them on the same split")
    return {name: np.searchsorted(one.numbers, common) for name, one in scores.items()}


def _of_model(
    scores: Mapping[str, Scores], places: Mapping[str, np.ndarray], first: str, name: str
) -> dict[str, dict[str, Any]]:
    """The metrics of one model on the common examples, and how they differ from those of the first."""
    own, clusters = scores[name], scores[first].clusters
    clusters = None if clusters is None else clusters[places[first]]
    counts = np.zeros((1, len(own.numbers)))
    counts[0, places[name]] = 1
    varying = {metric: one for metric, one in own.statistics.items() if callable(one)}
    values = {metric: float(found[0]) for metric, found in evaluate(varying, counts).items()}
    ranges = intervals(varying, len(own.numbers), places[name], clusters)
    result = {m: {"value": values[m], "interval": found} for m, found in ranges.items() if not np.isnan(values[m])}
    if name != first:
        sizes = len(scores[first].numbers), len(own.numbers)
        both = paired(scores[first].statistics, own.statistics, (places[first], places[name]), sizes, clusters)
        for metric, found in both.items():
            share = {"higher": found.above, "lower": 1 - found.above, None: None}
            better = share[own.known.get(metric, Metric()).better]
            about = {"value": found.value, "interval": (found.low, found.high), "p": found.p, "better": better}
            result[metric]["difference"] = about
    return result


def short_names(result: Mapping[str, Any]) -> dict[str, str]:
    """The paths of the models without the folders that all have in common."""
    names = list(dict.fromkeys(name for of_models in result["metrics"].values() for name in of_models))
    paths = [Path(name).absolute() for name in names]
    root = os.path.commonpath([path.parent for path in paths])
    return {name: str(path.relative_to(root)) for name, path in zip(names, paths, strict=True)}


def table(result: Mapping[str, Any], title: str, known: Known) -> Table:
    """The result of `compare` as a rich table."""
    short = short_names(result)
    made = Table(title=title)
    for name in ("metric", "run"):
        made.add_column(name, no_wrap=True)
    for name in ("value", "difference", "p", "better"):
        made.add_column(name, justify="right")
    for metric in shown_metrics([result["metrics"]], known):
        made.add_section()
        for place, (name, one) in enumerate(result["metrics"][metric].items()):
            form = about(metric, known)
            cells = [form.written(one["value"], one["interval"])]
            if found := one.get("difference"):
                said = form.written(found["value"], found["interval"])
                better = "" if found["better"] is None else f"{100 * found['better']:.1f} %"
                cells += [said, f"{found['p']:.3f}", better]
            made.add_row("" if place else heading(metric, known), escape(short[name]), *cells)
    return made
