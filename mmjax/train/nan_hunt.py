"""Finds where values that are not finite come from: the first input, parameter, module or gradient of a step that has one."""

from collections import Counter
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from mmjax.models.multimodal import Multimodal
from mmjax.models.remat import with_remat
from mmjax.models.roles import by_path, is_stacked
from mmjax.stream import Batch
from mmjax.train.step import divide, measure

NAMED = 5  # of examples or parameters in a message


class _Found(Exception):
    """Ends the forward pass: the first output that is not finite."""


def hunt(model: Multimodal, params: Any, batch: Batch, key: jax.Array, teacher: Any = None) -> str:
    """Computes a step once more, module by module and without compiling, and says where values stop being finite.

    Args:
      params: before the step; batch: of the step, on one process; key: of its random numbers, as in the train step.
      teacher: the parameters that tasks imitate, as for `measure`.

    Returns:
      A clause such as "the output of encoders_speech.layers.feed_forward in layer 3 is the first that is not finite (in the
      rows of the examples 17, 4)".
    """
    batch = jax.tree.map(jnp.asarray, batch)
    for name, stream in batch.items():
        if name != "examples" and not _finite(stream.features):
            return f"the input '{name}' is not finite ({_examples(batch, stream.features)})"
    if bad := [path for path, x in by_path(params).items() if not _finite(x)]:
        return f"parameters are not finite before the step: {_listed(bad)}"
    imitated = teacher if any(task.imitates for task in model.tasks.values()) else None
    if bad := [path for path, x in by_path(imitated or {}).items() if not _finite(x)]:
        return f"parameters of the teacher, which are averages, are not finite before the step: {_listed(bad)}"
    keys = {"dropout": key, "augment": key}
    plain, calls, passes = with_remat(model, "none"), Counter(), []

    def watch(call: Any, arguments: Any, options: Any, context: Any) -> Any:
        if (
            not context.module.path and context.method_name == "__call__"
        ):  # the teacher's forward pass follows that of the student
            passes.append(calls.clear())
        result = call(*arguments, **options)
        values = [leaf for leaf in jax.tree.leaves(result) if isinstance(leaf, jax.Array)]
        if context.module.scope is None or any(isinstance(value, jax.core.Tracer) for value in values):
            return result  # Flax traces the body of a stack once before it runs
        path = ".".join(context.module.path)
        number = calls[path, context.method_name]
        calls[path, context.method_name] += 1
        for value in values:
            if not _finite(value):
                layer = f" in layer {number}" if is_stacked(context.module.path) else ""
                whose = " of the teacher" if len(passes) > 1 else ""
                raise _Found(
                    f"the output of {path or 'the model'}{layer}{whose} is the first that is not finite ({_examples(batch, value)})"
                )
        return result

    try:
        with jax.disable_jit(), nn.intercept_methods(watch):
            sums = measure(plain, params, batch, keys, teacher)
    except _Found as found:
        return str(found)
    losses = {name: divide(pair) for name, pair in sums.items() if name.endswith("/loss")}
    if bad := [name for name, loss in losses.items() if not _finite(loss)]:
        return f"all modules are finite, but not {_listed(bad)}"

    def total(params: Any) -> jax.Array:
        sums = measure(model, params, batch, keys, teacher)
        return sum((divide(pair) for name, pair in sums.items() if name.endswith("/loss")), jnp.zeros(()))

    gradients = by_path(jax.jit(jax.grad(total, allow_int=True))(params))
    if bad := [path for path, x in gradients.items() if not _finite(x)]:
        return f"all losses are finite, but not the gradients of {_listed(bad)}"
    return (
        "computed again, all losses and gradients are finite: the cause may be the device, or a sum over its gradients"
    )


def _finite(x: Any) -> bool:
    return not jnp.issubdtype(x.dtype, jnp.inexact) or bool(jnp.isfinite(x).all())


def _examples(batch: Batch, values: jax.Array) -> str:
    """The numbers of the examples in the rows where `values` are not finite."""
    slots = batch["examples"]
    count = len(slots.segments)
    if values.ndim == 0 or len(values) % count:
        return "in unknown rows"
    rows = np.flatnonzero(
        ~np.asarray(jnp.isfinite(values).reshape(count, -1).all(1))
    )  # of pictures, several are in a row
    numbers = np.asarray(slots.features)[rows][np.asarray(slots.segments)[rows] > 0]
    return f"in the rows of the examples {_listed(numbers.tolist())}"


def _listed(names: list[Any]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(map(str, names[:NAMED])) + more
