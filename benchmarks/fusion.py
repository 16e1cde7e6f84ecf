"""All fusions, and the encoders that the field began with, on spoken_easy_vqa: same steps, same FLOPs, several seeds.

    python -m benchmarks.fusion [--seeds 3] [--only 'Concat;FiLM'] [--out runs/fusion]

Every variant is configs/quickstart.py with one part exchanged.

- The fusions begin with encoders that one longer run of the quickstart has trained (`--encoder-steps`), and all train on
  from there (`--steps`): what a fusion can do shows once its encoders see what there is to combine. They are made as wide
  as gives the whole model the FLOPs per step of the quickstart (or as near as widths in steps of 16 come).
- The encoders, as wide as the tower that they stand for, begin from nothing, as does the quickstart beside them
  (`--scratch-steps`).

Each run lies in its own directory: started again, the benchmark goes on where it was. The result is a table for each of
the two, of accuracy for all subsets of the modalities, mean and standard deviation over the seeds, in Markdown; the
commit, versions and device stand below them.
"""

# ruff: noqa: E402
import argparse
import dataclasses
import json
import platform
import statistics
import subprocess
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from mmjax.parallel import runtime

runtime.prepare()  # before JAX is imported

import jax

from mmjax import config as c
from mmjax.parallel.mesh import make_mesh
from mmjax.run import evaluate_run
from mmjax.train import report
from mmjax.train.build import build_layout, build_model, open_data
from mmjax.train.loop import train
from mmjax.train.program import begin

HEADS = 4
FUSIONS = (
    "CrossAttention",
    "Concat",
    "Add",
    "Weighted",
    "LowRank",
    "FiLM",
    "Bottleneck",
    "Perceiver",
    "MixtureOfExperts",
)


def fusion(name: str, width: int) -> Any:
    """A fusion of a width, its hidden layers in proportion."""
    kind = getattr(c, name)
    fields = {f.name for f in dataclasses.fields(kind)}
    wanted = {"width": width, "mlp": width * 344 // 128, "heads": HEADS, "queries": 8, "by": "text"}
    return kind(**{key: value for key, value in wanted.items() if key in fields})


def with_part(config: c.Experiment, **parts: Any) -> c.Experiment:
    """The config with another fusion, or with another encoder under its name."""
    model = config.model
    if "fusion" in parts:
        model = dataclasses.replace(model, fusion=parts.pop("fusion"))
    return dataclasses.replace(config, model=dataclasses.replace(model, encoders={**model.encoders, **parts}))


def flops(config: c.Experiment, source: Any) -> float:
    """Of the forward pass of one step, counted on the traced model."""
    model, layout = build_model(config.model), build_layout(config, source.tokenizer)
    mesh = make_mesh(devices=jax.devices()[:1])
    abstract = begin(config, model, layout, mesh).abstract
    return sum(report.step_flops(model, abstract.params, layout, config.data.batch_rows).values())


def matched(config: c.Experiment, name: str, source: Any) -> c.Experiment:
    """The config with a fusion as wide as comes nearest to the config's own FLOPs."""
    wanted, low, high = flops(config, source), 1, 64  # in units of 16 features
    while low < high:
        middle = (low + high) // 2
        if flops(with_part(config, fusion=fusion(name, 16 * middle)), source) < wanted:
            low = middle + 1
        else:
            high = middle
    near = [with_part(config, fusion=fusion(name, 16 * n)) for n in (max(low - 1, 1), low)]
    return min(near, key=lambda one: abs(flops(one, source) - wanted))


def fusions(config: c.Experiment, source: Any, encoders: Path) -> dict[str, Callable[[], c.Experiment]]:
    """What makes the config of every fusion, by its name; they begin with the encoders of a run."""
    started = dataclasses.replace(config, initial={f"encoders.{name}": str(encoders) for name in config.model.encoders})
    return {name: partial(matched, started, name, source) for name in FUSIONS}


def encoders(config: c.Experiment) -> dict[str, Callable[[], c.Experiment]]:
    """What makes the config of every choice of encoders, by its name."""
    speech, image, text = (config.model.encoders[name] for name in ("speech", "image", "text"))
    recurrent = dict(front_end=speech.front_end, layers=2, width=speech.width)
    convolutional = dict(patch=image.patch, image_size=image.image_size, width=image.width, pixels=image.pixels)
    embedding = dict(vocabulary=text.vocabulary, width=text.width)
    return {
        "Conformer, ViT, Transformer": partial(with_part, config),
        "BiLSTM for speech": partial(with_part, config, speech=c.BiLSTM(**recurrent)),
        "CNN-LSTM for speech": partial(with_part, config, speech=c.BiLSTM(**recurrent, stem="full")),
        "convolutions for images": partial(with_part, config, image=c.ConvNet(**convolutional)),
        "mean embedding for text": partial(with_part, config, text=c.MeanEmbedding(**embedding)),
    }


def run(config: c.Experiment, seed: int, steps: int, examples: int, directory: Path) -> dict[str, float]:
    """Trains (or goes on) and gives the accuracy of every subset of the modalities."""
    result = directory / "subsets.json"
    if not result.is_file():
        schedule = dataclasses.replace(config.optimizer.schedule, warmup=40)  # of short runs, too
        config = dataclasses.replace(
            config,
            seed=seed,
            steps=steps,
            optimizer=dataclasses.replace(config.optimizer, schedule=schedule),
            evaluation=dataclasses.replace(config.evaluation, subsets=()),  # it is evaluated here, on fewer examples
        )
        train(config, directory)
        subsets = evaluate_run(str(directory), examples=examples)["subsets"]
        result.write_text(json.dumps({name: metrics["answer/accuracy"] for name, metrics in subsets.items()}))
    return json.loads(result.read_text())


def table(results: dict[str, list[dict[str, float]]], costs: dict[str, float]) -> str:
    """Markdown: mean ± standard deviation in per cent."""
    subsets = list(next(iter(results.values()))[0])
    lines = ["| variant | GFLOP per step, forward | " + " | ".join(subsets) + " |", "|---" * (len(subsets) + 2) + "|"]
    for name, seeds in results.items():
        cells = []
        for subset in subsets:
            values = [100 * one[subset] for one in seeds]
            spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
            cells.append(f"{statistics.mean(values):.1f}{spread}")
        lines.append(f"| {name} | {costs[name] / 1e9:.1f} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=200, help="of each fusion")
    parser.add_argument("--encoder-steps", type=int, default=1500, help="before, of the encoders that they share")
    parser.add_argument("--scratch-steps", type=int, default=400, help="of each choice of encoders")
    parser.add_argument("--batch-rows", type=int, help="in a step of both; as the quickstart, if not given")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--examples", type=int, default=2000, help="of the test split that are measured per subset")
    parser.add_argument("--only", help="names of variants, with semicolons between")
    parser.add_argument("--out", type=Path, default=Path("runs/fusion"))
    options = parser.parse_args()
    config, source = open_data(c.load("configs/quickstart.py"))
    trained = options.out / "encoders"
    run(config, 0, options.encoder_steps, options.examples, trained)
    if options.batch_rows:
        config = dataclasses.replace(config, data=dataclasses.replace(config.data, batch_rows=options.batch_rows))
    both = ((fusions(config, source, trained), options.steps), (encoders(config), options.scratch_steps))
    wanted = set(options.only.split(";")) if options.only else {name for makers, _ in both for name in makers}
    chosen = [({name: make() for name, make in makers.items() if name in wanted}, steps) for makers, steps in both]
    costs = {name: flops(one, source) for configs, _ in chosen for name, one in configs.items()}
    results: list[dict[str, list]] = [{name: [] for name in configs} for configs, _ in chosen]
    for seed in range(options.seeds):
        for (configs, steps), found in zip(chosen, results, strict=True):
            for name, one in configs.items():
                directory = options.out / f"{name.replace(', ', '-').replace(' ', '_')}-{seed}"
                found[name].append(run(one, seed, steps, options.examples, directory))
            if found:
                print(f"{steps} steps, {seed + 1} seeds\n{table(found, costs)}\n", flush=True)
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    print(
        f"{options.encoder_steps} steps of the shared encoders; {config.data.batch_rows} rows in a step of the others; "
        f"{options.examples} test questions per subset; commit {commit}, jax {jax.__version__}, "
        f"{jax.devices()[0].device_kind}, {platform.processor() or platform.machine()}"
    )


if __name__ == "__main__":
    main()
