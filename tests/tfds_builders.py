"""Tiny data sets with the features that TFDS's own builders declare, prepared and read by TFDS's own machinery.

    python tests/tfds_builders.py DIRECTORY NAME[=SPLIT,SPLIT...] ...

A program of its own, because TFDS cannot even declare recordings without TensorFlow: here its data types are NumPy's.
Nothing of that is left in the process of the tests, which read what it writes: beside each data set, as
reference-SPLIT.pickle, what TFDS's data_source reads of it, by path.
"""

import importlib
import io
import pathlib
import pickle
import sys
import types

import numpy as np
import soundfile
import tensorflow_datasets as tfds
from PIL import Image
from tensorflow_datasets.core.utils import lazy_imports_utils

EXAMPLES = {"train": 6, "test": 4}
# Builders that TFDS knows only after their modules are imported.
MODULES = {
    "c4": "text.c4",
    "cnn_dailymail": "summarization.cnn_dailymail",
    "coco_captions": "object_detection.coco_captions",
    "gigaword": "summarization.gigaword",
    "glue": "text.glue",
    "wiki40b": "text.wiki40b",
    "wikipedia": "text.wikipedia",
    "wmt14_translate": "translate.wmt14",
    "xsum": "summarization.xsum",
    "yelp_polarity_reviews": "text.yelp_polarity",
}


class String(np.str_):
    """TensorFlow's type of texts and bytes."""

    as_numpy_dtype = np.object_


def stand_in() -> None:
    """Gives TFDS the few names of TensorFlow that declarations of features use."""
    kinds = {name: getattr(np, name) for name in ("uint8", "int16", "int32", "int64", "float32")}
    kinds |= {"string": String, "bool": np.bool_, "as_dtype": np.dtype}
    vars(lazy_imports_utils.tensorflow)["_module"] = types.SimpleNamespace(
        dtypes=types.SimpleNamespace(**kinds), Tensor=np.ndarray, io=types.SimpleNamespace(), **kinds
    )


def example(feature, number: int, key: str = ""):
    """What a builder would yield for a feature: something of the right kind that differs by number."""
    kind = type(feature).__name__
    draw = np.random.default_rng([number, len(key)])
    if kind == "FeaturesDict":
        return {name: example(inner, number, name) for name, inner in feature.items()}
    if kind == "Translation":
        return {language: f"{language} {number}" for language in feature.languages}
    if kind == "Sequence":
        return [example(feature.feature, number + 10 * i, key) for i in range(feature._length or 2)]
    if kind == "Audio":
        shape = [size or 4_000 + 400 * number for size in feature.shape]
        if np.issubdtype(feature.np_dtype, np.floating):
            return draw.uniform(-0.5, 0.5, shape).astype(feature.np_dtype)
        samples = draw.integers(-9_000, 9_000, shape).astype(feature.np_dtype)
        if not feature._lazy_decode:
            return samples
        buffer = io.BytesIO()
        soundfile.write(buffer, samples.astype(np.int16), 16_000, format=feature._file_format or "FLAC")
        return io.BytesIO(buffer.getvalue())
    if kind == "Image":
        height, width = (size or 20 + number for size in feature.shape[:2])
        pixels = draw.integers(0, 256, (height, width, feature.shape[2]), np.uint8).squeeze()
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "PNG")
        return io.BytesIO(buffer.getvalue())
    if kind == "ClassLabel":
        return number % feature.num_classes
    if kind == "BBoxFeature":
        return tfds.features.BBox(0.0, 0.0, 0.5, 0.5)
    if np.issubdtype(feature.np_dtype, np.number) or feature.np_dtype == np.bool_:
        return np.full(feature.shape, number, feature.np_dtype)[()]
    return f"{key} {number}"


def prepare(directory: str, name: str, splits: dict[str, int]) -> None:
    """Writes a few examples of a data set where TFDS would write all of it; `splits` says how many."""
    plain = name.partition("/")[0].partition(":")[0]
    if plain in MODULES:
        importlib.import_module(f"tensorflow_datasets.{MODULES[plain]}")
    builder = tfds.builder(name, data_dir=directory, file_format="array_record")

    def examples(split):
        for number in range(splits[split]):
            made = example(builder.info.features, number)
            yield number, made | ({"language": language(name)} if plain == "xtreme_s" else {})

    builder.info._metadata = None  # Apache Beam's, of some
    builder._split_generators = lambda *_, **__: {split: examples(split) for split in splits}
    builder.download_and_prepare(download_config=tfds.download.DownloadConfig(try_download_gcs=False))
    encoded = {key: tfds.decode.SkipDecoding() for key, f in builder.info.features.items() if is_file(f)}
    for split in splits:
        found = [dict(flat(builder.info.features, x)) for x in builder.as_data_source(split, decoders=encoded)]
        (pathlib.Path(builder.data_dir) / f"reference-{split}.pickle").write_bytes(pickle.dumps(found))


def language(name: str) -> str:
    """What FLEURS calls the language of "xtreme_s/fleurs.de_de": German."""
    return sys.modules["tensorflow_datasets.audio.xtreme_s.xtreme_s"]._FLEURS_LANG_TO_LONG[name.partition(".")[2]]


def is_file(feature) -> bool:
    """Whether TFDS would decode it, and we do not."""
    return type(feature).__name__ == "Image" or getattr(feature, "_lazy_decode", False)


def flat(feature, value, path=""):
    """Values by path, as texts, names of classes, arrays, or bytes of files."""
    kind = type(feature).__name__
    if kind in ("FeaturesDict", "Translation"):
        for name, inner in feature.items():
            yield from flat(inner, value[name], f"{path}/{name}".lstrip("/"))
    elif kind == "Sequence" and type(feature.feature).__name__ == "FeaturesDict":
        for name, inner in feature.feature.items():
            for number, one in enumerate(value[name]):
                yield from flat(inner, one, f"{path}/{name}/{number}")
    elif kind == "ClassLabel":
        yield path, feature.int2str(value)
    elif isinstance(value, bytes) and not is_file(feature):
        yield path, value.decode()
    else:
        yield path, value


if __name__ == "__main__":
    stand_in()
    tfds.disable_progress_bar()
    pathlib.Path(sys.argv[1]).mkdir(exist_ok=True)
    for wanted in sys.argv[2:]:
        name, _, named = wanted.partition("=")
        prepare(sys.argv[1], name, dict.fromkeys(named.split(","), 4) if named else EXAMPLES)
