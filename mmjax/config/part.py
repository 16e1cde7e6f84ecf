"""What every part of a config is: a frozen dataclass whose fields are named when it is made."""

import dataclasses

part = dataclasses.dataclass(frozen=True, kw_only=True)
