"""A config as plain dictionaries: from and to a file, and JSON; every value is checked against its annotation."""

import dataclasses
import importlib.util
import json
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from mmjax.config.experiment import Experiment
from mmjax.config.towers import Conformer, TextDecoder, Transformer, ViT, WhisperEncoder
from mmjax.errors import UserError, dotted, nearest

# From a file. ---------------------------------------------------------------------------------------------

Imported = Conformer | WhisperEncoder | ViT | Transformer | TextDecoder


def imported(directory: str | Path) -> Imported:
    """The encoder that `mmjax import` wrote; `Experiment.initial` says that its parameters are to be used too.

    Of a language model, which has no encoder, it is the decoder.
    """
    path = Path(directory) / "part.json"
    if not path.is_file():
        raise UserError(f"there is no {path}; is {directory} what mmjax import wrote?")
    return from_dict(Imported, read_json(path), str(path))


def read_json(path: Path) -> Any:
    """What a JSON file holds; an error names the file."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not JSON: {error}") from None


def load(path: str | Path) -> Experiment:
    """Runs a config file (Python that assigns `config = Experiment(...)`) or reads a resolved JSON."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f"there is no config file {path}")
    if path.suffix == ".json":
        try:
            return from_json(path.read_text(encoding="utf-8"), str(path))
        except (UnicodeDecodeError, RecursionError) as error:
            raise UserError(f"{path} is not a resolved config: {error}") from None
    config = getattr(run_file(path), "config", None)
    if not isinstance(config, Experiment):
        raise UserError(f"the config file {path} must assign `config = Experiment(...)`")
    return from_dict(Experiment, to_dict(config), "")  # checks the types once, for all ways in


def run_file(path: Path) -> types.ModuleType:
    """Runs a Python file; its `__file__` is absolute, so that what it says of itself holds in any directory."""
    spec = importlib.util.spec_from_file_location(f"mmjax_config_{path.stem}", path.absolute())
    if spec is None:
        raise UserError(f"{path} is no config: it is neither a .py nor a .json file")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise UserError(f"the config file {path} does not run: {type(error).__name__}: {error}") from None
    return module


# To and from plain dictionaries. --------------------------------------------------------------------------


def to_dict(node: Any) -> Any:
    """A part as nested dictionaries; each carries the name of its class as "class"."""
    if dataclasses.is_dataclass(node):
        return {"class": type(node).__name__} | {f.name: to_dict(getattr(node, f.name)) for f in _fields(node)}
    if isinstance(node, Mapping):
        return {key: to_dict(value) for key, value in node.items()}
    return list(node) if isinstance(node, tuple) else node


def from_dict(kind: Any, value: Any, path: str) -> Any:
    """Builds what the annotation `kind` asks for; an error names the key by its dotted `path`."""
    options = typing.get_args(kind) if _is_union(kind) else (kind,)
    if value is None and type(None) in options:
        return None
    classes = {c.__name__: c for c in options if dataclasses.is_dataclass(c)}
    if classes:
        return _part_from_dict(classes, value, path)
    for option in options:
        origin, arguments = typing.get_origin(option), typing.get_args(option)
        if origin is Literal and value in arguments and type(value) is type(arguments[0]):
            return value
        if origin is Mapping and isinstance(value, Mapping) and all(isinstance(k, str) for k in value):
            return {k: from_dict(arguments[1], v, dotted(path, k)) for k, v in value.items()}
        if origin is tuple and isinstance(value, list | tuple):
            return tuple(from_dict(arguments[0], v, f"{path}[{i}]") for i, v in enumerate(value))
        if option is float and isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300:
            return float(value)
        if option in (int, str, bool) and type(value) is option:
            return value
    alone = isinstance(value, str) and any(typing.get_origin(option) is tuple for option in options)
    raise UserError(f"{path} must be {_describe(kind)}, not {value!r}" + (f"; write ({value!r},)" if alone else ""))


def _part_from_dict(classes: dict[str, type], value: Any, path: str) -> Any:
    if isinstance(value, str):  # a class by its name alone: its defaults
        value = {"class": value}
    if not isinstance(value, Mapping):
        raise UserError(f"{path} must be {' or '.join(classes)}, not {value!r}")
    name = value.get("class", next(iter(classes)) if len(classes) == 1 else None)
    if not isinstance(name, str) or name not in classes:
        near = nearest(name, classes)
        hint = near if near.startswith("; did") else ""  # the list stands there already
        raise UserError(f"{path or 'the config'} must be {' or '.join(classes)}, not {name!r}{hint}")
    cls = classes[name]
    hints = typing.get_type_hints(cls)
    for key in value:
        if key != "class" and key not in hints:
            raise UserError(f"unknown config key '{dotted(path, key)}'{nearest(key, hints, path)}")
    missing = [f.name for f in _fields(cls) if f.name not in value and _required(f)]
    if missing:
        raise UserError(f"{dotted(path, missing[0])} is not set ({name} needs it)")
    return cls(**{k: from_dict(hints[k], v, dotted(path, k)) for k, v in value.items() if k != "class"})


# JSON. ----------------------------------------------------------------------------------------------------


def to_json(config: Experiment) -> str:
    """The resolved config, every field written out."""
    return json.dumps(to_dict(config), indent=2) + "\n"


def from_json(text: str, name: str = "the config") -> Experiment:
    """The inverse of `to_json`; `name` is what an error calls the text."""
    try:
        return from_dict(Experiment, json.loads(text), "")
    except json.JSONDecodeError as error:
        raise UserError(f"{name} is not JSON: {error}") from None


def flat(config: Experiment) -> dict[str, Any]:
    """Every value by its dotted key."""

    def flatten(node, path):
        if isinstance(node, dict):
            return {k: v for key, value in node.items() for k, v in flatten(value, dotted(path, key)).items()}
        return {path: node}

    return flatten(to_dict(config), "")


def differences(one: Experiment, other: Experiment) -> dict[str, tuple[Any, Any]]:
    """The dotted keys in which two configs differ, with both values."""
    a, b = flat(one), flat(other)
    return {k: (a.get(k), b.get(k)) for k in [*a, *(k for k in b if k not in a)] if a.get(k) != b.get(k)}


def _fields(node: Any):
    return dataclasses.fields(node)


def _required(field: dataclasses.Field) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _is_union(kind: Any) -> bool:
    return typing.get_origin(kind) in (typing.Union, types.UnionType)


def _describe(kind: Any) -> str:
    if _is_union(kind):
        return " or ".join(_describe(option) for option in typing.get_args(kind))
    if typing.get_origin(kind) is Literal:
        return "one of " + ", ".join(map(repr, typing.get_args(kind)))
    names = {int: "a whole number", float: "a number", str: "text", bool: "true or false", type(None): "none"}
    return names.get(kind, getattr(kind, "__name__", str(kind)))
