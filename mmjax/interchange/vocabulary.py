"""Copies the tokenizer and the chat template of a model on import, and restores them on export."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmjax.data.chat_template import CONFIG, FILE
from mmjax.errors import UserError
from mmjax.interchange.directories import read_object

TOKENIZER = "tokenizer.json"
CHAT = (CONFIG, FILE)  # names of special tokens, and the chat template, which may be in either
SENTENCEPIECE = ("tokenizer.model", "spiece.model")
# XLM-RoBERTa's model does not have the ids of the network: in transformers, other special tokens come first.
OTHER_IDS = "sentencepiece.bpe.model"
# Character vocabularies of wav2vec 2.0 and similar models (`Wav2Vec2CTCTokenizer` of transformers).
CHARACTERS = "vocab.json"
ABOUT_CHARACTERS = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")


def keep(source: Path, out: Path, blank: int | None) -> list[str]:
    """Copies the files of a tokenizer and the chat template from a Hugging Face directory.

    If a model with a CTC head has only a vocab.json, a tokenizer.json is made from it.

    Args:
      blank: id of the CTC head's blank; None if the model has no such head.

    Returns:
      Names of files that were not copied.

    Raises:
      UserError: the files cannot be copied.
    """
    try:
        _copy((TOKENIZER, *SENTENCEPIECE, *CHAT), source, out)
        _restore_first_merge(out / TOKENIZER)
        made = blank is not None and (source / CHARACTERS).is_file() and not (source / TOKENIZER).is_file()
        if made and (about := of_characters(source, blank)) is not None:
            (out / TOKENIZER).write_text(json.dumps(about, ensure_ascii=False, indent=2))
            _copy((CHARACTERS, *ABOUT_CHARACTERS), source, out)
    except OSError as error:
        raise UserError(f"cannot copy the tokenizer of {source} to {out}: {error.strerror or error}") from None
    names = (*SENTENCEPIECE, CHARACTERS, OTHER_IDS)
    return [x for x in names if (source / x).is_file() and not (out / x).is_file()]


def _restore_first_merge(path: Path) -> None:
    """Restores the first merge of a byte-pair model that has lost it.

    In the published tokenizer.json of the multilingual Whisper models, "Ġ t" is missing: the line before it was taken for a
    heading. " the" would be written as " " and "the", which the models have never seen. Pieces are numbered in the order of their
    merges, so the first merge makes the piece with the least id of more than one character.
    """
    about = read_object(path) if path.is_file() else {}
    model = about.get("model", {})
    if model.get("type") != "BPE" or not model.get("merges"):
        return
    textual = isinstance(model["merges"][0], str)
    made = {merge.replace(" ", "") if textual else "".join(merge) for merge in model["merges"]}
    added = {token["content"] for token in about.get("added_tokens", ())}
    longer = {i: piece for piece, i in model["vocab"].items() if len(piece) > 1 and piece not in added}
    first = longer[min(longer)] if longer else ""
    if len(first) == 2 and [piece for piece in longer.values() if piece not in made] == [first]:
        model["merges"].insert(0, " ".join(first) if textual else list(first))
        path.write_text(json.dumps(about, ensure_ascii=False), "utf-8")


def read_mask(source: Path) -> dict[str, int | None]:
    """{"mask_token_id": the id of the mask, or None} of a directory with a tokenizer.json; empty if it has none."""
    if not (source / TOKENIZER).is_file():
        return {}
    settings: dict[str, Any] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        settings |= read_object(source / name) if (source / name).is_file() else {}
    mask = _name(settings, "mask_token", "[MASK]")
    added = read_object(source / TOKENIZER).get("added_tokens", ())
    return {"mask_token_id": next((token["id"] for token in added if token["content"] == mask), None)}


def give_back(source: Path, out: Path) -> None:
    """The inverse of `keep`."""
    try:
        if (source / CHARACTERS).is_file():
            _copy((CHARACTERS, *ABOUT_CHARACTERS), source, out)
            return
        _copy((TOKENIZER, *SENTENCEPIECE, *CHAT), source, out)
    except OSError as error:
        raise UserError(f"cannot copy the tokenizer of {source} to {out}: {error.strerror or error}") from None


def of_characters(source: Path, blank: int) -> dict[str, Any] | None:
    """A tokenizer.json equivalent to a `Wav2Vec2CTCTokenizer`; None if the tokenizer is of another kind.

    Every entry of the vocabulary is a piece; spaces map to the word delimiter. Only the blank is a special token: if a
    model writes "<s>", it appears in the text, as with the original tokenizer.
    """
    about = {name: read_object(source / name) if (source / name).is_file() else {} for name in ABOUT_CHARACTERS}
    settings = about["special_tokens_map.json"] | about["tokenizer_config.json"]
    vocabulary = read_object(source / CHARACTERS)
    added = {token["content"]: int(i) for i, token in settings.get("added_tokens_decoder", {}).items()}
    vocabulary = added | about["added_tokens.json"] | vocabulary
    kind = settings.get("tokenizer_class", "Wav2Vec2CTCTokenizer")
    if kind != "Wav2Vec2CTCTokenizer" or not all(isinstance(i, int) for i in vocabulary.values()):
        return None  # phonemes, or one vocabulary per language
    unknown, delimiter = _name(settings, "unk_token", "<unk>"), _name(settings, "word_delimiter_token", "|")
    space = settings.get("replace_word_delimiter_char", " ")
    letters = sorted(set("".join(vocabulary))) if settings.get("do_lower_case") else ()  # the vocabulary has capitals
    lower = {x: x.lower() for x in letters if x != x.lower() and len(x.lower()) == 1}
    replace = [(" ", delimiter), *((small, capital) for capital, small in lower.items())]
    restore = [(delimiter, space), *lower.items()]
    pieces = sorted((i, x) for x, i in vocabulary.items() if len(x) > 1)
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [_added(i, piece, special=i == blank) for i, piece in pieces],
        "normalizer": {"type": "Sequence", "normalizers": [_replacement(*pair) for pair in replace]},
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": {
            "type": "Sequence",
            "decoders": [
                *(_replacement(*pair) for pair in restore),
                {"type": "Fuse"},
                {"type": "Strip", "content": " ", "start": 1_000_000, "stop": 1_000_000},
            ],
        },
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": unknown if unknown in vocabulary else None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": vocabulary,
            "merges": [],
        },
    }


def _name(settings: Mapping[str, Any], key: str, default: str) -> str:
    """The name of a special token, stored as a string or as an object."""
    found = settings.get(key) or default
    return found["content"] if isinstance(found, dict) else found


def _added(number: int, piece: str, special: bool) -> dict[str, Any]:
    spaces = {"lstrip": not special, "rstrip": not special}  # remove the spaces around it
    return {"id": number, "content": piece, "single_word": False, "normalized": False, "special": special, **spaces}


def _replacement(what: str, by: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": {"String": what}, "content": by}


def _copy(names: tuple[str, ...], source: Path, out: Path) -> None:
    for name in names:
        if (source / name).is_file():
            shutil.copyfile(source / name, out / name)
