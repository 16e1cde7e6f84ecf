"""What a run compiles: the initial state, and the train step, both divided among the devices of a mesh."""

import jax

from mmjax import config as c
from mmjax.errors import UserError
from mmjax.parallel.mesh import state_shardings, within
from mmjax.parallel.runtime import jit_once
from mmjax.parallel.xla import options_of
from mmjax.train.step import TrainState, init_state, make_train_step, unboxed


def state_maker(config: c.Experiment, model, optimizer, layout, mesh):
    """The abstract state with its shardings, and a function that makes the real one, divided as it should be."""
    batch, weighting = layout.empty(1), config.weighting
    model = model.clone(attention="xla", strict_attention=False)  # parameters do not depend on it

    @jax.jit  # so that it is traced once: for the shapes, and to be run
    def initialise() -> TrainState:
        weights = weighting and weighting.init(list(config.objectives))
        learned = weighting is not None and weighting.learned
        return init_state(
            model, optimizer, batch, config.seed, config.optimizer.ema is not None, weights, learned,
            config.optimizer.parameters, config.optimizer.moments,
        )  # fmt: skip

    boxed = jax.eval_shape(initialise)
    shardings = state_shardings(boxed, mesh)
    abstract = jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        unboxed(boxed),
        shardings,
    )
    return abstract, jit_once(lambda: unboxed(initialise()), out_shardings=shardings)


def jitted_step(config: c.Experiment, model, objectives, optimizer, abstract: TrainState):
    """The train step as the run compiles it: (state, batch) -> (state, metrics), the state given away."""
    step = make_train_step(
        model, objectives, optimizer, seed=config.seed, average_decay=config.optimizer.ema,
        micro_batches=config.optimizer.accumulation, weighting=config.weighting,
        gradient_dtype=config.optimizer.gradients,
    )  # fmt: skip
    mesh = jax.tree.leaves(abstract)[0].sharding.mesh
    parts, accumulation = mesh.shape["data"] * mesh.shape["fsdp"], config.optimizer.accumulation
    if accumulation > 1 and config.data.batch_rows % (parts * accumulation):
        raise UserError(
            f"data.batch_rows={config.data.batch_rows} does not divide into optimizer.accumulation={accumulation} micro-batches "
            f"for {parts} devices (mesh.data x mesh.fsdp); write a multiple of {parts * accumulation}"
        )
    # As the state came, so it leaves: another layout would make the second step another program.
    return jax.jit(
        within(mesh, step), donate_argnums=0, out_shardings=(jax.tree.map(lambda leaf: leaf.sharding, abstract), None),
        compiler_options=options_of(config.xla, mesh.devices.flat[0]) or None,
    )  # fmt: skip
