"""The page of `mmjax report`."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mmjax import charts, html
from mmjax.errors import UserError
from mmjax.evaluate.tables import all_metrics, shown_metrics
from mmjax.files import local, write_whole, writing
from mmjax.metric import Known, about
from mmjax.report import curves
from mmjax.report.samples import samples
from mmjax.report.subject import DEFAULT, Choice, Subject, chosen, common, known, open_subjects
from mmjax.telemetry import ADAPTERS
from mmjax.train import guards
from mmjax.train.report import changed_adapters, unchanged_adapters

CLASSES = 20  # of a confusion matrix
WORDS = 15  # of a list of confused words


def report(directories: Sequence[str | Path], out: str | Path, examples: int = 8, choice: Choice = DEFAULT) -> Path:
    """Writes a page about one or several runs; returns its path.

    Args:
      examples: number of examples of the split to show.
      choice: which checkpoint is measured, and on what.

    Raises:
      UserError: a directory is no run directory, a run does not have what was chosen, or the page cannot be written.
    """
    path = local(out, "--out")
    if not path.absolute().parent.is_dir():  # before the runs are measured
        raise UserError(f"cannot write {path}: there is no folder {path.parent}")
    text = page(open_subjects(directories, choice), examples)
    with writing(out):
        write_whole(path, text)
    return path


def page(subjects: Sequence[Subject], examples: int) -> str:
    """The page as one HTML document without other files."""
    names = ", ".join(subject.name for subject in subjects)
    parts = [_summary(subjects)]
    parts.append(html.section("Training", curves.training(subjects), "training"))
    if speed := curves.speed(subjects):
        parts.append(html.section("Throughput and padding", speed, "speed"))
    if found := curves.evaluations(subjects):
        parts.append(html.section("Evaluations", found, "evaluations"))
    if found := "".join(_changes(subject, len(subjects) > 1) for subject in subjects):
        parts.append(html.section("What the training changed", found, "changes"))
    if found := "".join(_confusions(subject, len(subjects) > 1) for subject in subjects):
        parts.append(html.section("Confusions", found, "confusions"))
    for group in common(subjects):
        title = "Examples" + (f" of {', '.join(s.name for s in group)}" if len(group) < len(subjects) else "")
        if numbers := chosen(group, examples):
            parts.append(html.section(title, samples(group, numbers), "examples"))
    return html.document(f"Report: {names}", "".join(parts))


def _summary(subjects: Sequence[Subject]) -> str:
    """What was trained and measured, and the final metrics with their intervals."""
    rows = []
    for subject in subjects:
        measured, step = subject.measured, max((r["step"] for r in subject.records), default=0)
        how = (
            f"{measured.metrics['examples']:,} of {measured.split}, {measured.subset}" if measured else subject.problem
        )
        after = f"{measured.run.step:,}" if measured else ""
        after += f" (the best one is {subject.better:,}: --step best)" if subject.better is not None else ""
        cells = (subject.name, str(subject.directory), f"{step:,} of {subject.config.steps:,}", after, how)
        rows.append([html.escape(cell) for cell in cells])
    body = html.table(["run", "directory", "steps", "checkpoint", "measured examples"], rows, numbers=9)
    having = [subject for subject in subjects if subject.measured]
    if not having:
        return html.section("Metrics", body, "metrics")
    found, of = [subject.measured.metrics for subject in having], known(having)
    lines = []
    for name in all_metrics(found, of):
        form = about(name, of)
        values = [form.written(s.measured.metrics.get(name), s.measured.intervals.get(name)) for s in having]
        lines.append([html.escape(_title(name, of)), *map(html.escape, values)])
    body += "<p>With 95 % intervals (percentile bootstrap over examples).</p>"
    body += html.table(["metric", *(subject.name for subject in having)], lines)
    if len(having) > 1:
        body += html.figures([_bars(having, name) for name in shown_metrics(found, of)])
    return html.section("Metrics", body, "metrics")


def _title(name: str, of: Known) -> str:
    task, _, metric = name.partition("/")
    return f"{task} {about(name, of).heading or metric}"


def _bars(subjects: Sequence[Subject], name: str) -> str:
    """A metric of all runs with its intervals."""
    of = known(subjects)
    unit, factor = curves.unit_of(name, of)
    having = {subject.name: subject.measured for subject in subjects if name in subject.measured.metrics}
    values = {run: factor * measured.metrics[name] for run, measured in having.items()}
    ends = {run: tuple(factor * x for x in m.intervals[name]) for run, m in having.items() if name in m.intervals}
    return charts.bar_chart(values, unit, _title(name, of), intervals=ends, coloured=True)


def _changes(subject: Subject, several: bool) -> str:
    """What the model forgot of data that it was not trained on, and how far adapters changed their kernels."""
    found = guards.compared(*guards.recorded(subject.directory, subject.records))
    body = html.table(guards.HEADINGS, [list(map(html.escape, row)) for row in found], numbers=2) if found else ""
    for record in [record for record in subject.records if record["kind"] == ADAPTERS][-1:]:
        lines = filter(None, (unchanged_adapters(record), changed_adapters(record)))
        body += "".join(f"<p>{html.escape(line)}</p>" for line in lines)
    return f"<h3>{html.escape(subject.name)}</h3>{body}" if body and several else body


def _confusions(subject: Subject, several: bool) -> str:
    """Matrices of classes, and lists of confused words."""
    parts = []
    for task, found in (subject.measured.confusions if subject.measured else {}).items():
        title = f"{subject.name}: {task}" if several else task
        if "matrix" in found:
            parts.append(_matrix(title, np.array(found["matrix"]), found["classes"]))
        if words := found.get("substitutions"):
            rows = [(html.escape(true), html.escape(said), f"{count:,}") for true, said, count in words[:WORDS]]
            parts.append(f"<h3>{html.escape(title)}</h3>{html.table(['word', 'written', 'times'], rows, numbers=2)}")
    return html.figures(parts) if parts else ""


def _matrix(title: str, counts: np.ndarray, names: Sequence[str]) -> str:
    """The confusion matrix of a task; of many classes, those with the most errors."""
    if len(names) > CLASSES:
        wrong = counts.sum(axis=0) + counts.sum(axis=1) - 2 * counts.diagonal()
        kept = np.sort(np.argsort(-wrong, kind="stable")[:CLASSES])
        title = f"{title}: {CLASSES} of {len(names):,} classes, with the most errors"
        counts, names = counts[np.ix_(kept, kept)], [names[place] for place in kept]
    return charts.heat_map(counts, names, names, ("truth", "prediction"), title)
