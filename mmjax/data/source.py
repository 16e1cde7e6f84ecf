"""What every source of examples is: a part of a config that opens its splits."""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from mmjax.data.corpus import Corpus, Filters
from mmjax.data.files import stamp
from mmjax.data.index import Index, open_index
from mmjax.data.text import Tokenizer
from mmjax.errors import UserError, nearest
from mmjax.tree import part, to_dict


class Opening(NamedTuple):
    """How the splits of a source are opened.

    Attributes:
      directory: where prepared data, indices and tokenizers are kept.
      tokenizer: of all texts; None where the data has none.
      sample_rate, filters, rescale, prefixes: as in `mmjax.data.sources.Data`.
    """

    directory: Path
    tokenizer: Tokenizer | None = None
    sample_rate: int = 16_000
    filters: Filters = Filters()
    rescale: bool = False
    prefixes: Mapping[str, tuple[str, ...]] = {}


class Texts(NamedTuple):
    """The texts of a training split, for a tokenizer to learn from.

    Attributes:
      identity: what tells them from others; gather: what reads them.
    """

    identity: str
    gather: Callable[[], Iterable[str]]


@part
class Source:
    """The base class of sources.

    An opened split has `__len__`, `__getitem__(index) -> Example`, `sizes` (samples of speech, pixels of pictures, tokens of
    texts as `Tokenizer.of_stream` gives them, and vectors of other streams per example, as integer arrays by name), `tokenizer` (None: nothing is written) and
    `answers`.

    Attributes:
      takes_prefixes: whether `Data.prefixes` can stand in front of its texts.
    """

    kind = "source"
    takes_prefixes = False

    def open(self, split: str, opening: Opening) -> Any:
        """A split, prepared first where that has not been done.

        Raises:
          UserError: there is no such split, or it cannot be read.
        """
        raise NotImplementedError

    def has(self, split: str) -> bool:
        """Whether there may be such a split."""
        return True

    def texts(self, directory: Path) -> list[Texts]:
        """The texts of the training split."""
        return []

    def is_prepared(self, directory: Path) -> bool:
        """Whether a split can be opened at once, without reading or making all of it."""
        return False


@part
class Collection(Source):
    """The base class of collections: records by number, and the files that they lie in."""

    kind = "collection"
    takes_prefixes = True

    def records(self, split: str, directory: Path, once: bool = False) -> Any:
        """The records of a split.

        Args:
          directory: where what is fetched is kept.
          once: they will be read once, in order.

        Raises:
          UserError: there is no such split, or no such file.
        """
        raise NotImplementedError

    def place(self, split: str) -> str:
        """What people call the place that a split is read from."""
        return split

    def stamped(self, split: str, directory: Path, once: bool = False) -> tuple[Any, dict[str, Any]]:
        """The records of a split, and what identifies them as they are now."""
        records = self.records(split, directory, once)
        described = {name: value for name, value in to_dict(self).items() if name != "splits"}
        described |= getattr(records, "resolved", {})
        return records, {"place": self.place(split), **described, "files": [stamp(file) for file in records.files]}

    def indexed(self, split: str, directory: Path) -> tuple[Any, Index]:
        """The records of a split and their index, which is made if it is not there yet."""
        records, stamped = self.stamped(split, directory)
        return records, open_index(records, stamped, directory, f"{stamped['class']} {stamped['place']}")

    def open(self, split: str, opening: Opening) -> Corpus:
        records, index = self.indexed(split, opening.directory)
        training = index if split == "train" else self.indexed("train", opening.directory)[1]
        return Corpus(
            records,
            index,
            opening.tokenizer,
            sample_rate=opening.sample_rate,
            answers=training.answers,
            filters=opening.filters,
            rescale=opening.rescale,
            prefixes=opening.prefixes,
            title=f"{type(self).__name__} {self.place(split)}",
        )

    def texts(self, directory: Path) -> list[Texts]:
        index = self.indexed("train", directory)[1]
        return [Texts(index.digest, index.all_texts)]


@part
class Listed(Collection):
    """The base class of collections whose splits the config names."""

    kind = "collection"

    splits: Mapping[str, str]  # by name ("train"), the place of each: a file, a folder or a pattern of files

    def has(self, split: str) -> bool:
        return split in self.splits

    def place(self, split: str) -> str:
        if split not in self.splits:
            raise UserError(f"data.source.splits has no '{split}'{nearest(split, self.splits)}")
        return self.splits[split]
