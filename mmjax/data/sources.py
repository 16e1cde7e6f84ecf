"""The kinds of source, one line each.

A source of a split has `__len__`, `__getitem__(index) -> Example`, `sizes` (samples of speech, pixels of pictures, tokens
of texts and vectors of other streams per example, as integer arrays by name), `tokenizer` (None: nothing is written) and
`answers`. A collection knows less: records by number and the `files` that it consists of; `open_corpus` makes a source
of it.

A source of one's own stands in any Python file: docs/fourth-modality.md.
"""

import dataclasses
import hashlib
import os
from pathlib import Path
from typing import Any

from mmjax.data.corpus import Corpus, Filters
from mmjax.data.folder import Folder
from mmjax.data.index import Index, open_index
from mmjax.data.manifest import Manifest
from mmjax.data.parquet import Parquet
from mmjax.data.shards import Shards
from mmjax.data.spoken_easy_vqa import SpokenEasyVQA
from mmjax.data.tar_shards import TarShards
from mmjax.data.text import Tokenizer
from mmjax.errors import UserError, nearest

__all__ = ["Folder", "Manifest", "Parquet", "Shards", "SpokenEasyVQA", "TarShards", "open_collection", "open_corpus"]

COLLECTIONS = {kind.__name__: kind for kind in (Folder, Manifest, Parquet, TarShards)}


def open_corpus(data: Any, split: str, directory: Path) -> Corpus:
    """A split of the collection that `data.source` describes, with the tokenizer and the answers of its training split.

    Args:
      data: as `Data` in a config: source, tokenizer, sample_rate, filters.
      directory: where indices and tokenizers are kept.

    Raises:
      UserError: the collection has no such split, or cannot be read.
    """
    collection, index = _opened(data.source, split, directory)
    training = index if split == "train" else _opened(data.source, "train", directory)[1]
    return Corpus(
        collection,
        index,
        _tokenizer(data.tokenizer, training, directory),
        sample_rate=data.sample_rate,
        answers=training.answers,
        filters=Filters(**vars(data.filters)),
        title=f"{type(data.source).__name__} {getattr(data.source, 'splits', {}).get(split, split)}",
    )


def _opened(source: Any, split: str, directory: Path) -> tuple[Any, Index]:
    if hasattr(source, "directory"):  # shards, which bring their index
        collection = Shards(source.directory, split)
        index = Index(collection.directory / split)
        if len(index) != len(collection):
            raise UserError(f"the index of '{split}' in {source.directory} belongs to other shards; build them again")
        return collection, index
    collection, stamp = open_collection(source, split)
    return collection, open_index(collection, stamp, directory, f"{type(source).__name__} {source.splits[split]}")


def open_collection(source: Any, split: str) -> tuple[Any, dict[str, Any]]:
    """The records of a split, and what identifies them as they are now.

    Raises:
      UserError: there is no such split, or no such file.
    """
    if split not in source.splits:
        raise UserError(f"data.source.splits has no '{split}'{nearest(split, source.splits)}")
    options = {f.name: getattr(source, f.name) for f in dataclasses.fields(source) if f.name != "splits"}
    kind, place = type(source).__name__, source.splits[split]
    collection = COLLECTIONS[kind](place, **options)
    stamp = {
        "kind": kind,
        "place": place,
        "options": {k: _plain(v) for k, v in options.items()},
        "files": _stamps(collection.files),
    }
    return collection, stamp


def _plain(value: Any) -> Any:
    return dict(value) if hasattr(value, "items") else value


def _stamps(files: list[str]) -> list[tuple[str, int, int]]:
    """Size and time of each file: whether a collection is still the one that was indexed."""
    found = []
    for file in files:
        about = None if "://" in file else os.stat(file)
        found.append((file, about.st_size, about.st_mtime_ns) if about else (file, 0, 0))
    return found


def _tokenizer(config: Any, training: Index, directory: Path) -> Tokenizer | None:
    """The model that the config names, or one trained on the texts of the training split, once."""
    kinds = [name for name in ("text", "transcript", "target") if training.has(name)]
    if config is None:
        return None
    if config.file is not None:
        return Tokenizer.load(config.file)
    if not kinds:
        raise UserError("data.tokenizer is set, but the training split has no text to train it on")
    about = (training.directory.name, config.vocabulary, config.byte_fallback, config.normalisation)
    path = directory / "tokenizers" / f"{hashlib.sha256(repr(about).encode()).hexdigest()[:24]}.model"
    if not path.is_file():
        texts = {training.text(kind, number) for kind in kinds for number in range(len(training))} - {None, ""}
        trained = Tokenizer.train(
            sorted(texts), config.vocabulary, normalisation=config.normalisation, byte_fallback=config.byte_fallback
        )
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = path.with_name(f".{path.name}.{os.getpid()}")
            temporary.write_bytes(trained.serialised)
            temporary.replace(path)
        except OSError as error:
            raise UserError(f"cannot write the tokenizer into {directory}: {error.strerror or error}") from None
    return Tokenizer.load(path)
