"""Initialises parameters, selected by pattern, from those of other runs and imported models (`Experiment.initial`)."""

import dataclasses
import functools
import itertools
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from mmjax import progress
from mmjax.errors import UserError, dotted, nearest
from mmjax.files import local
from mmjax.models.roles import MAPS, by_path, known_names, matches, path_of
from mmjax.train.directory import read_run
from mmjax.train.experiment import Experiment
from mmjax.train.step import TrainState
from mmjax.tree import differences

# Fields of a part that may differ from those of the source: they change no parameter, nor its meaning.
FREE_FIELDS = ("dropout", "chunks", "augment", "remat", "image_size", "pad_to_length", "cross_attention")


@dataclasses.dataclass(frozen=True)
class Source:
    """A run or an import.

    Attributes:
      name: its directory.
      model: its parts.
      params: its parameters by path.
    """

    name: str
    model: Any
    params: Mapping[str, np.ndarray]

    def counterpart(self, root: str) -> str:
        """Its module of the name `root`; if there is none, its only encoder for an encoder, its only decoder for a decoder.

        Raises:
          UserError: there is none, or there are several.
        """
        if root == "" or any(matches(root, path) for path in self.params):
            return root
        names = root.split(".")
        kind = ".".join([names[0], "*", *names[2:]])
        found = {".".join(path.split(".")[: len(names)]) for path in self.params if matches(kind, path)}
        if len(found) == 1:
            return found.pop()
        if found:
            raise UserError(
                f"{self.name} has several such parts; write {self.name}:{f' or {self.name}:'.join(sorted(found))}"
            )
        raise UserError(f"{self.name} has no {root}{known_names(root, self.params)}")


def load_initial(config: Experiment, state: TrainState) -> TrainState:
    """Loads the parameters that the patterns of `config.initial` select; prints what is loaded, new and left unused.

    Raises:
      UserError: a pattern selects nothing, or a parameter that its source does not have, or has with another shape or
        in a part with other settings.
    """
    if not config.initial:
        return state
    ours = {path: x for path, x in by_path(state.params).items() if not matches("weighting", path)}
    pattern_of, sources = _assigned(config.initial, ours), functools.cache(_read)
    values, used = {}, {}
    for pattern, where in config.initial.items():
        if where is None:
            continue
        selected = {path: ours[path] for path, by in pattern_of.items() if by == pattern}
        directory, _, place = str(local(where, f"initial['{pattern}']")).partition(":")
        source, root = sources(directory), _root(pattern)
        try:
            places = _places(root, source, place, selected)
            found = _values(root, config.model, source, places, selected)
        except UserError as error:
            raise UserError(f"initial['{pattern}']: {error}") from None
        values |= found
        used.setdefault(source.name, set()).update(places.values())
        _say(f"initial: {pattern} from {where}: {_size(selected):,} parameters")
    _say(f"initial: new: {_by_part({path: x for path, x in ours.items() if path not in values})}")
    for name, paths in used.items():
        _say(
            f"initial: unused in {name}: {_by_part({p: x for p, x in sources(name).params.items() if p not in paths})}"
        )

    def replaced(keys: Any, x: jax.Array) -> jax.Array:
        found = values.get(path_of(keys))
        return x if found is None else jax.device_put(found.astype(x.dtype), x.sharding)

    params = jax.tree_util.tree_map_with_path(replaced, state.params)
    average = state.average and jax.tree.map(lambda a, p: p.astype(a.dtype).copy(), state.average, params)
    return state._replace(params=params, average=average)


def _read(directory: str) -> Source:
    run, _, params = read_run(Path(directory))
    return Source(directory, run.model, by_path(params))


def _assigned(initial: Mapping[str, str | None], paths: Iterable[str]) -> dict[str, str | None]:
    """The pattern of each parameter: the first one that selects it, or None."""
    chosen = {path: next((pattern for pattern in initial if matches(pattern, path)), None) for path in paths}
    for pattern in initial:
        if not any(matches(pattern, path) for path in paths):
            raise UserError(f"initial['{pattern}'] selects no parameter{known_names(pattern, paths)}")
        if pattern not in chosen.values():
            raise UserError(
                f"initial['{pattern}'] has no effect: patterns before it select the same; move it to the top"
            )
    return chosen


def _root(pattern: str) -> str:
    """The module that a pattern names before its first wildcard; "" is the model."""
    return ".".join(itertools.takewhile(lambda name: not set(name) & set("*?["), pattern.split(".")))


def _places(root: str, source: Source, place: str, selected: Iterable[str]) -> dict[str, str]:
    """The path in the source of each selected parameter.

    Args:
      place: the module of the source that corresponds to our module `root`; "": `Source.counterpart`.

    Raises:
      UserError: the source lacks one of them.
    """
    if place and not any(matches(place, path) for path in source.params):
        raise UserError(f"{source.name} has no {place}{known_names(place, source.params)}")
    place = place or source.counterpart(root)
    places = {path: f"{place}{path[len(root) :]}".lstrip(".") for path in selected}
    missing = [path for path in selected if places[path] not in source.params]
    if missing:
        first = places[missing[0]]
        new = ", ".join(f"'{name}': None" for name in _modules(missing, set(selected) - set(missing)))
        raise UserError(
            f"{source.name} has no {first}{nearest(first, source.params)}; to train what is missing from random values, put "
            f"before this pattern: {new}"
        )
    return places


def _modules(paths: Iterable[str], others: Iterable[str]) -> list[str]:
    """The largest modules that hold `paths` and none of the others."""

    def largest(path: str) -> str:
        names = path.split(".")
        starts = [".".join(names[:count]) for count in range(1, len(names) + 1)]
        return next(start for start in starts if not any(matches(start, other) for other in others))

    return sorted({largest(path) for path in paths})


def _values(
    root: str, model: Any, source: Source, places: Mapping[str, str], selected: Mapping[str, Any]
) -> dict[str, np.ndarray]:
    """The value of each parameter, from its path in the source (`places`). Parts in `root` must have equal settings."""
    found, checked = {}, set()
    for path, x in selected.items():
        (at, part), theirs = _part_at(model, path), _part_at(source.model, places[path])[1]
        value = source.params[places[path]]
        if at and at not in checked and (root == "" or matches(root, at)):
            _check_same(at, part, theirs, source.name)
            checked.add(at)
        if hasattr(part, "adapted") and theirs is not None:
            value = part.adapted(path.removeprefix(f"{at}."), value, theirs)
        if value.shape != x.shape:
            raise UserError(
                f"{path} has the shape {list(x.shape)}, but {places[path]} of {source.name} has {list(value.shape)}"
            )
        found[path] = value
    return found


def _part_at(model: Any, path: str) -> tuple[str, Any]:
    """The key and the part of the config to which a parameter belongs; ("", None) for a head's own parameters."""
    node, key, found = model, "", ("", None)
    for name in path.split("."):
        node = node.get(name) if isinstance(node, Mapping) else getattr(node, name, None)
        key = dotted(key, name)
        if dataclasses.is_dataclass(node) and (key.count(".") != 1 or key.startswith("encoders.")):
            found = key, node
        elif not isinstance(node, Mapping) and not dataclasses.is_dataclass(node):
            break
    return found


def _check_same(at: str, ours: Any, theirs: Any, directory: str) -> None:
    """Checks that a part has the settings of its source, with which its parameters were trained."""
    for key, (their_value, our_value) in differences(theirs, ours).items():
        if key.partition(".")[0] not in FREE_FIELDS:
            raise UserError(
                f"model.{at}.{key} is {our_value!r}, but {their_value!r} in {directory}; use the same part (for an import: "
                "imported(DIRECTORY))"
            )


def _size(params: Mapping[str, Any]) -> int:
    return sum(int(np.prod(x.shape)) for x in params.values())


def _by_part(params: Mapping[str, Any]) -> str:
    """The number of parameters of each part: "encoders.speech (1,234), fusion (567)"; "nothing" if there are none."""
    parts: dict[str, dict[str, Any]] = {}
    for path, x in params.items():
        names = path.split(".")
        parts.setdefault(".".join(names[: 2 if names[0] in MAPS else 1]), {})[path] = x
    return ", ".join(f"{name} ({_size(part):,})" for name, part in parts.items()) or "nothing"


def _say(line: str) -> None:
    if jax.process_index() == 0:
        progress.console.print(line)
