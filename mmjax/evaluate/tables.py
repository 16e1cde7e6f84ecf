"""The tables of an evaluation: metrics by subset of the modalities, by group, of retrieval, and of what is confused."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from rich.console import Group
from rich.markup import escape
from rich.table import Column, Table

from mmjax.tasks.retrieval import RANKS

COLUMNS = 4  # of a table of groups: what 80 characters hold
ROWS = 12  # classes of a confusion matrix, and words of a list
# The metrics of tables, in the order of their columns: as a percentage, or as a number.
PERCENTAGES = (
    "accuracy",
    "exact_match",
    "vqa_accuracy",
    "f1",
    "cer",
    "wer",
    "cer_basic",
    "wer_basic",
    "macro_f1",
    "uar",
)
NUMBERS = ("bleu", "chrf", "cider", "auroc", "mae", "rmse", "pearson", "spearman")
FORMATS = dict.fromkeys((*PERCENTAGES, "rouge1", "rouge2", "rougeL"), "%")
FORMATS |= dict.fromkeys(("perplexity", "word_perplexity", *NUMBERS), "number")
ERRORS = ("cer", "wer", "cer_basic", "wer_basic", "ece", "mae", "rmse")
LOWER_IS_BETTER = frozenset(("loss", "nll", "infeasible", "perplexity", "word_perplexity", "median_rank", *ERRORS))
HEADINGS = {"accuracy": "", "cer": "CER", "wer": "WER", "macro_f1": "F1", "uar": "UAR", "auroc": "AUROC"}
HEADINGS |= {
    "exact_match": "exact",
    "f1": "F1",
    "bleu": "BLEU",
    "chrf": "chrF",
    "cider": "CIDEr",
    "vqa_accuracy": "VQA",
}
HEADINGS |= {"cer_basic": "CER (basic)", "wer_basic": "WER (basic)", "mae": "MAE", "rmse": "RMSE"}
HEADINGS |= {"rouge1": "ROUGE-1", "rouge2": "ROUGE-2", "rougeL": "ROUGE-L", "word_perplexity": "per word"}
MAIN = ("accuracy", "exact_match", "vqa_accuracy", "cer", "wer", "wer_basic", "mae", "pearson")
IN_GROUPS = ("accuracy", "exact_match", "cer", "uar", "mae", "perplexity")

Metrics = Mapping[str, float]
Intervals = Mapping[str, tuple[float, float]]


def table(subsets: Mapping[str, Metrics], title: str, intervals: Mapping[str, Intervals] | None = None) -> Group:
    """The metrics of several subsets as a rich table; below it, if there are any, those of groups and of retrieval.

    Args:
      intervals: of the metrics of each subset.
    """
    whole = _table_of_subsets(subsets, title) if intervals is None else _table_of_intervals(subsets, title, intervals)
    return Group(whole, *_table_of_groups(subsets, intervals or {}), *_table_of_retrieval(subsets))


def _table_of_subsets(subsets: Mapping[str, Metrics], title: str) -> Table:
    """A row for each subset, a column for each metric."""
    names = shown_metrics(subsets.values())
    result = Table(title=title)
    result.add_column("modalities", no_wrap=True)
    skipped = ("skipped",) if any("skipped" in metrics for metrics in subsets.values()) else ()
    counted = [f"{task}/examples" for task in dict.fromkeys(name.partition("/")[0] for name in names)]
    # A task counts only the examples with its label.
    fewer = [n for n in counted if any(m.get(n, m["examples"]) != m["examples"] for m in subsets.values())]
    for name in names:
        result.add_column(heading(name), justify="right")
    for name in (*fewer, "examples", *skipped):
        result.add_column(name.replace("/", " "), justify="right")
    for subset, metrics in subsets.items():
        counts = [f"{metrics.get(n, 0):,}" for n in (*fewer, "examples", *skipped)]
        result.add_row(subset, *(formatted(n, metrics.get(n)) for n in names), *counts)
    return result


def _table_of_intervals(subsets: Mapping[str, Metrics], title: str, intervals: Mapping[str, Intervals]) -> Table:
    """A row for each subset and metric, since intervals are long."""
    result = Table("modalities", "metric", Column("95 % interval", justify="right"), title=title)
    result.add_column("examples", justify="right")
    for subset, metrics in subsets.items():
        result.add_section()
        for place, name in enumerate(shown_metrics([metrics])):
            said = formatted(name, metrics[name], intervals[subset].get(name))
            count = metrics[f"{name.partition('/')[0]}/examples"]
            result.add_row("" if place else subset, heading(name), said, f"{count:,}")
    return result


def shown_metrics(subsets) -> list[str]:
    """The names of the metrics of whole splits that a table shows, in the order of its columns."""
    found = {name: None for metrics in subsets for name in metrics}
    names = sorted((n for n in found if n.count("/") == 1 and n.split("/")[1] in FORMATS), key=_place)
    if len(names) > COLUMNS:  # the others are in the metrics of the run, and in `mmjax eval --json`
        names = [n for n in names if n.split("/")[1] in MAIN]
    return names


def heading(name: str) -> str:
    """ "answer/accuracy" -> "answer", "transcript/wer" -> "transcript WER"."""
    task, _, metric = name.partition("/")
    return f"{task} {HEADINGS.get(metric, metric)}".strip()


def _place(name: str) -> tuple[str, int]:
    task, metric = name.split("/")
    return task, list(FORMATS).index(metric)


def formatted(name: str, value: float | None, interval: Sequence[float] | None = None) -> str:
    """A metric by its name, "12.30 %" or "1.234", with its interval: "12.3 % [11.0, 13.7]"; "" without a value."""
    if value is None or not np.isfinite(value):
        return ""
    percent = FORMATS.get(name.split("/")[1]) == "%" or "@" in name
    if interval is None:
        return f"{100 * value:.2f} %" if percent else f"{value:.4g}"
    value, low, high = (f"{100 * x:.1f}" if percent else f"{x:.3g}" for x in (value, *interval))
    return escape(f"{value} % [{low}, {high}]" if percent else f"{value} [{low}, {high}]")


def _table_of_groups(subsets: Mapping[str, Metrics], intervals: Mapping[str, Intervals]) -> list[Table]:
    """ "transcript/cer/language/fr": a row for "language fr", a column for "speech: transcript CER".

    The number of examples is a column of its own for each task whose examples it counts.
    """
    cells: dict[str, dict[str, str]] = {}
    for subset, metrics in subsets.items():
        for name, value in metrics.items():
            if name.count("/") == 3 and name.split("/")[1] in IN_GROUPS:
                task, metric, kind, group = name.split("/")
                row = cells.setdefault(f"{kind} {group}", {})
                text = formatted(f"{task}/{metric}", value, intervals.get(subset, {}).get(name))
                row[f"{subset}: {heading(f'{task}/{metric}')}"] = text
                row[f"{task} examples"] = f"{metrics[f'{task}/examples/{kind}/{group}']:,}"
    columns = list(dict.fromkeys(column for row in cells.values() for column in row))
    columns.sort(key=lambda column: column.endswith(" examples"))
    tables = []
    wide = COLUMNS // 2 if intervals else COLUMNS
    for part in (columns[first : first + wide] for first in range(0, len(columns), wide)):
        tables.append(Table("", *(Column(column, justify="right") for column in part)))
        for group, row in sorted(cells.items()):
            tables[-1].add_row(group, *(row.get(column, "") for column in part))
    return tables


def _table_of_retrieval(subsets: Mapping[str, Metrics]) -> list[Table]:
    """A row for each direction: recall and median rank, and below it what guessing would reach."""
    found, chance = [[f"{kind}@{k}" for k in RANKS] for kind in ("recall", "chance")]
    found, chance = [*found, "median_rank"], [*chance, "chance_rank"]
    headings = [Column(one.replace("_", " "), justify="right") for one in (*found, "of")]
    result = Table("retrieval", *headings)
    for metrics in subsets.values():
        for name in (n.removesuffix("/gallery") for n in metrics if n.endswith("/gallery")):
            direction, size = name.split("/")[1].replace("_to_", " to "), f"{metrics[f'{name}/gallery']:,}"
            row, guessed = (
                [formatted(f"{name}/{one}", metrics[f"{name}/{one}"]) for one in part] for part in (found, chance)
            )
            result.add_row(direction, *row, size)
            result.add_row("  by chance", *guessed, style="dim")
    return [result] if result.rows else []


def tables_of_confusions(confusions: Mapping[str, Mapping[str, Any]], title: str) -> list[Table]:
    """The tables of `Measures.confusions`: for each task a matrix or lists of words, and the worst examples."""
    tables = []
    for task, found in confusions.items():
        if "matrix" in found:
            tables.append(
                _matrix(
                    found["classes"], np.array(found["matrix"]), f"{task}, {title}: true class (rows) and chosen class"
                )
            )
        if "substitutions" in found:
            tables.append(_words(found, f"{task}, {title}: most frequent wrong words"))
        if worst := found.get("worst"):
            made = Table(
                "example",
                Column("error", justify="right"),
                "reference",
                "hypothesis",
                title=f"{task}, {title}: the worst examples",
            )
            for one in worst:
                name = escape(str(one["name"] or one["number"]))
                made.add_row(name, f"{one['error']:.4g}", _text(one["reference"]), _text(one["hypothesis"]))
            tables.append(made)
    return tables


def _matrix(classes: Sequence[str], matrix: np.ndarray, title: str) -> Table:
    """A confusion matrix; of many classes, only the pairs that are confused most."""
    if len(classes) <= ROWS:
        made = Table("", *(Column(escape(name), justify="right") for name in classes), title=title)
        for name, row in zip(classes, matrix, strict=True):
            made.add_row(escape(name), *(f"{count:,}" if count else "" for count in row.tolist()))
        return made
    made = Table(
        "true class", "chosen class", Column("examples", justify="right"), Column("of", justify="right"), title=title
    )
    wrong = matrix * (1 - np.eye(len(classes), dtype=np.int64))
    for place in np.argsort(-wrong, axis=None, kind="stable")[:ROWS].tolist():
        row, column = divmod(place, len(classes))
        if wrong[row, column]:
            made.add_row(
                escape(classes[row]), escape(classes[column]), f"{wrong[row, column]:,}", f"{matrix[row].sum():,}"
            )
    return made


def _words(found: Mapping[str, list[list[Any]]], title: str) -> Table:
    """The most frequent substitutions, deletions and insertions side by side."""
    made = Table("substituted", "times", "deleted", "times", "inserted", "times", title=title)
    kinds = [found[kind][:ROWS] for kind in ("substitutions", "deletions", "insertions")]
    for place in range(max(map(len, kinds))):
        cells: list[str] = []
        for one in kinds:
            *words, count = one[place] if place < len(one) else ("", "")
            cells += [escape(" → ".join(words)), f"{count:,}" if words != [""] else ""]
        made.add_row(*cells)
    return made


def _text(value: Any) -> str:
    return escape(value if isinstance(value, str) else ", ".join(value) if isinstance(value, list) else str(value))
