"""The commands `compare`, `robustness` and `report`."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from mmjax.cli.shared import add_step, command, files_and_others, print_json, whole
from mmjax.errors import UserError
from mmjax.files import address_of, local, write_whole, writing

OVERRIDES = "Any other --key VALUE overrides a key of the config: --data.source.splits.test other.tsv"
BY = "draw the examples of each group together for intervals, such as speaker (default: each by itself)"


def add_parsers(commands: Any) -> None:
    """Adds the commands."""
    text = "compare runs, or saved evaluations, on the same examples"
    sub = command(commands, "compare", text, "RUN")
    sub.set_defaults(func=_compare, overrides=True)
    sub.add_argument("others", metavar="RUN", nargs="+", help="a run directory, or a file of `mmjax eval --save`")
    sub.add_argument("--by", metavar="GROUP", help=BY)
    add_step(sub)
    _add_choice(sub)

    text = "measure a run with noise in its recordings and corruptions of its pictures"
    sub = command(commands, "robustness", text, "RUN")
    sub.set_defaults(func=_robustness, overrides=True)
    add_step(sub)
    sub.add_argument(
        "--corruptions",
        metavar="NAMES",
        type=_several(str),
        help="of white, babble, gaussian_noise, blur, jpeg and brightness (default: all that fit the inputs)",
    )
    sub.add_argument("--snr", metavar="DB", type=_several(float), help="of noise in recordings (default: 20,10,5,0)")
    sub.add_argument(
        "--severity", metavar="N", type=_several(whole(1)), help="of corruptions of pictures (default: 1,2,3,4,5)"
    )
    sub.add_argument(
        "--joint",
        action="store_true",
        help="also corrupt recordings and pictures together: --corruptions white,blur --joint",
    )
    sub.add_argument("--seed", type=whole(0), default=0, help="of the noise (default: 0)")
    _add_choice(sub)

    text = "write an HTML page about runs: curves, metrics with intervals, confusions, and examples to see and hear"
    sub = commands.add_parser("report", help=text, description=text, allow_abbrev=False)
    sub.set_defaults(func=_report, overrides=True)
    sub.add_argument("runs", metavar="RUN", nargs="+", help="a run directory")
    add_step(sub)
    sub.add_argument("--split", default=None, help="default: the config's evaluation.split")
    sub.add_argument(
        "--subset", metavar="MODALITIES", help="such as speech+image (default: the first of evaluation.subsets)"
    )
    sub.add_argument("-o", "--out", metavar="FILE", default="report.html", help="the page (default: report.html)")
    sub.add_argument(
        "--examples",
        type=whole(0),
        default=8,
        metavar="N",
        help="examples of the split to show (default: 8)",
    )
    sub.epilog = OVERRIDES


def _add_choice(sub: Any) -> None:
    sub.add_argument("--split", default=None, help="default: the config's evaluation.split")
    sub.add_argument(
        "--examples", type=whole(1), help="number of examples, spread evenly over the split (default: all)"
    )
    sub.add_argument("--subset", metavar="MODALITIES", help="such as speech+image (default: the largest)")
    sub.add_argument("--picture", metavar="FILE.svg", help="plot the result")
    sub.epilog = OVERRIDES


def _several(kind: Callable[[str], Any]) -> Callable[[str], list[Any]]:
    """A parser of values that commas separate."""

    def parse(text: str) -> list[Any]:
        return [kind(one) for one in text.split(",")]

    parse.__name__ = "list"  # for argparse's message
    return parse


def _picture(options: Any) -> Path | None:
    if options.picture is None:
        return None
    from mmjax.evaluate.plots import check_picture

    path = local(options.picture, "--picture")
    check_picture(path)
    return path


def _compare(options, rest) -> int:
    from mmjax import progress
    from mmjax.evaluate.comparison import compare, known_of_scores, table
    from mmjax.evaluate.plots import comparison_plot
    from mmjax.evaluate.subsets import canonical

    picture, names = _picture(options), [options.run, *options.others]
    if len(set(names)) < len(names):
        raise UserError("a run is named twice; compare different runs")
    for name in names:
        if not (address_of(name) or Path(name).exists()):
            raise UserError(f"there is no {name}; name a run directory, or a file of `mmjax eval --save`")
    if options.step != "newest" and all(map(os.path.isfile, names)):
        raise UserError(
            f"--step {options.step} chooses a checkpoint of a run, but all are saved evaluations; leave it out"
        )
    opened = {name: _opened(name, options, rest) for name in names}
    known = [set(one.subsets()) for one in opened.values()]
    subset = (
        canonical(options.subset)
        if options.subset
        else max(sorted(set.intersection(*known)), key=lambda one: one.count("+"), default=None)
    )
    for name, own in zip(names, known, strict=True):
        if subset not in own:
            asked = f"'{subset}'" if subset else "a subset of modalities that all have"
            raise UserError(f"{name} has not measured {asked}; it has {', '.join(sorted(own))}")
    scores = {name: opened.pop(name).scores(subset) for name in names}
    result, about = compare(scores), known_of_scores(scores)
    title = f"{subset}, {', '.join(f'{count:,} examples of {task}' for task, count in result['examples'].items())}"
    for task, count in result["left_out"].items():
        progress.warn(f"{count:,} examples of {task} are left out: not all have measured them with the same reference")
    if picture:
        with writing(picture):
            write_whole(picture, comparison_plot(result, title, about))
    if options.json:
        print_json({"subset": subset, **result})
    else:
        progress.out.print(table(result, title, about))
    return 0


class _Saved:
    """A saved evaluation."""

    def __init__(self, path: Path, by: str | None):
        from mmjax.evaluate.comparison import read_saved

        self._found = read_saved(path, by)

    def subsets(self) -> list[str]:
        return list(self._found)

    def scores(self, subset: str) -> Mapping[str, Any]:
        return self._found[subset]


class _Measured:
    """A run. It is measured when its scores are read."""

    def __init__(self, directory: str, options: Any, overrides: list[str]):
        from mmjax.measuring import Evaluation
        from mmjax.run import Run

        self._options = options
        self._evaluation = Evaluation(Run(directory, overrides, step=options.step), options.split, by=options.by)

    def subsets(self) -> list[str]:
        return self._evaluation.subsets()

    def scores(self, subset: str) -> Mapping[str, Any]:
        from mmjax.evaluate.comparison import scores_of

        measures = self._evaluation.measure([subset], self._options.examples)[subset]
        return scores_of(measures, self._options.by)


def _opened(name: str, options: Any, rest: list[str]) -> _Saved | _Measured:
    path = Path(name)
    return _Saved(path, options.by) if path.is_file() else _Measured(name, options, rest)


def _robustness(options, rest) -> int:
    from mmjax import progress
    from mmjax.data.corruptions import NOISES, Corrupted
    from mmjax.evaluate.plots import robustness_plot
    from mmjax.evaluate.robustness import SEVERITIES, SNRS, conditions, curves, table, tables_of_grids
    from mmjax.measuring import Evaluation
    from mmjax.models.task import known_of
    from mmjax.run import Run

    picture = _picture(options)
    evaluation = Evaluation(Run(options.run, rest, step=options.step), options.split, raw=True)
    subset = evaluation.subsets([options.subset] if options.subset else None)[-1]
    recordings, pictures = evaluation.media(subset)
    if options.severity and max(options.severity) > max(SEVERITIES):
        raise UserError(f"--severity is {max(options.severity)}; it must be from 1 to {max(SEVERITIES)}")
    chosen = conditions(
        options.corruptions,
        bool(recordings),
        bool(pictures),
        options.snr or SNRS,
        options.severity or SEVERITIES,
        options.joint,
    )

    def measured(*together: tuple[str, float]) -> Mapping[str, float]:
        source = evaluation.source
        for corruption, level in together:
            streams = recordings if corruption in NOISES else pictures
            source = Corrupted(source, streams, corruption, level, options.seed)
        return evaluation.measure([subset], options.examples, source)[subset].metrics()

    result, known = curves(measured, chosen, options.joint), known_of(evaluation.run.config.model.tasks)
    title = f"{subset}, {evaluation.split} split after step {evaluation.run.step}"
    if picture:
        with writing(picture):
            write_whole(picture, robustness_plot(result, title, known))
    if options.json:
        about = {"step": evaluation.run.step, "split": evaluation.split, "subset": subset}
        print_json({**about, **result})
    else:
        for one in (table(result, title, known), *tables_of_grids(result, known)):
            progress.out.print(one)
    return 0


def _report(options, rest) -> int:
    from mmjax.report import Choice, report

    runs, overrides = files_and_others(options.runs, rest)
    choice = Choice(options.step, options.split, options.subset, tuple(overrides))
    path = report(runs, options.out, options.examples, choice)
    print(f"{path}: {path.stat().st_size / 1e6:,.1f} MB")
    return 0
