"""The commands: parse arguments and call the library.

Each command imports heavy libraries itself, so that `mmjax --help` is fast.
"""

import argparse
import dataclasses
import difflib
import logging
import os
import re
import select
import signal
import sys
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mmjax import __version__
from mmjax.cli import alignment, data, evaluation, language, runs, search, sweep
from mmjax.cli.shared import add_step, command, print_json
from mmjax.errors import Preempted, UserError, nearest
from mmjax.files import local, writing
from mmjax.tree.trust import ALL

TRUST = "--trust-code"
NO_MEMORY = (
    "this machine has no memory left; lower data.threads, data.batch_rows or data.window, use a machine with more, or see "
    "which other processes need it"
)
CLOSED_PIPE = 128 + signal.SIGPIPE  # the exit code of other programs whose output nobody reads any more
CLOSED = "Event loop is closed"  # the error of pending writes of a checkpoint after another write has failed


def main(arguments: list[str] | None = None) -> int:
    """Runs one command.

    Returns:
      The exit code. 0: success, 2: an error for the user to fix, 75: start the command again, 141: its output was closed.
    """
    (parser, commands), arguments = _parser(), sys.argv[1:] if arguments is None else list(arguments)
    if TRUST in arguments:  # before or after the command
        arguments.remove(TRUST)
        os.environ[ALL] = "1"
    _check_command(parser, commands, arguments)
    options, rest = parser.parse_known_args(arguments)
    if rest and not options.overrides:
        parser.error(f"unknown argument {rest[0]}")
    options.usage = commands[options.command].format_usage()
    with _signals(options.command):
        return _run(options, rest)


def _check_command(
    parser: argparse.ArgumentParser, commands: Mapping[str, argparse.ArgumentParser], arguments: list[str]
) -> None:
    """Ends with an error if there is no such command. The error names a command with this word in its description, or a similar one."""
    word = next((one for one in arguments if not one.startswith("-")), None)
    if word is None or word in commands:
        return
    doing = next((name for name, sub in commands.items() if word in (sub.description or "").split()), None)
    parser.error(f"there is no command {word}{f'; see mmjax {doing} --help' if doing else nearest(word, commands)}")


def _check_options(rest: list[str], usage: str) -> None:
    """Checks that no argument is a misspelt option of the command, rather than a key of the config; raises UserError."""
    own = re.findall(r"--[a-z-]+", usage)
    for flag in (one.partition("=")[0] for one in rest if one.startswith("--") and "." not in one.partition("=")[0]):
        if near := difflib.get_close_matches(flag, own, n=1, cutoff=0.8):
            from mmjax.config import Experiment

            if flag[2:].replace("-", "_") not in {field.name for field in dataclasses.fields(Experiment)}:
                raise UserError(f"there is no option {flag}; did you mean {near[0]}?")


def _parser() -> tuple[argparse.ArgumentParser, Mapping[str, argparse.ArgumentParser]]:
    """The parser of the command line, and those of the commands by name."""
    parser = argparse.ArgumentParser(prog="mmjax", description="Train one model over speech, images and text.")
    parser.add_argument("--version", action="version", version=f"mmjax {__version__}")
    # func: called with the options and the other arguments. overrides: the others are --key VALUE of the config. computes:
    # the command uses JAX. joins: it may run on several processes.
    parser.set_defaults(overrides=False, computes=True, joins=False)
    parser.add_argument(TRUST, action="store_true", help="run any Python file that a run directory names")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    runs.add_parsers(commands)
    alignment.add_parser(commands)
    sweep.add_parsers(commands)
    evaluation.add_parsers(commands)
    search.add_parsers(commands)
    language.add_parsers(commands)
    _add_config_commands(commands)
    _add_model_commands(commands)
    data.add_parser(commands)
    return parser, commands.choices


def _add_config_commands(commands) -> None:
    sub = command(commands, "check", "measure the five invariants on a config", "CONFIG")
    sub.set_defaults(func=_check, overrides=True)
    sub.add_argument("--smoke", action="store_true", help="on a tiny model with the same parts")

    text = "estimate memory, step time and cost by compiling the step for another machine"
    sub = command(commands, "plan", text, "CONFIG")
    sub.set_defaults(func=_plan, overrides=True)
    sub.add_argument(
        "--machine", required=True, metavar="NAME", help="h100:8, h100:8x2 (2 nodes), v5p:4x4x4, cpu:8, ..."
    )
    sub.add_argument("--price", type=float, metavar="X", help="price of a device-hour, in any currency")
    sub.add_argument(
        "--search", action="store_true", help="find the largest data.batch_rows and the cheapest remat that fit"
    )
    sub.add_argument("--estimate", action="store_true", help="estimate from shapes alone: fast, compiles nothing")
    sub.add_argument("--picture", metavar="FILE", help="draw memory and time as bars (SVG)")

    sub = command(commands, "config", "print the resolved config as JSON", "CONFIG", json_output=False)
    sub.set_defaults(func=_config, overrides=True, computes=False)

    sub = commands.add_parser("keys", help="list the keys of a config class, with their units", allow_abbrev=False)
    sub.set_defaults(func=_keys, computes=False)
    text = "such as Conformer, or FILE.py:NAME; FILE.py: list the classes of this file; default: list all classes"
    sub.add_argument("name", metavar="CLASS", nargs="?", help=text)


def _add_model_commands(commands) -> None:
    for name, function, text, given in (
        ("import", _import, "convert a model from Hugging Face's layout, or from a GGUF file", "SOURCE"),
        ("export", _export, "convert an import, or a run trained from one, back to Hugging Face's layout", "DIR"),
    ):
        sub = command(commands, name, text, given)
        sub.set_defaults(func=function)
        sub.add_argument("-o", "--out", required=True, metavar="DIR", help="a new directory")
    add_step(sub)
    sub.add_argument("--adapters", action="store_true", help="only the adapters of a run, as a directory of PEFT")
    sub.add_argument("--origin", metavar="DIR", help="the import from which the run was trained, if there are several")


def _prepare(options) -> Any:
    """Prepares JAX for a command; returns the watch on the other processes, if there are any."""
    from mmjax.parallel import processes, runtime

    if options.command == "plan":
        runtime.prepare_plan(options.machine)
    else:
        checking = options.command == "check"  # most of its time is compilation
        runtime.prepare(devices=8 if checking else None, compile_fast=checking)
    return processes.join() if options.joins else None


def _run(options, rest) -> int:
    watch, code, said = None, 1, ""
    try:
        _quiet()
        _printable()
        _check_options(rest, options.usage)
        watch = _prepare(options) if options.computes else None
        code, said = options.func(options, rest), ""
        sys.stdout.flush()
    except BrokenPipeError:
        if not _unread():
            raise
        code, said = CLOSED_PIPE, "its output was closed"
    except UserError as error:
        if watch and not isinstance(error, Preempted):
            watch.settle()
        print(f"mmjax: error: {error}", file=sys.stderr)
        code, said = error.exit_code, str(error)
    except MemoryError:
        print(f"mmjax: error: {NO_MEMORY}", file=sys.stderr)
        code, said = UserError.exit_code, NO_MEMORY
    except KeyboardInterrupt:
        resumes = "; the same command resumes from the last checkpoint" if options.command == "train" else ""
        print(f"mmjax: interrupted{resumes}", file=sys.stderr)
        code, said = 130, "interrupted"
    except SystemExit as error:  # by a signal
        code, said = error.code, "stopped by a signal"
        raise
    except Exception as error:
        if watch:
            watch.settle()
        said = f"{type(error).__name__}: {error}"
        raise
    finally:
        if watch:
            watch.leave(code, said)
    return code


def _check(options, rest) -> int:
    from mmjax import progress
    from mmjax.check import check, table
    from mmjax.config import load, override, smoke

    config = override(load(options.config), rest)
    results = check(smoke(config) if options.smoke else config)
    if options.json:
        print_json(results)
    else:
        progress.out.print(table(results))
    return 0 if all(result["holds"] for result in results.values()) else 1


def _plan(options, rest) -> int:
    from mmjax import progress
    from mmjax.config import load, override
    from mmjax.parallel.machines import parse
    from mmjax.plan.plan import plan
    from mmjax.plan.report import svg, tables

    picture = options.picture and local(options.picture, "--picture")
    config = override(load(options.config), rest)
    asked = {"price": options.price, "search": options.search, "estimate": options.estimate}
    result = plan(config, parse(options.machine), **asked)
    if picture:
        with writing(options.picture):
            picture.write_text(svg(result), encoding="utf-8")
    if options.json:
        print_json(result)
    else:
        for table in tables(result):
            progress.out.print(table)
    return 0


def _import(options, rest) -> int:
    from mmjax.interchange.convert import import_model

    result = import_model(options.source, options.out)
    proof = result["certificate"]
    status = 0 if proof.get("holds", True) else 1
    if options.json:
        print_json(result)
        return status
    print(f"{options.out}: {result['model_type']}, {result['parameters']:,} parameters")
    if names := result["left_out"]:
        counts = Counter(name.partition(".")[0] for name in names)
        firsts = {name.partition(".")[0]: name for name in names}
        print(f"left out: {', '.join(firsts[x] if n == 1 else f'{x}.** ({n} tensors)' for x, n in counts.items())}")
    if "skipped" in proof:
        print(f"no certificate: {proof['skipped']}")
        return status
    parts = ", ".join(f"{name} {part['difference']:.2g}" for name, part in proof["parts"].items())
    print(f"largest difference to the reference, as a share of the largest output: {parts}")
    print(f"certificate (at most {proof['tolerance']:g}): {'DOES NOT HOLD' if status else 'holds'}")
    return status


def _export(options, rest) -> int:
    from mmjax.interchange.convert import export_model

    result = export_model(options.dir, options.out, options.adapters, options.origin, options.step)
    if options.json:
        print_json(result)
    else:
        print(f"{options.out}: {result['model_type']}, {result['tensors']:,} tensors")
        if merged := result["merged"]:
            print(
                f"adapters of {merged['kernels']:,} kernels merged: with them, the outputs of a kernel differ by at most "
                f"{merged['difference']:.1g} of the largest (float32)"
            )
    return 0


def _keys(options, rest) -> int:
    import inspect

    from mmjax.config import Experiment
    from mmjax.tree.catalogue import catalogue, keys

    asked = options.name or ""
    file, _, name = (asked, "", "") if asked.endswith(".py") else asked.rpartition(":")
    module = _run_named(file) if file else None  # its classes are known once it was run
    kinds = {
        kind: {cls.__name__: cls for cls in found if module in (None, cls.__module__)}
        for kind, found in catalogue(Experiment).items()
    }
    classes = {name: cls for found in kinds.values() for name, cls in found.items()}
    if not classes:
        raise UserError(f"{file} has no class of a config")
    if not name:
        for kind, found in kinds.items():
            if found:
                print(f"{kind}: {', '.join(found)}")
        return 0
    if name not in classes:
        raise UserError(f"{file or 'the config'} has no class '{name}'{nearest(name, classes)}")
    cls = classes[name]
    print(f"{name}: {(inspect.getdoc(cls) or '').partition(chr(10))[0]}\n")
    for key in keys(cls):
        default = "  (required)" if key.default is None else f" = {key.default}"
        print(f"  {key.name}: {key.annotation}{default}{f'  # {key.meaning}' if key.meaning else ''}")
    if hasattr(cls, "preset"):
        print(f"\n{name}.preset(NAME): {cls.preset.__doc__.splitlines()[0]} Names: docs/models.md, Sizes.")
    return 0


def _run_named(file: str) -> str:
    """Runs a Python file that the user names; returns the name of its module."""
    from mmjax.tree.files import run_file
    from mmjax.tree.trust import trust_named

    trust_named(file)
    return run_file(Path(file)).__name__


def _config(options, rest) -> int:
    from mmjax.config import load, override, to_json

    print(to_json(override(load(options.config), rest)), end="")
    return 0


@contextmanager
def _signals(command: str) -> Iterator[None]:
    """Sets the signal handlers of a command; `train` replaces them when it has a state to save.

    Until then, SIGTERM and SIGHUP end a training with the exit code of a saved run, so that launch scripts restart it.
    Commands that compile end immediately on Ctrl-C: Python's own handler would wait for the compiler.
    """

    def stop(*_):
        print(
            "mmjax: stopped by a signal before the first step; the same command starts the run again", file=sys.stderr
        )
        raise SystemExit(Preempted.exit_code)

    wanted = {}
    if command == "train":
        wanted = {signal.SIGTERM: stop, signal.SIGHUP: stop}
    elif command in ("eval", "compare", "robustness", "report", "predict", "check", "plan"):
        wanted = {signal.SIGINT: signal.SIG_DFL}
    before = {}
    try:
        for number, handler in wanted.items():
            if signal.getsignal(number) is not signal.SIG_IGN:  # ignored by nohup, or for a background job
                before[number] = signal.signal(number, handler)
    except ValueError:  # not the main thread
        pass
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _unread() -> bool:
    """Whether the reader of standard output, such as `head`, has ended. If so, the rest of the output is discarded."""
    pipe = select.poll()
    pipe.register(sys.stdout.fileno(), 0)
    if not any(event & select.POLLERR for _, event in pipe.poll(0)):
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes once more at its end
    return True


def _printable() -> None:
    """Prints characters that the locale cannot encode as escapes, instead of failing."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def _quiet() -> None:
    """Silences other libraries' log messages and warnings; our warnings and all errors are still shown."""
    import absl.logging

    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    for name in ("absl", "orbax", "jax._src.xla_bridge", "tensorflow_datasets"):
        logging.getLogger(name).setLevel(logging.ERROR)
    for name in ("absl", "asyncio", "concurrent.futures"):
        logging.getLogger(name).addFilter(_news)
    sys.unraisablehook = _unraisable  # for errors in TensorStore's threads
    warnings.filterwarnings("ignore", message="coroutine .* was never awaited")
    warnings.filterwarnings("ignore", module="orbax|tensorstore|tensorflow_datasets")


def _news(record: logging.LogRecord) -> bool:
    """Whether a log record is no duplicate of an exception: Orbax logs every error that it raises, once per thread."""
    error = record.exc_info[1] if record.exc_info else None
    return "orbax" not in f"{record.pathname} {record.getMessage()}" and str(error) != CLOSED


def _unraisable(unraisable: Any) -> None:
    if str(unraisable.exc_value) != CLOSED:
        sys.__unraisablehook__(unraisable)
