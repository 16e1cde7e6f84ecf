"""The mixture of `python -m benchmarks.packing`: configs/smollm2_hears_and_sees.py with one conversation about a manual in 20.

The config itself has no texts without media, since its adapters only change tokens after media. Where texts are trained, too, the
lengths of conversations differ as much as here.
"""

import dataclasses
from pathlib import Path

from mmjax.config import Asked, DebianManual, load

whole = load(Path(__file__).parents[1] / "configs" / "smollm2_hears_and_sees.py")
source = whole.data.source
chat = Asked(source=DebianManual(), user=("{text}",), assistant="{target}")
config = dataclasses.replace(
    whole,
    name="hears_sees_and_chats",
    data=dataclasses.replace(
        whole.data,
        source=dataclasses.replace(
            source,
            sources={**source.sources, "chat": chat},
            weights={**{name: 0.95 * weight for name, weight in source.weights.items()}, "chat": 0.05},
        ),
        rows={"text": 336, "speech": 1128, "image": 448, "examples": 12},
    ),
)
