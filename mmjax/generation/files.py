"""`mmjax generate`: replies to the prompts of a JSONL file."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from mmjax import progress
from mmjax.data.chat_formats import columns_in, read_prompt
from mmjax.decode import GREEDY, Sampling
from mmjax.errors import UserError
from mmjax.files import begun, json_lines, local
from mmjax.generation.generator import Generator


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
      UserError: a file cannot be read or written, or the result belongs to another file.
    """
    source, out = local(source, "the prompts"), local(out, "--out")
    prompts = list(_prompts(source))
    names = [name for name, *_ in prompts]
    done = begun(out)
    if [isinstance(line, dict) and line.get("name") for line in done] != names[: len(done)]:
        raise UserError(f"{out} holds replies to other prompts than {source}; name another file")
    with progress.bar("writing replies", len(names), "replies") as bar, json_lines(out, "a") as write:
        bar.advance(len(done))
        for first in range(len(done), len(prompts), rows):
            part = prompts[first : first + rows]
            replies = generator.replies([prompt for _, prompt, _ in part], sampling, length, stop, rows, beams)
            for (name, _, reference), reply in zip(part, replies, strict=True):
                line = {"name": name, "reply": reply.text, "ended": reply.ended}
                write(line | ({} if reference is None else {"reference": reference}))
            bar.advance(len(part))
    return len(prompts)


def _lines(path: Path) -> list[str]:
    try:
        return [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path}: {error}") from None


def _prompts(path: Path) -> Iterator[tuple[str, Any, str | None]]:
    """The name, the messages (or the text), and the reference (or None) of each line of a file."""
    for number, line in enumerate(_lines(path), 1):
        name = f"line {number} of {path}"
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise UserError(f"{name} is no JSON: {error}") from None
        if isinstance(row, str) or (isinstance(row, dict) and isinstance(row.get("text"), str)):
            yield str(number), row if isinstance(row, str) else row["text"], None
            continue
        if not isinstance(row, dict) or not (columns := columns_in(row, None)):
            raise UserError(f"{name} has neither messages nor a text")
        messages, reference = read_prompt(row, columns, path.parent, name)
        yield str(row.get("name", row.get("id", number))), messages, reference
