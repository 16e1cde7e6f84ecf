"""Optimizer rules: from gradients to updates, before weight decay and learning rate."""

from typing import Any, ClassVar

import jax
import optax
import optax.contrib

from mmjax.models.roles import is_hidden
from mmjax.tree import part


@part
class Rule:
    """The base class of optimizer rules.

    Attributes:
      first_moments: whether the rule keeps first moments, which `optimizer.moments` may store in bfloat16.
    """

    kind = "optimizer rule"
    first_moments: ClassVar[bool] = True

    weight_decay: float = 0.0  # of projections; decoupled: multiplied by the learning rate

    def direction(self, specs: Any) -> optax.GradientTransformation:
        """The update before weight decay and learning rate.

        Args:
          specs: the `Spec` of every parameter.
        """
        raise NotImplementedError


@part
class AdamW(Rule):
    """Adam (Kingma and Ba 2015, arXiv:1412.6980) with decoupled weight decay (arXiv:1711.05101)."""

    b1: float = 0.9  # decay of the first moments
    b2: float = 0.98  # decay of the second moments
    eps: float = 1e-8  # added to the root of the second moments
    weight_decay: float = 0.01  # of projections; decoupled: multiplied by the learning rate

    def direction(self, specs: Any) -> optax.GradientTransformation:
        return optax.scale_by_adam(self.b1, self.b2, self.eps)


@part
class Muon(Rule):
    """Orthogonalised momentum for projections between layers (Jordan et al. 2024), Adam for all else.

    Updates have the size of Adam's (Liu et al. 2025, arXiv:2502.16982), so that AdamW's learning rates fit.
    """

    momentum: float = 0.95  # decay of the momentum
    b1: float = 0.9  # of Adam
    b2: float = 0.98  # decay of the second moments
    weight_decay: float = 0.01  # of projections; decoupled: multiplied by the learning rate

    def direction(self, specs: Any) -> optax.GradientTransformation:
        muon = optax.contrib.muon(
            1.0,
            beta=self.momentum,
            adam_b1=self.b1,
            adam_b2=self.b2,
            muon_weight_dimension_numbers=matrices(specs),
            consistent_rms=0.2,
        )
        return optax.chain(muon, optax.scale(-1.0))  # Optax's Muon already includes the sign of descent


def matrices(specs: Any) -> Any:
    """The axes that reshape each hidden projection to matrices [in, out] for Muon; None: Adam trains the parameter."""

    def axes(spec: Any) -> optax.contrib.MuonDimensionNumbers | None:
        if not is_hidden(spec):
            return None
        count = len(spec.axes)
        inputs, outputs = (tuple(axis + count for axis in axes) for axes in (spec.inputs, spec.outputs))
        return optax.contrib.MuonDimensionNumbers(inputs, outputs)

    return jax.tree.map(axes, specs)


@part
class Lion(Rule):
    """The sign of a momentum (Chen et al. 2023, arXiv:2302.06675)."""

    b1: float = 0.9  # decay of the first moments
    b2: float = 0.99  # decay of the second moments
    weight_decay: float = 0.1  # of projections; decoupled: multiplied by the learning rate

    def direction(self, specs: Any) -> optax.GradientTransformation:
        return optax.scale_by_lion(self.b1, self.b2)


@part
class Adafactor(Rule):
    """Second moments by row and column (Shazeer and Stern 2018, arXiv:1804.04235), no first moments."""

    first_moments = False

    def direction(self, specs: Any) -> optax.GradientTransformation:
        return optax.chain(optax.scale_by_factored_rms(), optax.clip_by_block_rms(1.0))


@part
class SGD(Rule):
    """Gradient descent with momentum."""

    momentum: float = 0.9  # decay of the momentum

    def direction(self, specs: Any) -> optax.GradientTransformation:
        return optax.trace(self.momentum)
