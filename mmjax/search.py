"""Searches an index (`mmjax index`) by a text, a picture or a recording."""

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mmjax import html
from mmjax.data.embedded import Embedded
from mmjax.data.inputs import Input, Use
from mmjax.errors import UserError
from mmjax.files import address_of, local, write_whole, writing
from mmjax.run import Run


class Found(NamedTuple):
    """An item that a search has found.

    Attributes:
      score: the product of its vector with that of the query: the cosine of their angle.
      name: of the item, as `mmjax index` was given it.
      input: what of the item is like the query, such as "image"; task: the task that compares the two.
      content: the text, or the path of the file; None: it is a part of a file.
    """

    score: float
    name: str
    input: str
    task: str
    content: str | None


class SearchIndex:
    """An index that `mmjax index` or `Run.index` wrote. The run that made it is opened by the first search.

    Raises:
      UserError: the directory holds no index, or it is not complete.
    """

    def __init__(self, directory: str | Path):
        self.directory = local(directory, "the index")
        self._embedded = Embedded(self.directory)

    def __len__(self) -> int:
        """The number of items, with unreadable ones."""
        return self._embedded.about["items"]

    @functools.cached_property
    def run(self) -> Run:
        """The run that made the index, with the same parameters.

        Raises:
          UserError: it is gone, or has other parameters now.
        """
        about = self._embedded.about
        place, again = about["run"], f"mmjax index RUN FILES -o {self.directory}"
        if not address_of(place) and not Path(place).is_dir():
            raise UserError(
                f"the run {place} that made the index {self.directory} is gone; if it was moved, repeat the command that "
                f"made the index with its new place, which computes nothing again: {again}"
            )
        run = Run(place, step=about["step"])
        if run.identity["parameters"] != about["parameters"]:
            raise UserError(
                f"{place} has other parameters than the run that made the index {self.directory}; make the index again in "
                "another directory"
            )
        return run

    def search(
        self, text: str | None = None, image: Any = None, speech: Any = None, *, count: int = 10, **others: Any
    ) -> list[Found]:
        """The items that are nearest to a query: of each input that a task compares with it the `count` best, best first.

        All items are compared with the query (exact search).

        Args:
          text, image, speech, others: one input, as for `Run.predict`.

        Raises:
          UserError: no task compares the query with an item, or the query cannot be read.
        """
        given = {"text": text, "image": image, "speech": speech} | others
        given = {name: value for name, value in given.items() if value is not None}
        if len(given) != 1:
            raise UserError("give one query: a text, an image or a speech")
        if count < 1:
            raise UserError(f"count is {count}; it must be at least 1")
        ((query, value),) = given.items()
        embeds = {name: task.embeds for name, task in self.run.config.model.tasks.items() if task.embeds}
        pairs = joined(embeds, self._embedded.tables, query)
        if not pairs:
            there = ", ".join(dict.fromkeys(name for _, name in self._embedded.tables)) or "nothing"
            having = "; ".join(f"{name} compares {' and '.join(of)}" for name, of in embeds.items())
            raise UserError(f"no task compares {query} with {there}, of which the index has vectors: {having}")
        found = []
        for task, name in pairs:
            vector = self.run.embed(**{query: value}, task=task)[query]
            for score, number in self._embedded.nearest((task, name), vector, count):
                item = self._embedded.item(number)
                found.append(Found(score, item["name"], name, task, item["inputs"][name]))
        return found


def joined(embeds: Mapping[str, Sequence[str]], tables: Sequence[tuple[str, str]], query: str) -> list[tuple[str, str]]:
    """The tables to search, one for each input of the items: of the first task that compares it with the query.

    Args:
      embeds: the inputs that each task compares.
      tables: (task, input) of the vectors that are there.
      query: the input that is given; items may have the same input.
    """
    found: dict[str, tuple[str, str]] = {}
    for task, of in embeds.items():
        for name in of:
            if query in of and (task, name) in tables:
                found.setdefault(name, (task, name))
    return list(found.values())


def write_page(path: Path, title: str, found: Sequence[Found], inputs: Mapping[str, Input], use: Use) -> None:
    """Writes the items as an HTML page that needs no other file: pictures, players and texts with their scores.

    Raises:
      UserError: the page cannot be written.
    """
    shown = []
    for one in found:
        parts = [f"<b>{one.score:.3f}</b>", html.labelled(one.input, one.name)]
        if one.content is not None:
            parts += _content(one, inputs[one.input], use)
        shown.append(f"<div class=example>{'<br>'.join(parts)}</div>")
    with writing(path):
        write_whole(path, html.document(title, f"<div class=examples>{''.join(shown)}</div>"))


def _content(one: Found, of: Input, use: Use) -> list[str]:
    try:
        value = of.from_user(one.content, one.input, use)
        return [html.media(one.name, shown) for shown in of.shown(value, use.sample_rate)]
    except UserError as error:
        return [f"<i>{html.escape(str(error))}</i>"]
