"""All parts that a config can have, by kind, and what each of their fields means: for people who look up keys."""

import ast
import dataclasses
import inspect
import io
import tokenize
import typing
from typing import Any, NamedTuple

from mmjax.tree.part import fields, hints, is_base, kinds, options


class Key(NamedTuple):
    """A field of a part, as its source states it.

    Attributes:
      annotation: source text.
      default: the value as text; None where the field is required. A part is shown as the source writes it.
      meaning: the comment beside or above the field, with unit and special values; may be empty.
    """

    name: str
    annotation: str
    default: str | None
    meaning: str


def catalogue(root: type) -> dict[str, list[type]]:
    """The classes of all parts in a config of type `root`, by the name of their kind, in the order in which they appear."""
    found: dict[str, list[type]] = {}
    seen: set[type] = set()

    def visit(annotation: Any, field: str) -> None:
        for option in options(annotation):
            for argument in typing.get_args(option):
                visit(argument, field)
        for kind in kinds(annotation).values():
            if kind not in seen:
                seen.add(kind)
                found.setdefault(_kind_of(kind) or field, []).append(kind)
                for name, hint in hints(kind).items():
                    visit(hint, name)

    visit(root, "experiment")
    return found


def _kind_of(kind: type) -> str | None:
    return next((base.kind for base in kind.__mro__ if is_base(base)), None)


def keys(kind: type) -> list[Key]:
    """The fields of a part with their meanings, the inherited ones first."""
    stated: dict[str, Key] = {}
    for base in reversed(kind.__mro__):
        if dataclasses.is_dataclass(base):
            stated |= {key.name: key for key in _stated(base)}
    found = [stated.get(one.name) or Key(one.name, str(one.type), repr(one.default), "") for one in fields(kind)]
    return [key._replace(default=_shown(key.default, one)) for key, one in zip(found, fields(kind), strict=True)]


def _shown(source: str | None, field: dataclasses.Field) -> str | None:
    """The default of a field: its value where the source has names, such as of a constant, and otherwise the source."""
    if source is None or not any(isinstance(node, ast.Name) for node in ast.walk(ast.parse(source))):
        return source
    value = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
    return source if dataclasses.is_dataclass(value) else repr(value)


def _stated(kind: type) -> list[Key]:
    """The fields that the source of a class states."""
    try:
        source = inspect.cleandoc("\n" + inspect.getsource(kind))
    except (OSError, TypeError):
        return []
    comments = {
        token.start[0]: token.string.lstrip("# ").rstrip()
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type == tokenize.COMMENT
    }
    found = []
    for node in ast.parse(source).body[0].body:
        if isinstance(node, ast.AnnAssign):
            above, line = [], node.lineno - 1
            while line in comments and source.split("\n")[line - 1].startswith("    #"):
                above.insert(0, comments[line])
                line -= 1
            beside = [comments[line] for line in range(node.lineno, node.end_lineno + 1) if line in comments]
            default = None if node.value is None else ast.unparse(node.value)
            found.append(Key(node.target.id, ast.unparse(node.annotation), default, " ".join([*above, *beside])))
    return found
