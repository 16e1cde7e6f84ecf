"""Answers of several numbers: labels that are true or not, and quantities; from data to prediction."""

import json

import numpy as np
import pytest

from mmjax import cli
from mmjax import config as c
from mmjax.data.example import Example
from mmjax.data.labels import Label
from mmjax.data.layout import Layout
from mmjax.data.packing import Packer
from mmjax.errors import UserError

CONFIG = '''
"""A sensor whose mean says which of two lamps are lit, or how far something is."""
import numpy as np
from mmjax import config as c
from mmjax.data.example import Example
from mmjax.data.labels import Label

class Lamps:
    tokenizer = None
    def __init__(self, directory, split, kind="labels"):
        draw = np.random.default_rng(("train", "test").index(split))
        self.kind = kind
        self.labels = {"answer": Label("classes" if kind == "labels" else "numbers", ("left", "right"))}
        self.values = draw.random((300, 2)).astype(np.float32)
        if kind == "labels":
            self.values = self.values.round()
        self.sizes = {"sensor": draw.integers(2, 6, 300)}
    def __len__(self):
        return 300
    def __getitem__(self, index):
        noise = 0.05 * np.random.default_rng(index).standard_normal((int(self.sizes["sensor"][index]), 2))
        return Example({"sensor": self.values[index] + noise}, {"answer": self.values[index]})

config = c.Experiment(
    name="lamps",
    steps=80,
    data=c.Data(
        source=c.OwnSource(file=__file__, name="Lamps", options={"kind": KIND}), batch_rows=8,
        rows={"sensor": 20, "examples": 6}, subsets={"sensor": 1.0},
    ),
    model=c.Multimodal(
        encoders={"sensor": c.Vectors(inputs=2, layers=1, width=16, heads=2, mlp=32)},
        fusion=c.Add(width=16), tasks={"answer": TASK},
    ),
    optimizer=c.Optimizer(rule=c.Muon(), schedule=c.WarmupCosine(peak=2e-2, warmup=5, steps=80)),
    evaluation=c.Evaluation(subsets=("sensor",)),
    log=c.Log(every_steps=40, tensorboard=False),
)
'''


def trained(tmp_path, kind, task, capsys):
    """(metrics of the test split, prediction of an example, what is printed of it)."""
    path, run = tmp_path / "lamps.py", str(tmp_path / "run")
    path.write_text(CONFIG.replace("KIND", repr(kind)).replace("TASK", task))
    assert cli.main(["train", str(path), "--run-dir", run]) == 0
    capsys.readouterr()
    assert cli.main(["eval", run, "--json"]) == 0
    metrics = json.loads(capsys.readouterr().out)["subsets"]["sensor"]
    assert cli.main(["predict", run, "--example", "5", "--json"]) == 0
    predicted = json.loads(capsys.readouterr().out)
    assert cli.main(["predict", run, "--example", "5"]) == 0
    return metrics, predicted, capsys.readouterr().out


@pytest.mark.slow
def test_several_labels_are_learned(tmp_path, capsys):
    metrics, predicted, printed = trained(tmp_path, "labels", "c.MultiLabel()", capsys)
    assert metrics["answer/accuracy"] > 0.97 and metrics["examples"] == 300
    probabilities = predicted["answer/probabilities"]
    assert predicted["answer"] == [name for name, probability in probabilities.items() if probability > 0.5]
    assert predicted["answer"] == predicted["example"]["answer"]
    assert "left" in printed and "right" in printed


@pytest.mark.slow
def test_numbers_are_learned(tmp_path, capsys):
    metrics, predicted, printed = trained(tmp_path, "numbers", "c.Regress()", capsys)
    assert metrics["answer/loss"] < 0.02  # 1/12 if the mean is guessed
    np.testing.assert_allclose(list(predicted["answer"].values()), predicted["example"]["answer"], atol=0.35)
    assert "left" in printed


@pytest.mark.parametrize(
    "width, answer, message",
    [
        (None, [0.0, 1.0], "the answer of it is .* not a class"),
        (2, 1, "the answer of it is 1, not 2 finite numbers"),
        (2, [0.0, float("nan")], "not 2 finite numbers"),
        (3, [0.0, 1.0], "not 3 finite numbers"),
    ],
)
def test_an_answer_of_another_kind_is_refused(width, answer, message):
    label = Label("class") if width is None else Label("numbers", tuple("abc"[:width]))
    packer = Packer(Layout.of({"examples": 2}, labels={"answer": label}), 1)
    with pytest.raises(UserError, match=message):
        packer.add(0, Example({}, {"answer": answer}), frozenset(), name="it")
    assert not any(stream.segments.any() for stream in packer.batch.values())


def test_the_head_is_as_wide_as_the_names(tmp_path, capsys):
    path = tmp_path / "lamps.py"
    path.write_text(CONFIG.replace("KIND", "'labels'").replace("TASK", "c.MultiLabel()"))
    command = ["train", str(path), "--run-dir", str(tmp_path / "run"), "--model.tasks.answer.outputs", "3"]
    assert cli.main(command) != 0
    assert "model.tasks.answer.outputs=3, but the label 'answer' has 2" in capsys.readouterr().err
    assert c.load(path).model.tasks["answer"] == c.MultiLabel()
