"""A run over four sources at once: the same batches on one, two and four processes, before and after a kill.

The recordings of Tux Paint are of a package made here; TUXPAINT_STAMPS names a real one instead.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import tiny
from corpora import make_files, rows
from test_train import free_port, losses
from test_tuxpaint_stamps import package

from mmjax import config as c
from mmjax.train.build import build_source

SHARES = {"questions": 0.4, "stamps": 0.3, "list": 0.2, "texts": 0.1}


def four_sources(home: Path, steps: int) -> c.Experiment:
    """Questions about pictures, stamps, a list of recordings and pictures, and texts alone, on a small model."""
    files = home / "files"
    files.mkdir()
    listed = [json.dumps(row) for row in rows(make_files(files))]
    (files / "list.jsonl").write_text("\n".join(listed))
    texts = [json.dumps({"text": f"sentence {number} is {'odd' if number % 2 else 'even'}"}) for number in range(200)]
    (home / "texts.jsonl").write_text("\n".join(texts))
    stamps = os.environ.get("TUXPAINT_STAMPS") or str(package(home / "stamps.deb"))
    sources = {
        "questions": tiny().data.source,
        "stamps": c.TuxPaintStamps(package=stamps),
        "list": c.Manifest(splits={"train": str(files / "list.jsonl")}),
        "texts": c.Manifest(splits={"train": str(home / "texts.jsonl")}),
    }
    data = c.Data(
        source=c.Mixture(sources=sources, weights=SHARES),
        tokenizer=c.SentencePiece(vocabulary=256, byte_fallback=False),
        filters=c.Filters(largest_share_dropped=0.5),
        directory=str(home / "data"),
        batch_rows=8,
        rows={"speech": 400, "image": 128, "text": 64, "transcript": 64, "examples": 4},
        subsets={"speech+image": 0.4, "image+text": 0.3, "text": 0.3},
        image_augmentation=c.ImageAugmentation(),
        window=256,
    )
    model = c.Multimodal(
        encoders={
            "speech": c.Conformer(
                layers=1, width=16, heads=2, stem=c.StridedStem(channels=4), convolution=c.Convolution(kernel=4)
            ),
            "image": c.ViT(patch=8, image_size=64, layers=1, width=16, heads=2, mlp=32),
            "text": c.Transformer(vocabulary=256, layers=1, width=16, heads=2, mlp=32),
        },
        fusion=c.CrossAttention(layers=1, width=16, heads=2, mlp=32, queries=2),
        tasks={"answer": c.Classify(), "transcript": c.CTC(), "words": c.MaskedTokens()},
    )
    return c.Experiment(
        name="four",
        steps=steps,
        data=data,
        model=model,
        optimizer=c.Optimizer(schedule=c.WarmupCosine(peak=1e-2, warmup=2, steps=steps)),
        log=c.Log(every_steps=1, tensorboard=False),
        checkpoint=c.Checkpoint(every_steps=max(steps // 8, 2)),
        evaluation=c.Evaluation(subsets=("speech+image", "text"), examples=16),
    )


def train(config: Path, run: Path, processes: int = 1, until_step: int | None = None) -> None:
    """Trains in so many processes; kills them all once a step was reported, if that is wanted."""
    path = f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}"
    command = ["launch/local.sh", str(processes), str(config), "--run-dir", str(run)]
    process = subprocess.Popen(
        command,
        env={**os.environ, "PATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    if until_step is None:
        said, _ = process.communicate(timeout=900)
        assert process.returncode == 0, said[-3000:]
        return
    while process.poll() is None and not (run / "metrics.jsonl").exists():
        time.sleep(0.2)
    while process.poll() is None and max(losses(run), default=0) < until_step:
        time.sleep(0.05)
    assert process.poll() is None, process.communicate()[0][-3000:]
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def sampler_state(run: Path) -> dict[str, int]:
    """What the newest checkpoint says of the data."""
    newest = max(int(path.name) for path in (run / "checkpoints").iterdir() if path.name.isdigit())
    return json.loads((run / "checkpoints" / str(newest) / "meta" / "metadata").read_text())["data"]


def digests(run: Path, steps: list[int], processes: int, state: dict | None = None) -> dict[tuple[int, int], str]:
    """By (step, row), of the batches that so many processes load together."""
    shared = {**os.environ, "MMJAX_COORDINATOR": f"localhost:{free_port()}", "MMJAX_PROCESSES": str(processes)}
    shared["PYTHONPATH"] = os.pathsep.join(filter(None, [os.getcwd(), os.environ.get("PYTHONPATH")]))
    script = Path(__file__).with_name("batch_digests.py")
    started = [
        subprocess.Popen(
            [sys.executable, str(script), str(run), json.dumps(state), *map(str, steps)],
            env={**shared, "MMJAX_PROCESS": str(number)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(processes)
    ]
    found = {}
    for process in started:
        out, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors[-3000:]
        for _, step, row, digest in (line.split() for line in out.splitlines() if line.startswith("row ")):
            found[int(step), int(row)] = digest
    return found


@pytest.mark.parametrize("steps", [pytest.param(16, marks=pytest.mark.slow), pytest.param(200, marks=pytest.mark.long)])
def test_batches_are_the_same_on_1_2_and_4_processes_before_and_after_a_kill(tmp_path, steps):
    config = tmp_path / "four.json"
    config.write_text(c.to_json(four_sources(tmp_path, steps)))
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    train(config, straight)
    assert sorted(losses(straight)) == list(range(1, steps + 1))

    train(config, killed, until_step=steps // 2)
    asked = [0, 1, steps // 2, steps - 2, steps - 1]
    expected = digests(straight, asked, 1)
    assert len(expected) == len(set(expected.values())) == 8 * len(asked)
    for processes in (2, 4) if steps < 200 else (1, 2, 4):
        assert digests(killed, asked, processes, sampler_state(killed)) == expected, processes

    train(config, killed, processes=2)
    here, there = losses(straight), losses(killed)
    assert sorted(there) == sorted(here)
    for step in here:
        np.testing.assert_allclose(there[step], here[step], rtol=1e-3)


@pytest.mark.slow
def test_all_four_sources_are_drawn_in_their_shares(tmp_path):
    from mmjax.train.build import build_layout, build_sampler

    config = four_sources(tmp_path, 20)
    source = build_source(config.data, "train")
    sampler = build_sampler(config, build_layout(config, source.tokenizer), source)
    drawn = np.concatenate([row.examples for step in range(100) for row in sampler.rows(step)])
    numbers, names = source.groups["source"]
    found = np.bincount(numbers[drawn], minlength=4) / len(drawn)
    for name, share in zip(names, found, strict=True):
        assert share == pytest.approx(SHARES[name], abs=0.02), name
