"""The two programs of a run, sharded over a mesh: the initial state and the train step."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import optax

from mmjax.models.attend import with_backend
from mmjax.models.roles import parameter, specs
from mmjax.parallel.mesh import per_device, state_shardings, within
from mmjax.parallel.runtime import jit_once
from mmjax.parallel.xla import explained, options_of
from mmjax.train.build import build_layout, raw
from mmjax.train.experiment import Experiment
from mmjax.train.groups import grouped, split
from mmjax.train.step import TrainState, init_parameters, init_state, make_train_step, unboxed
from mmjax.train.validate import check_rows
from mmjax.tree import with_settings


class Start(NamedTuple):
    """The optimizer and the abstract initial state of a run.

    Attributes:
      optimizer: for the parameters of the model.
      abstract: the shapes, dtypes and shardings of the state.
      initialise: computes the sharded state.
      specs: the `mmjax.models.roles.Spec` of every parameter.
      groups: the `mmjax.train.groups.Group` of every parameter; None: the config has no groups and no adapters.
    """

    optimizer: optax.GradientTransformation
    abstract: TrainState
    initialise: Callable[[], TrainState]
    specs: Any
    groups: Any


def begin(config: Experiment, model: nn.Module, layout: Any, mesh: Any) -> Start:
    """The optimizer and the initial state of a config, for the devices of a mesh."""
    # Parameters depend neither on the backend, nor on whether an encoder's output is read instead of its input.
    batch, weighting = (build_layout(raw(config)) if config.data.encoded else layout).empty(1), config.weighting
    learned = weighting is not None and weighting.learned
    model = with_settings(with_backend(model, "xla"), encoded=())

    @jax.jit  # so that roles, shapes and the run share one trace
    def parameters() -> Any:
        params = init_parameters(model, batch, config.seed, config.adapters)
        if learned:  # one scalar per task, with the role of a gate
            gate = parameter("gate", lambda value: value, ())
            params["weighting"] = jax.tree.map(gate, weighting.init(list(config.model.tasks)))
        return params

    specs_ = specs(jax.eval_shape(parameters))
    groups = grouped(config.optimizer.groups, specs_) if config.optimizer.groups or config.adapters else None
    trained = (specs_, None) if groups is None else (split(specs_, groups)[0], split(groups, groups)[0])
    optimizer = config.optimizer.build(trained[0], config.steps, trained[1])

    def initialise() -> TrainState:
        remembered = None if weighting is None or learned else weighting.init(list(config.model.tasks))
        kept = config.optimizer
        return init_state(
            parameters(), optimizer, kept.ema is not None, remembered, kept.parameters, kept.moments, groups
        )

    boxed = jax.eval_shape(initialise)
    shardings = state_shardings(boxed, mesh)
    abstract = jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        unboxed(boxed),
        shardings,
    )
    return Start(optimizer, abstract, jit_once(lambda: unboxed(initialise()), out_shardings=shardings), specs_, groups)


def step_memory(step: Any, state: TrainState, batch: Any) -> str:
    """What a jitted step needs of a device and what the device has, in GB, for a message.

    Args:
      state, batch: abstract, with shardings.
    """
    try:
        found = step.lower(state, batch).compile().memory_analysis()
    except jax.errors.JaxRuntimeError:  # too large even to compile
        return f"the state takes {per_device(state) / 1e9:.3g} GB of a device"
    device = jax.local_devices()[0]
    has = (device.memory_stats() or {}).get("bytes_limit")
    return (
        f"per device, state and batch take {found.argument_size_in_bytes / 1e9:.3g} GB and intermediate values "
        f"{found.temp_size_in_bytes / 1e9:.3g} GB" + (f" of {has / 1e9:.3g} GB" if has else "")
    )


def jitted_step(config: Experiment, model: nn.Module, begun: Start) -> Any:
    """The jitted train step: (state, batch) -> (state, metrics), with donated state."""
    step = make_train_step(
        model,
        begun.optimizer,
        seed=config.seed,
        average_decay=config.optimizer.ema,
        micro_batches=config.optimizer.accumulation,
        weighting=config.weighting,
        gradient_dtype=config.optimizer.gradients,
        groups=begun.groups,
        specs=begun.specs,
    )
    mesh = jax.tree.leaves(begun.abstract)[0].sharding.mesh
    check_rows(config, mesh)
    # The output state has the shardings of the input; otherwise the second step would compile again.
    return jax.jit(
        within(mesh, step),
        donate_argnums=0,
        out_shardings=(jax.tree.map(lambda leaf: leaf.sharding, begun.abstract), None),
        compiler_options=options_of(config.xla, mesh.devices.flat[0]) or None,
    )


@contextmanager
def compiling(program: jax.stages.Lowered, memory: Callable[[], str]) -> Iterator[None]:
    """Compiles a program, or loads it from the cache, in a thread while the block runs.

    After the block, the jitted function that was lowered has the program, and does not compile it again.

    Args:
      memory: as for `mmjax.parallel.xla.explained`.

    Raises:
      UserError: as for `mmjax.parallel.xla.explained`.
    """
    with explained(memory), ThreadPoolExecutor(1, "compiler") as thread:
        done = thread.submit(program.compile)
        yield
        done.result()
