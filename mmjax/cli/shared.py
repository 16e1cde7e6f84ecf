"""What the commands share: numbers in, JSON out."""

import argparse
from collections.abc import Callable
from typing import Any

from mmjax.files import json_line


def whole(least: int) -> Callable[[str], int]:
    """A whole number of at least so much."""

    def parse(text: str) -> int:
        if not text.isdigit() or int(text) < least:
            raise argparse.ArgumentTypeError(f"{text!r} is not a number of at least {least}")
        return int(text)

    return parse


def print_json(value: Any) -> None:
    """One line of strict JSON: what is not a finite number becomes null."""
    print(json_line(value))
