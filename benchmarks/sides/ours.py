"""mmjax's side: the train step as `mmjax train` compiles it, on packed rows."""

from collections.abc import Callable
from typing import Any

from benchmarks.sides.cases import CPU, Case, Raw


def experiment(case: Case, dtype: str = "float32", unroll: bool = True) -> Any:
    """The config that trains a case."""
    from mmjax import config as c

    towers, classes, pieces = case.size
    bert = dict(types=2, block=c.BlockStyle(post_norm=True, epsilon=1e-12))
    several, encoders, tasks = "fusion" in towers, {}, {}
    if "speech" in towers:
        sizes = dict(towers["speech"])
        encoders["speech"] = c.Conformer(
            convolution=c.Convolution(kernel=sizes.pop("kernel")),
            stem=c.StridedStem(channels=sizes.pop("stem_channels", None)),
            positions=c.Rotary() if several else c.Relative(),
            **sizes,
        )
        tasks["transcript"] = c.CTC(outputs=pieces)
    if "image" in towers:
        encoders["image"] = c.ViT(**towers["image"], class_token=not several)
    if "text" in towers:
        sizes = dict(towers["text"])
        encoders["text"] = c.Transformer(positions=c.Learned(length=sizes.pop("length")), **sizes, **bert)
    if several or "speech" not in towers:
        reads, pool = ("fused", None) if several else (next(iter(encoders)), c.ClassPool())
        tasks["answer"] = c.Classify(reads=reads, outputs=classes, pool=pool)
    return c.Experiment(
        name="+".join(encoders),
        steps=1000,
        data=c.Data(
            source=c.OwnSource(file=__file__, name="none"),
            batch_rows=case.rows,
            rows=case.per_row,
            subsets={"+".join(encoders): 1.0},
        ),
        model=c.Multimodal(
            encoders=encoders,
            tasks=tasks,
            unroll=unroll,
            dtype=dtype,
            fusion=c.CrossAttention(**towers["fusion"]) if several else None,
        ),
        optimizer=c.Optimizer(rule=c.AdamW(weight_decay=0.01), schedule=c.Constant(peak=1e-4)),
    )


def packed(examples: list[Raw], layout: Any, rows: int) -> list[Any]:
    """Batches of the examples in as few rows as the sampler's packer needs, so many rows in each batch."""
    import numpy as np

    from mmjax.data.layout import Rows
    from mmjax.data.sampler import best_fit

    def count(ids: Any) -> int:
        return 0 if ids is None else len(ids)

    def parts(raw: Raw) -> dict[str, tuple[Any, Any]]:
        found = {"examples": (np.zeros(1), np.zeros(1)), "answer": (np.array([raw.answer]), np.zeros(1))}
        if raw.speech is not None:
            found["speech"] = layout.streams["speech"].cut(raw.speech)
        if raw.image is not None:
            found["image"] = layout.streams["image"].patches(raw.image)
        for name, ids in (("text", raw.text), ("transcript", raw.transcript)):
            if ids is not None:
                found[name] = ids, np.arange(len(ids))
        return {name: part for name, part in found.items() if name in layout.rows or name in layout.slots}

    sizes = {
        name: np.array([count(getattr(raw, name)) for raw in examples]) for name in ("speech", "text", "transcript")
    }
    if examples[0].image is None:
        sizes["image"] = np.zeros(len(examples), np.int64)
    taken = layout.positions(sizes)
    needs = np.stack([taken[name] for name in layout.rows], axis=1)
    filled, found = best_fit(needs, np.array(list(layout.rows.values()))), []
    for start in range(0, len(filled), rows):
        batch = Rows(layout, rows)
        for row, members in enumerate(filled[start : start + rows]):
            for member in members:
                batch.write(row, parts(examples[member]))
        found.append(batch.batch)
    return found


def trainer(config: Any, examples: list[Raw]) -> tuple[Callable[[], float], Any, list[Any]]:
    """A function that trains on all examples once and returns the last loss; what is trained; and the batches."""
    import jax

    from mmjax.parallel.machines import parse
    from mmjax.parallel.mesh import to_devices
    from mmjax.plan.compilation import describe
    from mmjax.train.program import jitted_step

    subject = describe(config, parse("cpu:1"), jax.devices()[:1])
    host = packed(examples, subject.layout, config.data.batch_rows)
    batches = [to_devices(batch, subject.mesh) for batch in host]
    state = subject.begun.initialise()
    step = jitted_step(config, subject.model, subject.begun)

    def once() -> float:
        nonlocal state
        for batch in batches:
            state, metrics = step(state, batch)
        return float(metrics["loss"])

    return once, subject, host


def prepared(name: str, variant: str) -> Callable[[], float]:
    """A function that trains on all examples of a case of `CPU` once, and returns the last loss."""
    from mmjax.parallel.runtime import prepare

    prepare()
    case = CPU[name]()
    return trainer(experiment(case), case.examples)[0]
