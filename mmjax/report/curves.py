"""Curves of the metrics that runs write while they train: losses, rates, padding and evaluations."""

from collections.abc import Callable, Sequence
from typing import Any

from mmjax import charts, html
from mmjax.errors import UserError
from mmjax.metric import Known, about
from mmjax.report.subject import Subject, known
from mmjax.train.ledger import KINDS, goodput

STEPS = 30.0  # the ratio of the largest to the smallest loss from which its axis is logarithmic
COUNTS = ("examples", "skipped", "lacking")  # of evaluations; they are no curves
# The units of y axes, and their factor.
UNITS = {
    "learning_rate": ("learning rate", 1),
    "steps_per_second": ("steps per second", 1),
    "examples_per_second": ("examples per second", 1),
    "audio_seconds_per_second": ("seconds of audio per second", 1),
    "mfu": ("% of the peak FLOP/s", 100),
    "data_wait": ("% of the time", 100),
    "padding": ("% of the positions", 100),
}
SPEED = ("examples_per_second", "steps_per_second", "audio_seconds_per_second", "mfu", "data_wait")

NOTES = ("warning", "spike", "rollback", "skipped")  # kinds of records with a text
Series = dict[str, list[tuple[float, float | None]]]  # (step, value) by the name of the line


def training(subjects: Sequence[Subject]) -> str:
    """Losses, the learning rate, and what else the train step measures."""
    names = _names(subjects, "train")
    losses = [name for name in names if name == "loss" or name.endswith("/loss")]
    others = [n for n in names if n not in (*losses, *SPEED, "learning_rate") and not n.startswith("padding/")]
    drawn = [_chart(name, "loss", _series(subjects, name, "train"), log_scale=True) for name in losses]
    drawn += [_named(subjects, name) for name in ("learning_rate", *others) if name in names]
    warnings = [
        f"<p>{html.escape(subject.name)}, step {record['step']}: {html.escape(str(record.get('text', '')))}</p>"
        for subject in subjects
        for record in subject.records
        if record["kind"] in NOTES
    ]
    return html.figures(drawn) + "".join(warnings) if drawn else "<p>No metrics of training are written yet.</p>"


def speed(subjects: Sequence[Subject]) -> str:
    """Throughput, the wait for data, the share of empty positions in the batches, and where the time went."""
    names = _names(subjects, "train")
    drawn = [_named(subjects, name) for name in SPEED if name in names]
    padding: Series = {}
    for name in (name for name in names if name.startswith("padding/")):
        for run, points in _series(subjects, name, "train", 100).items():
            padding[_both(run, name.removeprefix("padding/"), len(subjects))] = points
    drawn += [_chart("padding", UNITS["padding"][0], padding)] if padding else []
    return html.figures(drawn + [chart for subject in subjects if (chart := _goodput(subject, len(subjects) > 1))])


def _goodput(subject: Subject, several: bool) -> str:
    """Where the time of a run went; nothing if its ledger is missing."""
    try:
        found = goodput(subject.directory)
    except UserError:  # the run is of an earlier version
        return ""
    title = (
        f"goodput{f' of {subject.name}' * several}: {100 * found['goodput']:.1f} % of {charts.number(found['wall'])} s"
    )
    shares = {KINDS[kind][0]: 100 * seconds / found["wall"] for kind, seconds in found["seconds"].items() if seconds}
    return charts.bar_chart(shares, "% of the time", title)


def evaluations(subjects: Sequence[Subject]) -> str:
    """The metrics of evaluations, a line for each subset of the modalities. Those of groups are in the run's files."""
    names = [name for name in _names(subjects, "eval") if name.count("/") == 1 and name.split("/")[1] not in COUNTS]
    names.sort(key=lambda name: (name.split("/")[0], name.endswith("/loss")))
    drawn = []
    for name in names:
        unit, factor = unit_of(name, known(subjects))
        records = [record for s in subjects for record in s.records if record["kind"] == "eval" and name in record]
        measured, series = list(dict.fromkeys(record["subset"] for record in records)), Series()
        for subset in measured:
            own = _series(subjects, name, "eval", factor, lambda record, subset=subset: record["subset"] == subset)
            series |= {_both(run, subset, len(subjects), len(measured)): points for run, points in own.items()}
        drawn.append(_chart(name if len(measured) > 1 else f"{name}, {measured[0]}", unit, series))
    return html.figures(drawn)


def _both(run: str, other: str, runs: int, others: int = 2) -> str:
    """The name of a line: of its run and of something else, if there are several of them."""
    return f"{run}, {other}" if runs > 1 and others > 1 else run if runs > 1 else other


def unit_of(name: str, of: Known) -> tuple[str, float]:
    """The unit of a metric "TASK/METRIC" for people, and its factor."""
    found = about(name, of)
    return "%" if found.percent else name.rpartition("/")[2].replace("_", " "), found.factor


def _names(subjects: Sequence[Subject], kind: str) -> list[str]:
    """The names of the numbers in records of a kind, sorted. A number that is always 0, such as skipped steps, is left out."""
    found = {
        name
        for subject in subjects
        for record in subject.records
        if record["kind"] == kind
        for name, value in record.items()
        if name != "step" and isinstance(value, int | float) and value != 0
    }
    return sorted(found, key=lambda name: (name.count("/"), name))


def _series(
    subjects: Sequence[Subject],
    name: str,
    kind: str,
    factor: float = 1,
    of: Callable[[Any], bool] = lambda record: True,
) -> Series:
    """A line for each run that has such a number; null, which is written instead of NaN, is a gap."""
    found: Series = {}
    for subject in subjects:
        records = [r for r in subject.records if r["kind"] == kind and name in r and of(r)]
        if records:
            found[subject.name] = [(r["step"], r[name] if r[name] is None else factor * r[name]) for r in records]
    return found


def _named(subjects: Sequence[Subject], name: str) -> str:
    """A chart of a number of the train step."""
    unit, factor = UNITS.get(name) or unit_of(name, known(subjects))
    return _chart(name.replace("_", " "), unit, _series(subjects, name, "train", factor))


def _chart(title: str, y_label: str, series: Series, log_scale: bool = False) -> str:
    values = [y for points in series.values() for _, y in points if y]
    steep = log_scale and bool(values) and min(values) > 0 and max(values) > STEPS * min(values)
    return charts.line_chart(series, "step", y_label, title, log_scale=steep)
