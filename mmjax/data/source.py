"""The base classes of sources: parts of a config that open the splits of a data set."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from mmjax.data.fields import USUAL as USUAL_FIELDS
from mmjax.data.fields import Fields
from mmjax.data.files import stamp
from mmjax.data.filters import USUAL, Filters
from mmjax.data.labels import Alternatives, Label
from mmjax.data.text import Tokenizer
from mmjax.errors import UserError, nearest
from mmjax.tree import part, to_dict

if TYPE_CHECKING:  # these load decoders, which a config does not need
    from mmjax.data.corpus import Corpus
    from mmjax.data.index import Index
    from mmjax.data.record import Record


class Opening(NamedTuple):
    """Settings with which the splits of a source are opened.

    Attributes:
      directory: folder of prepared data, indices and tokenizers.
      tokenizer: for all texts; None if the data has no texts.
      sample_rate, filters, rescale, prefixes: as in `mmjax.data.sources.Data`.
      fields: the inputs and labels to read.
      labels: the labels of a run that has begun, with the names of its classes; None: those of the training split.
    """

    directory: Path
    tokenizer: Tokenizer | None = None
    sample_rate: int = 16_000
    filters: Filters = USUAL
    rescale: bool = False
    prefixes: Mapping[str, tuple[str, ...]] = {}
    fields: Fields = USUAL_FIELDS
    labels: Mapping[str, Label] | None = None


class Texts(NamedTuple):
    """The texts of a training split, on which a tokenizer is trained.

    Attributes:
      identity: a string that differs for different texts; gather: a function that reads the texts.
      unread: columns of the data that nothing reads.
    """

    identity: str
    gather: Callable[[], Iterable[str]]
    unread: Sequence[str] = ()


@part
class Source:
    """The base class of sources.

    An opened split has `__len__`, `__getitem__(index) -> Example`, `sizes` (integer arrays by stream: samples of
    recordings, height and width of pictures in pixels, tokens of input texts (`Tokenizer.read`) and of text labels
    (`Tokenizer.to_write`), and numbers of vectors), `tokenizer` (None: no texts) and `labels` (`Label` by name).

    Attributes:
      takes_prefixes: whether the source supports `Data.prefixes`.
      can_be_built: whether `mmjax data build` can write the source as shards.
    """

    kind = "source"
    takes_prefixes = False
    can_be_built = False

    def open(self, split: str, opening: Opening) -> Any:
        """Opens a split; prepares the data first if necessary.

        Raises:
          UserError: there is no such split, or it cannot be read.
        """
        raise NotImplementedError

    def open_chosen(self, split: str, opening: Opening, chosen: Callable[[Any], np.ndarray], training: bool) -> Any:
        """Opens some examples of a split.

        Args:
          chosen: called with the opened split; returns [n] bool.
          training: whether the examples are trained on; a mixture then draws them in its proportions.
        """
        from mmjax.data.selected import Selected

        opened = self.open(split, opening)
        return Selected(opened, chosen(opened))

    def has(self, split: str) -> bool:
        """Whether the source may have this split."""
        return True

    def only(self, name: str) -> "Source":
        """The source of this name in a mixture.

        Raises:
          UserError: there is none.
        """
        raise UserError(f"there is no source '{name}' in data.source; the data is no mixture")

    def texts(self, directory: Path, fields: Fields = USUAL_FIELDS) -> list[Texts]:
        """The texts of the training split."""
        return []

    def is_prepared(self, directory: Path) -> bool:
        """Whether a split can be opened without first reading or generating all of it."""
        return False


@part
class Collection(Source):
    """The base class of collections: sources of records by number, which are stored in files."""

    kind = "collection"
    takes_prefixes = True
    can_be_built = True

    def records(self, split: str, directory: Path, fields: Fields, once: bool = False) -> Any:
        """The records of a split.

        Args:
          directory: folder for downloads.
          fields: what is read of each record.
          once: the records will be read once, in order.

        Raises:
          UserError: there is no such split, or no such file.
        """
        raise NotImplementedError

    def place(self, split: str) -> str:
        """The location of a split, for messages and stamps."""
        return split

    def stamped(
        self, split: str, directory: Path, fields: Fields = USUAL_FIELDS, once: bool = False
    ) -> tuple[Any, dict[str, Any]]:
        """The records of a split, and a stamp that identifies their current state."""
        records = self.records(split, directory, fields, once)
        described = {name: value for name, value in to_dict(self).items() if name != "splits"}
        described |= getattr(records, "resolved", {})
        return records, {"place": self.place(split), **described, "files": [stamp(file) for file in records.files]}

    def indexed(self, split: str, directory: Path, fields: Fields = USUAL_FIELDS) -> tuple[Any, "Index"]:
        """The records of a split and their index, which is made if it does not exist yet."""
        from mmjax.data.indexing import open_index

        records, stamped = self.stamped(split, directory, fields)
        return records, open_index(records, stamped, directory, f"{stamped['class']} {stamped['place']}", fields)

    def open(self, split: str, opening: Opening) -> "Corpus":
        from mmjax.data.corpus import Corpus

        fields, directory = opening.fields, opening.directory
        records, index = self.indexed(split, directory, fields)
        labels = opening.labels
        if labels is None:
            known = split == "train" or not self.has("train")
            training = index if known else self.indexed("train", directory, fields)[1]
            labels = training.facts(fields.labels)
        return Corpus(
            records,
            index,
            opening.tokenizer,
            fields=fields,
            sample_rate=opening.sample_rate,
            labels=labels,
            filters=opening.filters,
            rescale=opening.rescale,
            prefixes=opening.prefixes,
            title=f"{type(self).__name__} {self.place(split)}",
        )

    def texts(self, directory: Path, fields: Fields = USUAL_FIELDS) -> list[Texts]:
        records, index = self.indexed("train", directory, fields)
        if len(index.unreadable) == len(index):
            raise UserError(f"no example of {self.place('train')} can be used; the first: {index.unreadable[0]}")
        identity, gather = index.digest, partial(index.all_texts, fields)
        if fields.drawn:  # the index has one text of each label
            identity = repr([identity, "drawn", stamp(str(index.directory / "index.json"))])
            gather = partial(_all_texts, records, index, fields)
        return [Texts(identity, gather, list(index.columns))]


def _all_texts(records: Any, index: "Index", fields: Fields) -> set[str]:
    """`Index.all_texts`, and the other texts of labels that have several."""
    readable = [number for number in range(len(index)) if number not in index.unreadable]
    others = {
        text
        for number in readable
        for one in records[number].labels.values()
        if isinstance(one, Alternatives)
        for text in one.every
    }
    return index.all_texts(fields) | others


@part
class Listed(Collection):
    """The base class of collections whose splits are listed in the config."""

    kind = "collection"

    splits: Mapping[str, str]  # split name ("train") -> its location: a file, a folder or a pattern of files

    def has(self, split: str) -> bool:
        return split in self.splits

    def place(self, split: str) -> str:
        if split not in self.splits:
            raise UserError(f"data.source.splits has no '{split}'{nearest(split, self.splits)}")
        return self.splits[split]


@part
class Derived(Collection):
    """The base class of collections whose records are made of those of another collection."""

    kind = "collection"

    source: Collection  # of the records; for several collections, mix several of these

    @property
    def splits(self) -> Mapping[str, str]:
        return self.source.splits  # only lists and tables have it

    def has(self, split: str) -> bool:
        return self.source.has(split)

    def place(self, split: str) -> str:
        return self.source.place(split)

    def is_prepared(self, directory: Path) -> bool:
        return self.source.is_prepared(directory)

    def records(self, split: str, directory: Path, fields: Fields, once: bool = False) -> Any:
        return self.stamped(split, directory, fields, once)[0]


class DerivedRecords:
    """The base class of records that are made of those of another collection; a subclass has `read`.

    Args:
      records: of the other collection.
    """

    def __init__(self, records: Any):
        self._records = records
        self.files, self.unread = records.files, getattr(records, "unread", {})
        self.resolved = getattr(records, "resolved", {})

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> "Record":
        """A record.

        Raises:
          UserError: it lacks something that it needs, or it cannot be read.
        """
        return self.read(index)[0]

    def read(self, index: int) -> tuple["Record", Sequence[str]]:
        """A record, and the names of its columns that are not read."""
        raise NotImplementedError

    def _read_other(self, index: int) -> tuple["Record", Sequence[str]]:
        """As `read`, of the other collection."""
        read = getattr(self._records, "read", None)
        return (self._records[index], ()) if read is None else read(index)
