"""The same recordings, pictures and texts as every kind of collection; what several tests share."""

import csv
import io
import json
import tarfile

import numpy as np
import soundfile
from PIL import Image

from mmjax.data.corpus import Corpus
from mmjax.data.fields import USUAL
from mmjax.data.folder import FolderRecords
from mmjax.data.indexing import open_index
from mmjax.data.manifest import ManifestRecords
from mmjax.data.parquet import ParquetRecords
from mmjax.data.record import read_row
from mmjax.data.tar_shards import TarShardsRecords
from mmjax.data.text import Tokenizer

COUNT = 12
WORDS = ["ein", "zwei", "drei", "vier", "fünf", "sechs", "sieben", "acht", "neun", "zehn"]


def from_row(row, root, name, columns=None, fields=USUAL):
    """The record of a row."""
    return read_row(row, root, name, columns, fields=fields)[0]


def said(number):
    return " ".join(WORDS[: 1 + number % 5])


def make_files(home):
    """Recordings of several rates, containers and channels, pictures of several sizes, and texts, by class."""
    draw = np.random.default_rng(0)
    for number in range(COUNT):
        folder = home / ("odd" if number % 2 else "even")
        folder.mkdir(exist_ok=True)
        rate, kind = ((8_000, "wav"), (16_000, "flac"), (44_100, "ogg"), (22_050, "wav"))[number % 4]
        seconds = 0.5 + 0.1 * number
        sound = 0.1 * draw.standard_normal((round(seconds * rate), 1 + number % 2))
        soundfile.write(folder / f"{number:02}.{kind}", sound, rate)
        pixels = draw.integers(0, 256, (20 + number, 40 - number, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:02}.{'png' if number % 3 else 'jpg'}")
        (folder / f"{number:02}.txt").write_text(said(number))
    return home


def rows(files, absolute=False):
    """The same as rows of a manifest, in the order of a folder: by class."""
    for name in ("even", "odd"):
        for number in range(COUNT):
            if (number % 2 == 1) == (name == "odd"):
                found = {path.suffix: path for path in (files / name).glob(f"{number:02}.*")}
                speech = next(found[s] for s in (".wav", ".flac", ".ogg") if s in found)
                image = next(found[s] for s in (".png", ".jpg") if s in found)
                path = lambda p: str(p if absolute else p.relative_to(files))  # noqa: E731
                yield {"speech": path(speech), "image": path(image), "transcript": said(number), "answer": name}


def write(files, kind):
    """The collection of a kind, made of the same files."""
    if kind == "folder":
        return FolderRecords(str(files))
    if kind == "jsonl":
        (files / "list.jsonl").write_text("".join(json.dumps(row) + "\n\n" for row in rows(files)))
        return ManifestRecords(str(files / "list.jsonl"))
    if kind in ("csv", "tsv"):
        with (files / f"list.{kind}").open("w", newline="") as file:
            writer = csv.DictWriter(
                file, ["path", "picture", "sentence", "label"], delimiter="\t" if kind == "tsv" else ","
            )
            writer.writeheader()
            for row in rows(files, absolute=True):
                writer.writerow(dict(zip(writer.fieldnames, row.values(), strict=True)))
        return ManifestRecords(str(files / f"list.{kind}"), root="/nowhere", columns={"picture": "image"})
    if kind == "tar":
        for shard, part in enumerate(np.array_split(list(rows(files)), 2)):
            with tarfile.open(files / f"shard-{shard}.tar", "w") as tar:
                for number, row in enumerate(part):
                    for key in ("speech", "image"):
                        path = files / row[key]
                        tar.add(path, f"{shard}/{number}{path.suffix}")
                    about = json.dumps({"transcript": row["transcript"]}).encode()
                    for ending, data in ((".json", about), (".cls", row["answer"].encode())):
                        info = tarfile.TarInfo(f"{shard}/{number}{ending}")
                        info.size = len(data)
                        tar.addfile(info, io.BytesIO(data))
        return TarShardsRecords(str(files / "shard-*.tar"))
    import pyarrow
    import pyarrow.parquet

    named = list(rows(files))
    table = pyarrow.table(
        {
            "audio": [{"bytes": (files / r["speech"]).read_bytes(), "path": r["speech"]} for r in named],
            "image": [{"bytes": None, "path": r["image"]} for r in named],
            "transcript": [r["transcript"] for r in named],
            "label": [["even", "odd"].index(r["answer"]) for r in named],
        }
    )
    features = {"info": {"features": {"label": {"_type": "ClassLabel", "names": ["even", "odd"]}}}}
    table = table.replace_schema_metadata({"huggingface": json.dumps(features)})
    pyarrow.parquet.write_table(table, files / "list.parquet", row_group_size=5)
    return ParquetRecords(str(files / "*.parquet"))


def corpus(collection, directory, **changes):
    stamp = {"kind": type(collection).__name__, "files": collection.files}
    index = open_index(collection, stamp, directory, "it", changes.get("fields", USUAL))
    return Corpus(collection, index, Tokenizer.train(WORDS, 60), **changes)
