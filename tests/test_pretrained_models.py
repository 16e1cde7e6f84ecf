"""Real pretrained models, by the commands of docs/pretrained-models.md. They come from packages."""

import json
import os
import pathlib
import re
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest

import mmjax.config as c
from mmjax.models.roles import by_path
from mmjax.run import Run
from mmjax.stream import Stream
from mmjax.train.step import unboxed

ROOT = pathlib.Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "pretrained-models.md").read_text("utf-8")
MMJAX = f"{sys.executable} -m mmjax"
pytestmark = pytest.mark.slow


def commands(section):
    """The commands of a section of the page, and its Python file or None."""
    text = PAGE.split(f"## {section}\n")[1].split("\n## ")[0]
    blocks = re.findall(r"```bash\n(.*?)```", text, re.DOTALL)
    lines = [line.partition(" #")[0].strip() for block in blocks for line in block.splitlines()]
    python = re.search(r"```python\n# (\S+)\n(.*?)```", text, re.DOTALL)
    return [line for line in lines if line and not line.startswith("pip ")], python


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """An empty directory with the docs of the project."""
    directory = tmp_path_factory.mktemp("pretrained")
    (directory / "docs").symlink_to(ROOT / "docs")
    return directory


def run(home, line):
    """The output of a command of the page."""
    for name in ("pip", "apt-get", "dpkg"):
        if name != "pip" and re.search("librivox|prompts$", line) and shutil.which(name) is None:
            pytest.skip(f"there is no {name}")
    line = line.replace("mmjax ", f"{MMJAX} ", 1) if line.startswith("mmjax ") else line
    line = line.replace("python ", f"{sys.executable} ", 1) if line.startswith("python ") else line
    environment = os.environ | {"PYTHONPATH": str(ROOT), "MMJAX_DATA": str(home / "data")}
    done = subprocess.run(line, shell=True, cwd=home, capture_output=True, text=True, env=environment, timeout=1800)
    if done.returncode and "fetch_pretrained.py" in line and re.search("pip|apt-get", done.stderr):
        pytest.skip(f"a package cannot be downloaded: {done.stderr[-300:]}")
    assert done.returncode == 0, f"{line}\n{done.stderr[-3000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def whisper(home):
    """The outputs of the section that imports Whisper and transcribes."""
    return [run(home, line) for line in commands("Transcribe")[0]]


def words(text):
    """Words without capitals and punctuation; the transcripts write out "Mr."."""
    return re.sub("[^a-z']+", " ", text.lower().replace("mr.", "mister")).split()


def distance(one, other):
    """The number of words that were changed, left out or added."""
    costs = list(range(len(other) + 1))
    for number, word in enumerate(one, 1):
        before, costs[0] = costs[0], number
        for place, another in enumerate(other, 1):
            before, costs[place] = costs[place], min(costs[place] + 1, costs[place - 1] + 1, before + (word != another))
    return costs[-1]


def test_whisper_transcribes_five_sentences(home, whisper):
    assert "certificate" in "".join(whisper) and "transcript: He was not an ill-disposed young man.\n" in whisper
    wrong = total = 0
    for line in (home / "data" / "librivox" / "test.tsv").read_text("utf-8").splitlines()[1:]:
        name, truth = line.split("\t")
        found = json.loads(run(home, f"mmjax predict imported/whisper --speech data/librivox/{name} --json"))
        wrong += distance(words(truth), words(found["transcript"]))
        total += len(words(truth))
    assert total == 71 and wrong <= 2


def test_whisper_is_evaluated(home, whisper):
    (line,), _ = commands("Evaluate")
    result = json.loads(run(home, f"{line} --json"))["subsets"]["speech"]
    assert result["examples"] == 5 and result["transcript/wer"] < 0.3


def test_smollm2_continues_a_text(home):
    outputs = [run(home, line) for line in commands("Continue a text")[0]]
    texts = [line for text in outputs for line in text.splitlines() if line.startswith("continuation:")]
    assert len(texts) == 2 and all(text.startswith("continuation: Paris.") for text in texts)
    layout, file = (by_path(Run(home / f"imported/{name}").params) for name in ("smollm2", "smollm2-gguf"))
    assert set(layout) == set(file) and all(np.array_equal(layout[path], file[path]) for path in layout)
    assert "<|im_start|>" in (home / "imported" / "smollm2-gguf" / "chat_template.jinja").read_text()


@pytest.mark.timeout(2700)
def test_whisper_is_fine_tuned_with_its_encoder_frozen(home, whisper):
    lines, file = commands("Fine-tune")
    (home / file[1]).write_text(file[2])
    fetch, train, predict = lines
    run(home, fetch)
    listed = (home / "data" / "prompts" / "train.tsv").read_text("utf-8").splitlines()
    few = [line for line in listed[1:] if 25 < len(line.split("\t")[1]) < 70][:20]
    (home / "data" / "prompts" / "train.tsv").write_text("\n".join([listed[0], *few]) + "\n")
    run(home, f"{train} --steps 15 --log.every-steps 1")
    assert run(home, predict).startswith("transcript: ")
    metrics = map(json.loads, (home / "runs" / "whisper_prompts" / "metrics.jsonl").read_text().splitlines())
    losses = [line["loss"] for line in metrics if line["kind"] == "train"]
    assert len(losses) == 15 and np.mean(losses[-5:]) < 0.75 * np.mean(losses[:3])
    before, after = (by_path(Run(home / name).params) for name in ("imported/whisper", "runs/whisper_prompts"))
    equal = {path for path in before if np.array_equal(before[path], after[path])}
    assert equal == {path for path in before if path.startswith("encoders.speech.")}


@pytest.mark.timeout(1800)
def test_joined_with_media_smollm2_is_itself_to_the_bit(home):
    """Next-token logits of a text, alone and beside a conversation with a picture; and those of transformers."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    if not (home / "imported" / "smollm2").exists():
        for line in commands("Continue a text")[0][:2]:
            run(home, line)
    plain = Run(home / "imported" / "smollm2")
    decoder = plain.params["tasks_continuation"]["decoder"]
    task = c.CausalLM(
        decoder=c.imported(home / "imported" / "smollm2"), media=("image",), fusion=c.GatedCrossAttention()
    )
    encoders = {"text": c.TokenIds(), "image": c.ViT(patch=8, image_size=16, layers=1, width=32, heads=2, mlp=64)}
    model = c.Multimodal(encoders=encoders, tasks={"chat": task})
    ids = plain.tokenizer.read("The capital of France is Paris, and that of Italy is")
    text = np.zeros((2, 2 * len(ids), 3), np.int32)
    text[:, : len(ids), 0], text[:, len(ids) :, 0], text[0, len(ids) :, 2] = ids, ids[::-1], 1
    places = np.tile(np.arange(len(ids)), (2, 2))
    segments = np.repeat([[1, 2]], len(ids), axis=1) * np.ones((2, 1), np.int32)
    grid = np.array([[[0, 0], [0, 1], [1, 0], [1, 1]]] * 2)
    picture = np.random.default_rng(0).integers(0, 255, (2, 4, 192)).astype(np.uint8)
    batch = {
        "text": Stream(text, segments, places),
        "image": Stream(picture, np.array([[2] * 4, [0] * 4]), grid),
        "examples": Stream(np.array([[0, 1]] * 2), np.array([[1, 2]] * 2), np.zeros((2, 2), np.int32)),
    }
    params = jax.jit(lambda: unboxed(model.init(jax.random.key(0), batch)["params"]))()
    params["tasks_chat"]["decoder"] = decoder

    def logits(task, streams, params):
        joined = model.clone(tasks={"chat": task}, encoders={name: encoders[name] for name in streams})

        @jax.jit
        def compute(params, streams):
            found = joined.apply({"params": params}, {**streams, "examples": batch["examples"]})[
                "chat"
            ].prediction.features
            return found.features @ found.kernel

        return compute(params, streams)

    whole = logits(task, {name: batch[name] for name in encoders}, params)
    text_alone = logits(
        task.clone(media=(), fusion=None), {"text": batch["text"]}, {"tasks_chat": {"decoder": decoder}}
    )
    assert np.array_equal(whole, text_alone)
    params["tasks_chat"]["fusion"] = jax.tree.map(lambda x: x + 0.1, params["tasks_chat"]["fusion"])  # opens the gates
    opened = np.array(logits(task, {name: batch[name] for name in encoders}, params)) != np.array(text_alone)
    assert opened.any(-1).tolist() == [[False] * len(ids) + [True] * len(ids), [False] * 2 * len(ids)]
    theirs = transformers.AutoModelForCausalLM.from_pretrained(home / "models" / "smollm2", dtype=torch.float32).eval()
    wanted = theirs(torch.tensor([ids])).logits[0].detach().numpy()
    np.testing.assert_allclose(text_alone[0, : len(ids)], wanted, atol=1e-3 * np.abs(wanted).max())
