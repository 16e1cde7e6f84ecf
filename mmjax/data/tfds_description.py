"""Reads TFDS's description of a data set: its splits (dataset_info.json) and its features (features.json)."""

import difflib
import os
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from mmjax.data.fields import TAGS, Fields
from mmjax.data.inputs import TEXT
from mmjax.data.tfds_fields import READY
from mmjax.errors import UserError, nearest

NAME = re.compile(r"(?P<name>\w+)(/(?P<config>[^/:]+))?(:(?P<version>\d+\.\d+\.\d+))?")
VERSION = re.compile(r"\d+\.\d+\.\d+")


class Feature(NamedTuple):
    """A leaf feature of a data set.

    Attributes:
      key: key of its values in a `tf.train.Example`.
      kind: "text"; "bytes" (text or an encoded file); "class"; "number"; "numbers" (an array); "image" or "recording"
        (encoded files); "samples" (a recording); otherwise unsupported, and the name of its TFDS class.
      listed: number of nested lists around it.
      about: TFDS's description of it.
      classes: class names, if it is a class.
    """

    key: str
    kind: str
    listed: int
    about: Any
    classes: tuple[str, ...] = ()

    @property
    def path(self) -> str:
        """The feature's path in a config."""
        return self.key + "/0" * self.listed


def prepared(name: str, directory: str | None) -> Any:
    """The folder of a prepared data set, in its newest version unless one is given.

    Raises:
      UserError: the data set is not prepared, or its name leaves several configs to choose from.
    """
    from etils import epath

    match = NAME.fullmatch(name)
    if match is None:
        raise UserError(f"'{name}' is not a TFDS name; write NAME, NAME/CONFIG or NAME/CONFIG:VERSION")
    root = epath.Path(directory or os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets")).expanduser()
    home = root / match["name"]
    if match["config"]:
        home = home / match["config"]
    elif home.is_dir() and not _versions(home):
        configs = sorted(path.name for path in home.iterdir() if path.is_dir() and _versions(path))
        if len(configs) > 1:
            known = ", ".join(f"{match['name']}/{config}" for config in configs)
            raise UserError(f"{home} holds several configs; write one of {known}")
        home = home / configs[0] if configs else home
    versions = _versions(home) if home.is_dir() else []
    if match["version"]:
        versions = [match["version"]] if match["version"] in versions else []
    if not versions:
        near = difflib.get_close_matches(match["name"], READY, n=1, cutoff=0.75)
        meant = f"; did you mean '{near[0]}'?" if near and near[0] != match["name"] else "."
        command = f"tfds.builder('{name}', data_dir='{root}', file_format='array_record').download_and_prepare()"
        raise UserError(
            f"TFDS has not prepared {name} in {root}{meant} (Set data.source.directory or TFDS_DATA_DIR if it is elsewhere.) "
            f'Prepare it once: python -c "import tensorflow_datasets as tfds; {command}" '
            "(most data sets need mmjax's extra 'tf', some also apache-beam)"
        )
    return home / max(versions, key=lambda version: tuple(map(int, version.split("."))))


def _versions(home: Any) -> list[str]:
    """The complete versions; TFDS writes incomplete ones under a temporary name."""
    return [p.name for p in home.iterdir() if VERSION.fullmatch(p.name) and (p / "features.json").exists()]


def splits_of(name: str, directory: str | None = None) -> list[str]:
    """The names of a data set's splits that are not empty."""
    return [split.name for split in _info(prepared(name, directory)).splits if sum(split.shard_lengths)]


def _info(home: Any) -> Any:
    from tensorflow_datasets.core.proto import dataset_info_pb2

    return _message(home / "dataset_info.json", dataset_info_pb2.DatasetInfo())


def _message(path: Any, kind: Any) -> Any:
    """Parses a JSON file of TFDS into a protobuf message."""
    from google.protobuf import json_format

    try:
        return json_format.Parse(path.read_text(encoding="utf-8"), kind, ignore_unknown_fields=True)
    except Exception as error:  # errors of protobuf and of the file system
        raise UserError(f"cannot read {path} ({error}); prepare the data set again") from None


def record_files(home: Any, split: str, name: str) -> tuple[list[Any], str]:
    """The files of a split with the records to read from each, and their format: "array_record" or "tfrecord".

    Raises:
      UserError: there is no such split, or one of its files is missing.
    """
    from tensorflow_datasets.core import naming
    from tensorflow_datasets.core import splits as tfds_splits

    info = _info(home)
    forms = [info.file_format or "tfrecord", *info.alternative_file_formats]
    form = "array_record" if "array_record" in forms else forms[0]
    if form not in ("array_record", "tfrecord"):
        raise UserError(f"{home} holds {form} files; prepare it again with file_format='array_record'")
    template = naming.ShardedFileTemplate(data_dir=home, dataset_name=info.name, filetype_suffix=form)
    known = tfds_splits.SplitDict.from_proto(repeated_split_infos=info.splits, filename_template=template)
    try:
        parts = known[split].file_instructions
    except Exception as error:  # ValueError, KeyError or an error type of TFDS
        has = ", ".join(one.name for one in info.splits)
        raise UserError(f"{name} has no split '{split}' ({str(error).splitlines()[0]}); it has {has}") from None
    missing = [part.filename for part in parts if not _exists(part.filename)]
    if missing or not parts:
        raise UserError(f"{home} lacks {missing[0] if missing else f'any example of {split}'}; prepare it again")
    return parts, form


def _exists(path: str) -> bool:
    from etils import epath

    return epath.Path(path).exists()


def read_features(home: Any) -> list[Feature]:
    """The leaf features of a data set.

    Raises:
      UserError: the description is damaged, or was written by an old version of TFDS.
    """
    from tensorflow_datasets.core.proto import feature_pb2

    about = _message(home / "features.json", feature_pb2.Feature())
    if about.WhichOneof("content") is None:
        raise UserError(f"{home / 'features.json'} is of an old version of TFDS; prepare the data set again")
    return list(_leaves(about, (), 0, home))


def _leaves(about: Any, names: tuple[str, ...], listed: int, home: Any):
    """Yields the leaf features of a feature."""
    kind, own = about.python_class_name.rpartition(".")[2], about.WhichOneof("content")
    inner, key = getattr(about, own) if own else None, "/".join(names)
    if own == "features_dict":
        for name in sorted(inner.features):
            yield from _leaves(inner.features[name], (*names, name), listed, home)
    elif kind == "Sequence" and own == "sequence":
        yield from _leaves(inner.feature, names, listed + 1, home)
    elif kind == "Translation":
        for language in inner.languages:
            yield Feature("/".join((*names, language)), "text", listed, inner)
    elif own == "class_label":
        yield Feature(key, "class", listed, inner, _classes(inner, names, home))
    else:
        yield Feature(key, _kind(own, inner) or kind, listed, inner)


def _kind(own: str | None, inner: Any) -> str | None:
    """The kind of a feature, as in `Feature.kind`; None if it is not supported."""
    match own:
        case "text" | "image":
            return own
        case "audio":
            return "recording" if inner.lazy_decode else "samples"
        case "tensor" if inner.dtype in ("string", "object"):
            return None if inner.shape.dimensions else "bytes"
        case "tensor" if not inner.shape.dimensions:
            return "number" if inner.encoding.lower() in ("", "none") else None
        case "tensor" if list(inner.shape.dimensions).count(-1) < 2:
            return "numbers"
    return None


def _classes(inner: Any, names: tuple[str, ...], home: Any) -> tuple[str, ...]:
    """The class names in TFDS's labels file; numbers if there is no such file."""
    path = home / f"{'-'.join(name.replace('/', '.') for name in names)}.labels.txt"
    if not path.exists():
        return tuple(map(str, range(inner.num_classes)))
    return tuple(name.strip() for name in path.read_text(encoding="utf-8").split("\n") if name.strip())


def feature_of(
    field: str, path: str, features: Mapping[str, Feature], name: str, read: Fields
) -> tuple[Feature, int | None]:
    """The feature at a config's path, and the index in its list; None: all elements, as alternatives of a text label.

    Raises:
      UserError: there is no such feature, or its kind does not suit the field.
    """
    if field in read.inputs:
        kinds = read.inputs[field].features
    else:
        text = field in TAGS or read.labels.get(field) == "text"
        kinds = TEXT if text else (*TEXT, "number") if field == "name" else (*TEXT, "number", "numbers")
    stem, _, last = path.rpartition("/")
    feature, place = features.get(path), 0
    every = last == "*" and read.labels.get(field) == "text"
    if feature is None and (every or last.isdigit()) and f"{stem}/0" in features:
        feature, place = features[f"{stem}/0"], None if every else int(last)
    if feature is None:
        raise UserError(f"{name} has no feature '{path}'{nearest(path, features)}")
    arrays = feature.kind in ("samples", "numbers")
    if feature.kind not in kinds or feature.listed > (0 if arrays else 1):
        kind = feature.kind + " in a list" * feature.listed
        raise UserError(f"data.source.fields: '{path}' of {name} is {kind}, which cannot be used as '{field}'")
    return feature, place
