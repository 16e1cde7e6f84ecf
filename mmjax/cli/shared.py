"""Helpers of all commands: reading numbers, printing JSON."""

import argparse
import math
from collections.abc import Callable
from typing import Any

from mmjax.files import json_line


def whole(least: int) -> Callable[[str], int]:
    """A parser of whole numbers that are at least `least`."""

    def parse(text: str) -> int:
        if not text.isdigit() or int(text) < least:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least {least}")
        return int(text)

    return parse


def seconds(text: str) -> float:
    """A parser of a positive number of seconds."""
    try:
        found = float(text)
    except ValueError:
        found = math.nan
    if not 0 < found < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive number of seconds")
    return found


def which(text: str) -> int | str:
    """Reads the value of `--step`."""
    if text in ("newest", "best"):
        return text
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is neither a step, nor best, nor newest")
    return int(text)


def add_step(sub: argparse.ArgumentParser) -> None:
    """Adds the option that chooses a checkpoint of a run."""
    text = "checkpoint: a step, newest (default), or best (of evaluation.best)"
    sub.add_argument("--step", type=which, default="newest", metavar="N", help=text)


def print_json(value: Any) -> None:
    """Prints one line of strict JSON; numbers that are not finite become null."""
    print(json_line(value))


def command(commands: Any, name: str, text: str, what: str, json_output: bool = True) -> argparse.ArgumentParser:
    """Adds a command with one positional argument; `what` is "CONFIG", "RUN", "DIR" or "SOURCE"."""
    sub = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
    kinds = {"CONFIG": "a config file", "RUN": "a run directory", "DIR": "a directory"}
    kinds["SOURCE"] = "a directory, or FILE.gguf"
    sub.add_argument(what.lower(), metavar=what, help=kinds[what])
    if json_output:
        sub.add_argument("--json", action="store_true", help="one JSON value on standard output")
    return sub


def files_and_others(files: list[str], rest: list[str]) -> tuple[list[str], list[str]]:
    """The files of a command, also those after options, where argparse does not expect them; and its other arguments."""
    files, others, rest = list(files), [], list(rest)
    while rest:
        one = rest.pop(0)
        if not one.startswith("--"):
            files.append(one)
        else:
            others += [one] if "=" in one or not rest else [one, rest.pop(0)]
    return files, others
