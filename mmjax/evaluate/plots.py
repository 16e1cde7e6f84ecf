"""Plots of evaluations as files, with matplotlib (the extra `plots`)."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmjax.data.corruptions import NOISES
from mmjax.errors import UserError
from mmjax.evaluate.comparison import short_names
from mmjax.evaluate.tables import FORMATS, heading, shown_metrics

WIDTH, HEIGHT = 4.5, 3.2  # of a panel, in inches


def check_picture(path: Path) -> None:
    """Checks, before anything is measured, that a plot can be written to a file of this name.

    Raises:
      UserError: matplotlib is not installed, the name ends otherwise, or there is no such folder.
    """
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise UserError("plots need matplotlib: pip install 'mmjax[plots]'") from None
    if path.suffix not in (".png", ".svg", ".pdf"):
        raise UserError(f"--picture {path}: the name of a plot ends with .png, .svg or .pdf")
    if not path.absolute().parent.is_dir():
        raise UserError(f"--picture {path}: there is no folder {path.parent}")


def plot_comparison(result: Mapping[str, Any], title: str, path: Path) -> None:
    """Writes a panel for each metric of a comparison: a point for each model, with its interval."""
    names = shown_metrics([result["metrics"]])
    models = short_names(result)
    figure, panels = _panels(len(names), title, max(HEIGHT / 2, 0.4 * len(models) + 1))
    for panel, metric in zip(panels, names, strict=True):
        for place, name in enumerate(models):
            one, factor = result["metrics"][metric].get(name), _factor(metric)
            if one:
                value, low, high = (factor * x for x in (one["value"], *one["interval"]))
                panel.errorbar(value, place, xerr=[[max(0, value - low)], [max(0, high - value)]], fmt="o", capsize=4)
        panel.set_yticks(range(len(models)), models.values())
        panel.set_ylim(len(models) - 0.5, -0.5)  # the first on top
        panel.set_xlabel(_axis(metric))
        panel.grid(axis="x", alpha=0.3)
    _save(figure, path)


def plot_robustness(result: Mapping[str, Any], title: str, path: Path) -> None:
    """Writes two panels for each metric: over the signal-to-noise ratio, and over the severity; clean data is a line."""
    names = shown_metrics([result["clean"]])
    kinds = [[name for name in result["curves"] if (name in NOISES) == noise] for noise in (True, False)]
    wanted = [(metric, own) for metric in names for own in kinds if own]
    figure, panels = _panels(len(wanted), title, HEIGHT)
    for panel, (metric, corruptions) in zip(panels, wanted, strict=True):
        factor = _factor(metric)
        panel.axhline(factor * result["clean"][metric], color="grey", linestyle="--", label="clean")
        for name in corruptions:
            points = [(one["level"], one["metrics"].get(metric)) for one in result["curves"][name]]
            points = [(level, factor * value) for level, value in points if value is not None]
            panel.plot(*zip(*points, strict=True), marker="o", label=name.replace("_", " "))
        if corruptions[0] in NOISES:
            panel.invert_xaxis()  # noise grows to the right
        panel.set_xlabel("signal-to-noise ratio in dB" if corruptions[0] in NOISES else "severity")
        panel.set_ylabel(_axis(metric))
        panel.grid(alpha=0.3)
        panel.legend()
    _save(figure, path)


def _panels(count: int, title: str, height: float) -> tuple[Any, Sequence[Any]]:
    from matplotlib.figure import Figure

    columns = min(count, 3)
    rows = -(-count // columns)
    figure = Figure(figsize=(WIDTH * columns, height * rows + 0.5), layout="constrained")
    figure.suptitle(title)
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for panel in panels[count:]:
        panel.set_axis_off()
    return figure, panels[:count]


def _factor(metric: str) -> float:
    return 100.0 if FORMATS.get(metric.split("/")[1]) == "%" else 1.0


def _axis(metric: str) -> str:
    task, name = metric.split("/")
    label = heading(metric)
    label = f"{task} {name}" if label == task else label
    return f"{label} in %" if FORMATS.get(name) == "%" else label


def _save(figure: Any, path: Path) -> None:
    try:
        figure.savefig(path, dpi=150)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from None
