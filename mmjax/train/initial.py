"""Initialises parameters, selected by pattern, from those of other runs and imported models (`Experiment.initial`)."""

import dataclasses
import functools
import itertools
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from mmjax import progress
from mmjax.data.text import Tokenizer
from mmjax.errors import UserError, dotted, nearest
from mmjax.files import local
from mmjax.models.adapters import FACTORS, Adapted, adapted_kernels, as_array, is_adapted
from mmjax.models.quantised import dequantised, is_quantised, quantised_like
from mmjax.models.roles import Spec, by_path, known_names, matches, part_key, path_of
from mmjax.train.directory import read_run
from mmjax.train.experiment import Experiment
from mmjax.train.step import TrainState
from mmjax.tree import differences

# Fields of a part that may differ from those of the source: they change no parameter, nor its meaning.
FREE_FIELDS = ("dropout", "chunks", "augment", "remat", "image_size", "pad_to_length", "trim", "cross_attention")


@dataclasses.dataclass(frozen=True)
class Source:
    """A run or an import.

    Attributes:
      name: its directory.
      model: its parts.
      params: its parameters by path. A kernel does not include its adapter, which has paths of its own.
      adapted: its kernels with adapters by path.
    """

    name: str
    model: Any
    params: Mapping[str, np.ndarray]
    adapted: Mapping[str, Adapted]

    def value(self, place: str, alone: bool) -> np.ndarray:
        """A parameter.

        Args:
          alone: our adapter of this kernel is not loaded, so that the kernel includes the adapter of the source.
        """
        if place in self.adapted and alone:
            return np.asarray(as_array(self.adapted[place]))
        return self.params[place]

    def unused(self, places: Collection[str]) -> dict[str, np.ndarray]:
        """Its parameters that are not at these places; an adapter is used with its kernel."""
        used = {*places, *(f"{place}.{name}" for place in self.adapted.keys() & places for name in FACTORS)}
        return {path: x for path, x in self.params.items() if path not in used}

    @property
    def tokenizer(self) -> Tokenizer | None:
        """The tokenizer of its texts, if it has one."""
        return Tokenizer.in_run(Path(self.name))

    def counterpart(self, root: str) -> str:
        """Its module of the name `root`. Without one, its only encoder stands for an encoder, its only decoder for a decoder.

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


def check_initialised(config: Experiment, specs: Any, groups: Any) -> None:
    """Checks before a new run that nothing is frozen with the values of a new model, for some steps or for all.

    A frozen part is usually pretrained, so an entry of `initial` was forgotten. An entry of None allows random values.

    Args:
      specs, groups: the `Spec` and the `Group` of every parameter; groups None: nothing is frozen.

    Raises:
      UserError: there is such a parameter, or a pattern of `initial` selects nothing.
    """
    specs = {path: spec for path, spec in by_path(specs).items() if not matches("weighting", path)}
    pattern_of, group_of = _assigned(config.initial, specs), {} if groups is None else by_path(groups)
    new = {path: specs[path] for path in group_of if pattern_of.get(path, "") is None and group_of[path].waits}
    if new:
        first = next(iter(new))
        part = part_key(first)
        more = {path: spec for path, spec in new.items() if part_key(path) == part}
        raise UserError(
            f"{part} is frozen by optimizer.groups or adapters, but initial says nothing about {first} in it, so that "
            f"{_size(more):,} numbers would keep their random values; write initial={{'{part}': DIRECTORY}} with its run or "
            f"import, or '{part}': None if random values are meant"
        )


def load_initial(config: Experiment, state: TrainState, specs: Any, tokenizer: Tokenizer | None) -> TrainState:
    """Loads the parameters that the patterns of `config.initial` select; prints what is loaded, new and left unused.

    Where the source has no adapters, ours are new. Where only the source has them, they are merged into its kernels.

    Args:
      specs: the `Spec` of every parameter.
      tokenizer: the tokenizer of the run, if it has one.

    Raises:
      UserError: a pattern selects nothing, or it selects a parameter that does not fit: the source does not have it, has it
        with another shape or in a part with other settings, or has it for the ids of another tokenizer.
    """
    if not config.initial:
        return state
    by_ids = {path for path, spec in by_path(specs).items() if _is_by_ids(config.model, path, spec)}
    ours = {path: x for path, x in by_path(state.params).items() if not matches("weighting", path)}
    pattern_of, sources = _assigned(config.initial, ours), functools.cache(_read)
    values, used, kernels = {}, {}, adapted_kernels(state.params)
    adapters = {f"{path}.{name}" for path in kernels for name in FACTORS}
    for pattern, where in config.initial.items():
        if where is None:
            continue
        selected = {path: ours[path] for path, by in pattern_of.items() if by == pattern}
        directory, _, place = str(local(where, f"initial['{pattern}']")).partition(":")
        source, root = sources(directory), _root(pattern)
        try:
            places = _places(root, source, place, selected, adapters)
            found = _values(root, config.model, source, places, selected)
            if chosen := sorted(path for path in by_ids & selected.keys() if not (place and _names(root, path))):
                _check_ids(chosen[0], tokenizer, source)
        except UserError as error:
            raise UserError(f"initial['{pattern}']: {error}") from None
        _check_adapters(pattern, kernels, source, places)
        values |= found
        used.setdefault(source.name, set()).update(places.values())
        _say(f"initial: {pattern} from {where}: {_size(found):,} parameters")
    _say(f"initial: new: {_by_part({path: x for path, x in ours.items() if path not in values})}")
    for name, paths in used.items():
        _say(f"initial: unused in {name}: {_by_part(sources(name).unused(paths))}")
    params = _replaced(state.params, values)

    def copied(average: Any, x: Any) -> Any:
        return None if average is None else x.astype(average.dtype).copy()

    average = state.average and jax.tree.map(copied, state.average, params, is_leaf=lambda x: x is None)
    return state._replace(params=params, average=average)


def _check_adapters(pattern: str, kernels: Mapping[str, Adapted], source: Source, places: Mapping[str, str]) -> None:
    """Checks that adapters that are loaded mean the same in both models; `places`: of our parameters in the source."""
    for path, ours in kernels.items():
        theirs = source.adapted.get(places.get(f"{path}.a", "").removesuffix(".a"))
        if theirs is None:
            continue
        for name in ("scale", "after_media"):
            if (mine := getattr(ours, name)) != (found := getattr(theirs, name)):
                what = "alpha / rank" if name == "scale" else name
                raise UserError(
                    f"initial['{pattern}']: the adapter of {path} has {what} {found} in {source.name}, and {mine} in this "
                    "config; give both the same, or give the adapters None in initial"
                )


def _replaced(params: Any, values: Mapping[str, np.ndarray]) -> Any:
    """The parameters with these values by path. Magnitudes without a value are the norms of their new kernels."""

    def loaded(keys: Any, x: Any) -> Any:
        found = values.get(path_of(keys))
        if found is None:
            return x
        new = quantised_like(found, x) if is_quantised(x) else found.astype(x.dtype)
        return jax.device_put(new, jax.tree.map(lambda one: one.sharding, x))

    def fitted(keys: Any, x: Any) -> Any:
        path = path_of(keys)
        if not is_adapted(x) or x.magnitude is None or path not in values or f"{path}.magnitude" in values:
            return x
        norm = jax.jit(Adapted.norm, out_shardings=x.magnitude.sharding)(x)
        return x.replace(magnitude=norm.astype(x.magnitude.dtype))

    params = jax.tree_util.tree_map_with_path(loaded, params, is_leaf=is_quantised)
    return jax.tree_util.tree_map_with_path(fitted, params, is_leaf=is_adapted)


def _read(directory: str) -> Source:
    run, _, params = read_run(Path(directory))
    return _source(directory, run, params)


def _source(directory: str, run: Experiment, params: Any) -> Source:
    arrays = {path: np.asarray(dequantised(x)) for path, x in by_path(params).items()}
    return Source(directory, run.model, arrays, adapted_kernels(params))


def traced(config: Experiment, params: Any) -> dict[str, dict[str, str]]:
    """The origins of a run's parameters, through its sources: directory of an import -> {our path: path there}.

    Args:
      params: of the run.
    """
    found: dict[str, dict[str, str]] = {}
    ours, adapters = by_path(params), {f"{path}.{name}" for path in adapted_kernels(params) for name in FACTORS}
    pattern_of = _assigned(config.initial, [path for path in ours if not matches("weighting", path)])
    for pattern, where in config.initial.items():
        if where is None:
            continue
        directory, _, place = str(local(where, f"initial['{pattern}']")).partition(":")
        run, _, theirs = read_run(Path(directory))
        source = _source(directory, run, theirs)
        places = _places(_root(pattern), source, place, [p for p, by in pattern_of.items() if by == pattern], adapters)
        for origin, further in traced(run, theirs).items() if run.initial else [(directory, None)]:
            links = {path: there if further is None else further.get(there) for path, there in places.items()}
            found.setdefault(origin, {}).update({path: there for path, there in links.items() if there is not None})
    return found


def _is_by_ids(model: Any, path: str, spec: Spec) -> bool:
    """Whether a parameter has a value for each id of the tokenizer: an embedding, or the last layer of a text task."""
    first, name, *_ = path.split(".")
    size = getattr(model.tasks[name], "vocabulary", None) if first == "tasks" else None
    return "vocabulary" in spec.axes or (size is not None and spec.shape[-1:] == (size,))


def _names(pattern: str, path: str) -> bool:
    """Whether a pattern names this parameter itself, or the module that has it and no others inside."""
    return path in (pattern, f"{pattern}.{path.rpartition('.')[2]}")


def _check_ids(path: str, tokenizer: Tokenizer | None, source: Source) -> None:
    """Checks that the ids of the run's tokenizer mean the same in the source of a parameter."""
    if tokenizer is None or source.tokenizer is None:
        without = source.name if source.tokenizer is None else "the data"
        _say(f"initial: {without} has no tokenizer, so the ids of {path} are not compared")
    elif (i := tokenizer.other_meaning(source.tokenizer)) is not None:
        ours, theirs = (one.pieces_by_id()[i] for one in (tokenizer, source.tokenizer))
        module = path.rpartition(".")[0]
        raise UserError(
            f"{path} has values for the ids of {source.name}, whose tokenizer differs from data.tokenizer: id {i} is {theirs!r} "
            f"there and {ours!r} here; use its tokenizer, put '{module}': None before this pattern for new values, or "
            f"'{module}': '{source.name}:{module}' to take them in spite of this"
        )


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


def _places(
    root: str, source: Source, place: str, selected: Iterable[str], adapters: Collection[str]
) -> dict[str, str]:
    """The path in the source of each selected parameter; without those of adapters that the source does not have.

    Args:
      place: the module of the source that corresponds to our module `root`; "": `Source.counterpart`.
      adapters: the paths of adapters.

    Raises:
      UserError: the source lacks one of them.
    """
    if place and not any(matches(place, path) for path in source.params):
        raise UserError(f"{source.name} has no {place}{known_names(place, source.params)}")
    place = place or source.counterpart(root)
    places = {path: f"{place}{path[len(root) :]}".lstrip(".") for path in selected}
    places = {path: there for path, there in places.items() if path not in adapters or there in source.params}
    missing = [path for path, there in places.items() if there not in source.params]
    if not places:
        raise UserError(f"{source.name} has no adapters")
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
    for path, place in places.items():
        x, (at, part), theirs = selected[path], _part_at(model, path), _part_at(source.model, place)[1]
        value = source.value(place, alone=f"{path}.a" not in places)
        if at and at not in checked and (root == "" or matches(root, at)):
            _check_same(at, part, theirs, source.name)
            checked.add(at)
        if hasattr(part, "adapted") and theirs is not None:
            value = part.adapted(path.removeprefix(f"{at}."), value, theirs)
        if value.shape != x.shape:
            raise UserError(
                f"{path} has the shape {list(x.shape)}, but {place} of {source.name} has {list(value.shape)}"
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
    """The number of parameters of each part: "encoders.speech (1,234), fusion (567)"; "nothing" without parameters."""
    parts: dict[str, dict[str, Any]] = {}
    for path, x in params.items():
        parts.setdefault(part_key(path), {})[path] = x
    return ", ".join(f"{name} ({_size(part):,})" for name, part in parts.items()) or "nothing"


def _say(line: str) -> None:
    if jax.process_index() == 0:
        progress.console.print(line)
