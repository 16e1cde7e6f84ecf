"""The command `align`: the times of the words of a known text."""

from typing import Any

from mmjax.cli.shared import command, print_json
from mmjax.files import local, write_whole, writing


def add_parser(commands: Any) -> None:
    """Adds the command."""
    sub = command(commands, "align", "find when the words of a known text are spoken in a recording", "RUN")
    sub.set_defaults(func=_align)
    sub.add_argument("--speech", metavar="FILE", required=True, help="the recording")
    sub.add_argument("--text", metavar="STRING", required=True, help="what is spoken")
    sub.add_argument("--model-task", metavar="NAME", help="the CTC or Write to use, if the run has several")
    for tag in ("language", "task"):
        sub.add_argument(f"--{tag}", help=f"{tag} tag of the text, if the run's data.prefixes use it")
    sub.add_argument(
        "-o", "--out", metavar="FILE", help="write subtitles (.srt, .vtt), a .TextGrid for Praat, or .json"
    )


def _align(options, rest) -> int:
    from mmjax.decode import format_of
    from mmjax.run import Run

    out = options.out and local(options.out, "--out")
    written = format_of(options.out) if out else None
    tags = {"language": options.language, "task": options.task}
    found = Run(options.run).align(options.speech, options.text, task=options.model_task, tags=tags)
    if out:
        with writing(out):
            write_whole(out, written(found))
    if options.json:
        print_json(found.plain())
    elif not out:
        for word in found.words:
            print(f"{word.start:9.2f} {word.end:9.2f} {word.confidence:6.2f}  {word.word}")
    return 0
