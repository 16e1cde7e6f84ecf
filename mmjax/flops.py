"""Counts the FLOPs of matrix products in a traced program, without running it."""

import re
from collections.abc import Iterable
from typing import Any

import numpy as np

from mmjax.models.roles import part_of


def matrix_flops(function: Any, *arguments: Any, trained: int | None = None, slots: int = 1) -> dict[str, float]:
    """FLOPs of the matrix products of `function`, by the outermost named part of the model.

    A multiply-add counts as 2 FLOPs, and a loop body counts once per iteration. The trip count of a loop along examples
    (`mmjax.losses.base.along_example`) depends on the data; the examples of a row are assumed to be equally long.

    Args:
      slots: largest number of examples per row.
      trained: the index of the argument whose gradient is taken. Products of the backward pass are then counted too, one
        for each factor that depends on this argument. So most layers cost three times their forward pass. The first
        layer of a tower costs it twice, since its input is data; a front end without parameters, once. Recomputation is
        not counted.
    """
    import jax
    import jax.numpy as jnp
    from jax.extend.core import Literal

    def walk(jaxpr: Any, scope: str, times: float, depends: Iterable[bool], totals: dict[str, float]) -> list[bool]:
        """Adds a program's FLOPs to `totals`; returns for each result whether it depends on `trained`."""
        known = dict(zip(jaxpr.invars, depends, strict=True))

        def needs(value: Any) -> bool:
            return not isinstance(value, Literal) and known.get(value, False)

        for equation in jaxpr.eqns:
            name, kind = f"{scope}/{equation.source_info.name_stack}", equation.primitive.name
            inputs = [needs(value) for value in equation.invars]
            found = [any(inputs)] * len(equation.outvars)
            if kind == "dot_general":
                part = part_of(name)
                totals[part] = totals.get(part, 0.0) + (1 + sum(inputs)) * times * _product_flops(equation)
            elif kind == "stop_gradient":
                found = [False]
            counted, results = [], []
            for inner in _programs(equation):
                given, inner_times = _given(equation, inner, inputs), times
                if kind == "scan":
                    inner_times = times * equation.params["length"]
                    given = _until_stable(walk, inner, name, given, equation.params)
                elif kind == "while":
                    inner_times = times * (turns(str(equation.source_info.name_stack)) or slots) / slots
                elif kind == "shard_map":  # its inner shapes are those of one device
                    inner_times = times * equation.params["mesh"].size
                counted.append({})
                results.append(walk(inner, name, inner_times, given, counted[-1]))
            if kind == "cond" and counted:  # the most expensive branch
                counted = [max(counted, key=lambda branch: sum(branch.values()))]
            for branch in counted:
                for part, flops in branch.items():
                    totals[part] = totals.get(part, 0.0) + flops
            if results and all(len(one) == len(found) for one in results):
                found = [any(one) for one in zip(*results, strict=True)]
            continuous = [jnp.issubdtype(value.aval.dtype, jnp.inexact) for value in equation.outvars]
            known.update(zip(equation.outvars, (a and b for a, b in zip(found, continuous, strict=True)), strict=True))
        return [needs(value) for value in jaxpr.outvars]

    traced = jax.make_jaxpr(function)(*arguments).jaxpr
    of_argument = [number == trained for number, one in enumerate(arguments) for _ in jax.tree.leaves(one)]
    totals: dict[str, float] = {}
    walk(traced, "", 1.0, of_argument, totals)
    return totals


def _product_flops(equation: Any) -> float:
    """FLOPs of one matrix product."""
    (contracted, _), _ = equation.params["dimension_numbers"]
    left, out = equation.invars[0].aval.shape, equation.outvars[0].aval.shape
    return float(2.0 * np.prod(out, dtype=np.float64) * np.prod([left[i] for i in contracted], dtype=np.float64))


def _programs(equation: Any) -> list[Any]:
    """The inner programs of an equation, such as the body of a loop."""
    found = []
    for value in equation.params.values():
        for candidate in value if isinstance(value, tuple | list) else (value,):
            candidate = getattr(candidate, "jaxpr", candidate)
            if hasattr(candidate, "eqns"):
                found.append(candidate)
    return found


def _given(equation: Any, inner: Any, inputs: list[bool]) -> list[bool]:
    """Which inputs of an inner program depend on the trained argument; all, if unknown."""
    count = len(inner.invars)
    if equation.primitive.name == "cond":
        return inputs[1:]
    return inputs if count == len(inputs) else [any(inputs)] * count


def _until_stable(walk: Any, body: Any, scope: str, given: list[bool], params: dict[str, Any]) -> list[bool]:
    """Which inputs of a loop body depend on the trained argument, after iterating over its carry to a fixed point."""
    if "num_consts" in params:
        first, carried = params["num_consts"], params["num_carry"]
    else:  # since JAX 0.11
        first, carried, _ = map(len, params["ft_in"].unpack())
    while True:
        after = walk(body, scope, 0.0, given, {})[:carried]
        merged = [
            *given[:first],
            *(a or b for a, b in zip(given[first:], after, strict=False)),
            *given[first + carried :],
        ]
        if merged == given:
            return given
        given = merged


def turns(scope: str) -> int | None:
    """The trip count, from a loop's name, for an example that fills its row; None: the name has no count."""
    found = re.search(r"turns=(\d+)(/while)?$", scope)
    return int(found[1]) if found else None
