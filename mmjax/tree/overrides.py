"""Overrides from the command line."""

import ast
import dataclasses
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

from mmjax.errors import UserError, dotted, nearest
from mmjax.tree.part import hints, kinds, options
from mmjax.tree.plain import class_of, from_dict, to_dict, unknown_key
from mmjax.tree.trust import trust_named

Part = TypeVar("Part")


def override(config: Part, arguments: list[str], only: tuple[str, ...] = ()) -> Part:
    """Applies `--any.config.key VALUE` (or `--key=VALUE`); dashes and underscores are the same.

    A value is a number, `none`, `true`, `false`, text, the name of a class, or a literal of Python or JSON.

    Args:
      only: how the keys begin that are applied; (): all.

    Raises:
      UserError: there is no such key, or the value does not fit it.
    """
    tree = to_dict(config)
    rest = list(arguments)
    while rest:
        flag = rest.pop(0)
        if not flag.startswith("--") or len(flag) < 3:
            raise UserError(f"cannot read the argument {flag!r}; overrides look like --checkpoint.every-steps 100")
        key, equals, text = flag[2:].partition("=")
        if not equals:
            if not rest:
                raise UserError(f"the override --{key} has no value")
            text = rest.pop(0)
        key = key.replace("-", "_")
        trust_named(text)
        if not only or key.startswith(only):
            _set(tree, type(config), key, literal(text))
    return from_dict(type(config), tree)


def _set(tree: dict, annotation: Any, key: str, value: Any) -> None:
    """Puts a value at a dotted key of a tree in its plain form; the annotations say which keys there are."""
    *parents, last = key.split(".")
    node, path = tree, ""
    for name in parents:
        found, annotation = _child(node, annotation, name, path, tree)
        path = dotted(path, found)
        if isinstance(node[found], str) and kinds(annotation):  # a class that an earlier flag has chosen
            node[found] = {"class": node[found]}
        if not isinstance(node[found], dict):
            raise UserError(f"'{path}' is {node[found]!r} and has no keys of its own, so '{key}' does not exist")
        node = node[found]
    found, annotation = _child(node, annotation, last, path, tree, new=isinstance(value, str))
    chosen = isinstance(value, str) and kinds(annotation)
    node[found] = {"class": value} if chosen else value


def _child(node: dict, annotation: Any, name: str, path: str, tree: dict, new: bool = False) -> tuple[str, Any]:
    """The key of a node that a flag names, and its annotation.

    Args:
      new: a mapping of parts may get a part more of this name.
    """
    # Names that a person gave (a modality, a subset) may have dashes: compare as the flag is read.
    mapping = next((o for o in options(annotation) if typing.get_origin(o) is Mapping), None)
    if mapping is not None and "class" not in node:
        inner = typing.get_args(mapping)[1]
        found = next((key for key in node if key.replace("-", "_") == name), name if new and kinds(inner) else None)
        if found is None:
            raise UserError(f"unknown config key '{dotted(path, name)}'{nearest(name, node, path, tree)}")
    else:
        cls = class_of(annotation, node)
        annotations = hints(cls) if cls is not None and dataclasses.is_dataclass(cls) else {}
        if name not in annotations:
            raise unknown_key(path, name, annotation, cls, tree)
        found, inner = name, annotations[name]
        if found not in node:
            node[found] = _default(cls, found)  # a field of a class that an earlier flag has chosen
    return found, inner


def _default(cls: type, name: str) -> Any:
    """The default of a field of a class in its plain form; None if it has none."""
    field = next(field for field in dataclasses.fields(cls) if field.name == name)
    default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
    return None if default is dataclasses.MISSING else to_dict(default)


WORDS = {"none": None, "null": None, "true": True, "false": False}


class _Words(ast.NodeTransformer):
    """Makes the constants of JSON those of Python, so that both kinds of literals are read."""

    def visit_Name(self, node: ast.Name) -> ast.expr:
        return ast.Constant(WORDS[node.id]) if node.id in WORDS else node


def literal(text: str) -> Any:
    """The value that a text writes: none, true, false, a literal of Python or JSON, or the text itself."""
    if text.lower() in WORDS:
        return WORDS[text.lower()]
    try:
        return ast.literal_eval(_Words().visit(ast.parse(text.strip(), mode="eval")))
    except (ValueError, SyntaxError, TypeError):
        return text
