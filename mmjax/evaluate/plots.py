"""Plots of comparisons and of robustness, as SVG files."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmjax.charts import bar_chart, line_chart, stacked, value_map
from mmjax.data.corruptions import NOISES
from mmjax.errors import UserError
from mmjax.evaluate.comparison import short_names
from mmjax.evaluate.robustness import grids
from mmjax.evaluate.tables import shown_metrics
from mmjax.metric import Known, about, heading


def check_picture(path: Path) -> None:
    """Checks, before anything is measured, that a plot can be written to a file of this name."""
    if path.suffix != ".svg":
        raise UserError(f"--picture {path}: the name of a plot ends with .svg; browsers show and convert such files")
    if not path.absolute().parent.is_dir():
        raise UserError(f"--picture {path}: there is no folder {path.parent}")


def comparison_plot(result: Mapping[str, Any], title: str, known: Known) -> str:
    """An SVG with a chart for each metric of a comparison: a bar for each model, with its interval."""
    names, charts = short_names(result), []
    for metric in shown_metrics([result["metrics"]], known):
        found = {names[model]: one for model, one in result["metrics"][metric].items() if model in names and one}
        factor = about(metric, known).factor
        bars = {name: factor * one["value"] for name, one in found.items()}
        intervals = {name: tuple(factor * end for end in one["interval"]) for name, one in found.items()}
        charts.append(bar_chart(bars, _label(metric, known), title, intervals=intervals, coloured=True))
    return stacked(charts)


def robustness_plot(result: Mapping[str, Any], title: str, known: Known) -> str:
    """An SVG with charts of each metric: over the signal-to-noise ratio, over the severity, and over both as a heat map."""
    charts = []
    for metric in shown_metrics([result["clean"]], known):
        factor, clean = about(metric, known).factor, result["clean"][metric]
        for noise, label in ((True, "signal-to-noise ratio in dB"), (False, "severity")):
            curves = {name: curve for name, curve in result["curves"].items() if (name in NOISES) == noise}
            lines = {
                name.replace("_", " "): sorted(
                    (one["level"], factor * one["metrics"][metric]) for one in curve if metric in one["metrics"]
                )
                for name, curve in curves.items()
            }
            levels = [level for points in lines.values() for level, _ in points]
            if levels:
                lines["clean"] = [(min(levels), factor * clean), (max(levels), factor * clean)]
                charts.append(line_chart(lines, label, _label(metric, known), title))
        for grid in grids(result, metric):
            labels = f"{grid.noise} noise", grid.corruption.replace("_", " ")
            charts.append(value_map(factor * grid.values, grid.rows, grid.columns, labels, _label(metric, known)))
    return stacked(charts)


def _label(metric: str, known: Known) -> str:
    task, _, name = metric.partition("/")
    label = heading(metric, known)
    label = f"{task} {name}" if label == task else label
    return f"{label} in %" if about(metric, known).percent else label
