"""`mmjax generate`: replies to the prompts of a JSONL file."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mmjax import progress
from mmjax.data.chat_formats import columns_in, parts_of, read_prompt
from mmjax.data.files import Blob
from mmjax.data.to_predict import stamp_of
from mmjax.decode import GREEDY, Sampling
from mmjax.errors import UserError
from mmjax.files import local
from mmjax.generation.generator import Generator
from mmjax.results import Results


class Prompt(NamedTuple):
    """A line of a file of prompts.

    Attributes:
      name: its "name" or "id", or else its number; place: the number of the line and the file, for errors.
      asked: the messages, or a text; reference: the reply that the line has; None: it has none.
    """

    name: str
    place: str
    asked: Any
    reference: str | None

    @property
    def stamp(self) -> str:
        """`stamp_of` the line: its texts and files."""
        return stamp_of((self.asked if isinstance(self.asked, str) else _content(self.asked), self.reference))


def generate(
    generator: Generator,
    source: str | Path,
    out: str | Path,
    sampling: Sampling = GREEDY,
    length: int = 256,
    stop: Sequence[str] = (),
    rows: int = 8,
    beams: int = 1,
) -> int:
    """Writes a reply to each line of a JSONL file; returns their number.

    A line is a conversation as in data (docs/data.md), or {"text": a text}. If it ends with a reply, the reply is its
    reference. A line of the result has the "name" of the prompt or its number, the "reply", how it "ended", and the
    "reference", if any. If the result has lines already, their prompts are left out: an interrupted call can be repeated.

    Args:
      out: the result, a JSONL file.

    Raises:
      UserError: a file cannot be read or written, or the result has replies to other prompts, of another run or with other
        settings (`mmjax.results`).
    """
    source, out = local(source, "the prompts"), local(out, "--out")
    generator.check_sampling(sampling, stop, beams)
    prompts = list(_prompts(source))
    made = {"sampling": sampling, "--length": length, "--stop": tuple(stop), "--beams": beams}
    names, stamps = [one.name for one in prompts], [one.stamp for one in prompts]
    results = Results(out, generator.run.provenance | made, names, stamps)
    with progress.bar("writing replies", len(names), "replies") as bar, results.writing() as write:
        bar.advance(len(results.done))
        for first in range(len(results.done), len(prompts), rows):
            part = prompts[first : first + rows]
            try:
                replies = generator.replies([one.asked for one in part], sampling, length, stop, rows, beams)
            except UserError:
                _check_each(generator, part, length)
                raise
            for (name, _, _, reference), reply in zip(part, replies, strict=True):
                line = {"name": name, "reply": reply.text, "ended": reply.ended}
                write(line | ({} if reference is None else {"reference": reference}))
            bar.advance(len(part))
    return len(prompts)


def _check_each(generator: Generator, prompts: Sequence[Prompt], length: int) -> None:
    """Finds the prompt that cannot be used; raises UserError with its line."""
    for one in prompts:
        try:
            generator.check(one.asked, length)
        except UserError as error:
            raise UserError(f"{one.place}: {error}") from None


def _content(messages: Sequence[Mapping[str, Any]]) -> list[Any]:
    """The roles, texts and files of messages, for `stamp_of`."""
    found = []
    for message in messages:
        for part in parts_of(message):
            value = part[part["type"]]
            file = part["type"] != "text" and isinstance(value, str)
            found.append((message["role"], part["type"], Blob(value) if file else value))
    return found


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """The lines of a file that are not empty, with their numbers from 1."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path}: {error}") from None
    yield from ((number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip())


def _prompts(path: Path) -> Iterator[Prompt]:
    """The prompts of a file; raises UserError if one is wrong, or two have one name."""
    places: dict[str, str] = {}
    for number, line in _lines(path):
        one = _prompt(line, number, path)
        if one.name in places:
            raise UserError(
                f"{one.place} has the name '{one.name}', like {places[one.name]}; give each line a name of its own, or leave "
                "out name and id of all lines: then they have numbers"
            )
        places[one.name] = one.place
        yield one


def _prompt(line: str, number: int, path: Path) -> Prompt:
    place = f"line {number} of {path}"
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise UserError(f"{place} is no JSON: {error}") from None
    if isinstance(row, str):
        return Prompt(str(number), place, row, None)
    if not isinstance(row, dict):
        raise UserError(f"{place} has neither messages nor a text")
    name = str(next(one for one in (row.get("name"), row.get("id"), number) if one is not None))
    if isinstance(row.get("text"), str):
        return Prompt(name, place, row["text"], None)
    if not (columns := columns_in(row, None)):
        raise UserError(f"{place} has neither messages nor a text")
    return Prompt(name, place, *read_prompt(row, columns, path.parent, place))
