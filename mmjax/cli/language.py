"""The commands `chat` and `generate`: language models that write; and `ngram`: n-gram models for decoding."""

import os
import shlex
import time
from pathlib import Path
from typing import Any

from mmjax.cli.shared import add_step, command, whole
from mmjax.errors import UserError

HELP = """Write a message. These commands are known, too:
  /image FILE    attach a picture to the next message
  /speech FILE   attach a recording to the next message; an empty line sends it alone
  /system TEXT   begin again with this system message
  /reset         begin again
  /exit          end (also Ctrl-D)"""
OPTIONS = {
    "temperature": (float, "0: the most probable token (default)"),
    "top-k": (int, "only the K most probable tokens"),
    "top-p": (float, "only the most probable tokens whose probabilities sum to P"),
    "min-p": (float, "only tokens with at least this share of the largest probability"),
    "repetition-penalty": (float, "above 1: lowers the probability of tokens that are already in the text"),
    "seed": (int, "of random numbers; the same seed gives the same reply"),
}


def add_parsers(commands: Any) -> None:
    """Adds the commands."""
    sub = command(commands, "chat", "talk with a language model", "RUN", json_output=False)
    sub.set_defaults(func=_chat)
    sub.add_argument("--system", metavar="TEXT", help="the system message")
    _add_options(sub)
    sub = command(commands, "generate", "write replies to the prompts of a file", "RUN", json_output=False)
    sub.set_defaults(func=_generate)
    sub.add_argument(
        "input", metavar="INPUT.jsonl", help="prompts: a conversation or a text in each line (docs/data.md)"
    )
    sub.add_argument(
        "-o", "--out", metavar="OUTPUT.jsonl", required=True, help="replies; continued if it has some already"
    )
    sub.add_argument("--rows", type=whole(1), default=8, help="prompts that are computed together (default: 8)")
    sub.add_argument("--beams", type=whole(1), default=1, help="above 1: the most probable reply of a beam search")
    _add_options(sub)
    text = "train an n-gram model on texts, for the decoding of recognisers"
    sub = commands.add_parser("ngram", help=text, description=text, allow_abbrev=False)
    sub.set_defaults(func=_ngram, computes=False)
    sub.add_argument(
        "texts",
        nargs="+",
        metavar="TEXT",
        help="a file with one text in each line, perhaps a .gz; or RUN:SPLIT, such as runs/asr:train",
    )
    sub.add_argument("-o", "--out", required=True, metavar="FILE", help="an ARPA file, FILE.arpa or FILE.arpa.gz")
    sub.add_argument("--order", type=whole(1), default=3, help="words of an n-gram (default: 3)")
    sub.add_argument("--tokenizer", metavar="RUN", help="model the pieces of the tokenizer of this run, not words")
    sub.add_argument("--test", metavar="TEXT", help="print the perplexity of other texts")
    sub.add_argument("--words", action="store_true", help="with --tokenizer: model words, as the tokenizer writes them")


def _ngram(options, rest) -> int:
    from mmjax.ngram import ngram

    given = options.order, options.tokenizer, options.words, options.test
    counts, found = ngram(options.texts, options.out, *given)
    print(f"{options.out}: {', '.join(f'{count:,} {n}-grams' for n, count in enumerate(counts, 1))}")
    if found:
        print(
            f"{options.test}: perplexity {found.token:.4g} per token, {found.word:.4g} per word; {found.tokens:,} tokens, "
            f"{100 * found.unknown / found.tokens:.2f} % unknown; the first of each text is given"
        )
    return 0


def _add_options(sub: Any) -> None:
    add_step(sub)
    sub.add_argument(
        "--weights",
        choices=("float32", "bfloat16", "int8", "int4"),
        default="float32",
        help="of the model; int8 takes a quarter of the memory, and is faster on CPU (default: float32)",
    )
    sub.add_argument(
        "--length", type=whole(1), default=256, help="the largest number of tokens of a reply (default: 256)"
    )
    sub.add_argument("--stop", action="append", default=[], metavar="WORDS", help="end the reply at these words")
    sub.add_argument(
        "--template-option",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="an option of the chat template, such as enable_thinking=false",
    )
    for name, (kind, text) in OPTIONS.items():
        sub.add_argument(f"--{name}", type=kind, help=text)


def _sampling(options: Any) -> Any:
    """The sampling that the options ask for; raises UserError if one is wrong, or has no effect."""
    from mmjax.decode import Sampling, without_effect

    names = [name.replace("-", "_") for name in OPTIONS]
    found = Sampling(**{name: value for name in names if (value := getattr(options, name)) is not None})
    found.check()
    if options.seed is not None and not found.temperature:  # also the seed 0
        raise without_effect("seed")
    return found


def _generator(options: Any) -> Any:
    """The language model, with the options of the command."""
    from mmjax.generation import Generator
    from mmjax.run import Run
    from mmjax.tree import literal

    given = {}
    for option in options.template_option:
        name, sign, value = option.partition("=")
        if not sign:
            raise UserError(f"--template-option {option} is not NAME=VALUE, such as enable_thinking=false")
        given[name] = literal(value)
    return Generator(Run(options.run, weights=options.weights, step=options.step), template_options=given)


def _generate(options, rest) -> int:
    from mmjax.generation import generate

    given = (_sampling(options), options.length, options.stop, options.rows, options.beams)
    count = generate(_generator(options), options.input, options.out, *given)
    print(f"{count} replies: {options.out}")
    return 0


def _chat(options, rest) -> int:
    from mmjax.generation import Chat

    sampling, generator = _sampling(options), _generator(options)
    generator.check([{"role": "user", "content": ""}])  # that it knows conversations
    talk = _Talk(generator, Chat(generator), sampling, options)
    print("Write a message, or /help.")
    while True:
        try:
            line = input("\n> ").strip()
        except EOFError:
            print()
            return 0
        if line == "/exit":
            return 0
        try:
            talk.hear(line)
        except UserError as error:
            print(error)
        except KeyboardInterrupt:  # the reply ends here; the conversation goes on
            print()


def _pasted(text: str) -> list[str]:
    """The files that a line names: one with its name as it is, or as a shell reads them, with quotes, escapes and ~."""
    if os.path.exists(whole := os.path.expanduser(text)):
        return [whole]
    try:
        return [os.path.expanduser(word) for word in shlex.split(text)]
    except ValueError:  # a quote without its end
        return [whole]


class _Talk:
    """A conversation in a terminal."""

    def __init__(self, generator: Any, chat: Any, sampling: Any, options: Any):
        self._generator, self._chat, self._options, self._sampling = generator, chat, options, sampling
        self._attached: list[dict[str, str]] = []
        self._begin(options.system)

    def _begin(self, system: str | None) -> None:
        if self._attached:
            print(f"no longer attached: {', '.join(part[part['type']] for part in self._attached)}")
        self._system, self._attached = system, []
        self._messages = [{"role": "system", "content": system}] if system else []

    def hear(self, line: str) -> None:
        """A line of the user: a message, or a command."""
        word, _, rest = line.partition(" ")
        match word:
            case "/help":
                print(HELP)
            case "/reset":
                self._begin(self._system)
            case "/system":
                self._begin(rest)
            case "/image" | "/speech":
                self._attach(word, "image" if word == "/image" else "audio", rest.strip())
            case _ if word.startswith("/"):
                print(f"there is no command {word}; see /help")
            case _ if line or self._attached:
                self._reply([*self._attached, *([{"type": "text", "text": line}] if line else [])])

    def _attach(self, word: str, kind: str, text: str) -> None:
        if not text:
            raise UserError(f"name a file: {word} FILE")
        for file in _pasted(text):
            if Path(file).is_dir():
                raise UserError(f"{file} is a folder; name one file: {word} FILE")
            part = {"type": kind, kind: file}
            self._generator.check([*self._messages, {"role": "user", "content": [part]}])
            self._attached.append(part)
            print(f"attached {file}; write a message about it")

    def _reply(self, content: list[dict[str, str]]) -> None:
        options, begin, text = self._options, time.perf_counter(), ""
        asked = [*self._messages, {"role": "user", "content": content}]
        first, count = begin, 0
        for words in self._chat.words(asked, self._sampling, options.length, options.stop):
            first = first if count else time.perf_counter()
            text, count = text + words, count + 1
            print(words, end="", flush=True)
        rate = f"{(count - 1) / (time.perf_counter() - first):.1f} tokens/s, " if count > 1 else ""
        print(f"\n[{rate}first token after {first - begin:.1f} s]")
        self._messages, self._attached = [*asked, {"role": "assistant", "content": text}], []
