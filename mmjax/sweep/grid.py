"""Which runs a sweep or a cross-validation has."""

import dataclasses
import hashlib
import itertools
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from mmjax.data import Fold
from mmjax.data.folds import HELD_OUT
from mmjax.errors import UserError
from mmjax.train.experiment import Experiment
from mmjax.tree import override

LONGEST = 100  # characters of the name of a run directory
BRACKETS = {"(": ")", "[": "]", "{": "}"}


class Trial(NamedTuple):
    """One run.

    Attributes:
      name: of its directory.
      point: what it has in common with its repetitions, such as {"optimizer.schedule.peak": "1e-3"}.
      config: of the run.
    """

    name: str
    point: Mapping[str, str]
    config: Experiment


def read_over(text: str) -> tuple[str, list[str]]:
    """ "KEY=VALUE,VALUE" -> the key and the values; a comma inside brackets or quotes belongs to a value.

    Raises:
      UserError: the text has another form, or a value occurs twice.
    """
    key, equals, values = text.removeprefix("--").partition("=")
    found = _split(values)
    if not (key and equals) or not all(found):
        raise UserError(f"--over should be KEY=VALUE,VALUE, not '{text}'")
    for value in found:
        if found.count(value) > 1:
            raise UserError(f"--over {key} has the value {value} twice")
    return key.replace("-", "_"), found


def _split(text: str) -> list[str]:
    """The parts between the commas that are outside of brackets and quotes."""
    parts, inside, quote = [""], [], ""
    for character in text:
        if quote:
            quote = "" if character == quote else quote
        elif character in "'\"":
            quote = character
        elif character in BRACKETS:
            inside.append(BRACKETS[character])
        elif inside and character == inside[-1]:
            inside.pop()
        elif character == "," and not inside:
            parts.append("")
            continue
        parts[-1] += character
    return [part.strip() for part in parts]


def grid(config: Experiment, over: Sequence[str], seeds: int = 1) -> list[Trial]:
    """Every combination of the values of `over` (`read_over`), with each of `seeds` seeds from that of the config on.

    Raises:
      UserError: a key does not exist or occurs twice, or a value does not fit it.
    """
    axes = [read_over(one) for one in over]
    keys = [key for key, _ in axes]
    for key in keys:
        if keys.count(key) > 1 or (key == "seed" and seeds > 1):
            raise UserError(
                f"--over {key} is given twice; write all its values after one --over, and no --seeds for seed"
            )
    short = _short(keys)
    trials = []
    for values in itertools.product(*(values for _, values in axes)):
        point = dict(zip(keys, values, strict=True))
        one = override(config, [part for key, value in point.items() for part in (f"--{key}", value)])
        label = [f"{short[key]}={value}" for key, value in point.items() if key != "seed"]
        for seed in range(one.seed, one.seed + seeds):
            name = _file_name(",".join([*label, f"seed={seed}"]))  # also of one seed: more may follow later
            trials.append(Trial(name, point, dataclasses.replace(one, seed=seed)))
    return trials


def _short(keys: Sequence[str]) -> dict[str, str]:
    """The shortest ends of keys that tell them apart: "peak" for "optimizer.schedule.peak"."""
    found = {}
    for key in keys:
        parts = key.split(".")
        ends = [".".join(parts[-count:]) for count in range(1, len(parts) + 1)]
        others = [f".{other}" for other in keys if other != key]
        found[key] = next((end for end in ends if not any(o.endswith(f".{end}") for o in others)), key)
    return found


def _file_name(label: str) -> str:
    """A label as the name of a file; a digest tells apart what the name cannot say."""
    name = re.sub(r"[^\w.,=+-]", "_", label)
    if name == label and len(name) <= LONGEST:
        return name
    return f"{name[:LONGEST]}-{hashlib.sha256(label.encode()).hexdigest()[:8]}"


def folds(config: Experiment, count: int, group: str | None = None) -> list[Trial]:
    """A run for each fold of the training split, which is trained on the other folds and evaluated on this one.

    Args:
      group: as for `Fold`.

    Raises:
      UserError: the config reads encoded inputs, whose files belong to whole splits.
    """
    if config.data.encoded:
        raise UserError(
            "data.encoded holds what encoders made of whole splits, and has no folds; set it to {} for a cross-validation"
        )
    trials = []
    for number in range(1, count + 1):
        fold = Fold(source=config.data.source, fold=number, folds=count, group=group)
        data = dataclasses.replace(config.data, source=fold)
        evaluation = dataclasses.replace(config.evaluation, split=HELD_OUT)
        trials.append(Trial(f"fold-{number}", {}, dataclasses.replace(config, data=data, evaluation=evaluation)))
    return trials
