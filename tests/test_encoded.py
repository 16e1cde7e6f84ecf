"""Outputs of frozen encoders that are computed once and read instead of recordings and pictures."""

import dataclasses
import json

import numpy as np
import pytest
from PIL import Image

import mmjax.config as c
from mmjax import prepare
from mmjax.cli import main
from mmjax.data.encoded import EncodedFiles, EncodedWriter, Piece
from mmjax.errors import UserError
from mmjax.run import Run
from mmjax.train.loop import train
from tests.test_conversations import home, user  # noqa: F401, a fixture

RANDOM = np.random.default_rng(0)


def rows(folder):
    """Conversations with up to three media; one has none."""
    for name in ("z", "w"):
        Image.fromarray(RANDOM.integers(0, 256, (9, 12, 3), np.uint8)).save(folder / f"{name}.png")
    a, b = ({"type": "audio", "path": str(folder / f"{name}.wav")} for name in "ab")
    x, z = ({"type": "image", "path": str(folder / f"{name}.png")} for name in "xz")
    asked = [[x, a, b], [a, z], [b], [x, x], [], [z, a, z]]
    reply = {"role": "assistant", "content": "A dog."}
    return [{"messages": [user(*media, {"type": "text", "text": "it?"}), reply]} for media in asked]


@pytest.fixture(scope="module")
def config(tmp_path_factory, home):  # noqa: F811
    folder = tmp_path_factory.mktemp("encoded")
    (folder / "list.jsonl").write_text("\n".join(map(json.dumps, rows(home))))
    llama = c.BlockStyle(norm="rms", activation="silu", gated=True, bias=False, key_value_heads=2)
    speech = c.WhisperEncoder(layers=1, width=16, heads=2, mlp=32, length=16, pad_to_length=True, trim=True)
    image = c.ViT(patch=4, image_size=8, layers=1, width=16, heads=2, mlp=32)
    data = c.Data(
        source=c.Manifest(splits=dict.fromkeys(("train", "test"), str(folder / "list.jsonl"))),
        inputs={"text": c.Conversation()},
        tokenizer=c.HuggingFaceTokenizer(file=str(home / "tokenizer.json"), chat_template="chatml"),
        directory=str(folder / "cache"),
        rows={"text": 80, "speech": 128, "image": 24, "examples": 4},
        subsets={"text+speech+image": 1.0},
        batch_rows=2,
    )
    decoder = c.TextDecoder(layers=2, width=32, heads=4, mlp=48, cross_attention=False, block=llama)
    fusion = c.GatedCrossAttention(every=1, gate=0.5, projectors={"speech": c.MLP(stack=2)})
    task = c.CausalLM(media=("speech", "image"), fusion=fusion, decoder=decoder, length=4, writes=True, ends=(2,))
    return c.Experiment(
        name="tiny",
        steps=3,
        data=data,
        model=c.Multimodal(encoders={"text": c.TokenIds(), "speech": speech, "image": image}, tasks={"chat": task}),
        initial={"encoders": None},  # random encoders are meant
        optimizer=c.Optimizer(schedule=c.Constant(peak=1e-3), groups={"encoders.**": c.Group(frozen=True)}),
        evaluation=c.Evaluation(subsets=("speech+image+text",)),
        log=c.Log(every_steps=1, tensorboard=False),
    )


def encoded(config, folder, **rows):
    places = {name: str(folder / name) for name in ("speech", "image")}
    data = dataclasses.replace(config.data, encoded=places, rows={**config.data.rows, "speech": 40, **rows})
    return dataclasses.replace(config, data=data)


def losses(run):
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [line["loss"] for line in lines if line["kind"] == "train"]


@pytest.mark.slow
def test_training_on_encoded_inputs_is_training_on_the_inputs(config, tmp_path):
    whole = encoded(config, tmp_path / "vectors")
    found = prepare.encode(whole)
    assert found["train"] == found["test"]
    # 0.1 and 0.2 s are 5 and 10 tokens of 20 ms: without the silence to which recordings are padded
    assert found["train"] == {"speech": 5 + 10 + 5 + 10 + 5, "image": 4 * 6}
    one, other = (train(cfg, tmp_path / name) for name, cfg in (("raw", config), ("encoded", whole)))
    np.testing.assert_allclose(losses(tmp_path / "encoded"), losses(tmp_path / "raw"), rtol=2e-3)
    metrics = [result["speech+image+text"]["chat/loss"] for result in (one, other)]
    np.testing.assert_allclose(*metrics, rtol=2e-3)
    media = [{"type": "image", "path": str(tmp_path / "p.png")}, {"type": "text", "text": "it?"}]
    Image.fromarray(RANDOM.integers(0, 256, (8, 8, 3), np.uint8)).save(tmp_path / "p.png")
    replies = [Run(tmp_path / name).generate([[user(*media)]], length=4) for name in ("raw", "encoded")]
    assert replies[0] == replies[1]  # the run has its encoders, and reads pictures


@pytest.mark.slow
def test_what_another_encoder_made_is_refused(config, tmp_path):
    whole = encoded(config, tmp_path / "vectors")
    with pytest.raises(UserError, match="holds no encoded inputs; make them: mmjax data encode CONFIG"):
        train(whole, tmp_path / "run")
    prepare.encode(whole)
    with pytest.raises(UserError, match="speech holds what another encoder made"):
        train(dataclasses.replace(whole, seed=1), tmp_path / "other")
    trained = dataclasses.replace(whole.optimizer, groups={"encoders.speech": c.Group(frozen=True)})
    with pytest.raises(UserError, match=r"data.encoded has 'image', but model.encoders.image is trained; freeze it"):
        train(dataclasses.replace(whole, optimizer=trained), tmp_path / "trained")


def test_the_command_continues_what_was_interrupted(config, tmp_path, capsys):
    whole = encoded(config, tmp_path / "vectors")
    path = tmp_path / "config.json"
    path.write_text(c.to_json(whole))
    assert main(["data", "encode", str(path), "--split", "train", "--json"]) == 0
    first = json.loads(capsys.readouterr().out)
    folder = tmp_path / "vectors" / "image" / "train"
    kept = {file.name: file.read_bytes() for file in folder.iterdir()}
    identity = json.loads(kept["identity.json"]) | {"complete": False, "parts": 1}
    (folder / "identity.json").write_text(json.dumps(identity))
    (folder / "part-00001.npy").unlink(missing_ok=True)
    with pytest.raises(UserError, match="is not complete; continue it"):
        EncodedFiles(folder.parent, "train")
    assert main(["data", "encode", str(path), "--split", "train", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == first
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == kept


def test_files_give_the_pieces_of_each_example(tmp_path):
    vectors = [RANDOM.standard_normal((count, 3)).astype(np.float16) for count in (2, 4, 1, 3)]
    writer = EncodedWriter(tmp_path / "train", {"encoder": "x", "examples": 5})
    writer.write([Piece(3, 0, vectors[0]), Piece(3, 2, vectors[1])])
    writer.write([Piece(0, 1, vectors[2]), Piece(4, 0, vectors[3])])
    writer.finish()
    files = EncodedFiles(tmp_path, "train")
    assert files.sizes.tolist() == [[1, 0], [0, 0], [0, 0], [2, 4], [3, 0]]
    found = files.pieces(3)
    assert found.numbers == [0, 2] and files.pieces(0).numbers == [1] and files.pieces(1) is None
    for one, wanted in zip(found.values, vectors[:2], strict=True):
        np.testing.assert_array_equal(one, wanted)


@pytest.mark.slow
def test_guards_show_what_a_training_makes_worse(config, tmp_path, home, capsys):  # noqa: F811
    """Texts that are not trained on, measured before and after."""
    rows = [
        {"messages": [user("Hi"), {"role": "assistant", "content": text}]} for text in ("no no no", "it is not red")
    ]
    (tmp_path / "guard.jsonl").write_text("\n".join(map(json.dumps, rows)))
    guards = {"texts": c.Manifest(splits={"test": str(tmp_path / "guard.jsonl")})}
    changed = dataclasses.replace(config, evaluation=dataclasses.replace(config.evaluation, guards=guards, subsets=()))
    train(changed, tmp_path / "run")
    before = json.loads((tmp_path / "run" / "guards.json").read_text())["texts"]["chat/perplexity"]
    last = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["kind"] == "guards" and last["texts/chat/perplexity"] != before
    shown = " ".join(capsys.readouterr().err.split())
    assert "what the model forgot" in shown and f"{before:.4g}" in shown
    whole = encoded(changed, tmp_path / "vectors")
    spoken = {"guards": {"texts": config.data.source}}
    prepare.encode(whole)
    wrong = dataclasses.replace(whole, evaluation=dataclasses.replace(whole.evaluation, **spoken))
    with pytest.raises(UserError, match="evaluation.guards.texts has speech, but data.encoded replaces"):
        train(wrong, tmp_path / "wrong")
