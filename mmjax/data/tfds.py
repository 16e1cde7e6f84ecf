"""Data sets of TensorFlow Datasets (TFDS), read at random from the ArrayRecord files that it prepares.

TensorFlow is never imported. TFDS's own `data_source` needs it to open any data set with recordings, and decodes pictures
on the way. So only TFDS's descriptions and splits are used, and the records are taken apart here: each is a
`tf.train.Example`, in which a picture is an encoded file, and a recording is one (`lazy_decode`) or its samples.
"""

import io
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import soundfile

from mmjax.data.record import WRITTEN, Record
from mmjax.data.tfds_description import Feature, feature_of, prepared, read_features, record_files
from mmjax.data.tfds_fields import ready
from mmjax.data.tfrecord import TFRecords
from mmjax.errors import UserError


class TFDS:
    """The records of a split.

    Args:
      split: in TFDS's words: "train", "train[:90%]", "train+validation".
      name: "librispeech", "coco_captions/2014", "c4/en:3.1.0".
      fields: fields of `Record` -> paths of features; None: those of `READY`.
      directory: TFDS's data_dir; None: $TFDS_DATA_DIR, else ~/tensorflow_datasets.
      sample_rate: of recordings, in Hz, where the data set does not say it.
      once: everything will be read once, in order: then TFRecord files will do, too.

    Attributes:
      files: that it consists of.
      resolved: the fields that it has.

    Raises:
      UserError: it is not prepared, or not as ArrayRecord; there is no such split or feature.
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
    ):
        self._title, self._rate = f"{name} {split}", sample_rate
        home = prepared(name, directory)
        features = {feature.path: feature for feature in read_features(home)}
        fields = fields if fields is not None else ready(name)
        if fields is None:
            raise UserError(
                f"which features of {name} are which fields? Set data.source.fields, as in {{'text': ...}}; "
                f"it has {', '.join(features)}"
            )
        self._fields = {field: feature_of(field, path, features, name) for field, path in fields.items()}
        self.resolved = {"fields": dict(fields)}
        speech = self._fields.get("speech", (None,))[0]
        if speech is not None and speech.kind == "samples":
            self._rate = speech.about.sample_rate or sample_rate
            if not self._rate:
                raise UserError(
                    f"{name} does not say how many samples a second its recordings have; set data.source.sample_rate"
                )
        parts, form = record_files(home, split, name)
        if form != "array_record" and not once:
            raise UserError(
                f"{home} holds {form} files, which cannot be read at random; make shards of them once (TensorFlow is not "
                f"needed): mmjax data build CONFIG -o DIR, or, for all splits under their own names, tfds:{name} for CONFIG"
            )
        self._records = _array_records(parts) if form == "array_record" else TFRecords(parts)
        self.files = [str(home / name) for name in ("dataset_info.json", "features.json")]
        self.files += [str(part.filename) for part in parts]

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> Record:
        """A record; what a field's list is too short for, and an empty text to be read, it does not have.

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
        if not set(found) - {"name", "language", "task"}:
            raise UserError(f"{name} has none of {', '.join(self._fields)}")
        return Record(**{"name": name, **found})

    def _value(self, field: str, feature: Feature, place: int, values: Any, name: str) -> Any:
        """What a record holds of a feature, as a field of ours; None: nothing."""
        kind = values[feature.key].WhichOneof("kind") if feature.key in values else None
        listed = getattr(values[feature.key], kind).value if kind else ()
        if place >= len(listed):
            return None
        match feature.kind:
            case "samples":
                return _wav(_array(listed, feature.about), self._rate, name)
            case "numbers":
                return _finite(_array(listed, feature.about).ravel().tolist())
            case "class":
                return feature.classes[listed[place]] if listed[place] >= 0 else None
            case "number":  # whole ones are names of classes
                return _finite([listed[place]]) if field == "answer" and kind == "float_list" else str(listed[place])
            case _ if field in ("speech", "image"):
                return listed[place] or None
        return listed[place].decode() or ("" if field in WRITTEN else None)


def _array(listed: Any, about: Any) -> np.ndarray:
    """The numbers of a feature, in its shape."""
    kind = np.dtype(about.dtype)
    encoding = about.encoding.lower() or "none"
    if encoding == "none":
        flat = np.array(listed, kind)
    else:
        (data,) = listed
        flat = np.frombuffer(zlib.decompress(data) if encoding == "zlib" else data, kind)
    return flat.reshape(list(about.shape.dimensions))


def _finite(numbers: Sequence[float]) -> tuple[float, ...]:
    if not np.isfinite(numbers).all():
        raise ValueError("an answer is no finite number")
    return tuple(map(float, numbers))


def _wav(samples: np.ndarray, rate: int, name: str) -> bytes | None:
    """Samples [N] or [N, channels] as a WAV file; TFDS's whole numbers are of 16 bits, whatever their type."""
    if not len(samples):
        return None
    floating = np.issubdtype(samples.dtype, np.floating)
    if not floating and not -(2**15) <= samples.min() <= samples.max() < 2**15:
        raise UserError(f"{name} holds samples from {samples.min()} to {samples.max()}, which are not of 16 bits")
    buffer = io.BytesIO()
    kind = ("FLOAT", np.float32) if floating else ("PCM_16", np.int16)
    soundfile.write(buffer, samples.astype(kind[1], copy=False), rate, subtype=kind[0], format="WAV")
    return buffer.getvalue()


def _array_records(parts: list[Any]) -> Any:
    from array_record.python.array_record_data_source import ArrayRecordDataSource

    try:
        return ArrayRecordDataSource(parts)
    except (RuntimeError, ValueError) as error:
        raise UserError(f"cannot read {parts[0].filename}: {error}") from None
