"""Every config in configs/, made small by its one dial, trains on files of the kind that it asks for."""

import dataclasses
import json
import pathlib

import corpora
import pytest

from mmjax import config as c
from mmjax.train.loop import train
from mmjax.train.smoke import AS_ASKED

# quickstart.py and spoken_vqa.py are trained with their own data by other tests.
CONFIGS = sorted(p for p in pathlib.Path("configs").glob("*.py") if p.stem not in ("quickstart", "spoken_vqa"))


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A list of recordings and pictures with a text, a transcript and an answer each."""
    home = corpora.make_files(tmp_path_factory.mktemp("files"))
    rows = [dict(row, text=f"is {row['transcript']} {row['answer']}?") for row in corpora.rows(home)]
    (home / "list.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(home / "list.jsonl")


# Of configs that are much like another, one is enough where time is short.
SLOW = (
    "librispeech_conformer_s",
    "librispeech_conformer_m",
    "librispeech_conformer_l",
    "pretrain_300m",
    "pretrain_1b",
    "pretrain_8b",
    "tuxpaint_retrieval",
)


@pytest.mark.parametrize(
    "path",
    [pytest.param(p, id=p.stem, marks=pytest.mark.slow if p.stem in SLOW else ()) for p in CONFIGS],
)
@pytest.mark.slow
def test_smoke(path, files, tmp_path):
    config = c.smoke(c.load(path), width=16)
    source = c.Manifest(splits={"train": files, config.evaluation.split: files})
    tokenizer = c.SentencePiece(vocabulary=80, byte_fallback=False)
    if "answer" in config.model.tasks:  # the files have two
        two = dataclasses.replace(config.model.tasks["answer"], outputs=2)
        config = dataclasses.replace(
            config, model=dataclasses.replace(config.model, tasks={**config.model.tasks, "answer": two})
        )
    data = dataclasses.replace(config.data, source=source, tokenizer=tokenizer, directory=str(tmp_path))
    results = train(dataclasses.replace(config, data=data, steps=2), tmp_path / "run")
    assert set(results) == set(config.evaluation.subsets)
    assert all(
        metrics["examples"] + metrics.get("skipped", 0) + metrics.get("lacking", 0) == 8 for metrics in results.values()
    )
    metrics = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    losses = [one["loss"] for one in metrics if one["kind"] == "train"]
    assert len(losses) == 2 and all(0 < loss < 1e3 for loss in losses)


def test_the_dial_keeps_every_part_and_leaves_room_for_all_tasks():
    """Widths, layers and heads shrink; what is read and predicted stays."""
    for path in CONFIGS:
        config = c.load(path)
        small = c.smoke(config, width=16)
        assert small.data.rows == config.data.rows
        assert {n: type(p) for n, p in small.model.encoders.items()} == {
            n: type(p) for n, p in config.model.encoders.items()
        }
        assert small.model.tasks.keys() == config.model.tasks.keys()
        for name, task in config.model.tasks.items():
            of_small = small.model.tasks[name]
            assert type(of_small) is type(task) and of_small.sources == task.sources
            assert (of_small.labels(), of_small.weight) == (task.labels(), task.weight)
        assert all(e.width == 16 and e.layers <= 2 for e in small.model.encoders.values())


def test_what_is_asked_for_beside_smoke_stays():
    """A mesh can be rehearsed; sizes of the model stay small."""
    asked = ["--mesh.fsdp", "4", "--data.batch-rows=8", "--model.encoders.text.width", "512", "--steps", "7"]
    small = c.override(c.smoke(c.override(c.load("configs/pretrain_300m.py"), asked)), asked, only=AS_ASKED)
    assert (small.mesh.fsdp, small.data.batch_rows, small.steps) == (4, 8, 7)
    assert small.model.encoders["text"].width == 32
