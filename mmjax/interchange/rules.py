"""Rules that map parameters between their layout and ours, in both directions.

A rule names one of our parameters (a path such as "layers/attention/qkv/kernel") and their tensors from which it is
made. If their names contain "{layer}", our parameter is stacked over the layers of its part.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from mmjax.errors import UserError

Arrays = Mapping[str, np.ndarray]
TENSORS = "tensors"  # the key beside the options of a config.json for the names of the tensors of its files


@dataclasses.dataclass(frozen=True)
class Rule:
    """One of our parameters, and their tensors from which it is made.

    Attributes:
      ours: path of our parameter.
      theirs: names of their tensors; empty if our parameter is zero and missing in their layout (`fill`).
      join: their tensors (of one layer) -> ours; split: the inverse.
      fill: shape of our parameter if it is missing in their layout.
      layers: number of layers of the part.
    """

    ours: str
    theirs: tuple[str, ...]
    join: Callable[[list[np.ndarray]], np.ndarray] = lambda parts: parts[0]
    split: Callable[[np.ndarray], list[np.ndarray]] = lambda whole: [whole]
    fill: tuple[int, ...] | None = None
    layers: int = 0

    @property
    def is_stacked(self) -> bool:
        """Whether our parameter holds those of all layers."""
        return any("{layer}" in name for name in self.theirs)


def to_ours(
    rules: Sequence[Rule], tensors: Arrays, ignored: Callable[[str], bool], copies: Mapping[str, str]
) -> tuple[dict[str, np.ndarray], list[str]]:
    """Converts their tensors to our parameters by path (float32); returns also the names of unused tensors.

    Args:
      ignored: whether a tensor may be unused.
      copies: duplicate tensors, which are not read: copy -> original.

    Raises:
      UserError: a required tensor is missing, a tensor is unknown, or a copy differs from its original; all are listed.
    """
    wanted = {name for rule in rules for names in names_by_layer(rule) for name in names}
    missing = sorted(wanted - set(tensors))
    left_out = sorted(set(tensors) - wanted)
    unknown = [name for name in left_out if name not in copies and not ignored(name)]
    other = [name for name in left_out if name in copies and not np.array_equal(tensors[name], tensors[copies[name]])]
    if missing or unknown or other:
        parts = [f"missing: {', '.join(missing)}"] if missing else []
        parts += [f"not known: {', '.join(unknown)}"] if unknown else []
        parts += [f"{name} is not equal to {copies[name]}, to which config.json ties it" for name in other]
        raise UserError(f"the tensors do not fit the model; {'; '.join(parts)}")
    return {rule.ours: _joined(rule, tensors) for rule in rules}, left_out


def to_theirs(rules: Sequence[Rule], parameters: Arrays) -> dict[str, np.ndarray]:
    """The inverse of `to_ours`.

    Raises:
      UserError: a parameter is missing or unknown, their layout lacks a parameter that is not zero, or parameters that
        are one tensor there differ.
    """
    paths = {rule.ours for rule in rules}
    if paths != set(parameters):
        raise UserError(
            f"the parameters do not fit the layout; missing: {', '.join(sorted(paths - set(parameters))) or 'none'}; "
            f"not known: {', '.join(sorted(set(parameters) - paths)) or 'none'}"
        )
    tensors: dict[str, np.ndarray] = {}
    for rule in rules:
        whole = np.asarray(parameters[rule.ours])
        if rule.fill is not None:
            if whole.any():
                raise UserError(f"{rule.ours} is not zero, but the target layout does not have this parameter")
        else:
            for names, part in zip(names_by_layer(rule), whole if rule.is_stacked else [whole], strict=True):
                for name, tensor in zip(names, rule.split(part), strict=True):
                    if not np.array_equal(tensors.setdefault(name, tensor), tensor):
                        raise UserError(f"{rule.ours} differs from a parameter with which it is one tensor, {name}")
    return {name: np.asarray(x, order="C") for name, x in tensors.items()}


def names_by_layer(rule: Rule) -> list[list[str]]:
    """The names of their tensors by layer; a single entry if our parameter is not stacked."""
    return [[name.format(layer=i) for name in rule.theirs] for i in (range(rule.layers) if rule.is_stacked else [0])]


def _joined(rule: Rule, tensors: Arrays) -> np.ndarray:
    if rule.fill is not None:
        return np.zeros(rule.fill, np.float32)
    layers = [rule.join([tensors[name].astype(np.float32) for name in names]) for names in names_by_layer(rule)]
    return np.stack(layers) if rule.is_stacked else layers[0]


def head_of(theirs: Mapping[str, Any]) -> str:
    """The architecture without the family's name: "Model", "ForMaskedLM", "ForSequenceClassification", ..."""
    architecture = (theirs.get("architectures") or ["Model"])[0]
    return next((architecture[architecture.rindex(x) :] for x in ("For", "Model") if x in architecture), architecture)


def under(name: str, rules: Sequence[Rule], layers: int = 0) -> list[Rule]:
    """The same rules for a model that is the part `name` of a larger model, with the given number of layers."""
    return [dataclasses.replace(rule, ours=f"{name}/{rule.ours}", layers=layers) for rule in rules]


def check_options(theirs: Mapping[str, Any], **expected: Any) -> None:
    """Checks that options of a config.json have values that our module supports: the given one, or one of a tuple.

    Raises:
      UserError: an option has another value; missing options are accepted.
    """
    for key, value in expected.items():
        allowed = value if isinstance(value, tuple) else (value,)
        if theirs.get(key, allowed[0]) not in allowed:
            raise UserError(f"cannot import {key}={theirs[key]!r}; only {' or '.join(map(repr, allowed))}")


def check_head(theirs: Mapping[str, Any], *supported: str) -> None:
    """Checks that the architecture ends (`head_of`) in one of the given ways.

    Raises:
      UserError: it does not.
    """
    if head_of(theirs) not in supported:
        raise UserError(f"cannot import architectures={theirs['architectures']!r}; only ...{' or ...'.join(supported)}")


# Joint tensors are divided before the rules are applied. `ends`: the end of a name without "weight" or "bias" -> the names
# of the equal parts along the first axis: {"in_proj_": "qkv"} divides "x.in_proj_weight" into "x.in_proj_q.weight", ...


def divided(tensors: Arrays, ends: Mapping[str, Sequence[str]]) -> dict[str, np.ndarray]:
    """Divides joint tensors."""
    found = dict(tensors)
    for name, kind, parts in _joint(tensors, ends):
        pieces = np.split(found.pop(name + kind), len(parts))
        found |= {f"{name}{part}.{kind}": piece for part, piece in zip(parts, pieces, strict=True)}
    return found


def rejoined(tensors: Arrays, ends: Mapping[str, Sequence[str]]) -> dict[str, np.ndarray]:
    """The inverse of `divided`."""
    found = dict(tensors)
    for first, kind, parts in _joint(tensors, {f"{end}{parts[0]}.": parts for end, parts in ends.items()}):
        name = first.removesuffix(f"{parts[0]}.")
        found[name + kind] = np.concatenate([found.pop(f"{name}{part}.{kind}") for part in parts])
    return found


def _joint(tensors: Arrays, ends: Mapping[str, Sequence[str]]) -> list[tuple[str, str, Sequence[str]]]:
    """(name without its kind, its kind, parts) of every tensor whose name has one of the ends."""
    return [
        (name.removesuffix(kind), kind, parts)
        for name in tensors
        for end, parts in ends.items()
        for kind in ("weight", "bias")
        if name.endswith(end + kind)
    ]


# Rules for common layers. Their layout is torch's: linear weights are [out, in], convolution weights [out, in, ...].


def same(ours: str, theirs: str) -> list[Rule]:
    """The same array on both sides."""
    return [Rule(ours, (theirs,))]


def scale(ours: str, theirs: str) -> list[Rule]:
    """Root-mean-square normalisation."""
    return same(f"{ours}/scale", f"{theirs}.weight")


def norm(ours: str, theirs: str) -> list[Rule]:
    """Layer normalisation."""
    return scale(ours, theirs) + same(f"{ours}/bias", f"{theirs}.bias")


def linear(ours: str, theirs: str, bias: tuple[int, ...] | None = None) -> list[Rule]:
    """A linear layer; `bias` is the shape of our bias if theirs has none."""
    rules = [Rule(f"{ours}/kernel", (f"{theirs}.weight",), lambda p: p[0].T, lambda w: [w.T])]
    return rules + [Rule(f"{ours}/bias", (), fill=bias) if bias else Rule(f"{ours}/bias", (f"{theirs}.bias",))]


def without_biases(rules: Sequence[Rule]) -> list[Rule]:
    """The rules without those of biases, for models without biases."""
    return [rule for rule in rules if not rule.ours.endswith("/bias")]


def patches(ours: str, theirs: str, size: int, bias: tuple[int, ...] | None = None) -> list[Rule]:
    """A patch embedding: a convolution [out, channel, row, column] in theirs, [row * column * channel, out] in ours."""
    kernel = Rule(
        f"{ours}/kernel",
        (f"{theirs}.weight",),
        lambda p: p[0].transpose(2, 3, 1, 0).reshape(size * size * 3, -1),
        lambda w: [w.reshape(size, size, 3, -1).transpose(3, 2, 0, 1)],
    )
    return [kernel, *linear(ours, theirs, bias)[1:]]


def row(ours: str, theirs: str, axes: int = 1) -> list[Rule]:
    """A vector that has `axes` further axes of size 1 in front in theirs."""
    ones = (0,) * axes
    return [Rule(ours, (theirs,), lambda p: p[0][ones], lambda w: [np.expand_dims(w, tuple(range(axes)))])]


def pointwise(ours: str, theirs: str, bias: tuple[int, ...] | None = None) -> list[Rule]:
    """A linear layer that is a convolution with kernel size 1 in theirs: [out, in, 1]."""
    kernel, *rest = linear(ours, theirs, bias)
    return [Rule(kernel.ours, kernel.theirs, lambda p: p[0][..., 0].T, lambda w: [w.T[..., None]]), *rest]


def convolution(ours: str, theirs: str, taps: int, bias: tuple[int, ...] | None = None) -> list[Rule]:
    """A convolution in time: [out, in, tap] in theirs, a kernel [tap * in, out] in ours."""
    kernel = Rule(
        f"{ours}/kernel",
        (f"{theirs}.weight",),
        lambda p: p[0].transpose(2, 1, 0).reshape(-1, p[0].shape[0]),
        lambda w: [w.reshape(taps, -1, w.shape[1]).transpose(2, 1, 0)],
    )
    return [kernel, *linear(ours, theirs, bias)[1:]]


def depthwise(ours: str, theirs: str) -> list[Rule]:
    """The kernel of a depthwise convolution: [channel, 1, tap] in theirs, [tap, channel] in ours."""
    return [Rule(ours, (f"{theirs}.weight",), lambda p: p[0][:, 0].T, lambda w: [w.T[:, None]])]


def batch_norm(ours: str, theirs: str) -> list[Rule]:
    """Batch normalisation, including its running statistics."""
    statistics = same(f"{ours}/mean", f"{theirs}.running_mean") + same(f"{ours}/variance", f"{theirs}.running_var")
    return norm(ours, theirs) + statistics


def blank_first(rules: Sequence[Rule], blank: int) -> list[Rule]:
    """Adapts rules of a CTC head: their blank is the class `blank`, ours is class 0."""

    def moved(rule):
        return dataclasses.replace(
            rule,
            join=lambda parts: moved_first(rule.join(parts), blank),
            split=lambda whole: rule.split(moved_back(whole, blank)),
        )

    return [moved(rule) for rule in rules]


def moved_first(x: np.ndarray, blank: int) -> np.ndarray:
    """Reorders classes [..., V] so that the blank is first, as in `mmjax.models.texts.to_classes`."""
    return np.concatenate([x[..., blank : blank + 1], np.delete(x, blank, axis=-1)], axis=-1)


def moved_back(x: np.ndarray, blank: int) -> np.ndarray:
    """The inverse of `moved_first`."""
    return np.insert(x[..., 1:], blank, x[..., 0], axis=-1)


def heads_in(
    ours: str,
    theirs: Sequence[str],
    heads: int,
    biases: Sequence[bool] = (),
    bias: tuple[int, ...] | None = None,
) -> list[Rule]:
    """Joins n linear layers to attention heads into one kernel [W, n, H, D] and one bias [n, H, D].

    Args:
      biases: which of the layers have a bias (default: all); the others get zeros.
      bias: shape of our bias if none of their layers has one.
    """
    biases = tuple(biases) or (True,) * len(theirs)
    named = tuple(name for name, has in zip(theirs, biases, strict=True) if has)

    def join_kernel(parts):
        return np.stack([p.T.reshape(p.shape[1], heads, -1) for p in parts], axis=1)

    def split_kernel(whole):
        return [whole[:, i].reshape(whole.shape[0], -1).T for i in range(whole.shape[1])]

    def join_bias(parts):
        given = iter(parts)
        zero = np.zeros_like(parts[0])
        return np.stack([(next(given) if has else zero).reshape(heads, -1) for has in biases])

    def split_bias(whole):
        for part, has, name in zip(whole, biases, theirs, strict=True):
            if not has and part.any():
                raise UserError(f"the bias of {name} is not zero, but the target layout does not have this bias")
        return [part.reshape(-1) for part, has in zip(whole, biases, strict=True) if has]

    return [
        Rule(f"{ours}/kernel", tuple(f"{n}.weight" for n in theirs), join_kernel, split_kernel),
        Rule(f"{ours}/bias", (), fill=bias)
        if bias
        else Rule(f"{ours}/bias", tuple(f"{n}.bias" for n in named), join_bias, split_bias),
    ]


def heads_out(ours: str, theirs: str, heads: int, bias: tuple[int, ...] | None = None) -> list[Rule]:
    """The output projection of attention: [H, D, W]."""
    rules = linear(ours, theirs, bias)
    kernel = Rule(
        f"{ours}/kernel",
        (f"{theirs}.weight",),
        lambda p: p[0].T.reshape(heads, -1, p[0].shape[0]),
        lambda w: [w.reshape(-1, w.shape[-1]).T],
    )
    return [kernel, *rules[1:]]
