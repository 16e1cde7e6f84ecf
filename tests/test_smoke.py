"""Every config in configs/, made small by its one dial, trains on files of the kind that it asks for."""

import dataclasses
import json
import pathlib

import corpora
import pytest

from mmjax import config as c
from mmjax.train.loop import train
from mmjax.train.smoke import AS_ASKED
from mmjax.train.validate import check_config
from tests.test_conversations import home  # noqa: F401, a fixture

# quickstart.py and spoken_vqa.py are trained with their own data by other tests.
CONFIGS = sorted(p for p in pathlib.Path("configs").glob("*.py") if p.stem not in ("quickstart", "spoken_vqa"))

SPECIAL = ("<en>", "<fr>", "<transcribe>", "<|en|>", "<|fr|>", "<|transcribe|>", "<|notimestamps|>")  # in prefixes


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A list of recordings and pictures with a text, a transcript, an answer and other labels each."""
    folder = corpora.make_files(tmp_path_factory.mktemp("files"))
    rows = [
        row
        | {
            "text": f"is {row['transcript']} {row['answer']}?",
            "rating": len(row["transcript"]),
            "target": row["transcript"],
            "language": ("en", "fr")[number % 2],
            "task": "transcribe",
        }
        | dict.fromkeys(("domain", "keyword", "sentiment", "speaker"), row["answer"])
        for number, row in enumerate(corpora.rows(folder))
    ]
    (folder / "list.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(folder / "list.jsonl")


@pytest.fixture(scope="module")
def conversations(home, files):  # noqa: F811
    """The folder of lists of conversations, with the same recordings and pictures and without, and a tokenizer for them."""
    folder = pathlib.Path(files).parent
    lists = {"with_media": [], "written": []}
    for row in corpora.rows(folder, absolute=True):
        media = [{"type": "audio", "path": row["speech"]}, {"type": "image", "path": row["image"]}]
        for name, shown in (("with_media", media), ("written", [])):
            asked = {"role": "user", "content": [*shown, {"type": "text", "text": "What is it?"}]}
            lists[name].append({"messages": [asked, {"role": "assistant", "content": row["transcript"]}]})
    for name, rows in lists.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tokenizer = c.HuggingFaceTokenizer(file=str(home / "tokenizer.json"), chat_template="chatml")
    return folder, tokenizer


# Of configs that are much like another, one is enough where time is short.
LONG = (
    "tuxpaint_captions",
    "clothes",
    "keywords",
    "librispeech_conformer_m",
    "librispeech_conformer_l",
    "librispeech_fastconformer_l",
    "llama3_8b_hears_and_sees",
    "pretrain_1b",
    "pretrain_8b",
    "qwen3_1p7b_hears_and_sees",
    "asterisk_translation",
    "tuxpaint_all",
)


@pytest.mark.parametrize(
    "path",
    [pytest.param(p, id=p.stem, marks=pytest.mark.long if p.stem in LONG else pytest.mark.slow) for p in CONFIGS],
)
def test_smoke(path, files, conversations, tmp_path):
    config = c.smoke(c.load(path), width=16)
    special = SPECIAL if config.data.prefixes else ()
    tokenizer = c.SentencePiece(vocabulary=80, byte_fallback=False, special=special)
    if any(isinstance(one, c.Conversation) for one in config.data.inputs.values()):
        folder, tokenizer = conversations
        media = any(task.media for task in config.model.tasks.values())
        files = str(folder / ("with_media.jsonl" if media else "written.jsonl"))
    source = c.Manifest(splits={"train": files, config.evaluation.split: files})
    if getattr(config.model.tasks.get("answer"), "outputs", None):  # the files have two
        two = dataclasses.replace(config.model.tasks["answer"], outputs=2)
        config = dataclasses.replace(
            config, model=dataclasses.replace(config.model, tasks={**config.model.tasks, "answer": two})
        )
    data = dataclasses.replace(config.data, source=source, tokenizer=tokenizer, directory=str(tmp_path))
    results = train(dataclasses.replace(config, data=data, steps=2), tmp_path / "run")
    assert set(results) == set(config.measured)
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
        towers = [encoder for encoder in small.model.encoders.values() if not encoder.passes_ids]
        assert all(tower.width == 16 and tower.layers <= 2 for tower in towers)


def test_layers_that_are_named_by_number_are_those_that_are_left():
    chat = c.CausalLM(decoder=c.TextDecoder.preset("Gemma 3 1B"))
    model = c.Multimodal(encoders={"text": c.TokenIds()}, tasks={"chat": chat})
    small = c.smoke(dataclasses.replace(c.load("configs/pretrain_300m.py"), model=model)).model.tasks["chat"].decoder
    small.check("decoder")
    assert (small.layers, small.sliding_window.full_layers, small.sliding_window.window) == (2, (), 512)


def test_what_is_asked_for_beside_smoke_stays():
    """A mesh and checkpoints can be rehearsed; sizes of the model stay small."""
    asked = ["--mesh.fsdp", "4", "--data.batch-rows=8", "--model.encoders.text.width", "512", "--steps", "7"]
    asked += ["--checkpoint.every-steps", "1", "--evaluation.examples=16", "--log.tensorboard", "true"]
    small = c.override(c.smoke(c.override(c.load("configs/pretrain_300m.py"), asked)), asked, only=AS_ASKED)
    assert (small.mesh.fsdp, small.data.batch_rows, small.steps) == (4, 8, 7)
    assert (small.checkpoint.every_steps, small.evaluation.examples, small.log.tensorboard) == (1, 16, True)
    assert small.model.encoders["text"].width == 32


def test_a_config_that_rolls_back_keeps_checkpoints_when_it_is_small():
    config = dataclasses.replace(c.load("configs/pretrain_300m.py"), spikes=c.Spikes(rollback=c.Rollback()))
    check_config(c.smoke(config))
