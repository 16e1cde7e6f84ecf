"""Splits of data sets that come without splits: related examples stay together."""

import hashlib
import re
from collections.abc import Hashable, Iterable, Mapping

from mmjax.errors import UserError

SPLITS = ("train", "validation", "test")


def check_split(split: str, source: str, splits: tuple[str, ...] = SPLITS) -> None:
    """Checks that a source has a split.

    Raises:
      UserError: the source has no such split.
    """
    if split not in splits:
        raise UserError(f"{source} has no split '{split}'; it has {', '.join(splits)}")


def groups_of(keys: Mapping[str, Iterable[Hashable]]) -> dict[str, str]:
    """The group of each name: names with a common key are in one group, which has the name of its first member."""
    group = {name: name for name in keys}

    def root(name: str) -> str:
        while group[name] != name:
            group[name] = group[group[name]]
            name = group[name]
        return name

    first: dict[Hashable, str] = {}
    for name, own in keys.items():
        for key in own:
            one, other = sorted((root(name), root(first.setdefault(key, name))))
            group[other] = one
    return {name: root(name) for name in keys}


def splits_of(keys: Mapping[str, Iterable[Hashable]]) -> dict[str, str]:
    """The split of each name: 80 % of the groups of `groups_of` are "train", 10 % "validation" and 10 % "test".

    It depends only on the name of the group.
    """
    return {name: _split(group) for name, group in groups_of(keys).items()}


def _split(group: str) -> str:
    place = hashlib.sha256(group.encode()).digest()[0] * 10 // 256
    return {8: "validation", 9: "test"}.get(place, "train")


def phrase(text: str) -> str:
    """The words of a text in lower case, without punctuation: texts with equal phrases are spoken alike."""
    return " ".join(re.sub(r"[\W_]+", " ", text.casefold()).split())
