"""What several runs give together: mean and standard deviation of each metric, as a table, as files and as a plot."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any, NamedTuple

from rich.table import Table
from rich.text import Text

from mmjax.errors import UserError
from mmjax.evaluate.tables import FORMATS, MAIN
from mmjax.files import json_line, write_whole
from mmjax.sweep.grid import Trial
from mmjax.sweep.trials import Outcome
from mmjax.train.best import lower_is_better

PANELS = 6  # of the plot
LOGARITHMIC = 20  # ratio of the largest and the smallest value of a key above which its axis is logarithmic


class Row(NamedTuple):
    """A metric at one point of the grid.

    Attributes:
      subset, metric: such as "speech+image" and "transcript/wer"; point: the values of the grid's keys.
      values: by the name of the run.
    """

    subset: str
    metric: str
    point: Mapping[str, str]
    values: Mapping[str, float]

    @property
    def mean(self) -> float:
        return mean(self.values.values())

    @property
    def deviation(self) -> float | None:
        """The standard deviation of one run (divided by n - 1); None: there is one run alone."""
        return stdev(self.values.values()) if len(self.values) > 1 else None


def collected(trials: Sequence[Trial], outcomes: Mapping[str, Outcome]) -> list[Row]:
    """A row for each metric and point, in the order of the metrics; of failed runs there are no values."""
    found: dict[tuple[str, str, tuple], Row] = {}
    for trial in trials:
        for subset, metrics in outcomes[trial.name].metrics.items():
            for metric, value in metrics.items():
                row = Row(subset, metric, trial.point, {})
                found.setdefault((subset, metric, tuple(trial.point.items())), row).values[trial.name] = value
    heads = list(dict.fromkeys(key[:2] for key in found))
    return sorted(found.values(), key=lambda row: heads.index((row.subset, row.metric)))


def shown(rows: Sequence[Row]) -> list[Row]:
    """The rows of the usual metrics; of the losses if there are no others."""
    named = [row for row in rows if row.metric.count("/") == 1]
    usual = [row for row in named if row.metric.split("/")[1] in MAIN]
    return usual or [row for row in named if row.metric.endswith("/loss")]


def table(rows: Sequence[Row], title: str) -> Table:
    """The rows as a rich table; the best mean of each metric is marked."""
    keys = [key.rsplit(".", 1)[-1] for key in rows[0].point] if rows else []
    result = Table(title=title, caption="* the best mean" if keys else None)
    result.add_column("metric", no_wrap=True)
    for heading in (*keys, "mean and deviation", "runs"):
        result.add_column(heading, justify="right")
    heads = [(row.subset, row.metric) for row in rows]
    for number, (head, row) in enumerate(zip(heads, rows, strict=True)):
        means = [other.mean for other, of in zip(rows, heads, strict=True) if of == head]
        best = len(means) > 1 and row.mean == (min if lower_is_better(row.metric) else max)(means)
        written = _written(row.metric, row.mean, row.deviation)
        result.add_row(
            f"{row.subset}: {row.metric}" if head not in heads[:number] else "",
            *row.point.values(),
            Text(f"* {written}", "bold") if best else written,
            str(len(row.values)),
            end_section=head not in heads[number + 1 :],
        )
    return result


def _written(metric: str, value: float, deviation: float | None) -> str:
    percent = FORMATS.get(metric.split("/")[1]) == "%"
    numbers = [value] if deviation is None else [value, deviation]
    return " ± ".join(f"{100 * x:.2f}" if percent else f"{x:.4g}" for x in numbers) + " %" * percent


def write(rows: Sequence[Row], outcomes: Mapping[str, Outcome], folder: Path) -> dict[str, Any]:
    """Writes `results.json` and `results.tsv`, with all metrics; returns what is in the first."""
    found = [
        {
            **row._asdict(),
            "point": dict(row.point),
            "mean": row.mean,
            "deviation": row.deviation,
            "runs": len(row.values),
        }
        for row in rows
    ]
    failed = {name: one.failure for name, one in outcomes.items() if one.failure is not None}
    result = {"rows": found, "failed": failed, "steps": {name: one.step for name, one in outcomes.items()}}
    keys = list(rows[0].point) if rows else []
    lines = ["\t".join(("modalities", "metric", *keys, "mean", "deviation", "runs"))]
    for row in rows:
        deviation = "" if row.deviation is None else repr(row.deviation)
        numbers = (repr(row.mean), deviation, str(len(row.values)))
        lines.append("\t".join((row.subset, row.metric, *row.point.values(), *numbers)))
    write_whole(folder / "results.json", json_line(result) + "\n")
    write_whole(folder / "results.tsv", "\n".join([*lines, ""]))
    return result


def picture(rows: Sequence[Row], path: Path) -> None:
    """Draws mean, deviation and every run of the shown metrics.

    Raises:
      UserError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise UserError("there is no plot, because matplotlib is not installed: pip install 'mmjax[plots]'") from None
    heads = list(dict.fromkeys((row.subset, row.metric) for row in rows))[:PANELS]
    figure = Figure(figsize=(5 * len(heads), 4), layout="constrained")
    for number, head in enumerate(heads, 1):
        panel = figure.add_subplot(1, len(heads), number)
        panel.set_title(f"{head[0]}: {head[1]}", fontsize=10)
        of_metric = [row for row in rows if (row.subset, row.metric) == head]
        if of_metric[0].point:
            _draw_points(panel, of_metric)
        else:
            _draw_runs(panel, of_metric[0])
        panel.grid(alpha=0.3)
    figure.savefig(path, dpi=120)


def _draw_points(panel: Any, rows: Sequence[Row]) -> None:
    """The means over the points of the grid, with deviations, and a dot for each run."""
    key, labels = ", ".join(rows[0].point), ["\n".join(row.point.values()) for row in rows]
    places = [_number(label) for label in labels]
    numeric = len(rows[0].point) == 1 and None not in places
    if numeric:
        rows, places = zip(*sorted(zip(rows, places, strict=True), key=lambda pair: pair[1]), strict=True)
        if min(places) > 0 and max(places) / min(places) >= LOGARITHMIC:
            panel.set_xscale("log")
    else:
        places = list(range(len(rows)))
        panel.set_xticks(places, labels, fontsize=8)
    deviations = [row.deviation or 0.0 for row in rows]
    panel.errorbar(places, [row.mean for row in rows], deviations, fmt="o-" if numeric else "o", capsize=4)
    for place, row in zip(places, rows, strict=True):
        panel.plot([place] * len(row.values), list(row.values.values()), ".", color="grey", zorder=0)
    panel.set_xlabel(key)


def _draw_runs(panel: Any, row: Row) -> None:
    """The value of each run, and their mean with its deviation."""
    values, deviation = list(row.values.values()), row.deviation or 0.0
    panel.plot(range(len(values)), values, "o")
    panel.axhline(row.mean, label=f"mean {_written(row.metric, row.mean, row.deviation)}")
    panel.axhspan(row.mean - deviation, row.mean + deviation, alpha=0.15)
    panel.set_xticks(range(len(values)), list(row.values), fontsize=8, rotation=30)
    panel.legend(fontsize=8)


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None
