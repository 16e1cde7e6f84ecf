"""The config of an imported model: a run that was not trained."""

from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict

from mmjax.data import Data, HuggingFaceTokenizer, Manifest, SentencePiece
from mmjax.errors import UserError, nearest
from mmjax.files import local
from mmjax.interchange.vocabulary import CHARACTERS, SENTENCEPIECE, TOKENIZER
from mmjax.models import Encoder, Multimodal, TokenIds
from mmjax.models.roles import module_of
from mmjax.train.experiment import Evaluation, Experiment, load
from mmjax.train.optimizer import Optimizer
from mmjax.train.schedules import WarmupLinear

SECONDS = 30  # of speech in a row, where the encoder does not say
TOKENS = 512  # of text in a row, where the model does not say


def experiment(family: ModuleType, theirs: Mapping[str, Any], source: Path, out: Path) -> Experiment:
    """The config: the model, its tokenizer, and rows with room for one example.

    The file of the data, "test.tsv", is a placeholder.

    Args:
      theirs: the original config, with its options of preprocessing and generation.
      source, out: the directories of the original and of the import.
    """
    part, tasks = family.part(theirs), family.tasks(theirs) if hasattr(family, "tasks") else {}
    if not isinstance(part, Mapping):
        # A part that is no encoder is a decoder: it reads the text by itself.
        encoder = part if isinstance(part, Encoder) else TokenIds(vocabulary=part.vocabulary)
        part = {encoder.stream: encoder}
    subset = "+".join(part)
    texts = {label: _tokens(task) for task in tasks.values() for label, kind in task.labels().items() if kind == "text"}
    longest = min((_tokens(task) for task in tasks.values()), default=TOKENS)
    data = Data(
        source=Manifest(splits={"test": "test.tsv"}),
        tokenizer=_tokenizer(source, out),
        prefixes=family.prefixes(theirs) if hasattr(family, "prefixes") else {},
        batch_rows=8,
        rows={name: encoder.room(SECONDS, longest) for name, encoder in part.items()} | texts | {"examples": 1},
        subsets={subset: 1.0},
    )
    return Experiment(
        name=out.name,
        steps=1000,
        data=data,
        model=Multimodal(encoders=part, tasks=tasks),
        optimizer=Optimizer(schedule=WarmupLinear(peak=1e-5, warmup=100)),
        evaluation=Evaluation(subsets=(subset,)),
    )


def _rooms(config: Experiment) -> dict[str, str]:
    """Where in a run the parameters are whose paths begin with "encoder" (or its name), "decoder" or "head"."""
    rooms, tasks = {name: module_of(f"encoders.{name}") for name in config.model.encoders}, list(config.model.tasks)
    if len(rooms) == 1:
        rooms = dict(zip(["encoder"], rooms.values(), strict=True))
    if tasks:
        head = module_of(f"tasks.{tasks[0]}")
        rooms |= {"decoder": f"{head}/decoder", "head": head}
    return rooms


def to_run(config: Experiment, parameters: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Parameters by the paths of `Rule.ours` -> by their paths in a run of the config."""
    rooms, found = _rooms(config), {}
    for path, array in parameters.items():
        first, _, rest = path.partition("/")
        found[f"{rooms.get(first, first)}/{rest}"] = array
    return found


def from_run(config: Experiment, params: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The inverse of `to_run`, of nested parameters."""
    rooms, found = _rooms(config), {}
    for path, array in flatten_dict(params, sep="/").items():
        first = next((name for name, room in rooms.items() if path.startswith(f"{room}/")), None)
        found[path if first is None else f"{first}{path.removeprefix(rooms[first])}"] = array
    return found


def imported(directory: str | Path, part: str | None = None) -> Any:
    """A part of an imported model or of a run, for a config; its parameters are loaded by `Experiment.initial`.

    Args:
      part: "encoder", "decoder", or the name of one of several encoders, such as "image"; None: the encoder, or the
        decoder of a language model.

    Raises:
      UserError: the model has no such part, or several.
    """
    path = local(directory, "the directory of an imported model") / "config.json"
    if not path.is_file():
        raise UserError(f"there is no {path}; was {directory} written by mmjax import?")
    model = load(path).model
    encoders = {name: one for name, one in model.encoders.items() if not one.passes_ids}
    if part in encoders:
        return encoders[part]
    found = {"encoder": [*encoders.values()]}
    found["decoder"] = [task.decoder for task in model.tasks.values() if hasattr(task, "decoder")]
    part = part or ("encoder" if encoders else "decoder")
    if part not in found:
        raise UserError(f"{directory} has no encoder '{part}'{nearest(part, [*encoders, 'encoder', 'decoder'])}")
    if len(found[part]) != 1:
        names = f"; name one: {' or '.join(map(repr, encoders))}" if part == "encoder" and encoders else ""
        raise UserError(
            f"the model in {directory} has {'several' if found[part] else 'no'} {part}{'s' * bool(found[part])}{names}"
        )
    return found[part][0]


def _tokens(task: Any) -> int:
    """The largest number of tokens of a text that a task reads or writes."""
    length = task.decoder.positions.length if hasattr(task, "decoder") else None
    return TOKENS if length is None else min(TOKENS, length - 1)


def _tokenizer(source: Path, out: Path) -> Any:
    if (source / TOKENIZER).is_file() or (source / CHARACTERS).is_file():
        return HuggingFaceTokenizer(file=str(out / TOKENIZER))
    names = [name for name in SENTENCEPIECE if (source / name).is_file()]
    return SentencePiece(file=str(out / names[0])) if names else None
