"""What the types of a config cannot say: ranges, and parts that must agree with each other and with the data."""

from typing import Any

from mmjax import config as c
from mmjax.errors import UserError

# The least value of a number by the end of its key; of the others 1 for integers and 0 for floats.
AT_LEAST = {
    "mesh.data": -1,
    "seed": 0,
    "warmup": 0,
    "decay": 0,
    "mean": float("-inf"),
    "std": 1e-6,
    "bottlenecks": 0,
}
# Streams that have a meaning of their own; those of vectors need other names.
TAKEN = ("speech", "image", "text", "transcript", "examples", "answer", "fused")
SHARES = ("dropout", "label_smoothing", "ema", "b1", "b2", "momentum")


def check_config(config: c.Experiment) -> None:
    """What types cannot say: numbers within their ranges, and parts that agree with each other."""
    _check_numbers(config)
    if config.seed >= 2**63:
        raise UserError(f"seed is {config.seed}; it must be less than 2**63")
    if sum(config.data.subsets.values()) <= 0:
        raise UserError("data.subsets draws nothing: give at least one subset a weight above 0")
    if not config.objectives:
        raise UserError("objectives is empty: there is nothing to train")
    for name, tower in {**config.model.encoders, "fusion": config.model.fusion}.items():
        path = f"model.{'' if name == 'fusion' else 'encoders.'}{name}"
        heads = getattr(tower, "heads", 1)
        if tower.width % heads:
            raise UserError(f"{path}.width={tower.width} does not divide among {heads} heads")
        turned = (
            getattr(tower, "positions", "rotary" if isinstance(tower, c.Transformer | c.Vectors) else None) == "rotary"
        )
        pairs = 4 if isinstance(tower, c.ViT) else 2  # features that a rotary position turns together
        if turned and tower.width // heads % pairs:
            raise UserError(f"{path}: rotary positions need heads whose width divides by {pairs}")
        if isinstance(tower, c.Vectors) and name in TAKEN:
            raise UserError(f"{path}: '{name}' is not for a stream of vectors; choose another name")

    _check_fusion(config.model)
    modalities = set(config.model.encoders)
    known = {*modalities, "transcript", "examples"}
    for name in config.data.rows:
        if name not in known:
            raise UserError(f"data.rows.{name} is no stream of this model; there are {', '.join(sorted(known))}")
    if "examples" not in config.data.rows:
        raise UserError("data.rows.examples is not set: how many examples a row may hold")
    for place, subsets in (("data.subsets", config.data.subsets), ("evaluation.subsets", config.evaluation.subsets)):
        for subset in subsets:
            unknown = [name for name in subset.split("+") if name not in modalities]
            if unknown:
                raise UserError(f"{place}: '{subset}' names '{unknown[0]}'; the modalities are {', '.join(modalities)}")
    for name, head in config.model.heads.items():
        if head.reads not in {*modalities, "fused"}:
            raise UserError(f"model.heads.{name}.reads='{head.reads}' is neither an encoder nor 'fused'")
    for name, objective in config.objectives.items():
        if name not in config.model.heads:
            raise UserError(f"objectives.{name} has no head of that name in model.heads")
        if name not in ("answer", *config.data.rows):
            raise UserError(
                f"objectives.{name} has no labels: name it 'answer' or one of {', '.join(config.data.rows)}"
            )
        if isinstance(objective, c.Classification) != (name == "answer"):
            raise UserError(
                f"objectives.{name} cannot be {type(objective).__name__}: 'answer' has one label per example, "
                "every other stream a sequence of them"
            )
    if config.data.batch_rows % config.optimizer.accumulation:
        raise UserError(
            f"data.batch_rows={config.data.batch_rows} does not divide into "
            f"optimizer.accumulation={config.optimizer.accumulation} micro-batches"
        )


def _check_fusion(model: c.Multimodal) -> None:
    fusion = model.fusion
    if isinstance(fusion, c.FiLM) and fusion.by not in model.encoders:
        raise UserError(f"model.fusion.by='{fusion.by}' is no modality; there are {', '.join(model.encoders)}")
    if isinstance(fusion, c.Bottleneck) and fusion.bottlenecks and fusion.layers < 2:
        raise UserError("model.fusion.layers is 1, but bottlenecks pass nothing on before the second layer")
    if isinstance(fusion, c.MixtureOfExperts) and fusion.chosen > fusion.experts:
        raise UserError(f"model.fusion.chosen={fusion.chosen} is more than its {fusion.experts} experts")


def _check_numbers(config: c.Experiment) -> None:
    for path, value in c.flat(config).items():
        if isinstance(value, int | float) and not isinstance(value, bool) and "data.source.options." not in path:
            least = next((low for end, low in AT_LEAST.items() if path.endswith(end)), 1 if type(value) is int else 0.0)
            if value < least:
                raise UserError(f"{path} is {value}; it must be at least {least}")
            if value >= 1 and path.rsplit(".", 1)[-1] in SHARES:
                raise UserError(f"{path} is {value}; it must be less than 1")


def check_labels(config: c.Experiment, source: Any) -> None:
    """That the data has what the model reads, and that the heads are as wide as its labels need."""
    for name, encoder in config.model.encoders.items():
        if isinstance(encoder, c.Vectors) and name not in source.sizes:
            raise UserError(f"model.encoders has '{name}', but the data has only {', '.join(source.sizes)}")
    for name, objective in config.objectives.items():
        head = config.model.heads[name]
        if isinstance(objective, c.Classification):
            if head.outputs != len(source.answers):
                raise UserError(
                    f"model.heads.{name}.outputs={head.outputs}, but there are {len(source.answers)} answers"
                )
        elif head.outputs < len(source.tokenizer):
            raise UserError(
                f"model.heads.{name}.outputs={head.outputs}, but the tokenizer has {len(source.tokenizer)} pieces"
            )
    rate = getattr(source, "sample_rate", None)
    for name, encoder in config.model.encoders.items():
        if isinstance(encoder, c.Conformer) and rate and encoder.front_end.sample_rate != rate:
            raise UserError(
                f"model.encoders.{name}.front_end.sample_rate={encoder.front_end.sample_rate}, "
                f"but the data holds speech at {rate} Hz"
            )
