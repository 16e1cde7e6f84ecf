"""Makes any config small: the same parts on the same rows, with fewer features and layers, for a few steps."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from mmjax.parallel.mesh import Mesh
from mmjax.train.experiment import Checkpoint, Experiment, Log
from mmjax.tree import fields

STEPS, ROWS, EXAMPLES = 4, 2, 8
# Keys that `smoke` changes, unless the command line sets them. It cannot set the sizes of the model, which `smoke` chooses.
AS_ASKED = ("steps", "mesh.", "data.batch_rows", "optimizer.accumulation", "evaluation.", "checkpoint.", "log.")

LAYERS_BY_NUMBER = ("full_layers", "unrotated")  # fields of decoders that name some of their layers


def smoke(config: Experiment, width: int = 32) -> Experiment:
    """Returns the config with a model that a laptop trains in about a minute.

    Data, tokenizer, rows and tasks are unchanged, so that their errors appear here before they do on a pod.

    Args:
      width: features of all towers, a multiple of 8; other sizes follow from it.
    """
    model = config.model
    small = dataclasses.replace(
        model,
        encoders=_small(model.encoders, width),
        fusion=_small(model.fusion, width),
        tasks=_small(model.tasks, width),
        unroll=False,
    )
    return dataclasses.replace(
        config,
        name=f"{config.name}_smoke",
        steps=STEPS,
        model=small,
        initial={"**": None},  # a source has other sizes; None: what is frozen may be random
        mesh=Mesh(),
        data=dataclasses.replace(config.data, batch_rows=ROWS),
        optimizer=dataclasses.replace(config.optimizer, accumulation=1, schedule=config.optimizer.schedule.shortened()),
        evaluation=dataclasses.replace(
            config.evaluation,
            every_steps=STEPS // 2 if config.evaluation.best else None,
            examples=EXAMPLES,
            final_examples=EXAMPLES,
            patience=None,
        ),
        checkpoint=Checkpoint(every_steps=STEPS // 2 if config.spikes.rollback else None),
        log=Log(every_steps=1, tensorboard=False),
    )


def _small(part: Any, width: int) -> Any:
    """Limits all sizes of a part of the model and of its parts."""
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
        "channels": width // 4,
        "stem_channels": width // 4,
        "queries": 2,
        "experts": 2,
    }

    def smaller(name: str, value: Any) -> Any:
        if name in LAYERS_BY_NUMBER:
            return tuple(layer for layer in value if layer < most["layers"])
        return min(value, most[name]) if name in most and value is not None else _small(value, width)

    return dataclasses.replace(
        part, **{field.name: smaller(field.name, getattr(part, field.name)) for field in fields(part)}
    )
