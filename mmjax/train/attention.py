"""The attention backends of a step, determined by tracing before the step is compiled."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import jax

from mmjax.errors import UserError
from mmjax.models.attend import Decision, Refused, decisions
from mmjax.parallel.mesh import abstract_batch, within
from mmjax.train.experiment import Experiment


@contextmanager
def deciding() -> Iterator[list[Decision]]:
    """Collects the decisions of the programs that are traced in the block. A call that is traced twice gives two decisions.

    Raises:
      UserError: the config is strict, and its backend cannot compute one of them.
    """
    with decisions() as made:
        try:
            yield made
        except Refused as error:
            raise UserError(f"model.attention: {error}; choose another, or set model.strict_attention=False") from None


def decided(config: Experiment, model: Any, params: Any, layout: Any, mesh: Any) -> list[Decision]:
    """The distinct decisions of the forward pass of a micro-batch on a mesh, in the order of the model.

    Raises:
      UserError: as for `deciding`.
    """
    params = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), params)
    batch = abstract_batch(layout.empty(1), config.data.batch_rows // config.optimizer.accumulation)
    with deciding() as made:
        jax.eval_shape(within(mesh, lambda p, b: model.apply({"params": p}, b)), params, batch)
    return list(dict.fromkeys(made))


def lines(made: Sequence[Decision]) -> list[str]:
    """One line per backend and reasons: 'attention xla: image 8x4x64x64, text 8x2x16x16'."""
    groups: dict[tuple[str, str], list[str]] = {}
    for one in dict.fromkeys(made):
        place = f"{one.where} {'x'.join(map(str, one.shape))}"
        why = "; ".join(f"{name}: {reason}" for name, reason in one.refused)
        groups.setdefault((one.backend, why), []).append(place)
    return [
        f"attention {backend}: {', '.join(places)}" + (f" ({why})" if why else "")
        for (backend, why), places in groups.items()
    ]
