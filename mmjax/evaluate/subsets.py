"""The names of subsets of modalities, such as "speech+image"."""

from collections.abc import Collection
from itertools import combinations

ORDER = ("speech", "image", "text")


def ordered(modalities: Collection[str]) -> list[str]:
    """Speech, image, text, then others."""
    return [n for n in ORDER if n in modalities] + [n for n in modalities if n not in ORDER]


def canonical(subset: str) -> str:
    """A subset's one name: "text+image" is "image+text"."""
    return "+".join(ordered(subset.split("+")))


def all_subsets(modalities: Collection[str]) -> list[str]:
    """Every non-empty subset by its canonical name, the largest last."""
    names = ordered(modalities)
    return ["+".join(s) for size in range(1, len(names) + 1) for s in combinations(names, size)]
