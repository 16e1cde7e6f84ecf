"""The train step: pure, compiled once."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from mmjax.models import Multimodal
from mmjax.models.adapters import LoRA, adapted
from mmjax.models.roles import layer_axis
from mmjax.models.task import Sums, losses_of
from mmjax.stream import Batch
from mmjax.train.groups import merged, split, stored

ROUNDING = 2**31 - 1  # the fold of a step's key for rounding; micro-batches use the first splits


class TrainState(NamedTuple):
    """The state of a run: a plain pytree, which checkpoints save.

    Attributes:
      step: optimizer steps taken.
      params: parameters, in the dtype of `init_state`.
      optimizer: the optimizer state of Optax.
      average: exponential moving average (EMA) of the trained parameters, or None; frozen ones are None in it.
      skipped: number of steps skipped because the loss or a gradient was not finite.
      weighting: the state of a weighting of the tasks that is not learned, or None.
    """

    step: jax.Array
    params: Any
    optimizer: Any
    average: Any
    skipped: jax.Array
    weighting: Any = None

    @property
    def evaluated(self) -> Any:
        """The parameters to evaluate: their average, if there is one."""
        return self.params if self.average is None else merged(self.average, self.params)


def init_parameters(
    model: Multimodal, batch: Batch, seed: int, adapters: Mapping[str, LoRA | None] | None = None
) -> Any:
    """The model's parameters before the first step, each in a `mmjax.models.roles.Parameter`.

    Args:
      batch: with every modality, for the shapes; its content does not matter.
      adapters: `Experiment.adapters`.
    """
    return adapted(dict(model.init(jax.random.key(seed), batch)["params"]), adapters or {}, seed)


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
      params: the result of `init_parameters`, in float32.
      average: keep an EMA of the trained parameters.
      weights: the initial state of the weighting of the tasks (see `mmjax.train.weighting`).
      parameters, moments: dtypes of parameters and first moments; everything else is float32.
      groups: the group of every parameter; frozen parameters have no moments, and may have their own dtype.
    """
    trained = split(params, groups)[0]
    copy = jax.tree.map(jnp.copy, trained) if average else None
    zero = jnp.zeros((), jnp.int32)

    def narrowed(path: Any, x: jax.Array) -> jax.Array:
        names = {getattr(key, "name", None) for key in path}  # the fields of Optax's states
        return x.astype(moments) if names & {"mu", "trace"} else x

    kept = jax.tree_util.tree_map_with_path(narrowed, optimizer.init(trained))
    if groups is None:
        params = cast(params, parameters)
    else:
        params = jax.tree.map(lambda group, box: stored(box, group, parameters), groups, params)
    return TrainState(zero, params, kept, copy, zero, weights)


def cast(tree: Any, dtype: Any) -> Any:
    """Casts all floating-point arrays to `dtype`."""
    return jax.tree.map(lambda x: x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x, tree)


def widened(params: Any, specs: Any) -> Any:
    """Upcasts parameters used several times per step, since JAX accumulates gradients in the parameter's dtype.

    These are embeddings, recurrent layers and heads. Layers of a stack, with most of the parameters, are used once.

    Args:
      specs: the `mmjax.models.roles.Spec` of every parameter.
    """
    return jax.tree.map(lambda x, spec: x if layer_axis(spec) is not None else x.astype(jnp.float32), params, specs)


def rounded_like(kept: Any, new: Any, key: jax.Array) -> Any:
    """Casts `new` to the dtypes of `kept`, with stochastic rounding to bfloat16 (Gupta et al. 2015, section 3).

    A number is rounded at random to one of its two neighbours, so that its expectation is unchanged. With rounding to nearest, a
    parameter or momentum would not change any more once its updates are smaller than about 1/500 of it (half a unit in the last
    place). All arrays must be finite.
    """

    def rounded(number: int, x: jax.Array) -> jax.Array:
        noise = jax.random.bits(jax.random.fold_in(key, number), x.shape, jnp.uint16).astype(jnp.uint32)
        upper = (jax.lax.bitcast_convert_type(x, jnp.uint32) + noise) & jnp.uint32(0xFFFF0000)
        return jax.lax.bitcast_convert_type(upper, jnp.float32).astype(jnp.bfloat16)

    leaves, tree = jax.tree.flatten(kept)
    pairs = enumerate(zip(leaves, jax.tree.leaves(new), strict=True))
    return tree.unflatten([x if old.dtype == x.dtype else rounded(n, x) for n, (old, x) in pairs])


def measure(model: Multimodal, params: Any, batch: Batch, keys: Any = None, teacher: Any = None) -> Sums:
    """The losses and metrics of all tasks; in training mode if keys for "dropout" and "augment" are given.

    Args:
      teacher: parameters that tasks imitate in training (`Task.imitate`), without a gradient; None: a copy of `params`.
    """
    outputs = model.apply({"params": params}, batch, train=keys is not None, rngs=keys)
    if keys is None or not any(task.imitates for task in model.tasks.values()):
        return losses_of(model.tasks, outputs)
    teacher = jax.lax.stop_gradient(params if teacher is None else teacher)
    return losses_of(model.tasks, outputs, model.apply({"params": teacher}, batch))


def divide(pair: tuple[jax.Array, jax.Array]) -> jax.Array:
    """sum / weight, or 0 if the weight is 0."""
    total, weight = pair
    return total / jnp.where(weight > 0, weight, 1.0)


@dataclasses.dataclass(frozen=True, eq=False)  # hashable by identity, so that it can be jitted
class LossAndGradients:
    """Computes the loss of a whole batch, its gradients and the sums of the metrics, one micro-batch at a time.

    Losses are sums divided by the weight of the *whole* batch, so the number of micro-batches does not change the result,
    even if their lengths differ.

    Attributes:
      weighting: weighting of the tasks in addition to their fixed weights.
      dtype: dtype of the gradients.
    """

    model: Multimodal
    micro_batches: int = 1
    weighting: Any = None
    dtype: str = "float32"

    def __call__(
        self, params: Any, batch: Batch, key: jax.Array, remembered: Any = None, frozen: Any = None, teacher: Any = None
    ):
        """Returns (loss, gradients, sums).

        If the weighting compares gradients, the sums include the norms of the gradients of each task's loss with respect
        to the shared part, as "TASK/shared_gradient".

        Args:
          remembered: the state of the weighting; unused if it is learned (then it is params["weighting"]).
          frozen: parameters without gradients; `params` are then only the trained ones (see `mmjax.train.groups.split`).
          teacher: as for `measure`.
        """
        # Augmentation depends on the example, so all micro-batches use the same key for it.
        subject = _Subject(self, frozen, key, remembered, teacher)
        if self.micro_batches == 1:
            return subject.result(subject.gradients(params, batch, key))

        # Row i belongs to micro-batch i % micro_batches. Adjacent rows are on one device, so each micro-batch uses all
        # devices.
        micro = jax.tree.map(lambda x: x.reshape((-1, self.micro_batches) + x.shape[1:]).swapaxes(0, 1), batch)
        # The weights depend only on the data, so the compiler removes the model from this pass.
        sums = jax.lax.map(lambda one: subject.sums(params, one, key), micro)
        weights = {name: weight.sum() for name, (_, weight) in sums.items()}

        def add(carry, one):
            return jax.tree.map(jnp.add, carry, subject.gradients(params, *one, weights)), None

        per_micro_batch = micro, jax.random.split(key, self.micro_batches)
        first = jax.tree.map(lambda x: x[0], per_micro_batch)
        zero = jax.eval_shape(subject.gradients, params, *first, weights)
        zero = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), zero)
        return subject.result(jax.lax.scan(add, zero, per_micro_batch)[0])


@dataclasses.dataclass(frozen=True)
class _Subject:
    """The losses of one call of `LossAndGradients`, as functions of the trained parameters and a micro-batch."""

    of: LossAndGradients
    frozen: Any
    augment: jax.Array
    remembered: Any
    teacher: Any

    def sums(self, params: Any, batch: Batch, dropout: jax.Array) -> Sums:
        whole = merged(params, self.frozen)
        return measure(self.of.model, whole, batch, {"dropout": dropout, "augment": self.augment}, self.teacher)

    def losses(self, params: Any, batch: Batch, dropout: jax.Array, weights: Any) -> tuple[dict[str, jax.Array], Sums]:
        """The loss of each task, divided by `weights` (None: the weights of this batch), and the sums."""
        sums, losses = self.sums(params, batch, dropout), {}
        for name, task in self.of.model.tasks.items():
            if (key := f"{name}/loss") in sums:
                total, weight = sums[key]
                losses[name] = task.weight * divide((total, weight if weights is None else weights[key]))
        return losses, sums

    def total(self, params: Any, *rest: Any) -> tuple[jax.Array, Sums]:
        losses, sums = self.losses(params, *rest)
        weighting = self.of.weighting
        if weighting is None:
            return sum(losses.values(), start=jnp.zeros(())), sums
        share = 1.0 / self.of.micro_batches
        return weighting.total(params.get("weighting", self.remembered), losses, share), sums

    def gradients(self, params: Any, batch: Batch, dropout: jax.Array, weights: Any = None):
        """((loss, sums), gradients), and the gradients of each task's loss with respect to the shared part."""
        measured, gradients = jax.value_and_grad(self.total, has_aux=True)(params, batch, dropout, weights)
        of_all = measured, cast(gradients, self.of.dtype)
        weighting = self.of.weighting
        if weighting is None or weighting.shared is None:
            return of_all, {}
        place = weighting.shared.replace(".", "_")
        losses, pull = jax.vjp(
            lambda part: self.losses({**params, place: part}, batch, dropout, weights)[0], params[place]
        )
        seeds = {name: {other: jnp.float32(other == name) for other in losses} for name in losses}
        return of_all, {name: cast(pull(seed)[0], self.of.dtype) for name, seed in seeds.items()}

    def result(self, found: Any):
        ((total, sums), gradients), of_shared = found
        norms = {name: optax.tree.norm(cast(gradient, jnp.float32)) for name, gradient in of_shared.items()}
        sums |= {f"{name}/shared_gradient": (norm, jnp.ones(())) for name, norm in norms.items()}
        return total, gradients, sums


def make_train_step(
    model: Multimodal,
    optimizer: optax.GradientTransformation,
    *,
    seed: int = 0,
    average_decay: float | None = None,
    micro_batches: int = 1,
    weighting: Any = None,
    gradient_dtype: str = "float32",
    groups: Any = None,
    specs: Any = None,
) -> Callable[[TrainState, Batch], tuple[TrainState, dict[str, jax.Array]]]:
    """Returns step(state, batch) -> (state, metrics), pure and not yet compiled.

    Args:
      groups, specs: of every parameter; `specs` may be None if all parameters are float32.
    """
    compute = LossAndGradients(model, micro_batches, weighting, gradient_dtype)

    def train_step(state: TrainState, batch: Batch):
        key = jax.random.fold_in(jax.random.key(seed), state.step)
        kept, frozen = split(state.params, groups)
        trained = kept if specs is None else widened(kept, split(specs, groups)[0])
        total, gradients, sums = compute(trained, batch, key, state.weighting, frozen, state.evaluated)
        gradients, params, moments = (cast(x, jnp.float32) for x in (gradients, kept, state.optimizer))
        norm = optax.tree.norm(gradients)
        updates, moments = optimizer.update(gradients, moments, params)
        new = optax.apply_updates(params, updates), moments
        params, new_optimizer = rounded_like((kept, state.optimizer), new, jax.random.fold_in(key, ROUNDING))

        # A step whose loss or gradients are not finite is skipped and counted, so that one bad batch does not end the run.
        finite = jnp.isfinite(norm) & jnp.isfinite(total)

        def keep(new: Any, old: Any) -> Any:
            return jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, old)

        params, new_optimizer = keep(params, kept), keep(new_optimizer, state.optimizer)
        average = state.average
        if average_decay is not None:
            # The decay is smaller in the first steps, so that the EMA forgets the random initial parameters.
            decay = jnp.minimum(average_decay, (1.0 + state.step) / (10.0 + state.step))
            average = jax.tree.map(lambda a, p: decay * a + (1.0 - decay) * p, average, cast(params, jnp.float32))
        params = merged(params, frozen)
        metrics = {"loss": total, "gradient_norm": norm} | {name: divide(pair) for name, pair in sums.items()}
        skipped, remembered = state.skipped + jnp.where(finite, 0, 1), state.weighting
        if remembered is not None:
            losses = {name: metrics.get(f"{name}/loss", jnp.zeros(())) for name in model.tasks}
            norms = {name: metrics.get(f"{name}/shared_gradient", jnp.zeros(())) for name in model.tasks}
            remembered = keep(weighting.update(remembered, losses, norms), remembered)
        state = TrainState(state.step + 1, params, new_optimizer, average, skipped, remembered)
        return state, metrics | {"skipped_steps": skipped}

    return train_step


def unboxed(tree: Any) -> Any:
    """Plain arrays instead of Flax's boxes with logical axis names."""
    return nn.unbox(tree)
