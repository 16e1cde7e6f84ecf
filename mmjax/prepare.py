"""The commands of `mmjax data`: build shards, inspect data, train tokenizers."""

import dataclasses
from collections.abc import Container, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mmjax import progress
from mmjax.data import build as building
from mmjax.data.capacity import propose, useful
from mmjax.data.fields import USUAL
from mmjax.data.filters import Filters
from mmjax.data.folder import Folder
from mmjax.data.indexing import open_index
from mmjax.data.manifest import Manifest
from mmjax.data.page import facts
from mmjax.data.page import page as show
from mmjax.data.parquet import Parquet
from mmjax.data.sampler import best_fit
from mmjax.data.shards import Shards
from mmjax.data.source import Collection
from mmjax.data.sources import Data
from mmjax.data.splitting import SPLITS
from mmjax.data.tar_shards import TarShards
from mmjax.data.tfds import TFDS
from mmjax.data.tfds_description import splits_of
from mmjax.data.tokenizers import SentencePiece, learnable
from mmjax.errors import UserError
from mmjax.files import data_directory, local, write_whole
from mmjax.train.build import build_layout, build_sampler, build_source, facts_of, labels_of, open_data, raw, resolved
from mmjax.train.experiment import Experiment, load
from mmjax.tree import from_dict, override, to_dict

KINDS = {
    ".jsonl": Manifest,
    ".json": Manifest,
    ".csv": Manifest,
    ".tsv": Manifest,
    ".tar": TarShards,
    ".parquet": Parquet,
}


def collection_at(place: str, split: str) -> Collection:
    """The source for a path, by its ending; a folder is read as files, and tfds:NAME means all splits of a data set."""
    if place.startswith("tfds:"):
        name = place.removeprefix("tfds:")
        splits = {split: split for split in splits_of(name)}
        # Class names come from the split "train"; if the data set has none, it maps to the requested split.
        return TFDS(name=name, splits={"train": split, **splits} if split in splits else splits)
    if Path(place).is_dir():
        return Folder(splits={split: place})
    kind = KINDS.get(Path(place).suffix.lower())
    if kind is None:
        raise UserError(f"{place} is not a folder, not tfds:NAME, and does not end in {', '.join(KINDS)}")
    return kind(splits={split: place})


def source_at(place: str, split: str) -> Collection:
    """As `collection_at`, and also recognises a folder of shards."""
    return Shards(directory=place) if list(Path(place).glob("*.array_record")) else collection_at(place, split)


def build(source: str, out: str, split: str | None = None, **options: Any) -> dict[str, Any]:
    """`mmjax data build`: writes the data of a config (all splits or one) or of a path as shards to `out`.

    Returns:
      The results of `mmjax.data.build.build` by split.
    """
    directory = local(out, "--out")
    if source.endswith(".py"):
        config = load(source)
        data = config.data
        if not data.source.can_be_built:
            raise UserError(
                f"data.source of {source} is {type(data.source).__name__}, which cannot be written as shards"
                + ("; build each of its sources" if hasattr(data.source, "sources") else "")
            )
        chosen, home, fields = data.source, data_directory(data.directory), data.fields(labels_of(config))
        options["rescale"] = data.rescale
        splits = [split] if split else list(getattr(chosen, "splits", SPLITS))
    else:
        chosen, home, fields = collection_at(source, split or "train"), data_directory(), USUAL
        splits = [split] if split else list(chosen.splits)
    found = {}
    for name in splits:
        collection, stamp = chosen.stamped(name, home, fields, once=True)
        title = f"{stamp['class']} {stamp['place']}"
        index = open_index(collection, stamp, home, title, fields)
        for note in index.notes(title):
            progress.warn(note)
        found[name] = building.build(collection, index, stamp, directory, name, fields=fields, **options)
    return found


def inspect(
    source: str, split: str, page: str | None, examples: int = 24, overrides: Sequence[str] = ()
) -> dict[str, Any]:
    """`mmjax data inspect`: describes the data of a config, a path, or a folder of shards.

    Args:
      page: file for an HTML page with examples; None: no page.
      overrides: overrides of config keys, as on the command line.

    Returns:
      The result of `mmjax.data.page.facts`, and for a config also {"padding": {stream: share of empty positions},
      "rows": the result of `better_rows`}.

    Raises:
      UserError: the page cannot be written.
    """
    written = page and local(page, "--out")
    padding: dict[str, float] = {}
    proposed: dict[str, Any] = {}
    if source.endswith(".py"):
        config = override(load(source), overrides)
        data = build_source(config.data, split, labels=labels_of(config))
        config = resolved(config, facts_of(data))
        layout = build_layout(config, data.tokenizer)
        sampler = build_sampler(config, layout, data) if split == "train" else None
        if sampler is not None:
            useful = sampler.useful_share(layout.tokens(data.sizes), range(50))
            padding = {name: 1.0 - share for name, share in useful.items()}
            proposed = {"rows": better_rows(config, layout, sampler)}
    elif overrides:
        raise UserError(f"{overrides[0]} overrides a key of a config, but {source} is not a config")
    else:
        settings = dict(rows={"examples": 1}, subsets={"speech": 1.0}, filters=Filters(largest_share_dropped=1.0))
        data = build_source(Data(source=source_at(source, split), **settings), split)
    if written:
        try:
            write_whole(written, show(data, f"{source}, {split} split", padding, examples))
        except OSError as error:
            raise UserError(f"cannot write {page}: {error.strerror or error}") from None
    return facts(data) | ({"padding": padding} if padding else {}) | proposed


def better_rows(config: Experiment, layout: Any, sampler: Any) -> dict[str, Any]:
    """Proposes row capacities that waste fewer of the towers' FLOPs at no higher cost.

    Returns:
      {"now": {stream: positions}, "wasted": share of the FLOPs spent on empty positions, "proposed": {stream:
      positions}, "proposed_wasted": the same share for the proposal}, measured by packing one window of examples.
    """
    from mmjax.train import report

    flops, taken = report.position_flops(config, layout), sampler.taken()
    cost = np.array([flops[name] for name in layout.rows])
    cost = cost + 1e-3 * cost.max()  # a stream without a tower still takes memory
    now = np.array(list(layout.rows.values()))
    multiple = np.array([layout.streams[name].multiple for name in layout.rows])
    found = propose(taken, cost, float((now * cost).sum()), multiple, start=now)
    rows = dict(zip(layout.rows, found.tolist(), strict=True))
    wasted = [1.0 - useful(taken, len(best_fit(taken, some)), some, cost) for some in (now, found)]
    try:
        build_layout(dataclasses.replace(config, data=dataclasses.replace(config.data, rows=rows)), layout.tokenizer)
    except UserError:  # the proposal exceeds the limit of a tower
        rows, wasted[1] = dict(layout.rows), wasted[0]
    return {"now": dict(layout.rows), "wasted": wasted[0], "proposed": rows, "proposed_wasted": wasted[1]}


def tokenizer(source: str, out: str | None = None, **keys: Any) -> dict[str, Any]:
    """`mmjax data tokenizer`: trains or loads the tokenizer of a config or for a path, and measures it on its texts.

    Args:
      out: file to write the tokenizer to; None: not written.
      keys: fields of `SentencePiece` that override those of the config.

    Returns:
      {"pieces", "texts" (without duplicates), "tokens", "characters_per_token", and shares of the tokens: "unknown",
      "bytes"}.

    Raises:
      UserError: the tokenizer cannot be trained or written, or `keys` are set for an already trained tokenizer.
    """
    file = out and local(out, "--out")
    if source.endswith(".py"):
        experiment = load(source)
        data, fields = experiment.data, experiment.data.fields(labels_of(experiment))
        chosen, config, home = data.source, data.tokenizer or SentencePiece(), data_directory(data.directory)
    else:
        chosen, config, home, fields = source_at(source, "train"), SentencePiece(), data_directory(), USUAL
    if keys and config.file:
        raise UserError(
            f"data.tokenizer of {source} is {config.file}, which is already trained; leave out --{next(iter(keys))}"
        )
    config = from_dict(type(config), to_dict(config) | keys, "data.tokenizer")
    trained = config.open(chosen, home, fields)
    texts = learnable(chosen, home, fields)[1]()
    ids = [trained.pieces(text) for text in texts]
    count = sum(map(len, ids))

    def share(some: Container[int]) -> float:
        return sum(i in some for one in ids for i in one) / max(count, 1)

    if file:
        trained.save(file)
    return {
        "pieces": len(trained),
        "texts": len(texts),
        "tokens": count,
        "characters_per_token": sum(map(len, texts)) / max(count, 1),
        "unknown": share({trained.unknown}),
        "bytes": share(trained.byte_pieces),
    }


def encode(config: Experiment, splits: Sequence[str] | None = None) -> dict[str, dict[str, int]]:
    """`mmjax data encode`: computes what the encoders in `data.encoded` make of their inputs, and writes it to their folders.

    The encoders have the parameters with which a training of the config begins (`Experiment.initial`).

    Args:
      splits: to encode; None: the training split and the split of the evaluation.

    Returns:
      {split: {encoder: number of vectors}}.

    Raises:
      UserError: the config names no encoders, or a folder holds other outputs.
    """
    from mmjax.train.encoding import encode_split, encoder_digests, initial_parameters

    if not config.data.encoded:
        raise UserError("data.encoded names no encoder; write, for example, encoded={'speech': 'encoded/speech'}")
    whole, training = open_data(raw(config))
    params = initial_parameters(whole, training.tokenizer)
    digests = encoder_digests(config, params)
    found = {}
    for split in splits or dict.fromkeys(("train", config.evaluation.split)):
        source = build_source(whole.data, split, labels=labels_of(whole))
        found[split] = {
            name: encode_split(whole, params, source, name, digests[name], local(folder, "data.encoded") / split)
            for name, folder in config.data.encoded.items()
        }
    return found
