"""Random access to data sets of TensorFlow Datasets (TFDS), from the ArrayRecord files that TFDS prepares.

TensorFlow is never imported. TFDS's own `data_source` needs TensorFlow for recordings, and decodes pictures eagerly. So
this module uses only TFDS's descriptions and splits, and parses the records itself. Each record is a `tf.train.Example`
that holds pictures as encoded files, and recordings as encoded files (`lazy_decode`) or samples.
"""

import io
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mmjax.data.fields import TAGS, USUAL, Fields
from mmjax.data.record import Record, read_row
from mmjax.data.source import Listed
from mmjax.data.tfds_description import Feature, feature_of, prepared, read_features, record_files
from mmjax.data.tfds_fields import ready
from mmjax.data.tfrecord import TFRecords
from mmjax.errors import UserError, nearest
from mmjax.tree import part


@part
class TFDS(Listed):
    """A data set that TFDS has prepared as ArrayRecord; `splits` maps names to TFDS's split syntax: "train[:90%]"."""

    name: str  # "librispeech", "coco_captions/2014", "c4/en:3.1.0"
    fields: Mapping[str, str] | None = None  # "target": "captions/text/0", or /*; None: built in for about 40 data sets
    directory: str | None = None  # None: $TFDS_DATA_DIR, or else ~/tensorflow_datasets
    sample_rate: int | None = None  # of recordings, in Hz, if the data set does not state it

    def records(self, split: str, directory: Path, fields: Fields, once: bool = False) -> "TFDSRecords":
        options = dict(fields=self.fields, directory=self.directory, sample_rate=self.sample_rate)
        return TFDSRecords(self.place(split), name=self.name, **options, once=once, read=fields)


class TFDSRecords:
    """The records of a split.

    Args:
      split: in TFDS's syntax: "train", "train[:90%]", "train+validation".
      name: "librispeech", "coco_captions/2014", "c4/en:3.1.0".
      fields: inputs, labels and tags -> paths of features; None: those in `READY`.
      directory: TFDS's data_dir; None: $TFDS_DATA_DIR, or else ~/tensorflow_datasets.
      sample_rate: of recordings, in Hz, if the data set does not state it.
      once: the records will be read once, in order; TFRecord files are then allowed, too.
      read: what to read; other fields are left out.

    Attributes:
      files: the data set's files.
      resolved: the `fields` in use.

    Raises:
      UserError: the data set is not prepared, or not as ArrayRecord; or a split or feature does not exist.
    """

    def __init__(
        self,
        split: str,
        *,
        name: str,
        fields: Mapping[str, str] | None = None,
        directory: str | None = None,
        sample_rate: int | None = None,
        once: bool = False,
        read: Fields = USUAL,
    ):
        self._title, self._rate, self._read = f"{name} {split}", sample_rate, read
        home = prepared(name, directory)
        features = {feature.path: feature for feature in read_features(home)}
        fields = fields if fields is not None else ready(name)
        if fields is None:
            raise UserError(
                f"the fields of {name} are not built in; set data.source.fields, as in {{'text': ...}}; "
                f"its features are {', '.join(features)}"
            )
        known = {*read.inputs, *read.labels, *TAGS, "name"}
        for field in fields:
            if field not in known | USUAL.labels.keys():
                raise UserError(f"data.source.fields: there is no '{field}'{nearest(field, known)}")
        self._fields = {
            field: feature_of(field, path, features, name, read) for field, path in fields.items() if field in known
        }
        self.resolved = {"fields": dict(fields)}
        for feature, _ in self._fields.values():
            if feature.kind == "samples":
                self._rate = feature.about.sample_rate or sample_rate
                if not self._rate:
                    raise UserError(
                        f"{name} does not state the sample rate of its recordings; set data.source.sample_rate"
                    )
        parts, form = record_files(home, split, name)
        if form != "array_record" and not once:
            raise UserError(
                f"{home} holds {form} files, which have no random access; make shards of them once (TensorFlow is not "
                f"needed): mmjax data build CONFIG -o DIR, or, for all splits under their own names, tfds:{name} for CONFIG"
            )
        self._records = _array_records(parts) if form == "array_record" else TFRecords(parts)
        self.files = [str(home / name) for name in ("dataset_info.json", "features.json")]
        self.files += [str(part.filename) for part in parts]

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> Record:
        """A record; fields beyond the end of a list, and empty input texts, are missing.

        Raises:
          UserError: the record is damaged, or has none of the fields.
        """
        from google.protobuf.message import DecodeError
        from tensorflow_datasets.proto import tf_example_pb2

        name = f"{self._title} {index}"
        try:
            values = tf_example_pb2.Example.FromString(self._records[int(index)]).features.feature
            found = {
                field: self._value(field, feature, place, values, name)
                for field, (feature, place) in self._fields.items()
            }
        except (DecodeError, RuntimeError, ValueError, IndexError, zlib.error) as error:
            raise UserError(f"{name} is damaged: {error}") from None
        found = {field: value for field, value in found.items() if value is not None}
        if not found.keys() - {"name", *TAGS}:
            raise UserError(f"{name} has none of {', '.join(self._fields)}")
        return read_row(found, "", name, fields=self._read)[0]

    def _value(self, field: str, feature: Feature, place: int | None, values: Any, name: str) -> Any:
        """Converts a feature of a record to a field of `Record`; None if missing."""
        kind = values[feature.key].WhichOneof("kind") if feature.key in values else None
        listed = getattr(values[feature.key], kind).value if kind else ()
        if place is None:
            return [one.decode() for one in listed] or None
        if place >= len(listed):
            return None
        match feature.kind:
            case "samples":
                return _wav(_array(listed, feature.about), self._rate, name)
            case "numbers":
                numbers = _finite(_array(listed, feature.about))
                return numbers.tolist() if field in self._read.inputs else numbers.ravel().tolist()
            case "class":
                return feature.classes[listed[place]] if listed[place] >= 0 else None
            case "number":  # integers are class names
                return _finite([listed[place]]) if kind == "float_list" else str(listed[place])
            case _ if field in self._read.inputs and field not in self._read.read_texts:
                return listed[place] or None
        return listed[place].decode() or ("" if self._read.labels.get(field) == "text" else None)


def _array(listed: Any, about: Any) -> np.ndarray:
    """Decodes the numbers of a feature to an array of its shape."""
    kind = np.dtype(about.dtype)
    encoding = about.encoding.lower() or "none"
    if encoding == "none":
        flat = np.array(listed, kind)
    else:
        (data,) = listed
        flat = np.frombuffer(zlib.decompress(data) if encoding == "zlib" else data, kind)
    return flat.reshape(list(about.shape.dimensions))


def _finite(numbers: Any) -> Any:
    if not np.isfinite(numbers).all():
        raise ValueError("a label is not a finite number")
    return numbers


def _wav(samples: np.ndarray, rate: int, name: str) -> bytes | None:
    """Encodes samples [N] or [N, channels] as WAV; TFDS's integers are 16-bit samples, whatever their dtype."""
    if not len(samples):
        return None
    floating = np.issubdtype(samples.dtype, np.floating)
    if not floating and not -(2**15) <= samples.min() <= samples.max() < 2**15:
        raise UserError(f"{name} holds samples from {samples.min()} to {samples.max()}, which are not 16-bit samples")
    buffer = io.BytesIO()
    kind = ("FLOAT", np.float32) if floating else ("PCM_16", np.int16)
    import soundfile

    soundfile.write(buffer, samples.astype(kind[1], copy=False), rate, subtype=kind[0], format="WAV")
    return buffer.getvalue()


def _array_records(parts: list[Any]) -> Any:
    from array_record.python.array_record_data_source import ArrayRecordDataSource

    try:
        return ArrayRecordDataSource(parts)
    except (RuntimeError, ValueError) as error:
        raise UserError(f"cannot read {parts[0].filename}: {error}") from None
