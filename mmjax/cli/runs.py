"""The commands `train`, `eval`, `predict`, `checkpoints` and `goodput`."""

from pathlib import Path
from typing import Any

from mmjax.cli.shared import command, print_json, whole
from mmjax.errors import UserError
from mmjax.files import local


def add_parsers(commands: Any) -> None:
    """Adds the commands."""
    sub = command(commands, "train", "train a config, or resume its training", "CONFIG", json_output=False)
    sub.set_defaults(func=_train, overrides=True, joins=True)
    sub.add_argument("--run-dir", help="directory of the run (default: runs/NAME)")
    sub.add_argument(
        "--smoke", action="store_true", help="test the config: a few steps of a tiny model with the same parts"
    )
    sub.add_argument(
        "--restart",
        action="store_true",
        help="begin at the first step; the files of the earlier run are moved to a folder",
    )
    sub.add_argument(
        "--accept-changed-data", action="store_true", help="resume although the data has changed since the run began"
    )
    sub.epilog = "Any other --key VALUE overrides a key of the config: --checkpoint.every-steps 50"

    sub = command(commands, "eval", "evaluate a run on every subset of its modalities", "RUN")
    sub.set_defaults(func=_eval, joins=True, overrides=True)
    sub.add_argument("--split", default=None, help="default: the config's evaluation.split")
    sub.add_argument(
        "--examples", type=whole(1), help="number of examples, spread evenly over the split (default: all)"
    )
    sub.add_argument("--source", metavar="NAME", help="measure one source of a mixture alone")
    sub.add_argument("--subset", metavar="MODALITIES", action="append", help="such as speech+image (default: all)")
    sub.add_argument(
        "--intervals",
        metavar="GROUP",
        nargs="?",
        const="example",
        help="95 %% intervals by the bootstrap; with GROUP, such as a column speaker, its examples are drawn together",
    )
    sub.add_argument("--confusions", action="store_true", help="what is taken for what, and the worst examples")
    sub.epilog = "Any other --key VALUE overrides a key of the config: --data.source.splits.test other.tsv"

    sub = command(commands, "predict", "predict about one example", "RUN")
    sub.set_defaults(func=_predict, joins=True)
    for modality in ("speech", "image"):
        sub.add_argument(
            f"--{modality}", metavar="FILE", action="append", help="may be repeated: several in one example"
        )
    sub.add_argument("--text", metavar="STRING")
    sub.add_argument(
        "--input",
        metavar="NAME=FILE",
        action="append",
        default=[],
        help="an input with another name: left=left.wav, imu=imu.npy",
    )
    sub.add_argument(
        "--save", metavar="FILE", help="write predicted samples to this WAV file, if the run has a Denoise"
    )
    for tag in ("language", "task"):
        sub.add_argument(f"--{tag}", help=f"{tag} tag of the text, if the run's data.prefixes use it")
    sub.add_argument("--example", type=whole(0), metavar="N", help="predict example N of the evaluation split instead")

    sub = command(
        commands, "checkpoints", "list the checkpoints with size, digest and state (intact or damaged)", "RUN"
    )
    sub.set_defaults(func=_checkpoints)

    sub = command(commands, "goodput", "show where the time of a run went, over all its starts", "RUN")
    sub.set_defaults(func=_goodput)


def _train(options, rest) -> int:
    from mmjax.config import load, override, smoke
    from mmjax.train.loop import train
    from mmjax.train.smoke import AS_ASKED

    config = override(load(options.config), rest)
    config = override(smoke(config), rest, only=AS_ASKED) if options.smoke else config
    train(config, Path(options.run_dir or f"runs/{config.name}"), options.restart, options.accept_changed_data)
    return 0


def _eval(options, rest) -> int:
    from mmjax import progress
    from mmjax.evaluate.tables import table, tables_of_confusions
    from mmjax.run import evaluate_run

    further = {"intervals": options.intervals, "confusions": options.confusions}
    result = evaluate_run(options.run, options.split, options.examples, rest, options.source, options.subset, **further)
    if options.json:
        print_json(result)
        return 0
    title = f"{result['split']} split after step {result['step']}"
    progress.out.print(table(result["subsets"], title, result.get("intervals")))
    # Of all subsets only the largest, unless some are asked for.
    for subset in list(result.get("confusions", ()))[0 if options.subset else -1 :]:
        for one in tables_of_confusions(result["confusions"][subset], subset):
            progress.out.print(one)
    return 0


def _predict(options, rest) -> int:
    from mmjax.run import Run

    save = options.save and local(options.save, "--save")
    run = Run(options.run)
    if options.example is None:
        tags = {"language": options.language, "task": options.task}
        others = dict(_named_input(one) for one in options.input)
        result = run.predict(_one(options.speech), _one(options.image), options.text, tags=tags, **others)
    elif any((options.speech, options.image, options.text, options.language, options.task, options.input)):
        raise UserError("give either --example, or inputs and tags of your own")
    else:
        result = run.predict_example(options.example)
    result = _saved(result, save, run)
    if options.json:
        print_json(result)
        return 0
    if "example" in result:
        truth = dict(result["example"])
        place = "example {number} of the {split} split, from {modalities}".format(**truth)
        said = [
            f"{name} {value}" for name, value in truth.items() if name not in ("number", "split", "modalities", "text")
        ]
        print(f"{place}: {'; '.join([truth['text'], *said] if truth['text'] else said)}")
    for name, task in run.config.model.tasks.items():
        if name in result:
            print("\n".join(task.lines(name, result)))
    return 0


def _one(files: list[str] | None) -> str | list[str] | None:
    return files[0] if files and len(files) == 1 else files


def _named_input(text: str) -> tuple[str, str]:
    name, sign, file = text.partition("=")
    if not (name.isidentifier() and sign and file):
        raise UserError(f"--input should be NAME=FILE, not '{text}'")
    return name, file


def _saved(result: dict[str, Any], path: Path | None, run: Any) -> dict[str, Any]:
    """Writes the samples of the result to a file, and replaces them by its name."""
    samples = [name for name, value in result.items() if hasattr(value, "dtype")]
    if path and not samples:
        raise UserError("there is nothing to save: no task of this run predicts samples, or there is no speech input")
    for name in samples:
        if path:
            from mmjax.data.audio import write_audio
            from mmjax.train.report import sample_rate

            write_audio(path, result[name], sample_rate(run.config))
        result[name] = str(path) if path else "denoised speech (write it with --save FILE)"
    return result


def _checkpoints(options, rest) -> int:
    from mmjax import progress
    from mmjax.train.checkpoint import describe_run, table

    found = describe_run(options.run)
    if options.json:
        print_json(found)
    else:
        progress.out.print(table(found, options.run))
    return 0


def _goodput(options, rest) -> int:
    from mmjax import progress
    from mmjax.train.ledger import goodput, table

    found = goodput(options.run)
    if options.json:
        print_json(found)
    else:
        progress.out.print(table(found, options.run))
    return 0
