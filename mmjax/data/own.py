"""A source defined by a user's Python file."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmjax.data.source import Opening, Source
from mmjax.errors import UserError
from mmjax.tree import part, run_file


@part
class OwnSource(Source):
    """A class in a Python file, built as name(data directory, split, **options): docs/fourth-modality.md."""

    file: str  # a Python file; for a class in the config itself: __file__
    name: str  # name of the class
    options: Mapping[str, bool | int | float | str] = dataclasses.field(default_factory=dict)

    def open(self, split: str, opening: Opening) -> Any:
        path = Path(self.file)
        if not path.is_file():
            raise UserError(f"there is no file {path} (data.source.file), which should define {self.name}")
        source = getattr(run_file(path), self.name, None)
        if not isinstance(source, type):
            raise UserError(f"{path} defines no class {self.name} (data.source.name)")
        opened = source(opening.directory, split, **self.options)
        if not hasattr(opened, "labels"):
            raise UserError(
                f"{self.name} of {path} has no `labels`, such as {{'answer': Label('class', ('no', 'yes'))}}"
            )
        return opened
