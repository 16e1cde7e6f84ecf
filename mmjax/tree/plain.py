"""Parts as nested dictionaries, and back; every value is checked against the annotation of its field."""

import dataclasses
import typing
from collections.abc import Mapping
from typing import Any, Literal

from mmjax.errors import UserError, dotted, nearest
from mmjax.tree.files import user_class
from mmjax.tree.part import fields, hints, kinds, name_of, options


def to_dict(node: Any) -> Any:
    """A part as nested dictionaries; each has the name of its class as "class"."""
    if dataclasses.is_dataclass(node):
        return {"class": name_of(type(node))} | {f.name: to_dict(getattr(node, f.name)) for f in fields(node)}
    if isinstance(node, Mapping):
        return {key: to_dict(value) for key, value in node.items()}
    return [to_dict(value) for value in node] if isinstance(node, tuple) else node


def from_dict(annotation: Any, value: Any, path: str = "") -> Any:
    """The value that an annotation asks for; an error names the key by its dotted `path`.

    Raises:
      UserError: the value does not fit the annotation, a key is unknown, or a required key is missing.
    """
    allowed = options(annotation)
    if value is None and type(None) in allowed:
        return None
    if any(isinstance(option, type) and dataclasses.is_dataclass(option) for option in allowed):
        return _part_from_dict(annotation, value, path)
    for option in allowed:
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
    one = isinstance(value, str) and any(typing.get_origin(option) is tuple for option in allowed)
    raise UserError(f"{path} must be {_describe(annotation)}, not {value!r}" + (f"; write ({value!r},)" if one else ""))


def _part_from_dict(annotation: Any, value: Any, path: str) -> Any:
    classes = kinds(annotation)
    if isinstance(value, str):  # the name of a class: all its defaults
        value = {"class": value}
    if not isinstance(value, Mapping):
        raise UserError(f"{path} must be {' or '.join(classes)}, not {value!r}")
    cls = class_of(annotation, value)
    if cls is None:
        name = value.get("class")
        near = nearest(name, classes)
        hint = near if near.startswith("; did") else ""  # the message lists the classes already
        raise UserError(f"{path or 'the config'} must be {' or '.join(classes)}, not {name!r}{hint}")
    annotations = hints(cls)
    for key in value:
        if key != "class" and key not in annotations:
            raise unknown_key(path, key, annotation, cls)
    missing = [f.name for f in fields(cls) if f.name not in value and _required(f)]
    if missing:
        raise UserError(f"{dotted(path, missing[0])} is not set ({cls.__name__} needs it)")
    return cls(**{k: from_dict(annotations[k], v, dotted(path, k)) for k, v in value.items() if k != "class"})


def unknown_key(path: str, key: str, annotation: Any, cls: type | None, tree: dict | None = None) -> UserError:
    """The error about a key that a part does not have: it names the nearest key, or other classes of its kind with this key.

    Args:
      path: of the part, which is a `cls`, among those of `annotation`.
      tree: the whole config in its plain form.
    """
    known = hints(cls) if cls is not None else {}
    having = [name for name, other in kinds(annotation).items() if key in hints(other)]
    if having:
        flag = f"--{path} {having[0]} --{dotted(path, key)} VALUE"
        hint = f": {cls.__name__} has no '{key}'; {', '.join(having)} {'have' if having[1:] else 'has'} it: {flag}"
    elif cls is not None and not known:
        hint = f": {cls.__name__} has no keys; --{path} can be {', '.join(kinds(annotation))}"
    else:
        hint = nearest(key, known, path, tree)
    return UserError(f"unknown config key '{dotted(path, key)}'{hint}")


def class_of(annotation: Any, value: Mapping) -> type | None:
    """The class of a part in its plain form; None: none that the annotation allows."""
    classes = kinds(annotation)
    name = value.get("class", next(iter(classes)) if len(classes) == 1 else None)
    if isinstance(name, str) and name not in classes and ":" in name:
        user_class(name)  # a class from a user's file is known once the file was run
        classes = kinds(annotation)
    return classes.get(name) if isinstance(name, str) else None


def flat(node: Any) -> dict[str, Any]:
    """Every value of a part by its dotted key."""

    def flatten(node: Any, path: str) -> dict[str, Any]:
        if isinstance(node, dict):
            return {k: v for key, value in node.items() for k, v in flatten(value, dotted(path, key)).items()}
        return {path: node}

    return flatten(to_dict(node), "")


def differences(one: Any, other: Any) -> dict[str, tuple[Any, Any]]:
    """The dotted keys in which two parts differ, with both values."""
    a, b = flat(one), flat(other)
    return {k: (a.get(k), b.get(k)) for k in [*a, *(k for k in b if k not in a)] if a.get(k) != b.get(k)}


def _required(field: dataclasses.Field) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _describe(annotation: Any) -> str:
    if len(options(annotation)) > 1:
        return " or ".join(_describe(option) for option in options(annotation))
    if typing.get_origin(annotation) is Literal:
        return "one of " + ", ".join(map(repr, typing.get_args(annotation)))
    if (origin := typing.get_origin(annotation)) in (Mapping, tuple):
        return f"a {'mapping' if origin is Mapping else 'list'} such as {_example(annotation)}"
    names = {int: "a whole number", float: "a number", str: "text", bool: "true or false", type(None): "none"}
    return names.get(annotation, getattr(annotation, "__name__", str(annotation)))


def _example(annotation: Any) -> str:
    """How a value that an annotation allows is written on the command line, with ... where no value is obvious."""
    option, arguments = options(annotation)[0], typing.get_args(options(annotation)[0])
    if typing.get_origin(option) is Mapping:
        return f"{{'NAME': {_example(arguments[1])}}}"
    if typing.get_origin(option) is tuple:
        return f"[{_example(arguments[0])}, ...]"
    if classes := kinds(option):
        name, kind = next(iter(classes.items()))
        return f"{{'{fields(kind)[0].name}': ...}}" if len(classes) == 1 else repr(name)
    return {int: "1", float: "0.5", bool: "true", str: "'...'"}.get(option, "...")
