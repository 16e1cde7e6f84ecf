"""Overrides from the command line."""

import ast
import dataclasses
from typing import Any

from mmjax.config.experiment import Experiment
from mmjax.config.tree import from_dict, to_dict
from mmjax.errors import UserError, dotted, nearest


def override(config: Experiment, arguments: list[str], only: tuple[str, ...] = ()) -> Experiment:
    """Applies `--any.config.key VALUE` (or `--key=VALUE`); dashes and underscores are the same.

    A value is a number, `none`, `true`, `false`, text, the name of a class, or a Python literal.

    Args:
      only: how the keys begin that are applied; (): all.
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
        if not only or key.startswith(only):
            _set(tree, key, _literal(text))
    return from_dict(Experiment, tree, "")


def _set(tree: dict, key: str, value: Any) -> None:
    *parents, last = key.split(".")
    node, path = tree, ""
    for name in [*parents, last]:
        # Names that a person gave (a modality, a subset) may hold dashes: compare as the flag is read.
        found = next((k for k in node if k != "class" and k.replace("-", "_") == name), None)
        if found is None and name is last and (set(node) == {"class"} or name in _fields(node)):
            found = name  # of a class that was chosen a flag ago; `from_dict` knows its fields
        if found is None and name is last and "class" not in node and _is_class(value):
            found = name  # one more head, say
        if found is None:
            raise UserError(f"unknown config key '{dotted(path, name)}'{nearest(name, node, path, tree)}")
        path = dotted(path, found)
        if name is last and path.count(".") == len(parents):
            chosen = isinstance(value, str) and isinstance(node.get(found), dict) and "class" in node[found]
            node[found] = {"class": value} if chosen else value
        elif isinstance(node[found], dict):
            node = node[found]
        elif _is_class(node[found]):  # that a flag has put in the place of None
            node[found] = {"class": node[found]}
            node = node[found]
        else:
            raise UserError(f"'{path}' is {node[found]!r} and has no keys of its own, so '{key}' does not exist")


def _fields(node: dict) -> list[str]:
    """The fields of a node's class, whether they are set or not."""
    from mmjax import config

    kind = getattr(config, str(node.get("class")), None)
    return [field.name for field in dataclasses.fields(kind)] if dataclasses.is_dataclass(kind) else []


def _is_class(value: Any) -> bool:
    from mmjax import config

    return isinstance(value, str) and dataclasses.is_dataclass(getattr(config, value, None))


def _literal(text: str) -> Any:
    words = {"none": None, "null": None, "true": True, "false": False}
    if text.lower() in words:
        return words[text.lower()]
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
