"""The tables of an evaluation: metrics by subset of the modalities, by group, of retrieval, and of what is confused."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from rich.console import Group
from rich.markup import escape
from rich.table import Column, Table

from mmjax.metric import Known, about, heading
from mmjax.tasks.retrieval import RANKS

COLUMNS = 4  # of metrics: what 80 characters hold
ROWS = 12  # classes of a confusion matrix, and words of a list

Metrics = Mapping[str, float]
Intervals = Mapping[str, tuple[float, float]]


def table(
    subsets: Mapping[str, Metrics], title: str, known: Known, intervals: Mapping[str, Intervals] | None = None
) -> Group:
    """The metrics of several subsets as a rich table; below it, if there are any, those of groups and of retrieval.

    Args:
      known: of the metrics (`mmjax.models.task.known_of`).
      intervals: of the metrics of each subset.
    """
    if intervals is None:
        whole = _table_of_subsets(subsets, title, known)
    else:
        whole = _table_of_intervals(subsets, title, known, intervals)
    return Group(whole, *_table_of_groups(subsets, known, intervals or {}), *_table_of_retrieval(subsets, known))


def _table_of_subsets(subsets: Mapping[str, Metrics], title: str, known: Known) -> Table:
    """A row for each subset, a column for each metric. Those of retrieval have a table of their own."""
    own = [
        {name: value for name, value in metrics.items() if not name.startswith(tuple(_directions(metrics)))}
        for metrics in subsets.values()
    ]
    every = all_metrics(own, known)
    skipped = ("skipped",) if any("skipped" in metrics for metrics in subsets.values()) else ()
    counted = [f"{task}/examples" for task in dict.fromkeys(name.partition("/")[0] for name in every)]
    # A task counts only the examples with its label.
    fewer = [n for n in counted if any(m.get(n, m["examples"]) != m["examples"] for m in subsets.values())]
    names = shown_metrics(own, known, COLUMNS - len(skipped) - len(fewer))
    left = [heading(name, known) for name in every if name not in names]
    result = Table(title=title, caption=f"also measured: {', '.join(left)} (mmjax eval --json)" if left else None)
    result.add_column("modalities", no_wrap=True)
    for name in names:
        result.add_column(heading(name, known), justify="right")
    for name in (*fewer, "examples", *skipped):
        result.add_column(name.replace("/", " "), justify="right")
    for subset, metrics in subsets.items():
        counts = [f"{metrics.get(n, 0):,}" for n in (*fewer, "examples", *skipped)]
        result.add_row(subset, *(about(n, known).written(metrics.get(n)) for n in names), *counts)
    return result


def _table_of_intervals(
    subsets: Mapping[str, Metrics], title: str, known: Known, intervals: Mapping[str, Intervals]
) -> Table:
    """A row for each subset and metric, since intervals are long."""
    result = Table("modalities", "metric", Column("95 % interval", justify="right"), title=title)
    result.add_column("examples", justify="right")
    for subset, metrics in subsets.items():
        result.add_section()
        for place, name in enumerate(all_metrics([metrics], known)):
            said = about(name, known).written(metrics[name], intervals[subset].get(name))
            # A metric of the loss alone has no examples of its own.
            count = metrics.get(f"{name.partition('/')[0]}/examples", metrics["examples"])
            result.add_row("" if place else subset, heading(name, known), said, f"{count:,}")
    return result


def all_metrics(subsets: Iterable[Iterable[str]], known: Known) -> list[str]:
    """The names of the metrics of whole splits that may be shown, by task, in the order in which the task knows them.

    Args:
      subsets: the names of the metrics of each.
    """
    found = dict.fromkeys(name for names in subsets for name in names if name in known or name.count("/") == 1)
    order = {name: place for place, name in enumerate([*known, *(name for name in found if name not in known)])}
    names = [name for name in found if about(name, known).shown != "never"]
    return sorted(names, key=lambda name: (name.partition("/")[0], order[name]))


def shown_metrics(subsets: Iterable[Iterable[str]], known: Known, room: int = COLUMNS) -> list[str]:
    """Those of `all_metrics` that are always shown, and as many others as a table has room for.

    If several tasks have more metrics than there is room, none of the others is shown: headings with their names are wide.

    Args:
      room: the number of metrics up to which others are shown.
    """
    names = all_metrics(subsets, known)
    always = [name for name in names if about(name, known).shown == "always"]
    crowded = len(names) > room and len({name.partition("/")[0] for name in names}) > 1
    others = [] if crowded else [name for name in names if name not in always][: max(room - len(always), 0)]
    return [name for name in names if name in always or name in others]


def _table_of_groups(subsets: Mapping[str, Metrics], known: Known, intervals: Mapping[str, Intervals]) -> list[Table]:
    """ "transcript/cer/language/fr": a row for "language fr", a column for "speech: transcript CER".

    The number of examples is a column of its own for each task whose examples it counts.
    """
    cells: dict[str, dict[str, str]] = {}
    for subset, metrics in subsets.items():
        for name, value in metrics.items():
            if name.count("/") == 3 and name not in known and about(name, known).shown == "always":
                task, metric, kind, group = name.split("/")
                row = cells.setdefault(f"{kind} {group}", {})
                text = about(name, known).written(value, intervals.get(subset, {}).get(name))
                row[f"{subset}: {heading(f'{task}/{metric}', known)}"] = text
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


def _directions(metrics: Metrics) -> list[str]:
    """The directions of retrieval that are measured, "pairs/speech_to_image"."""
    return [name.removesuffix("/gallery") for name in metrics if name.endswith("/gallery")]


def _table_of_retrieval(subsets: Mapping[str, Metrics], known: Known) -> list[Table]:
    """A row for each direction: recall and median rank, and below it what guessing would reach."""
    found, chance = [[f"{kind}@{k}" for k in RANKS] for kind in ("recall", "chance")]
    found, chance = [*found, "median_rank"], [*chance, "chance_rank"]
    headings = [Column(one.replace("_", " "), justify="right") for one in (*found, "of")]
    result = Table("retrieval", *headings)
    for metrics in subsets.values():
        for name in _directions(metrics):
            direction, size = name.split("/")[1].replace("_to_", " to "), f"{metrics[f'{name}/gallery']:,}"
            forms = [about(f"{name}/{one}", known) for one in found]
            row, guessed = (
                [form.written(metrics[f"{name}/{one}"]) for form, one in zip(forms, part, strict=True)]
                for part in (found, chance)
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
