"""The Python interface: mmjax.open, many predictions, embeddings, evaluations with their examples; docs/python.md."""

import json
import pathlib
import re
import subprocess
import sys

import jax
import numpy as np
import pytest
import soundfile
from flax.traverse_util import flatten_dict
from PIL import Image

import mmjax
from mmjax import config as c
from mmjax.errors import UserError
from mmjax.interchange import directories
from mmjax.measuring import Evaluation
from mmjax.tasks.metrics import values
from mmjax.tasks.text_metrics import text_metrics
from mmjax.train.build import build_layout, build_model
from mmjax.train.directory import UNTRAINED
from mmjax.train.step import init_parameters, unboxed

ROOT = pathlib.Path(__file__).parent.parent
BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "python.md").read_text("utf-8"), re.DOTALL)
RATE = 16_000
DRAW = np.random.default_rng(0)
PICTURE = DRAW.integers(0, 256, (40, 60, 3), np.uint8)


def sound(seconds):
    """Tones of random pitch and loudness, ten in a second."""
    count = round(seconds * RATE)
    pitch, loudness = (np.repeat(DRAW.uniform(*limits, 100), RATE // 10)[:count] for limits in ((0.02, 2), (0, 0.9)))
    return (loudness * np.sin(np.cumsum(pitch))).astype(np.float32)


@pytest.fixture(scope="module")
def opened(run):
    """The tiny run with random texts, since after a few steps it writes nothing."""
    opened = mmjax.open(run)
    kernel = DRAW.standard_normal(opened.params["tasks_transcript"]["logits"]["kernel"].shape, np.float32)
    head = {"kernel": kernel, "bias": -opened.embed(speech=sound(5))["speech"] @ kernel}
    opened.params["tasks_transcript"]["logits"] = opened.device_params["tasks_transcript"]["logits"] = head
    return opened


def close(a, b):
    assert a.keys() == b.keys() and a.get("transcript") == b.get("transcript") and a["answer"] == b["answer"]
    for name, probability in a["answer/probabilities"].items():
        assert b["answer/probabilities"][name] == pytest.approx(probability, abs=1e-5), name


def test_importing_the_package_loads_nothing_large():
    code = "import sys, mmjax; mmjax.open; assert not {'jax', 'numpy', 'flax', 'rich'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_many_predictions_are_those_one_by_one(opened):
    """Also of examples that are longer than a row of the config, or that have other inputs than their neighbours."""
    examples = [{"speech": sound(seconds)} for seconds in (0.5, 0.6, 1.1, 4.0, 0.7)]
    examples += [{"image": PICTURE, "text": "is it red?"}, {"speech": (sound(1.2)[::2], RATE // 2), "image": PICTURE}]
    found = list(opened.predict_many(iter(examples)))
    assert len(found) == len(examples) and len({one.get("transcript") for one in found}) == 7
    assert "transcript" not in found[5]
    for example, one in zip(examples, found, strict=True):
        close(opened.predict(**example), one)
    assert opened.predictor._program._cache_size() == 1


def test_a_wrong_example_is_named_by_its_number_after_the_results_before_it(opened):
    results = opened.predict_many([{"speech": sound(0.5)}, {"speech": sound(0.001)}, {"speech": sound(0.5)}])
    assert next(results)["answer"]
    with pytest.raises(UserError, match="^example 1: the speech of your input has 16 samples: it is shorter"):
        next(results)
    with pytest.raises(UserError, match="^example 0: the recording given as speech is of int64"):
        next(opened.predict_many([{"speech": np.zeros(99, int)}]))
    with pytest.raises(UserError, match="^example 0: this run's model has no encoder for sound"):
        next(opened.predict_many([{"sound": sound(0.5)}]))


def test_an_embedding_is_the_mean_of_the_tokens_of_an_encoder(opened):
    found = opened.embed(speech=sound(0.5), image=PICTURE)
    batch = opened.batch_of(*opened._given(None, PICTURE, None, None, {}))
    tokens = opened.model.apply({"params": opened.params}, batch, "image", method="encode")
    own = np.asarray(tokens.features)[np.asarray(tokens.segments) == 1]
    np.testing.assert_allclose(found["image"], own.mean(axis=0), atol=1e-5)
    assert found.keys() == {"speech", "image"} and found["speech"].shape == (16,)
    np.testing.assert_allclose(opened.embed(image=PICTURE)["image"], found["image"], atol=1e-5)


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    """A run that compares two sequences of vectors, and was not trained."""
    folder = tmp_path_factory.mktemp("compared") / "run"
    config = c.Experiment(
        name="compared",
        steps=1,
        data=c.Data(
            source=c.Manifest(splits={"train": "train.tsv"}),
            inputs={"left": c.VectorInput(width=3), "right": c.VectorInput(width=4)},
            rows={"left": 16, "right": 16, "examples": 2},
            subsets={"left+right": 1.0},
        ),
        model=c.Multimodal(
            encoders={
                name: c.Vectors(inputs=count, layers=1, width=8, heads=2, mlp=8)
                for name, count in (("left", 3), ("right", 4))
            },
            tasks={"pair": c.Contrast(between=("left", "right"), outputs=8, scale=5.0, bias=-2.0)},
        ),
        optimizer=c.Optimizer(schedule=c.Constant(peak=1e-3)),
    )
    batch = build_layout(config).empty(1)
    params = jax.jit(lambda: unboxed(init_parameters(build_model(config.model), batch, 0)))()
    directories.write(folder, flatten_dict(params, sep="/"), UNTRAINED, {"config.json": c.to_dict(config)})
    return mmjax.open(folder)


def test_the_embeddings_of_a_comparison_give_its_score(compared):
    left, right = DRAW.standard_normal((5, 3)), DRAW.standard_normal((2, 4))
    found, pair = compared.embed(left=left, right=right), compared.predict(left=left, right=right)["pair"]
    assert np.linalg.norm(found["left"]) == pytest.approx(1, abs=1e-5) and found["right"].shape == (8,)
    assert pair == pytest.approx(5.0 * found["left"] @ found["right"] - 2.0, abs=1e-4)
    np.testing.assert_allclose(compared.embed(left=left)["left"], found["left"], atol=1e-5)


def test_an_evaluation_saves_what_its_metrics_are_made_of(opened, tmp_path):
    """13 examples do not fill the last batch; metrics that are computed from the lines are those of the evaluation."""
    file, subsets = tmp_path / "saved.jsonl", ["image+speech", "image"]
    result = opened.evaluate(examples=13, subsets=subsets, save=file)["subsets"]
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert [line["subset"] for line in lines] == ["speech+image"] * 13 + ["image"] * 13
    heard, seen = lines[:13], lines[13:]
    numbers = [line["number"] for line in heard]
    assert numbers == sorted(set(numbers)) == [line["number"] for line in seen]
    for part, metrics in ((heard, result["speech+image"]), (seen, result["image"])):
        right = np.mean(
            [line["tasks"]["answer"]["reference"] == line["tasks"]["answer"]["hypothesis"] for line in part]
        )
        assert metrics["answer/accuracy"] == pytest.approx(right)
    texts = [[line["tasks"]["transcript"][key] for line in heard] for key in ("reference", "hypothesis")]
    assert values(text_metrics(*texts), 13)["cer"] == pytest.approx(result["speech+image"]["transcript/cer"])
    assert all(texts[1]) and "transcript" not in seen[0]["tasks"]
    assert all(0 <= line["tasks"][task]["confidence"] <= 1 for line in heard for task in ("answer", "transcript"))


def test_one_subset_may_be_a_text(opened):
    evaluation = Evaluation(opened)
    assert evaluation.subsets("image+speech") == evaluation.subsets(["image+speech"]) == ["speech+image"]
    with pytest.raises(UserError, match="there is no subset 'speach'; did you mean 'speech'"):
        opened.evaluate(subsets="speach")


def test_the_page_works_from_beginning_to_end(run, tmp_path, monkeypatch):
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "quickstart").symlink_to(run)
    soundfile.write(tmp_path / "question.wav", sound(1), 22_050)
    Image.fromarray(PICTURE).save(tmp_path / "picture.png")
    monkeypatch.chdir(tmp_path)
    room = {}
    for block in BLOCKS:
        exec(block, room)
    assert len(room["lines"]) == 8
