"""mmjax's side: the train step as `mmjax train` compiles it, on packed rows."""

import dataclasses
import io
from collections.abc import Callable
from typing import Any

from benchmarks.sides import cases


class _Ids:
    """Stands for a tokenizer: the texts are ids already."""

    def of_stream(self, stream: str, ids: Any) -> list[int]:
        return ids.tolist()


def _config(name: str, case: cases.Case) -> Any:
    from mmjax import config as c

    conformer = c.Conformer(**cases.CONFORMER_S)
    quick, learned = cases.QUICKSTART, c.BlockStyle(post_norm=True, epsilon=1e-12)
    text = dict(positions="learned", types=2, block=learned)
    answer = {"answer": c.Classification()}
    speech = {"transcript": c.CTC()}
    models = {
        "conformer_s": ({"speech": conformer}, {"transcript": c.Head(reads="speech", outputs=cases.PIECES)}, speech),
        "vit_s16": (
            {"image": c.ViT(**cases.VIT_S, class_token=True)},
            {"answer": c.Head(reads="image", outputs=cases.CLASSES, pool=c.ClassPool())}, answer,
        ),
        "text": (
            {"text": c.Transformer(**cases.TEXT, **text)},
            {"answer": c.Head(reads="text", outputs=cases.SENTIMENTS, pool=c.ClassPool())}, answer,
        ),
        "trimodal": (
            {
                "speech": c.Conformer(**quick["speech"], positions="rotary"),
                "image": c.ViT(**quick["image"]),
                "text": c.Transformer(**quick["text"], **text),
            },
            {
                "answer": c.Head(reads="fused", outputs=quick["answers"]),
                "transcript": c.Head(reads="speech", outputs=quick["pieces"]),
            },
            answer | speech,
        ),
    }  # fmt: skip
    encoders, heads, objectives = models[name.removesuffix("_real_lengths")]
    return c.Experiment(
        name=name,
        steps=1000,
        data=c.Data(
            source=c.OwnSource(file=__file__, name="_Ids"), batch_rows=case.rows, rows=case.per_row,
            subsets={"+".join(encoders): 1.0},
        ),
        model=c.Multimodal(
            encoders=encoders, heads=heads, unroll=True,
            fusion=c.CrossAttention(**quick["fusion"]) if name == "trimodal" else None,
        ),
        objectives=objectives,
        optimizer=c.Optimizer(rule=c.AdamW(weight_decay=0.01), schedule=c.Constant(peak=1e-4)),
    )  # fmt: skip


def _batches(case: cases.Case, layout: Any) -> list[Any]:
    """The case's examples in rows, in as few as the sampler's packer needs, `case.rows` of them at a time."""
    import numpy as np
    from PIL import Image

    from mmjax.data.example import Example
    from mmjax.data.packing import Packer
    from mmjax.data.sampler import best_fit

    def example(raw: cases.Raw) -> Example:
        encoded = None
        if raw.image is not None:
            encoded = io.BytesIO()
            Image.fromarray(raw.image).save(encoded, "PNG")
        return Example(
            speech=None if raw.speech is None else (lambda: raw.speech),
            image=encoded and encoded.getvalue(), text=raw.text, transcript=raw.transcript, answer=raw.answer,
        )  # fmt: skip

    def count(ids):
        return 0 if ids is None else len(ids)

    sizes = {
        "speech": np.array([count(raw.speech) for raw in case.examples]),
        "text": np.array([count(raw.text) for raw in case.examples]),
        "transcript": np.array([count(raw.transcript) for raw in case.examples]),
    }
    positions = layout.positions(sizes)
    needs = np.stack([positions[name] for name in layout.rows], axis=1)
    rows = best_fit(needs, np.array(list(layout.rows.values())))
    found = []
    for start in range(0, len(rows), case.rows):
        packer = Packer(layout, case.rows)
        for row, members in enumerate(rows[start : start + case.rows]):
            for member in members:
                packer.add(row, example(case.examples[member]), frozenset(layout.rows))
        found.append(packer.batch)
    return found


def prepared(name: str, variant: str) -> Callable[[], float]:
    """A function that trains on all examples of the case once, and returns the last loss."""
    from mmjax.parallel.runtime import prepare

    prepare()
    import jax

    from mmjax.parallel.compilation import describe
    from mmjax.parallel.machines import parse
    from mmjax.parallel.mesh import to_devices
    from mmjax.train.loop import jitted_step, state_maker

    case = cases.CASES[name]()
    config = _config(name, case)
    subject = describe(config, parse("cpu:1"), jax.devices()[:1])
    layout = dataclasses.replace(subject.layout, tokenizer=_Ids())
    batches = [to_devices(batch, subject.mesh) for batch in _batches(case, layout)]
    abstract, initialise = state_maker(config, subject.model, subject.optimizer, layout, subject.mesh)
    state = initialise()
    step = jitted_step(config, subject.model, subject.objectives, subject.optimizer, abstract)

    def once() -> float:
        nonlocal state
        for batch in batches:
            state, metrics = step(state, batch)
        return float(metrics["loss"])

    return once
