"""One model for four tasks beside a model for each, with the same compute together: configs/tuxpaint_all.py.

    python -m benchmarks.multitask [--steps 900] [--out runs/multitask]

Each of the four has the joint model's encoders, decoder and data that its task needs, and a quarter of the FLOPs of the joint training;
its number of steps follows from the FLOPs of its step (forward and backward, counted on the traced model). Every run lies in its own
directory: started again, the benchmark goes on where it was. The result is a table in Markdown of metrics on the test split.
"""

import argparse
import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

from mmjax.parallel import runtime

runtime.prepare()  # before JAX is imported

import jax  # noqa: E402

from mmjax import config as c  # noqa: E402
from mmjax.parallel.mesh import make_mesh  # noqa: E402
from mmjax.run import Run  # noqa: E402
from mmjax.train import report  # noqa: E402
from mmjax.train.build import build_layout, build_model, open_data  # noqa: E402
from mmjax.train.ledger import goodput  # noqa: E402
from mmjax.train.loop import train  # noqa: E402
from mmjax.train.program import begin  # noqa: E402


class Single(NamedTuple):
    """A task of the joint model alone.

    Attributes:
      task: its name in the joint model.
      subset: the modalities that it needs, and in which it is measured.
      metrics: those of the table.
    """

    task: str
    subset: str
    metrics: tuple[str, ...]


SINGLES = {
    "recognition": Single("transcript", "speech", ("cer", "wer")),
    "translation": Single("description", "speech", ("bleu", "chrf")),
    "captioning": Single("description", "image", ("bleu", "chrf")),
    "retrieval": Single("pair", "speech+text", ("speech_to_text/recall@10", "text_to_speech/recall@10")),
}


def alone(joint: c.Experiment, single: Single) -> c.Experiment:
    """The config with one task, and what it needs of encoders and data."""
    task, names = joint.model.tasks[single.task], single.subset.split("+")
    if isinstance(task, c.Write):
        task = task.clone(reads=tuple(names))
    kept = {*names, *task.labels(), "examples"}
    data = dataclasses.replace(
        joint.data,
        rows={name: room for name, room in joint.data.rows.items() if name in kept},
        subsets={single.subset: 1.0},
        image_augmentation=joint.data.image_augmentation if "image" in names else None,
        speed=joint.data.speed if "speech" in names else None,
    )
    encoders = {name: joint.model.encoders[name] for name in names}
    model = joint.model.clone(encoders=encoders, tasks={single.task: task})
    return dataclasses.replace(
        joint, data=data, model=model, evaluation=dataclasses.replace(joint.evaluation, subsets=(single.subset,))
    )


def flops(config: c.Experiment) -> float:
    """Of a training step."""
    config, source = open_data(config)
    model, layout = build_model(config.model), build_layout(config, source.tokenizer)
    params = begin(config, model, layout, make_mesh(devices=jax.devices()[:1])).abstract.params
    return sum(report.step_flops(model, params, layout, config.data.batch_rows, training=True).values())


def plans(joint: c.Experiment, steps: int) -> dict[str, c.Experiment]:
    """The joint config with so many steps, and those of the single tasks with a quarter of its FLOPs each."""
    budget = steps * flops(joint) / len(SINGLES)
    found = {"joint": dataclasses.replace(joint, steps=steps)}
    for name, single in SINGLES.items():
        config = alone(joint, single)
        found[name] = dataclasses.replace(config, name=f"{joint.name}_{name}", steps=round(budget / flops(config)))
    return found


def trained(config: c.Experiment, directory: Path) -> Run:
    """The run, which is trained, or trained on, if it is not done."""
    train(dataclasses.replace(config, evaluation=dataclasses.replace(config.evaluation, subsets=())), directory)
    return Run(str(directory))


def measured(run: Run, single: Single) -> list[float]:
    """The metrics of a task on the test split."""
    found = run.evaluate("test", subsets=[single.subset])["subsets"][single.subset]
    return [found[f"{single.task}/{metric}"] for metric in single.metrics]


def table(results: dict[str, dict[str, list[float]]], costs: dict[str, str]) -> str:
    """Markdown: a row for each metric; `results` by task: "joint" and "single" -> values."""
    lines = ["| task | metric | one model | a model for each |", "|---|---|---|---|"]
    for name, single in SINGLES.items():
        for metric, joint, own in zip(single.metrics, results[name]["joint"], results[name]["single"], strict=True):
            lines.append(f"| {name} | {metric} | {joint:.4g} | {own:.4g} |")
    return "\n".join([*lines, "", *(f"{name}: {cost}" for name, cost in costs.items())])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, help="of the joint training (default: as in the config)")
    parser.add_argument("--out", type=Path, default=Path("runs/multitask"))
    options, rest = parser.parse_known_args()
    joint = c.override(c.load("configs/tuxpaint_all.py"), rest)
    runs: dict[str, Any] = {}
    costs: dict[str, str] = {}
    for name, config in plans(joint, options.steps or joint.steps).items():
        runs[name] = trained(config, options.out / name)
        minutes = goodput(options.out / name)["seconds"]["step"] / 60
        costs[name] = f"{config.steps} steps, {minutes:.1f} minutes"
        print(f"{name}: {costs[name]}", flush=True)
    results = {
        name: {"joint": measured(runs["joint"], single), "single": measured(runs[name], single)}
        for name, single in SINGLES.items()
    }
    print(table(results, costs))


if __name__ == "__main__":
    main()
