"""One dial that makes any config small: the same parts on the same rows, narrow and shallow, for a few steps."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from mmjax.parallel.mesh import Mesh
from mmjax.train.experiment import Checkpoint, Experiment, Log
from mmjax.tree import fields

STEPS, ROWS, EXAMPLES = 4, 2, 8
# What is made small, but stays as it is asked for beside `--smoke`: to rehearse a mesh.
AS_ASKED = ("steps", "mesh.", "data.batch_rows", "optimizer.accumulation")


def smoke(config: Experiment, width: int = 32) -> Experiment:
    """The config, so small that a laptop trains it in a minute or so; what fails there would fail on a pod.

    Data, tokenizer, rows, objectives and heads stay as they are, so that whatever is wrong with them is found.

    Args:
      width: of all towers, in features; heads, layers and hidden units follow from it. It divides by 8.
    """
    model = config.model
    small = dataclasses.replace(
        model,
        encoders=_small(model.encoders, width),
        fusion=_small(model.fusion, width),
        heads=_small(model.heads, width),
        unroll=False,
    )
    return dataclasses.replace(
        config,
        name=f"{config.name}_smoke",
        steps=STEPS,
        model=small,
        initial={},
        mesh=Mesh(),
        data=dataclasses.replace(config.data, batch_rows=ROWS),
        optimizer=dataclasses.replace(config.optimizer, accumulation=1, schedule=config.optimizer.schedule.shortened()),
        evaluation=dataclasses.replace(config.evaluation, every_steps=None, final_examples=EXAMPLES),
        checkpoint=Checkpoint(every_steps=None),
        log=Log(every_steps=1, tensorboard=False),
    )


def _small(part: Any, width: int) -> Any:
    """A part of the model with its parts, each size cut down to what the dial says."""
    if isinstance(part, Mapping):
        return {name: _small(one, width) for name, one in part.items()}
    if not dataclasses.is_dataclass(part):
        return part
    most = {
        "width": width,
        "layers": 2,
        "heads": 2,
        "key_value_heads": 1,
        "head_width": width // 2,
        "mlp": 2 * width,
        "stem_channels": width // 4,
        "queries": 2,
        "experts": 2,
    }
    values = {field.name: getattr(part, field.name) for field in fields(part)}
    return dataclasses.replace(
        part,
        **{
            name: min(value, most[name]) if name in most and value is not None else _small(value, width)
            for name, value in values.items()
        },
    )
