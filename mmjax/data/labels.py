"""Labels by name: reads them from the values of a column, and keeps them as one array for all examples.

A label is of one of these kinds: "class" (one class), "classes" (any number of classes), "numbers" (one or several
numbers), "text", or "phrases" (texts that are expected in the text of an example; decoding reads them, and nothing learns
them). If no task states the kind of a label, the kind is "any", and the values decide.
"""

import zlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from mmjax.data.values import is_number, number_of, text_of
from mmjax.errors import UserError, nearest

KINDS = ("class", "classes", "numbers", "text", "phrases", "any")
PHRASES = "phrases"  # the column, and the kind, of expected phrases
USUAL_LABELS = {"answer": "any", "transcript": "text", "target": "text"}  # what is read where no task asks for labels
SPOKEN = "transcript"  # the text label that belongs to a recording: an example that hides its speech has none


class Label(NamedTuple):
    """The kind of a label in a data set, and its names.

    Attributes:
      kind: "class", "classes", "numbers" or "text".
      names: of the classes, sorted, or of the numbers, in order; empty for a text, or if no example has the label.
    """

    kind: str
    names: tuple[str, ...] = ()


class Alternatives(str):
    """A text label with several texts, all of them right, such as the answers of ten people.

    The string itself is the text that is learned, unless a text is `drawn` in each step. By default it is the most frequent
    text; if several are equally frequent, it is the first of them.

    Attributes:
      every: all texts, in order; metrics with several references use them.
    """

    every: tuple[str, ...]

    def __new__(cls, every: Sequence[str], learned: str | None = None) -> "Alternatives":
        text = super().__new__(cls, max(every, key=list(every).count) if learned is None else learned)
        text.every = tuple(every)
        return text

    def __getnewargs__(self) -> tuple[Any, ...]:  # for pickle
        return self.every, str(self)


def drawn(labels: Mapping[str, Any], seed: int, step: int, number: int) -> dict[str, Any]:
    """The labels of an example, with one text in place of several.

    The probability of a text is its share among the texts. The draw depends only on the seed, the step and the example's number.
    """
    found = dict(labels)
    for name, value in labels.items():
        if isinstance(value, Alternatives):
            generator = np.random.default_rng([seed, step, number, zlib.crc32(name.encode())])
            found[name] = value.every[generator.integers(len(value.every))]
    return found


def alternatives(text: str) -> tuple[str, ...]:
    """All texts of a label, of which there is usually one."""
    return text.every if isinstance(text, Alternatives) else (text,)


def no_label(kind: str, value: Any, label: str, name: str, hint: str = "") -> UserError:
    expected = {
        "class": "one class",
        "classes": "names of classes, or 0 or 1 for each",
        "numbers": "numbers",
        "phrases": "texts",
    }
    return UserError(f"{name}: {label} is {value!r:.60}, not {expected[kind]}{hint}")


def read_label(kind: str, value: Any, label: str, name: str) -> str | tuple[str, ...] | tuple[float, ...]:
    """A label as it is kept until the index is made: a class, names of classes, or numbers.

    Args:
      value: the value of a column.
      label, name: the names of label and record for messages.

    Raises:
      UserError: the value is of another kind.
    """
    value = value.tolist() if isinstance(value, np.ndarray | np.generic) else value
    listed = list(value) if isinstance(value, list | tuple) else None
    if not all(isinstance(one, str | int | float) for one in ([value] if listed is None else listed)):
        raise UserError(f"{name}: {label} cannot be {value!r:.80}")
    if kind == "phrases":
        if not all(isinstance(one, str) for one in ([value] if listed is None else listed)):
            raise no_label(kind, value, label, name)
        return (value,) if listed is None else tuple(listed)
    if kind == "any":
        kind = "class" if listed is None else "numbers" if all(map(is_number, listed)) and listed else "classes"
    if kind == "numbers" or (kind == "classes" and listed and all(isinstance(x, int | float) for x in listed)):
        numbers = tuple(number_of(x, label, name) for x in ([value] if listed is None else listed))
        if kind == "classes" and not set(numbers) <= {0.0, 1.0}:
            raise no_label("classes", value, label, name)
        if not numbers:
            raise no_label(kind, value, label, name)
        return numbers
    if kind == "classes":
        return tuple(_class(x, label, name) for x in ([value] if listed is None else listed))
    if listed is not None:
        raise no_label(kind, value, label, name)
    return _class(value, label, name)


def _class(value: Any, label: str, name: str) -> str:
    if isinstance(value, float) and abs(value) == float("inf"):
        raise UserError(f"{name}: {label} is {value}")
    if isinstance(value, float) and not value.is_integer():
        hint = f"; a class is a name or a whole number; to regress, put numbers in a list: [{value}]"
        raise no_label("class", value, label, name, hint)
    # pandas turns 1 into 1.0 if other values are missing
    return text_of(str(int(value)) if isinstance(value, float) else str(value), label, name)


def named(label: Label | None, value: Any) -> Any:
    """A label of an example for people: the name of its class, the names of its classes, numbers as a list, or its text."""
    array = np.asarray(value)
    if label is not None and label.kind == "classes":
        return [name for name, one in zip(label.names, array, strict=True) if one > 0]
    if array.dtype == np.float32:  # as the data writes it: 22.9, and not 22.899999618530273
        return [float(str(one)) for one in array.ravel()]
    value = array.tolist()
    return label.names[value] if label is not None and isinstance(value, int) else value


# Arrays of all examples. ----------------------------------------------------------------------------------


def column_of(values: Sequence[Any], label: str) -> tuple[Label, np.ndarray]:
    """The label's facts and array, from what `read_label` gave for each example (None: it has none).

    Returns:
      For "class", [n] int32 class numbers, -1 for none; for "classes", [n, C] int8 0 or 1, -1 for none; for "numbers",
      [n, C] float32, NaN for none.

    Raises:
      UserError: the values are of several kinds, or lists of several lengths.
    """
    given = [value for value in values if value is not None]
    if all(isinstance(value, str) for value in given):
        names = sorted(set(given))
        number = {name: i for i, name in enumerate(names)}
        return Label("class", tuple(names)), np.array([number.get(value, -1) for value in values], np.int32)
    several = [value for value in given if isinstance(value, tuple)]
    if all(isinstance(x, str) for value in several for x in value) and len(several) == len(given):
        names = sorted({name for value in given for name in value})
        number = {name: i for i, name in enumerate(names)}
        array = np.zeros((len(values), len(names)), np.int8)
        for row, value in enumerate(values):
            array[row, [number[name] for name in value or ()]] = 1
            array[row] = array[row] if value is not None else -1
        return Label("classes", tuple(names)), array
    lengths = sorted({len(value) for value in several})
    if len(several) < len(given) or len(lengths) > 1 or any(isinstance(x, str) for value in several for x in value):
        mixed = f"lists of {lengths} numbers" if len(several) == len(given) else "names and others numbers"
        raise UserError(f"some values of {label} are {mixed}; use one form for all")
    missing = (np.nan,) * lengths[0]
    array = np.array([missing if value is None else value for value in values], np.float32)
    return Label("numbers", (label,) if lengths[0] == 1 else tuple(map(str, range(lengths[0])))), array


def stored(label: Label, value: np.ndarray) -> str | tuple[str, ...] | tuple[float, ...] | None:
    """The label of one example, as `read_label` gave it, from its row of the array of `column_of`; None: it has none."""
    if absent(value[None])[0]:
        return None
    if label.kind == "class":
        return label.names[value]
    if label.kind == "classes":
        return tuple(name for name, there in zip(label.names, value, strict=True) if there)
    return tuple(value.tolist())


def classes_of(opened: Any, label: str) -> np.ndarray:
    """[n] the class of each example of an opened split, -1 for none."""
    if hasattr(opened, "classes"):
        return opened.classes(label)
    return np.array([opened[number].labels.get(label, -1) for number in range(len(opened))], np.int64)


def groups_of(opened: Any, group: str) -> tuple[np.ndarray, Sequence[str]]:
    """[n] the number of the group of each example of an opened split, -1 for none; and the names of the groups.

    Args:
      group: a label that is a class, a tag, or "source" for the source of a mixture.

    Raises:
      UserError: no example has such a group.
    """
    groups, numbers, names = getattr(opened, "groups", {}), np.full(len(opened), -1), ()
    if group in groups:
        numbers, names = groups[group]
    elif group in opened.labels and opened.labels[group].kind == "class":
        numbers, names = classes_of(opened, group), opened.labels[group].names
    if not np.any(np.asarray(numbers) >= 0):
        known = [*groups, *(name for name, label in opened.labels.items() if label.kind == "class" and label.names)]
        known += [column for column in getattr(opened, "columns", ()) if column not in known]
        near = nearest(group, known) if known else "; name a column of the data, such as speaker"
        raise UserError(f"no example has the group '{group}'{near}")
    return np.asarray(numbers), names


def absent(array: np.ndarray) -> np.ndarray:
    """[n] bool: the examples without the label, from an array of `column_of`."""
    if array.ndim == 1:
        return array < 0
    return np.isnan(array).any(1) if array.dtype == np.float32 else (array < 0).any(1)


def converted(label: Label, array: np.ndarray, kind: str, name: str) -> tuple[Label, np.ndarray]:
    """A label and its array as `kind`, which a task wants: shards may hold it in another form.

    Raises:
      UserError: its values cannot be that.
    """
    if kind in (label.kind, "any") or absent(array).all():
        return label, array
    if (label.kind, kind) == ("numbers", "classes") and np.isin(array[~absent(array)], (0, 1)).all():
        return Label(kind, label.names), np.where(absent(array)[:, None], -1, array).astype(np.int8)
    if (label.kind, kind) == ("class", "classes"):
        one_hot = np.eye(len(label.names) + 1, len(label.names), dtype=np.int8)[array]
        return Label(kind, label.names), np.where(absent(array)[:, None], np.int8(-1), one_hot)
    if (label.kind, kind) == ("class", "numbers") and all(map(is_number, label.names)):
        numbers = np.array([*map(float, label.names), np.nan], np.float32)
        return Label(kind, (name,)), numbers[array][:, None]
    held = {"class": "one class", "classes": "several classes", "numbers": "numbers"}[label.kind]
    raise UserError(f"the label '{name}' holds {held} for each example, but a task reads it as {kind}")


def aligned(label: Label, array: np.ndarray, to: Label, name: str) -> tuple[np.ndarray, np.ndarray]:
    """An array with the class numbers of another label, such as that of the training split.

    Returns:
      The array, and [n] bool: the examples of a class that the other label does not have.

    Raises:
      UserError: the examples have another number of numbers.
    """
    if label.names == to.names or label.kind == "numbers":
        if label.names and to.names and len(label.names) != len(to.names):
            raise UserError(
                f"the label '{name}' is {len(label.names)} numbers, but {len(to.names)} elsewhere in the data"
            )
        return array, np.zeros(len(array), bool)
    place = {known: number for number, known in enumerate(to.names)}
    lookup = np.array([place.get(own, -1) for own in label.names] + [-1], np.int32)
    if label.kind == "class":
        found = lookup[array]
        return found, (array >= 0) & (found < 0)
    known = np.flatnonzero(lookup[:-1] >= 0)
    found = np.zeros((len(array), len(to.names)), array.dtype)
    found[:, lookup[known]] = array[:, known]
    found[absent(array)] = -1
    return found, (array[:, lookup[:-1] < 0] > 0).any(1)


def merged(labels: Sequence[Mapping[str, Label]]) -> dict[str, Label]:
    """The labels of several sources together: all names of classes, without duplicates.

    Raises:
      UserError: a label is of one kind in one source and of another in another.
    """
    found: dict[str, Label] = {}
    for name, label in ((name, label) for one in labels for name, label in one.items()):
        before = found.get(name, label)
        if not (before.names and label.names):  # no example of one of them has it
            found[name] = before if before.names else label
            continue
        if before.kind != label.kind or (label.kind == "numbers" and len(before.names) != len(label.names)):
            kinds = [f"{len(x.names)} numbers" if x.kind == "numbers" else x.kind for x in (before, label)]
            raise UserError(f"the label '{name}' is {kinds[0]} in one source of the mixture, {kinds[1]} in another")
        names = before.names if label.kind == "numbers" else tuple(dict.fromkeys((*before.names, *label.names)))
        found[name] = Label(label.kind, names)
    return found
