"""Config files: Python that builds parts, and JSON."""

import dataclasses
import difflib
import hashlib
import importlib.util
import json
import os
import re
import sys
import traceback
import types
from pathlib import Path
from typing import Any

from mmjax.errors import UserError, nearest
from mmjax.tree.part import fields


def read_json(path: Path) -> Any:
    """What a JSON file holds.

    Raises:
      UserError: the file cannot be read or is not JSON; the message names it.
    """
    try:
        return load_json(path.read_text(encoding="utf-8"), str(path))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not JSON: {error}") from None


def load_json(text: str, name: str) -> Any:
    """What a JSON text holds; `name` is what an error calls the text."""
    try:
        return json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise UserError(f"{name} is not JSON: {error}") from None


def run_file(path: Path) -> types.ModuleType:
    """Runs a Python file and returns its module, whose `__file__` is absolute.

    Raises:
      UserError: the file is missing, or fails; the message names the line and, for a misspelt field, the nearest one.
    """
    absolute = path.absolute()
    if absolute.suffix != ".py":
        raise UserError(f"{path} is no config: it is neither a .py nor a .json file")
    if not absolute.is_file():
        raise UserError(f"there is no file {path}")
    spec = importlib.util.spec_from_file_location(_module_name(absolute), absolute)
    module = importlib.util.module_from_spec(spec)
    module.__mmjax_file__ = str(absolute)
    sys.modules[module.__name__] = module  # where dataclasses and annotations look for it
    try:
        # Not by the loader of the module, which may run a cached file instead of this one.
        exec(compile(absolute.read_bytes(), absolute, "exec"), module.__dict__)
    except Exception as error:
        raise UserError(_explain(error, path, module)) from None
    return module


def user_class(name: str) -> type:
    """The class that "FILE.py:NAME" names; the file is run once.

    Raises:
      UserError: there is no such file or class.
    """
    file, _, attribute = name.rpartition(":")
    loaded = sys.modules.get(_module_name(Path(file).absolute()))
    if loaded is None and not Path(file).is_file():
        raise UserError(
            f"there is no file {file}, which has the class {attribute} of this config; put it back, or copy it beside the "
            "config.json that names it (into the run directory)"
        )
    found = getattr(loaded or run_file(Path(file)), attribute, None)
    if not isinstance(found, type):
        raise UserError(f"{file} defines no class {attribute}")
    return found


def _module_name(absolute: Path) -> str:
    digest = hashlib.sha256(os.fsencode(absolute)).hexdigest()[:12]
    return f"mmjax_file_{re.sub(r'[^0-9A-Za-z]', '_', absolute.stem)}_{digest}"


def _explain(error: Exception, path: Path, module: types.ModuleType) -> str:
    """One line for an error that a config file raised: the line of the file, what is wrong, and the nearest field."""
    if isinstance(error, SyntaxError):
        return f"{path}, line {error.lineno}: {error.msg}"
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == module.__file__]
    place = f"{path}, line {lines[-1]}" if lines else str(path)
    if isinstance(error, UserError):
        return f"{place}: {error}"
    unknown = re.search(r"(\w+)\.__init__\(\) got an unexpected keyword argument '(\w+)'", str(error))
    positional = re.search(r"(\w+)\.__init__\(\) takes 1 positional argument but", str(error))
    missing = re.search(r"(\w+)\.__init__\(\) missing \d+ required keyword-only arguments?: (.+)", str(error))
    if unknown and (kind := _class_named(unknown[1], module)):
        return f"{place}: {unknown[1]} has no key '{unknown[2]}'{nearest(unknown[2], [f.name for f in fields(kind)])}"
    if positional and (kind := _class_named(positional[1], module)):
        own = sorted(fields(kind), key=lambda field: field.name not in vars(kind).get("__annotations__", ()))
        named = ", ".join(f"{field.name}=..." for field in own[:2])
        return f"{place}: the fields of {positional[1]} are written by name: {positional[1]}({named})"
    if missing:
        return f"{place}: {missing[1]} needs {missing[2]}"
    if isinstance(error, AttributeError) and isinstance(error.obj, types.ModuleType):
        return f"{place}: {_lacks(error.obj, error.name)}"
    unimported = re.match(r"cannot import name '(\w+)' from '([\w.]+)'", str(error))
    if isinstance(error, ImportError) and unimported and (room := sys.modules.get(unimported[2])):
        return f"{place}: {_lacks(room, unimported[1])}"
    return f"{place}: {type(error).__name__}: {error}"


def _lacks(room: types.ModuleType, name: str) -> str:
    near = difflib.get_close_matches(name, [known for known in vars(room) if not known.startswith("_")], n=1)
    return f"{room.__name__} has no '{name}'" + (f"; did you mean '{near[0]}'?" if near else "")


def _class_named(name: str, module: types.ModuleType) -> type | None:
    """A dataclass of this name that a module uses, by its name or as an attribute of a module that it imported."""
    rooms = [module, *(value for value in vars(module).values() if isinstance(value, types.ModuleType))]
    found = (getattr(room, name, None) for room in rooms)
    return next((kind for kind in found if isinstance(kind, type) and dataclasses.is_dataclass(kind)), None)
