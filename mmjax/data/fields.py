"""The fields of a record that a run reads: inputs by name, and labels by name with their kinds."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from mmjax.data.inputs import USUAL_INPUTS, Input, Text
from mmjax.data.labels import KINDS, USUAL_LABELS
from mmjax.errors import UserError, nearest
from mmjax.tree import to_dict

TAGS = ("language", "task")


class Fields(NamedTuple):
    """What is read of each row of a collection.

    Attributes:
      inputs: the inputs by name; labels: the kind of each label by name, see `mmjax.data.labels`.
      drawn: if a label has several texts, any of them may be learned. So rows need room for the largest text, and tokenizers
        learn all texts.
    """

    inputs: Mapping[str, Input]
    labels: Mapping[str, str]
    drawn: bool = False

    @property
    def texts(self) -> tuple[str, ...]:
        """The names of all texts, inputs and labels."""
        return (*self.read_texts, *(name for name, kind in self.labels.items() if kind == "text"))

    @property
    def read_texts(self) -> tuple[str, ...]:
        """The names of the texts that are inputs."""
        return tuple(name for name, one in self.inputs.items() if isinstance(one, Text))

    @property
    def phrases(self) -> frozenset[str]:
        """The names of the labels that are expected phrases."""
        return frozenset(name for name, kind in self.labels.items() if kind == "phrases")

    @property
    def media(self) -> frozenset[str]:
        """The inputs that hold the media of conversations."""
        return frozenset(name for one in self.inputs.values() for name in one.media)

    @property
    def stamp(self) -> dict[str, Any]:
        """What identifies the fields in the stamp of an index."""
        return {"inputs": {name: to_dict(one) for name, one in self.inputs.items()}, "labels": dict(self.labels)}


USUAL = Fields(USUAL_INPUTS, USUAL_LABELS)


def fields_of(inputs: Mapping[str, Input], labels: Mapping[str, str] | None) -> Fields:
    """The fields of a config: its inputs, the usual ones, and the labels that its tasks ask for (None: the usual ones).

    Transcripts and targets are always read, since tokenizers are trained on them.

    Raises:
      UserError: a label has a wrong name or kind.
    """
    inputs = {**USUAL_INPUTS, **inputs}
    for name, medium in ((name, medium) for name, one in inputs.items() for medium in one.media):
        if medium not in inputs:
            raise UserError(f"data.inputs.{name} names the input '{medium}' of its media{nearest(medium, inputs)}")
    wanted = dict(USUAL_LABELS if labels is None else labels)
    for name, kind in wanted.items():
        if kind not in KINDS:
            raise UserError(f"the label '{name}' is of the kind '{kind}'{nearest(kind, KINDS)}")
        if not name.isidentifier() or name == "examples":
            raise UserError(
                f"a label cannot be named '{name}'; use letters, digits and _ (data.source.columns renames columns)"
            )
    texts = {name: kind for name, kind in USUAL_LABELS.items() if kind == "text"}
    found = Fields(inputs, {**texts, **wanted})
    for name in inputs.keys() & found.labels.keys():
        if name not in found.read_texts or found.labels[name] != "text":
            raise UserError(f"'{name}' is the name of an input and of a label; rename one (data.inputs.{name}.column)")
    return found._replace(labels={name: kind for name, kind in found.labels.items() if name not in inputs})
