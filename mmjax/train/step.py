"""The train step: pure, compiled once."""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from mmjax.models import Multimodal
from mmjax.objectives import Sums, score
from mmjax.stream import Batch
from mmjax.train.groups import merged, split

ROUNDING = 2**31 - 1  # of a step's key, the child that rounds; micro-batches have the first ones


class TrainState(NamedTuple):
    """All that a run has learned: a plain pytree, saved and restored as it is.

    Attributes:
      step: optimizer steps taken.
      params: parameters, as `init_state` keeps them.
      optimizer: the state of Optax.
      average: exponential moving average of the parameters, or None.
      skipped: steps that were not taken because the gradient was not finite.
      weighting: what weights of the objectives that are not learned remember, or None.
    """

    step: jax.Array
    params: Any
    optimizer: Any
    average: Any
    skipped: jax.Array
    weighting: Any = None


def init_parameters(model: Multimodal, batch: Batch, seed: int) -> Any:
    """The model's parameters before the first step, each in a `mmjax.models.roles.Parameter`.

    A batch of any content gives the shapes; it needs every modality.
    """
    return dict(model.init(jax.random.key(seed), batch)["params"])


def init_state(
    params: Any,
    optimizer: optax.GradientTransformation,
    average: bool,
    weights: Any = None,
    parameters: str = "float32",
    moments: str = "float32",
    groups: Any = None,
) -> TrainState:
    """The state before the first step.

    Args:
      params: of `init_parameters`, in float32.
      average: keep a moving average of the parameters.
      weights: what the weights of the objectives remember at first (see `mmjax.train.weighting`).
      parameters, moments: the dtypes in which parameters and first moments are kept; all else is float32.
      groups: the group of every parameter; frozen ones have no moments, and may have a dtype of their own.
    """
    copy = jax.tree.map(jnp.copy, params) if average else None
    zero = jnp.zeros((), jnp.int32)

    def narrowed(path: Any, x: jax.Array) -> jax.Array:
        names = {getattr(key, "name", None) for key in path}  # of the fields of Optax's states
        return x.astype(moments) if names & {"mu", "trace"} else x

    trained = params if groups is None else split(params, groups)[0]
    kept = jax.tree_util.tree_map_with_path(narrowed, optimizer.init(trained))
    params = cast(params, parameters)
    if groups is not None:
        params = jax.tree.map(lambda group, x: cast(x, group.dtype) if group.dtype else x, groups, params)
    return TrainState(zero, params, kept, copy, zero, weights)


def cast(tree: Any, dtype: Any) -> Any:
    """All arrays of numbers with a point in that dtype."""
    return jax.tree.map(lambda x: x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x, tree)


def widened(params: Any) -> Any:
    """In float32 what is used many times in a step: JAX sums the gradients of all uses in the dtype of the parameter.

    Those are embeddings, recurrent layers, heads. Of a stack of layers, which hold most of what there is, each is used once.
    """

    def widen(path, x):
        return x if "layers" in [getattr(key, "key", None) for key in path] else x.astype(jnp.float32)

    return jax.tree_util.tree_map_with_path(widen, params)


def rounded_like(kept: Any, new: Any, key: jax.Array) -> Any:
    """Finite arrays in the dtypes of those that were kept; float32 ones that were bfloat16 are rounded at random.

    Each goes to one of its two neighbours, so that the expectation stays (Gupta et al. 2015, section 3). Rounded to the
    nearest, a parameter or a momentum would stand still as soon as its steps are smaller than half of its last digit, 1/500
    of its size.
    """

    def rounded(number: int, x: jax.Array) -> jax.Array:
        noise = jax.random.bits(jax.random.fold_in(key, number), x.shape, jnp.uint16).astype(jnp.uint32)
        upper = (jax.lax.bitcast_convert_type(x, jnp.uint32) + noise) & jnp.uint32(0xFFFF0000)
        return jax.lax.bitcast_convert_type(upper, jnp.float32).astype(jnp.bfloat16)

    leaves, tree = jax.tree.flatten(kept)
    pairs = enumerate(zip(leaves, jax.tree.leaves(new), strict=True))
    return tree.unflatten([x if old.dtype == x.dtype else rounded(n, x) for n, (old, x) in pairs])


def measure(model: Multimodal, objectives: dict[str, Any], params: Any, batch: Batch, keys=None) -> Sums:
    """Runs the model (training it, if keys for "dropout" and "augment" are given) and scores its outputs."""
    return score(objectives, model.apply({"params": params}, batch, train=keys is not None, rngs=keys), batch)


def divide(pair: tuple[jax.Array, jax.Array]) -> jax.Array:
    """sum / weight, and 0 where nothing was weighed."""
    total, weight = pair
    return total / jnp.where(weight > 0, weight, 1.0)


def loss_and_gradients(
    model: Multimodal,
    objectives: dict[str, Any],
    params: Any,
    batch: Batch,
    key: jax.Array,
    micro_batches: int,
    weighting: Any = None,
    remembered: Any = None,
    dtype: str = "float32",
    frozen: Any = None,
):
    """The whole batch's loss, its gradients, and the metrics' sums; memory for one micro-batch at a time.

    Losses are sums divided once by the weight of the *whole* batch, so the number of micro-batches does not
    change the result, however unequal their lengths. If the weighting compares gradients, their lengths by the part
    that it names are among the sums, as "NAME/shared_gradient".

    Args:
      weighting: of the objectives beyond their fixed weights; what it knows is in params["weighting"] if it is
        learned, else `remembered`.
      dtype: of the gradients.
      frozen: the parameters without gradients, where `params` are the trained ones alone; see `mmjax.train.groups.split`.
    """
    frozen = None if frozen is None else widened(frozen)

    def losses_of(params, batch, dropout_key, weights):
        # Augmentation is drawn by example, whatever micro-batch it is in.
        whole = params if frozen is None else merged(params, frozen)
        sums = measure(model, objectives, whole, batch, {"dropout": dropout_key, "augment": key})
        losses = {
            name: objective.weight * divide((sums[f"{name}/loss"][0], (weights or sums)[f"{name}/loss"][1]))
            for name, objective in objectives.items()
            if f"{name}/loss" in sums
        }
        return losses, sums

    def loss(params, *rest):
        losses, sums = losses_of(params, *rest)
        if weighting is None:
            return sum(losses.values(), start=jnp.zeros(())), sums
        return weighting.total(params.get("weighting", remembered), losses, 1.0 / micro_batches), sums

    def gradient(params, batch, dropout_key, weights=None):
        measured, gradients = jax.value_and_grad(loss, has_aux=True)(params, batch, dropout_key, weights)
        of_all = measured, cast(gradients, dtype)
        if weighting is None or weighting.shared is None:
            return of_all, {}
        place = weighting.shared.replace(".", "_")
        of_part = lambda part: losses_of({**params, place: part}, batch, dropout_key, weights)[0]  # noqa: E731
        losses, pull = jax.vjp(of_part, params[place])
        one = lambda name: {n: jnp.float32(n == name) for n in losses}  # noqa: E731
        return of_all, {name: cast(pull(one(name))[0], dtype) for name in losses}

    def result(of_all, of_shared):
        (total, sums), gradients = of_all
        norm = lambda gradient: optax.tree.norm(cast(gradient, jnp.float32))  # noqa: E731
        lengths = {f"{n}/shared_gradient": (norm(g), jnp.ones(())) for n, g in of_shared.items()}
        return total, gradients, sums | lengths

    params = widened(params)
    if micro_batches == 1:
        return result(*gradient(params, batch, key))

    # Every so many-th row makes a micro-batch: neighbours lie on one device, and each device keeps a part of every one.
    micro = jax.tree.map(lambda x: x.reshape((-1, micro_batches) + x.shape[1:]).swapaxes(0, 1), batch)
    # The weights depend on the data alone: the compiler drops the model from this pass.
    keys = {"dropout": key, "augment": key}
    whole = params if frozen is None else merged(params, frozen)
    sums = jax.lax.map(lambda one: measure(model, objectives, whole, one, keys), micro)
    weights = {name: (None, weight.sum()) for name, (_, weight) in sums.items()}

    def add(carry, one):
        return jax.tree.map(jnp.add, carry, gradient(params, *one, weights)), None

    per_micro_batch = micro, jax.random.split(key, micro_batches)
    first = jax.tree.map(lambda x: x[0], per_micro_batch)
    zero = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(gradient, params, *first, weights))
    return result(*jax.lax.scan(add, zero, per_micro_batch)[0])


def make_train_step(
    model: Multimodal,
    objectives: dict[str, Any],
    optimizer: optax.GradientTransformation,
    *,
    seed: int = 0,
    average_decay: float | None = None,
    micro_batches: int = 1,
    weighting: Any = None,
    gradient_dtype: str = "float32",
    groups: Any = None,
) -> Callable[[TrainState, Batch], tuple[TrainState, dict[str, jax.Array]]]:
    """Returns step(state, batch) -> (state, metrics), pure and not yet compiled."""

    def train_step(state: TrainState, batch: Batch):
        key = jax.random.fold_in(jax.random.key(seed), state.step)
        kept, frozen = (state.params, None) if groups is None else split(state.params, groups)
        total, gradients, sums = loss_and_gradients(
            model, objectives, kept, batch, key, micro_batches, weighting, state.weighting, gradient_dtype, frozen
        )
        gradients, params, moments = (cast(x, jnp.float32) for x in (gradients, kept, state.optimizer))
        norm = optax.tree.norm(gradients)
        updates, moments = optimizer.update(gradients, moments, params)
        new = optax.apply_updates(params, updates), moments
        params, new_optimizer = rounded_like((kept, state.optimizer), new, jax.random.fold_in(key, ROUNDING))

        # One batch that is not finite must not poison the run: the step is skipped, and counted.
        finite = jnp.isfinite(norm)
        keep = lambda new, old: jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, old)  # noqa: E731
        params, new_optimizer = keep(params, kept), keep(new_optimizer, state.optimizer)
        params = params if frozen is None else merged(params, frozen)
        average = state.average
        if average_decay is not None:
            # Young averages forget faster, or the random start would stay in them.
            decay = jnp.minimum(average_decay, (1.0 + state.step) / (10.0 + state.step))
            average = jax.tree.map(lambda a, p: decay * a + (1.0 - decay) * p, average, cast(params, jnp.float32))
        metrics = {"loss": total, "gradient_norm": norm} | {name: divide(pair) for name, pair in sums.items()}
        skipped, remembered = state.skipped + jnp.where(finite, 0, 1), state.weighting
        if remembered is not None:
            losses = {name: metrics.get(f"{name}/loss", jnp.zeros(())) for name in objectives}
            norms = {name: metrics.get(f"{name}/shared_gradient", jnp.zeros(())) for name in objectives}
            remembered = keep(weighting.update(remembered, losses, norms), remembered)
        state = TrainState(state.step + 1, params, new_optimizer, average, skipped, remembered)
        return state, metrics | {"skipped_steps": skipped}

    return train_step


def unboxed(tree: Any) -> Any:
    """Plain arrays instead of Flax's boxes with logical axis names."""
    return nn.unbox(tree)
