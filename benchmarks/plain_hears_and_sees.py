"""The baseline of configs/smollm2_hears_and_sees.py: a plain decoder of as many trained parameters, from random values.

    mmjax train benchmarks/plain_hears_and_sees.py

Data, encoders, projectors, steps and the learning rate are the same.
"""

import dataclasses
from pathlib import Path

from mmjax.config import Rotary, TextDecoder, load

whole = load(Path(__file__).parents[1] / "configs" / "smollm2_hears_and_sees.py")
decoder = TextDecoder(
    vocabulary=49_152, layers=4, width=128, heads=4, mlp=512, positions=Rotary(), cross_attention=False
)
task = whole.model.tasks["chat"].clone(decoder=decoder)
config = dataclasses.replace(
    whole,
    name="plain_hears_and_sees",
    model=whole.model.clone(tasks={"chat": task}),
    initial={name: place for name, place in whole.initial.items() if not name.startswith("tasks")},
    adapters={},
    optimizer=dataclasses.replace(
        whole.optimizer, groups={k: v for k, v in whole.optimizer.groups.items() if not k.startswith("tasks")}
    ),
)
