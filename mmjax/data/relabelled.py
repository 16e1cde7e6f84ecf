"""Records of a collection with other labels and tags: one of several tasks on the same recordings or pictures."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmjax.data.fields import TAGS, USUAL, Fields
from mmjax.data.record import Record
from mmjax.data.source import Derived, DerivedRecords
from mmjax.errors import UserError, nearest
from mmjax.tree import part


@part
class Relabelled(Derived):
    """Records of another collection, with other labels and tags.

    A mixture of several of these trains one decoder for several tasks, which special tokens tell apart (`Data.prefixes`):
    with `labels={"target": "transcript"}` and `tags={"task": "transcribe"}` it writes what is said, with
    `tags={"task": "translate"}` the target. A value is read as the kind of label that takes it. Records that lack a named label
    are left out and counted.
    """

    # Label -> the label, or input text, of the record whose value it takes; the others stay.
    labels: Mapping[str, str] = dataclasses.field(default_factory=dict)
    # "task" or "language" -> its value for all records.
    tags: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def stamped(
        self, split: str, directory: Path, fields: Fields = USUAL, once: bool = False
    ) -> tuple["RelabelledRecords", dict[str, Any]]:
        for tag in self.tags:
            if tag not in TAGS:
                raise UserError(f"Relabelled.tags: there is no tag '{tag}'{nearest(tag, TAGS)}")
        records, stamped = self.source.stamped(split, directory, fields._replace(labels=self._kinds(fields)), once)
        changes = {"labels": dict(self.labels), "tags": dict(self.tags)}
        return RelabelledRecords(records, self.labels, self.tags, fields), {**stamped, "relabelled": changes}

    def _kinds(self, fields: Fields) -> dict[str, str]:
        """The kind of each label that is read of the other collection.

        Raises:
          UserError: several labels read the same value, and it cannot have the kinds that all of them need.
        """
        kinds = dict(fields.labels)
        for label, name in self.labels.items():
            kind, other = fields.labels.get(label, "any"), kinds.get(name, "any")
            if name in fields.inputs:
                if name not in fields.read_texts:
                    raise UserError(f"Relabelled.labels: '{label}' cannot be the input '{name}', which is no text")
                continue
            if "text" in (kind, other) and {kind, other} & {"classes", "numbers"}:
                raise UserError(
                    f"Relabelled.labels: '{label}' needs '{name}' as {kind}, but it is also read as {other}; give one of them a "
                    "column of its own"
                )
            kinds[name] = kind if other == "any" else other
        return kinds


class RelabelledRecords(DerivedRecords):
    """Records with other labels and tags; see `Relabelled`.

    Args:
      records: with the labels that `labels` names.
      fields: what is read of the new records.
    """

    def __init__(self, records: Any, labels: Mapping[str, str], tags: Mapping[str, str], fields: Fields):
        super().__init__(records)
        self._taken, self._tags, self._fields = labels, tags, fields

    def read(self, index: int) -> tuple[Record, Sequence[str]]:
        """A record, and the names of its columns that are not read."""
        record, unread = self._read_other(index)
        known = {**record.inputs, **record.labels}
        for label, name in self._taken.items():
            if name not in known:
                hint = nearest(name, [*known, *unread])
                raise UserError(f"incomplete: {record.name} has no '{name}' (Relabelled.labels: '{label}'){hint}")
        labels = {**record.labels, **{label: known[name] for label, name in self._taken.items()}}
        labels = {name: value for name, value in labels.items() if name in self._fields.labels}
        return record._replace(labels=labels, tags={**record.tags, **self._tags}), unread
