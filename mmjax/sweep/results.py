"""What several runs give together: mean and standard deviation of each metric, as a table, as files and as a plot."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any, NamedTuple

from rich.table import Table
from rich.text import Text

from mmjax.charts import bar_chart, stacked
from mmjax.evaluate.tables import shown_metrics
from mmjax.files import json_line, write_whole
from mmjax.metric import Metric, about
from mmjax.models.task import known_of
from mmjax.sweep.grid import Trial
from mmjax.sweep.trials import Outcome

CHARTS = 6  # of the plot, at most


class Row(NamedTuple):
    """A metric at one point of the grid.

    Attributes:
      subset, metric: such as "speech+image" and "transcript/wer"; point: the values of the grid's keys.
      values: by the name of the run.
      about: how the metric is shown and compared; None: the metric is that of a group of examples.
    """

    subset: str
    metric: str
    point: Mapping[str, str]
    values: Mapping[str, float]
    about: Metric | None = Metric()

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
        known = known_of(trial.config.model.tasks)
        for subset, metrics in outcomes[trial.name].metrics.items():
            for metric, value in metrics.items():
                whole = metric in known or metric.count("/") == 1
                row = Row(subset, metric, trial.point, {}, about(metric, known) if whole else None)
                found.setdefault((subset, metric, tuple(trial.point.items())), row).values[trial.name] = value
    heads = list(dict.fromkeys(key[:2] for key in found))
    return sorted(found.values(), key=lambda row: heads.index((row.subset, row.metric)))


def shown(rows: Sequence[Row]) -> list[Row]:
    """The rows of the usual metrics; of the losses if there are no others."""
    known = {row.metric: row.about for row in rows if row.about is not None}
    names = shown_metrics([known], known) or [name for name in known if name.endswith("/loss")]
    return [row for row in rows if row.metric in names]


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
        choose = {"lower": min, "higher": max}.get(row.about.better)
        best = choose is not None and len(means) > 1 and row.mean == choose(means)
        written = _written(row)
        result.add_row(
            f"{row.subset}: {row.metric}" if head not in heads[:number] else "",
            *row.point.values(),
            Text(f"* {written}", "bold") if best else written,
            str(len(row.values)),
            end_section=head not in heads[number + 1 :],
        )
    return result


def _written(row: Row) -> str:
    numbers = [row.mean] if row.deviation is None else [row.mean, row.deviation]
    return " ± ".join(row.about.written(x).removesuffix(" %") for x in numbers) + " %" * row.about.percent


def write(rows: Sequence[Row], outcomes: Mapping[str, Outcome], folder: Path) -> dict[str, Any]:
    """Writes `results.json` and `results.tsv`, with all metrics; returns what is in the first."""
    found = [
        {
            "subset": row.subset,
            "metric": row.metric,
            "point": dict(row.point),
            "values": row.values,
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


def plot(rows: Sequence[Row]) -> str:
    """An SVG with a chart for each shown metric: a bar for the mean at each point, with its standard deviation."""
    charts = []
    for subset, metric in list(dict.fromkeys((row.subset, row.metric) for row in rows))[:CHARTS]:
        own = [row for row in rows if (row.subset, row.metric) == (subset, metric)]
        percent, factor, bars, intervals = own[0].about.percent, own[0].about.factor, {}, {}
        for row in own:
            name = ", ".join(f"{key.rsplit('.', 1)[-1]}={value}" for key, value in row.point.items()) or "mean"
            if not row.point:
                bars |= {run: factor * value for run, value in row.values.items()}
            bars[name] = factor * row.mean
            if row.deviation is not None:
                intervals[name] = (factor * (row.mean - row.deviation), factor * (row.mean + row.deviation))
        label = f"{metric} in %" if percent else metric
        charts.append(bar_chart(bars, f"{label}: mean and standard deviation", subset, intervals=intervals))
    return stacked(charts)
