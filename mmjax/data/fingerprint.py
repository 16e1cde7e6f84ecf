"""Fingerprints of splits, by which a resumed run detects changed data: number, sizes, texts, files and order."""

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np

LEFT_OUT = "left out"  # examples that cannot be used, by reason
Fingerprint = dict[str, dict[str, Any]]  # by source name in a mixture; "" for a single source


def fingerprint(source: Any) -> Fingerprint:
    """The fingerprint of an opened split; it does not depend on the folders of files, nor on their times.

    Changes that only decoding shows, such as other pixels in a file of the same name and size, are not detected.
    """
    parts: Mapping[str, Any] = getattr(source, "sources", {"": source})
    return {name: _of_one(part) for name, part in parts.items()}


def _of_one(source: Any) -> dict[str, Any]:
    found = {stream: _sum(sizes) for stream, sizes in sorted(source.sizes.items())}
    if index := getattr(source, "index", None):
        found |= {"texts": index.digest}
        found |= {f"label {name}": _sum(array) for name, array in index.arrays.items()}
        if index.files is not None:
            found |= {"files": _sum(index.files)}
    return {"examples": len(source), LEFT_OUT: dict(getattr(source, "dropped", {})), **found}


def _sum(array: Any) -> str:
    array = np.ascontiguousarray(array)
    return hashlib.sha256(f"{array.dtype.kind} {array.shape}".encode() + array.astype("<f8").tobytes()).hexdigest()[:16]


def changes(before: Fingerprint, now: Fingerprint) -> str | None:
    """Describes the differences between two fingerprints, for a message; None: they are equal."""
    said = []
    for name in before | now:
        old, new, where = before.get(name), now.get(name), f"source '{name}': " if name else ""
        if old is None or new is None:
            said.append(f"{where}{'it is new' if old is None else 'it is gone'}")
        elif difference := _difference(old, new):
            said.append(where + difference)
    return "; ".join(said) or None


def _difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """The most telling difference between the fingerprints of a source; "" if they are equal."""
    parts = []
    if old["examples"] != new["examples"]:
        parts.append(f"{old['examples']:,} examples then, {new['examples']:,} now")
    lost = [one.get(LEFT_OUT) for one in (old, new)]
    if None not in lost and lost[0] != lost[1]:  # runs of earlier versions do not have it
        then, now = map(_counted, lost)
        parts.append(f"left out: {then} then, {now} now (`mmjax data inspect` names them)")
    differing = sorted(key for key in old.keys() | new.keys() if key != LEFT_OUT and old.get(key) != new.get(key))
    if differing and not parts:
        parts.append(f"the same number of examples, but {', '.join(differing)} or the order differ")
    return ", ".join(parts)


def _counted(left_out: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} {reason}" for reason, count in sorted(left_out.items())) or "none"
