"""Adapters in the layout of PEFT: adapter_config.json and adapter_model.safetensors, which `PeftModel` and vLLM load."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from mmjax.errors import UserError
from mmjax.interchange.rules import Rule, names_by_layer
from mmjax.models.adapters import Adapted, is_adapted

PREFIX = "base_model.model."  # of the name of each module


class Factors(NamedTuple):
    """The adapter of one of their weights: A [rank, in], B [out, rank], the magnitude [out] of DoRA or None, in float32."""

    a: np.ndarray
    b: np.ndarray
    magnitude: np.ndarray | None
    scale: float


def adapter(
    rules: Sequence[Rule],
    parameters: Mapping[str, Any],
    theirs: Mapping[str, Any],
    tensors: Mapping[str, str],
    pack: Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]] = dict,
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The tensors, and the content of adapter_config.json.

    Args:
      parameters: by the paths of `Rule.ours`; those with adapters are `Adapted`.
      theirs: the config of the original model.
      tensors: the names of its tensors: in the rules -> in its files.
      pack: joins tensors of the rules to those of its files.

    Raises:
      UserError: no kernel has an adapter, or PEFT cannot express one.
    """
    adapted = {rule: parameters[rule.ours] for rule in rules if is_adapted(parameters[rule.ours])}
    if not adapted:
        raise UserError("none of the kernels that came from the import has an adapter; export without --adapters")
    if any(node.after_media for node in adapted.values()):
        raise UserError("PEFT has no adapters with after_media; adapters to export are trained with after_media=False")
    if len({node.magnitude is None for node in adapted.values()}) > 1:
        raise UserError("some of the adapters are DoRA and some are not, but PEFT's use_dora is for all of them")
    transposed, weights = set(), {}
    for rule, node in adapted.items():
        parts = _parts(rule, node)
        transposed |= {part.transposed for part in parts}
        weights |= _weights(rule, parts, node)
    found: dict[str, np.ndarray] = {}
    sizes: dict[str, tuple[int, float]] = {}  # (rank, alpha) by the name of the module
    for name, one in _packed(weights, rules, pack).items():
        if not name.endswith(".weight") or name not in tensors:
            raise UserError(
                f"{name} is no weight of a layer of the original; export the merged model, without --adapters"
            )
        module = tensors[name].removesuffix(".weight")
        found |= {f"{PREFIX}{module}.lora_A.weight": one.a, f"{PREFIX}{module}.lora_B.weight": one.b}
        found |= {} if one.magnitude is None else {f"{PREFIX}{module}.lora_magnitude_vector": one.magnitude}
        sizes[module] = len(one.a), one.scale * len(one.a)
    if len(transposed) > 1:
        raise UserError(
            "some of the weights are [in, out] and some [out, in], but PEFT's fan_in_fan_out is for all of them"
        )
    dora = any(node.magnitude is not None for node in adapted.values())
    return found, _document(sizes, theirs, tensors, use_dora=dora, fan_in_fan_out=transposed == {True})


def _document(
    sizes: Mapping[str, tuple[int, float]], theirs: Mapping[str, Any], tensors: Mapping[str, str], **options: bool
) -> dict[str, Any]:
    """The content of adapter_config.json; `sizes` are (rank, alpha) of the adapted modules."""
    (rank, alpha), _ = Counter(sizes.values()).most_common(1)[0]
    others = {module: size for module, size in sizes.items() if size != (rank, alpha)}
    language_model = (theirs.get("architectures") or [""])[0].endswith("ForCausalLM")
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM" if language_model else None,
        "base_model_name_or_path": theirs.get("_name_or_path"),
        "inference_mode": True,
        "r": rank,
        "lora_alpha": alpha,
        "rank_pattern": {module: size for module, (size, _) in others.items()},
        "alpha_pattern": {module: size for module, (_, size) in others.items()},
        "target_modules": _targets(sizes, tensors),
        "use_rslora": False,  # the scale is in alpha
        "lora_dropout": 0.0,
        "bias": "none",
        **options,
    }


def _targets(modules: Mapping[str, Any], tensors: Mapping[str, str]) -> list[str]:
    """The last names of the modules, or their whole names if other modules of the model end in the same way."""
    ends = sorted({module.rpartition(".")[2] for module in modules})
    alike = {
        name.removesuffix(".weight")
        for name in tensors.values()
        if name.endswith(tuple(f".{end}.weight" for end in ends))
    }
    return ends if alike <= modules.keys() else sorted(modules)


def _weights(rule: Rule, parts: Sequence["Part"], node: Adapted) -> dict[str, Factors]:
    """The adapters of the weights of a rule by their names in it."""
    a, b, magnitude = jax.tree.map(lambda x: np.asarray(x, np.float32), (node.a, node.b, node.magnitude))
    if not rule.is_stacked:
        a, b, magnitude = jax.tree.map(lambda x: x[None], (a, b, magnitude))
    return {
        names[place]: _of_part(part, node, a[layer], b[layer], None if magnitude is None else magnitude[layer])
        for layer, names in enumerate(names_by_layer(rule))
        for place, part in enumerate(parts)
    }


def _packed(weights: Mapping[str, Factors], rules: Sequence[Rule], pack: Callable) -> dict[str, Factors]:
    """The adapters by the names of tensors after `pack`; if it joins weights, such as Phi-3's, their ranks add up."""
    names = [name for rule in rules for layer in names_by_layer(rule) for name in layer]
    found = {}
    for name, numbers in pack({name: np.full((1, 1), number) for number, name in enumerate(names)}).items():
        parts = [names[number] for number in numbers.ravel()]
        if not weights.keys() & set(parts):
            continue
        if lacking := [part for part in parts if part not in weights]:
            raise UserError(
                f"{name} also holds {lacking[0]}, which has no adapter; export the merged model, without --adapters"
            )
        found[name] = _beside([weights[part] for part in parts])
    return found


def _beside(parts: Sequence[Factors]) -> Factors:
    """The adapter of a weight whose outputs are those of all parts."""
    a, scale = np.concatenate([part.a for part in parts]), parts[0].scale
    b = np.zeros((sum(len(part.b) for part in parts), len(a)), np.float32)
    row = column = 0
    for part in parts:
        rows, columns = part.b.shape
        b[row : row + rows, column : column + columns] = part.scale / scale * part.b
        row, column = row + rows, column + columns
    has = parts[0].magnitude is not None
    return Factors(a, b, np.concatenate([part.magnitude for part in parts]) if has else None, scale)


class Part(NamedTuple):
    """One of the weights that a kernel of ours is in their layout.

    Attributes:
      inputs: our number of each of its inputs; outputs: of each of its outputs, counted over all joined projections.
      transposed: it is [in, out], as in GPT-2, and not [out, in].
    """

    inputs: np.ndarray
    outputs: np.ndarray
    transposed: bool


def _parts(rule: Rule, node: Adapted) -> list[Part]:
    """The linear layers of the original that make up a kernel.

    The rule splits two kernels of our shape: in one, each weight is the number of its input; in the other, that of its output.
    The parts then say which inputs and outputs each layer has.
    """
    shape = node.base.shape[1:] if rule.is_stacked else node.base.shape
    ins = [axis + len(shape) for axis in node.inputs]

    def numbered(axes: Sequence[int]) -> list[np.ndarray]:
        sizes = [shape[axis] if axis in axes else 1 for axis in range(len(shape))]
        return rule.split(np.broadcast_to(np.arange(np.prod(sizes)).reshape(sizes), shape))

    by_input, by_output = numbered(ins), numbered([axis for axis in range(len(shape)) if axis not in ins])
    found = []
    for column, row in zip(by_input, by_output, strict=True):
        transposed = column.ndim == 2 and (column == column[:, :1]).all() and (row == row[:1]).all()
        column, row = (column.T, row.T) if transposed else (column, row)
        if column.ndim != 2 or (column != column[:1]).any() or (row != row[:, :1]).any():
            raise UserError(f"{rule.theirs[0]} is no linear layer; export the merged model, without --adapters")
        found.append(Part(column[0], row[:, 0], bool(transposed)))
    return found


def _of_part(part: Part, node: Adapted, a: np.ndarray, b: np.ndarray, magnitude: np.ndarray | None) -> Factors:
    """The adapter of one of their weights, from one layer of ours.

    If their weight joins several of our projections, the ranks add up: every projection has its own rows of A.
    """
    columns, rows, _ = part
    joined, rank = b.shape[: b.ndim - 1 - len(node.outputs)], a.shape[-1]
    count = int(np.prod(joined, dtype=int))
    a = a.reshape(-1, count, rank)
    b = b.reshape(count, rank, -1)
    outputs = b.shape[-1]
    used = np.unique(rows // outputs)
    theirs_a = np.concatenate([a[columns, one].T for one in used])
    theirs_b = np.zeros((len(rows), len(used) * rank), np.float32)
    for place, one in enumerate(used):
        mine = rows // outputs == one
        theirs_b[mine, place * rank : (place + 1) * rank] = b[one][:, rows[mine] % outputs].T
    return Factors(theirs_a, theirs_b, None if magnitude is None else magnitude.reshape(-1)[rows], node.scale)
