"""The kinds of source, one line each.

A source of a split has `__len__`, `__getitem__(index) -> Example`, `sizes` (samples of speech, pixels of pictures,
tokens of texts as `Tokenizer.of_stream` gives them, and vectors of other streams per example, as integer arrays by
name), `tokenizer` (None: nothing is written) and `answers`. A collection knows less: records by number and the `files`
that it consists of; `open_source` makes a source of it, and of several a mixture.

A source of one's own stands in any Python file: docs/fourth-modality.md.
"""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mmjax import config as c
from mmjax.data.corpus import Corpus, Filters
from mmjax.data.files import stamp
from mmjax.data.folder import Folder
from mmjax.data.index import Index, open_index
from mmjax.data.manifest import Manifest
from mmjax.data.mixture import Mixture, proportions
from mmjax.data.parquet import Parquet
from mmjax.data.shards import Shards
from mmjax.data.spoken_easy_vqa import SpokenEasyVQA
from mmjax.data.tar_shards import TarShards
from mmjax.data.text import HuggingFaceTokenizer, SentencePieceTokenizer, Tokenizer
from mmjax.data.tfds import TFDS
from mmjax.data.tuxpaint_stamps import TuxPaintStamps
from mmjax.errors import UserError, nearest

COLLECTIONS = {kind.__name__: kind for kind in (Folder, Manifest, Parquet, TFDS, TarShards)}


def open_source(data: Any, split: str, directory: Path, own: Callable[[Any, str], Any]) -> Any:
    """A split of the source that `data` describes.

    Args:
      data: as `Data` in a config: source, tokenizer, sample_rate, filters.
      directory: where prepared data, indices and tokenizers are kept.
      own: (source, split) -> the user's class of an `OwnSource`.

    Raises:
      UserError: there is no such split, or it cannot be read.
    """
    source = data.source
    if not isinstance(source, c.Mixture):
        return _open_one(source, data, split, directory, open_tokenizer(data.tokenizer, source, directory), own)
    tokenizer = open_tokenizer(data.tokenizer, source, directory)
    found = {
        name: _open_one(one, data, split, directory, tokenizer, own)
        for name, one in source.sources.items()
        if split in getattr(one, "splits", (split,))
    }
    if not found:
        raise UserError(f"no source of the mixture has the split '{split}'")
    known = {None if one.tokenizer is None else one.tokenizer.serialised for one in found.values()} - {None}
    if len(known) > 1:
        raise UserError(
            "the sources of a mixture have tokenizers of their own; set data.tokenizer, so that they share one"
        )
    weights = {0: source.weights} if source.weights else None
    if source.later:
        if len({int(start) for start in source.later}) < len(source.later):
            raise UserError(f"data.source.later names an example twice: {', '.join(source.later)}")
        weights = (weights or {0: {name: float(len(one)) for name, one in found.items()}}) | {
            int(start): row for start, row in source.later.items()
        }
    if split != "train":  # all of it is seen once
        return Mixture(found, None)
    sizes = {name: len(one) for name, one in found.items()}
    return Mixture(found, proportions(sizes, weights, source.temperature, source.epochs))


def _open_one(source: Any, data: Any, split: str, directory: Path, tokenizer: Tokenizer | None, own: Callable) -> Any:
    if isinstance(source, c.OwnSource):
        return own(source, split)
    if isinstance(source, c.SpokenEasyVQA):
        return SpokenEasyVQA(directory, split, tokenizer=tokenizer, **vars(source))
    collection, index = _opened(source, split, directory)
    training = index if split == "train" else _opened(source, "train", directory)[1]
    return Corpus(
        collection,
        index,
        tokenizer,
        sample_rate=data.sample_rate,
        answers=training.answers,
        filters=Filters(**vars(data.filters)),
        prefixes=data.prefixes,
        title=f"{type(source).__name__} {getattr(source, 'splits', {}).get(split, split)}",
    )


def _opened(source: Any, split: str, directory: Path) -> tuple[Any, Index]:
    if isinstance(source, c.Shards):  # which bring their index
        collection = Shards(source.directory, split)
        index = Index(collection.directory / split)
        if len(index) != len(collection):
            raise UserError(f"the index of '{split}' in {source.directory} belongs to other shards; build them again")
        return collection, index
    collection, stamp = open_collection(source, split, directory)
    return collection, open_index(collection, stamp, directory, f"{stamp['class']} {stamp['place']}")


def open_collection(source: Any, split: str, directory: Path, *, once: bool = False) -> tuple[Any, dict[str, Any]]:
    """The records of a split, and what identifies them as they are now.

    Args:
      once: they will be read once, in order.

    Raises:
      UserError: there is no such split, or no such file.
    """
    if isinstance(source, c.TuxPaintStamps):  # which has splits of its own
        place, collection = split, TuxPaintStamps(directory, split, **vars(source))
    elif split not in source.splits:
        raise UserError(f"data.source.splits has no '{split}'{nearest(split, source.splits)}")
    else:
        options = {name: value for name, value in vars(source).items() if name != "splits"}
        options |= {"once": once} if isinstance(source, c.TFDS) else {}
        place = source.splits[split]
        collection = COLLECTIONS[type(source).__name__](place, **options)
    described = {name: value for name, value in c.to_dict(source).items() if name != "splits"}
    described |= getattr(collection, "resolved", {})
    return collection, {"place": place, **described, "files": [stamp(file) for file in collection.files]}


def open_tokenizer(config: Any, source: Any, directory: Path) -> Tokenizer | None:
    """The tokenizer that the config names, or one trained on the texts of all training splits, once.

    Raises:
      UserError: it cannot be read or trained, or lacks a special token.
    """
    if config is None:
        return None
    if isinstance(config, c.HuggingFaceTokenizer):
        return HuggingFaceTokenizer.load(config.file, add_special_tokens=config.add_special_tokens)
    if config.file is not None:
        tokenizer = SentencePieceTokenizer.load(config.file)
        for name in config.special:
            if name not in tokenizer.special:
                near = nearest(name, tokenizer.special) if tokenizer.special else ""
                raise UserError(f"data.tokenizer.special: {config.file} has no control piece '{name}'{near}")
        return tokenizer
    digest, texts = learnable(source, directory)
    identity = [config.vocabulary, config.byte_fallback, config.normalisation, *config.special, digest]
    path = directory / "tokenizers" / f"{hashlib.sha256(repr(identity).encode()).hexdigest()[:24]}.model"
    if not path.is_file():
        options = {name: getattr(config, name) for name in ("normalisation", "byte_fallback", "special")}
        Tokenizer.train(sorted(texts()), config.vocabulary, **options).save(path)
    return SentencePieceTokenizer.load(path)


def learnable(source: Any, directory: Path) -> tuple[str, Callable[[], set[str]]]:
    """What identifies the texts of the training split (of a mixture: of all of its sources), and what gathers them.

    Raises:
      UserError: a source cannot be read; of the function: there is no text.
    """
    identity, gather = [], []
    for one in source.sources.values() if isinstance(source, c.Mixture) else [source]:
        if isinstance(one, c.SpokenEasyVQA):
            learned = SpokenEasyVQA(directory, "train", **vars(one)).learned
            identity.append(repr(one))
            gather.append(lambda learned=learned: learned)
        elif not isinstance(one, c.OwnSource):
            index = _opened(one, "train", directory)[1]
            identity.append(index.digest)
            gather.append(index.all_texts)

    def texts() -> set[str]:
        if found := {text for part in gather for text in part()} - {""}:
            return found
        raise UserError("data.tokenizer is set, but the training split has no text to train it on")

    return repr(identity), texts
