"""The commands `crossval` and `sweep`: several runs of one config."""

from pathlib import Path
from typing import Any

from mmjax.cli.shared import command, print_json, whole
from mmjax.errors import UserError
from mmjax.files import local, write_whole, writing


def add_parsers(commands: Any) -> None:
    """Adds the commands."""
    text = "train a config on all folds but one, evaluate it on this one, and repeat this for every fold"
    sub = command(commands, "crossval", text, "CONFIG")
    sub.set_defaults(func=_crossval, kind="crossval")
    sub.add_argument("--folds", type=whole(2), default=5, metavar="K", help="number of folds (default: 5)")
    text = (
        "a label, tag or column, or `source`: examples that share it are in one fold (default: any example in any fold)"
    )
    sub.add_argument("--group", metavar="NAME", help=text)
    _add_options(sub)
    sub = command(commands, "sweep", "train a config with every combination of some values", "CONFIG")
    sub.set_defaults(func=_sweep, kind="sweep")
    sub.add_argument(
        "--over",
        action="append",
        default=[],
        metavar="KEY=VALUE,VALUE",
        help="a key of the config and its values; may be repeated, for a grid; commas in brackets do not divide",
    )
    sub.add_argument("--seeds", type=whole(1), default=1, metavar="N", help="repeat each with N seeds (default: 1)")
    _add_options(sub)


def _add_options(sub: Any) -> None:
    sub.set_defaults(overrides=True, computes=False)
    text = "number of runs that train at the same time, each on its share of the GPUs (default: 1)"
    sub.add_argument("--parallel", type=whole(1), default=1, metavar="N", help=text)
    sub.add_argument(
        "--run-dir", metavar="DIR", help="folder of all runs (default: runs/NAME-crossval, runs/NAME-sweep)"
    )
    sub.epilog = "The same command resumes: finished runs are kept. Any other --key VALUE overrides a key of the config, for all runs."


def _crossval(options, rest) -> int:
    from mmjax.config import load, override
    from mmjax.sweep import check, folds

    config = override(load(options.config), rest)
    trials = folds(config, options.folds, options.group)
    check(trials[:1])  # the others differ only in the number of the fold
    grouped = f" by {options.group}" if options.group else ""
    return _run(trials, config.name, options, f"{config.name}: {options.folds} folds{grouped}")


def _sweep(options, rest) -> int:
    from mmjax.config import load, override
    from mmjax.sweep import check, grid

    config = override(load(options.config), rest)
    trials = grid(config, options.over, options.seeds)
    if len(trials) < 2:
        raise UserError("there is only one run; give --over KEY=VALUE,VALUE or --seeds N, or use `mmjax train`")
    check(trials)
    return _run(trials, config.name, options, f"{config.name}: {len(trials)} runs")


def _run(trials: list[Any], name: str, options: Any, title: str) -> int:
    """Runs trials and says what they gave; returns the exit code."""
    from mmjax import progress
    from mmjax.sweep import collected, plot, run_all, shown, table, write

    folder = local(options.run_dir or Path("runs") / f"{name}-{options.kind}", "--run-dir")
    outcomes = run_all(trials, folder, options.parallel)
    rows = collected(trials, outcomes)
    result = write(rows, outcomes, folder)
    if options.json:
        print_json(result)
    elif rows:
        progress.out.print(table(shown(rows), title))
    failed = list(result["failed"])
    if failed:
        progress.warn(
            f"{len(failed)} of {len(trials)} runs failed: {', '.join(failed)}; the same command tries them again"
        )
    if rows:
        with writing(folder / "results.svg"):
            write_whole(folder / "results.svg", plot(shown(rows)))
        progress.console.print(f"all metrics: {folder / 'results.tsv'}; plot: {folder / 'results.svg'}")
    return 1 if failed else 0
