"""What a part of a config is, which fields it states, and which classes an annotation allows.

A part is a frozen dataclass. A part with parameters is a Flax Linen module, which is a frozen dataclass, too. A base
class of parts (`Encoder`, `Fusion`) has an attribute `kind` of its own, the name of its kind. An annotation with a base
class allows each of its subclasses, also a user's class.
"""

import dataclasses
import sys
import types
import typing
from collections.abc import Iterator, Mapping
from typing import Any

part = dataclasses.dataclass(frozen=True, kw_only=True)

SETTING = "mmjax.setting"


def setting(default: Any) -> Any:
    """A field that has one value in the whole model and is set when the model is built, so that no config states it."""
    return dataclasses.field(default=default, metadata={SETTING: True})


def fields(kind: Any) -> tuple[dataclasses.Field, ...]:
    """The fields of a part (or its class) that a config states."""
    found = dataclasses.fields(kind)
    flax = {"parent", "name"} if any(field.name == "parent" for field in found) else ()  # Flax adds both to a module
    return tuple(field for field in found if field.name not in flax and SETTING not in field.metadata)


def hints(kind: type) -> dict[str, Any]:
    """The annotations of the fields that a config states."""
    annotations = typing.get_type_hints(kind)
    return {field.name: annotations[field.name] for field in fields(kind)}


def is_base(kind: type) -> bool:
    """Whether a class is the base class of a kind of parts, and no part itself."""
    return "kind" in vars(kind)


def options(annotation: Any) -> tuple[Any, ...]:
    """The members of a union; of any other annotation, itself."""
    union = typing.get_origin(annotation) in (typing.Union, types.UnionType)
    return typing.get_args(annotation) if union else (annotation,)


def kinds(annotation: Any) -> dict[str, type]:
    """The classes of parts that an annotation allows, by name."""
    allowed = [
        option for option in options(annotation) if isinstance(option, type) and dataclasses.is_dataclass(option)
    ]
    return {name_of(kind): kind for option in allowed for kind in _with_subclasses(option)}


def _with_subclasses(kind: type) -> Iterator[type]:
    # Flax makes further subclasses while it transforms modules; no module defines those.
    if not is_base(kind) and getattr(sys.modules.get(kind.__module__), kind.__name__, None) is kind:
        yield kind
    for subclass in kind.__subclasses__():
        yield from _with_subclasses(subclass)


def name_of(kind: type) -> str:
    """The name of a part's class in JSON and on the command line; "FILE.py:NAME" for a class from a user's file."""
    file = getattr(sys.modules.get(kind.__module__), "__mmjax_file__", None)
    return kind.__name__ if file is None else f"{file}:{kind.__name__}"


def with_settings(node: Any, **values: Any) -> Any:
    """A part in which every part inside it that has a field of these names has these values."""
    if isinstance(node, Mapping):
        return {name: with_settings(value, **values) for name, value in node.items()}
    if type(node) is tuple:
        return tuple(with_settings(value, **values) for value in node)
    if not dataclasses.is_dataclass(node):
        return node
    changed = {field.name: with_settings(getattr(node, field.name), **values) for field in fields(node)}
    known = {field.name for field in dataclasses.fields(node)}
    return dataclasses.replace(node, **changed | {name: value for name, value in values.items() if name in known})
