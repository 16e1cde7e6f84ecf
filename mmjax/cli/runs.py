"""The commands `train`, `eval`, `predict`, `checkpoints` and `goodput`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmjax.cli.shared import add_step, command, files_and_others, print_json, seconds, whole
from mmjax.errors import UserError
from mmjax.files import local

PARTS = ("by", "voice", "longest", "overlap")  # the options of `Run.transcribe`


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
    add_step(sub)
    sub.add_argument("--split", default=None, help="default: the config's evaluation.split")
    sub.add_argument(
        "--examples", type=whole(1), help="number of examples, spread evenly over the split (default: all)"
    )
    sub.add_argument("--source", metavar="NAME", help="measure one source of a mixture alone")
    sub.add_argument("--subset", metavar="MODALITIES", action="append", help="such as speech+image (default: all)")
    sub.add_argument(
        "--save", metavar="FILE.jsonl", help="write reference, hypothesis, scores and groups of each example and subset"
    )
    sub.add_argument(
        "--intervals",
        metavar="GROUP",
        nargs="?",
        const="example",
        help="95 %% intervals by the bootstrap; with GROUP, such as a column speaker, its examples are drawn together",
    )
    sub.add_argument("--confusions", action="store_true", help="what is taken for what, and the worst examples")
    sub.epilog = "Any other --key VALUE overrides a key of the config: --data.source.splits.test other.tsv"

    _add_predict(commands)
    sub = command(
        commands, "checkpoints", "list the checkpoints with size, digest and state (intact or damaged)", "RUN"
    )
    sub.set_defaults(func=_checkpoints)

    sub = command(commands, "goodput", "show where the time of a run went, over all its starts", "RUN")
    sub.set_defaults(func=_goodput)


def _add_predict(commands: Any) -> None:
    sub = command(
        commands,
        "predict",
        "predict about files or one example: transcribe speech or answer, as the run was trained",
        "RUN",
    )
    sub.set_defaults(func=_predict, joins=True, overrides=True)
    sub.add_argument(
        "files", metavar="FILES", nargs="*", help="recordings and pictures, folders, and patterns; needs --out"
    )
    sub.add_argument(
        "--manifest", metavar="TABLE", help="the examples of a .jsonl, .csv, .tsv or .parquet; needs --out"
    )
    sub.add_argument(
        "-o", "--out", metavar="OUTPUT.jsonl", help="predictions about many; continued if it has some already"
    )
    add_step(sub)
    for modality in ("speech", "image"):
        sub.add_argument(
            f"--{modality}", metavar="FILE", action="append", help="may be repeated: several in one example"
        )
    sub.add_argument(
        "--stream", metavar="FILE", help="a recording, transcribed a chunk at a time as if it were spoken now"
    )
    sub.add_argument("--text", metavar="STRING")
    sub.add_argument(
        "--input",
        metavar="NAME=FILE",
        action="append",
        default=[],
        help="an input with another name: left=left.wav, imu=imu.npy; a name may be repeated: several in one example",
    )
    sub.add_argument(
        "--save",
        metavar="FILE",
        help="write predicted samples to this WAV file (of many: folder), if the run has a Denoise",
    )
    for tag in ("language", "task"):
        sub.add_argument(f"--{tag}", help=f"{tag} tag of the text, if the run's data.prefixes use it")
    sub.add_argument(
        "--phrases",
        metavar="PHRASE",
        action="append",
        default=[],
        help="a name or another phrase that is expected in the text, if the run's decoding has Phrases; may be repeated",
    )
    sub.add_argument(
        "--by", choices=("voice", "windows"), help="transcribe recordings in parts: where nobody speaks, or windows"
    )
    sub.add_argument("--voice", metavar="NAME", help="how speech is found with --by voice: energy (default), or silero")
    sub.add_argument(
        "--longest", type=seconds, metavar="SECONDS", help="of a part, at most (default: 30, or what fits)"
    )
    sub.add_argument("--overlap", type=seconds, metavar="SECONDS", help="of windows (default: a sixth of a window)")
    sub.add_argument(
        "--silence", type=seconds, metavar="SECONDS", help="that end an utterance of --stream (default: 0.8)"
    )
    sub.add_argument("--example", type=whole(0), metavar="N", help="predict example N of the evaluation split instead")


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
    from mmjax.metric import heading
    from mmjax.models.task import known_of
    from mmjax.run import Run

    chosen = {"subsets": options.subset, "source": options.source, "save": options.save}
    chosen |= {"intervals": options.intervals, "confusions": options.confusions}
    run = Run(options.run, rest, step=options.step)
    result, known = run.evaluate(options.split, options.examples, **chosen), known_of(run.config.model.tasks)
    if options.json:
        print_json(result)
        return 0
    title = f"{result['split']} split after step {result['step']}"
    progress.out.print(table(result["subsets"], title, known, result.get("intervals")))
    for name, signature in result.get("signatures", {}).items():
        progress.out.print(f"{heading(name, known)}: {signature}", markup=False)
    # The confusions of the largest subset, or of the subsets that the user names.
    for subset in list(result.get("confusions", ()))[0 if options.subset else -1 :]:
        for one in tables_of_confusions(result["confusions"][subset], subset):
            progress.out.print(one)
    return 0


def _predict(options, rest) -> int:
    from mmjax.data.to_predict import check_places
    from mmjax.evaluate.predictions import saved
    from mmjax.run import Run

    save = options.save and local(options.save, "--save")
    files, overrides = files_and_others(options.files, rest)
    others = _named_inputs(options.input)
    many = bool(files or options.manifest or options.out) and not options.stream
    tags = {name: tag for name in ("language", "task") if (tag := getattr(options, name))}
    if many:
        _check_many(options, files, tags)
    single = [one for one in (options.manifest, options.stream) if one]
    named = [file for several in others.values() for file in several]
    check_places([*files, *single, *(options.speech or ()), *(options.image or ()), *named])
    parts = {name: value for name in PARTS if (value := getattr(options, name)) is not None}
    if options.silence and not options.stream:
        raise UserError("--silence is an option of --stream; give --stream FILE, or leave out --silence")
    run = Run(options.run, overrides, step=options.step)
    if options.stream:
        apart = ("speech", "image", "text", "input", "save", "language", "task", "phrases", *PARTS)
        if any(getattr(options, name) for name in apart) or options.example is not None:
            raise UserError("give --stream alone (with --silence), or inputs, tags and phrases of your own")
        return _stream(run, options)
    if many:
        return _predict_many(options, files, tags, run, save, parts)
    if options.example is None:
        given = {"speech": _one(options.speech), "image": _one(options.image), "text": options.text}
        given |= {name: _one(several) for name, several in others.items()}
        if parts:
            result = run.transcribed(given, tags, run.checked_phrases(options.phrases), parts)
        else:
            result = run.predict(**given, tags=tags, phrases=options.phrases)
    elif any(
        getattr(options, name) for name in ("speech", "image", "text", "language", "task", "input", "phrases", *PARTS)
    ):
        raise UserError("give either --example, or inputs, tags and phrases of your own")
    else:
        result = run.predict_example(options.example)
    if save and not any(hasattr(value, "dtype") for value in result.values()):
        raise UserError("there is nothing to save: no task of this run predicts samples, or there is no speech input")
    result = saved(result, save, run.sample_rate)
    if options.json:
        print_json(result)
        return 0
    if "example" in result:
        truth = dict(result["example"])
        place = "example {number} of the {split} split, from {modalities}".format(**truth)
        said = [
            f"{name} {', '.join(map(str, value)) if isinstance(value, list) else value}"
            for name, value in truth.items()
            if name not in ("number", "split", "modalities", "text")
        ]
        print(f"{place}: {'; '.join([truth['text'], *said] if truth['text'] else said)}")
    for name, task in run.config.model.tasks.items():
        if f"{name}/segments" in result:
            for segment in result[f"{name}/segments"]:
                print(_timed(**segment))
        elif name in result:
            print("\n".join(task.lines(name, result)))
    return 0


def _check_many(options, files: list[str], tags: Mapping[str, str]) -> None:
    """Checks the arguments of a prediction about many examples; raises UserError."""
    if not options.out:
        raise UserError("predictions about many examples are written into a file; name it with --out")
    one = (options.speech, options.image, options.text, options.input, options.example is not None)
    if any(one) or bool(files) == bool(options.manifest):
        raise UserError("give either FILES, or --manifest TABLE, or one example (--speech, --image, --text, --example)")
    own = [*tags, *(["phrases"] if options.phrases else [])]
    if options.manifest and own:
        raise UserError(f"the table has a column '{own[0]}' with a value for each example; leave out --{own[0]}")


def _predict_many(
    options, files: list[str], tags: Mapping[str, str], run: Any, save: Path | None, parts: Mapping[str, Any]
) -> int:
    from mmjax.evaluate.predictions import predict_files

    run.check_tags(tags)
    examples = run.examples(files, options.manifest, tags, options.phrases)
    counts = predict_files(run, examples, local(options.out, "--out"), save, parts)
    if options.json:
        print_json(counts | {"out": options.out})
    else:
        print(f"{counts['examples']:,} examples, {counts['errors']:,} with an error: {options.out}")
    return 0


def _timed(start: float, end: float, text: str, **_: Any) -> str:
    """A segment of a recording: "0:01:02.3 - 0:01:05.0  its text"."""

    def clock(seconds: float) -> str:
        return f"{int(seconds // 3600)}:{int(seconds // 60) % 60:02}:{seconds % 60:04.1f}"

    return f"{clock(start)} - {clock(end)}  {text}"


def _stream(run: Any, options: Any) -> int:
    """Transcribes a file as a stream: complete utterances on standard output, the text of the next one so far on the terminal."""
    from mmjax import progress
    from mmjax.data.audio import read_blocks
    from mmjax.transcription import Streaming

    chosen = {} if options.silence is None else {"silence": options.silence}
    streaming, finals = Streaming(run, **chosen), []
    with progress.console.status("") as status:
        for heard in streaming.texts(read_blocks(options.stream, streaming.rate, seconds=streaming.chunk)):
            status.update(heard.text)
            if heard.final:
                finals.append({"start": heard.start, "end": heard.end, "text": heard.text})
                if not options.json:
                    print(_timed(**finals[-1]), flush=True)
    report = streaming.report()
    if options.json:
        print_json({streaming.name: " ".join(one["text"] for one in finals), "segments": finals, "latency": report})
        return 0
    print(
        f"chunks of {report['chunk']:.2f} s and {report['look_ahead']:.2f} s after them; latency of a chunk: p50 "
        f"{1000 * report['p50']:.1f} ms, p99 {1000 * report['p99']:.1f} ms; real-time factor {report['real_time_factor']:.3f}"
    )
    return 0


def _one(files: list[str] | None) -> str | list[str] | None:
    return files[0] if files and len(files) == 1 else files


def _named_inputs(texts: list[str]) -> dict[str, list[str]]:
    """The files of each input that --input names."""
    found: dict[str, list[str]] = {}
    for text in texts:
        name, sign, file = text.partition("=")
        if not (name.isidentifier() and sign and file):
            raise UserError(f"--input should be NAME=FILE, not '{text}'")
        if name in ("speech", "image", "text", "phrases"):
            raise UserError(f"--input {text}: {name} has an option of its own: --{name}")
        found.setdefault(name, []).append(file)
    return found


def _checkpoints(options, rest) -> int:
    from mmjax.train.checkpoint import before_the_first, describe_run, table

    found = describe_run(options.run)
    if not found and not options.json:
        print(before_the_first(options.run))
        return 0
    return _shown(options, found, table)


def _goodput(options, rest) -> int:
    from mmjax.train.ledger import goodput, table

    return _shown(options, goodput(options.run), table)


def _shown(options: Any, found: Any, table: Any) -> int:
    """Prints facts about a run as JSON, or as a table with the run's name."""
    from mmjax import progress

    if options.json:
        print_json(found)
    else:
        progress.out.print(table(found, options.run))
    return 0
