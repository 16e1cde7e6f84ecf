"""Configs from and to files."""

import json
from pathlib import Path

from mmjax.config.experiment import Experiment
from mmjax.errors import UserError
from mmjax.files import local
from mmjax.models import Encoder, TextDecoder
from mmjax.tree import from_dict, load_json, read_json, run_file, to_dict


def imported(directory: str | Path) -> Encoder | TextDecoder:
    """The encoder that `mmjax import` wrote; `Experiment.initial` says that its parameters are to be used too.

    Of a language model, which has no encoder, it is the decoder.
    """
    path = local(directory, "the directory of an imported model") / "part.json"
    if not path.is_file():
        raise UserError(f"there is no {path}; is {directory} what mmjax import wrote?")
    return from_dict(Encoder | TextDecoder, read_json(path), str(path))


def load(path: str | Path) -> Experiment:
    """Runs a config file (Python that assigns `config = Experiment(...)`) or reads a resolved JSON."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f"there is no config file {path}")
    if path.suffix == ".json":
        return from_dict(Experiment, read_json(path))
    config = getattr(run_file(path), "config", None)
    if not isinstance(config, Experiment):
        raise UserError(f"the config file {path} must assign `config = Experiment(...)`")
    return from_dict(Experiment, to_dict(config))  # checks every value against its annotation


def to_json(config: Experiment) -> str:
    """The resolved config, every field written out."""
    return json.dumps(to_dict(config), indent=2) + "\n"


def from_json(text: str, name: str = "the config") -> Experiment:
    """The inverse of `to_json`; `name` is what an error calls the text."""
    return from_dict(Experiment, load_json(text, name))
