"""docs/language-models.md, command by command: with tiny models, and with the models of the page."""

import csv
import json
import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys

import numpy as np
import pytest
import soundfile
from PIL import Image

from tests.test_conversations import home as tiny_tokenizer  # noqa: F401, a fixture

ROOT = pathlib.Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "language-models.md").read_text("utf-8")
BLOCKS = re.findall(r"```(\w*)\n(.*?)```", PAGE, re.DOTALL)
RANDOM = np.random.default_rng(0)
# A few steps, a few examples, and few conversations (`few`).
SHORTER = {"train": "--steps 2 --log.every-steps 1 --evaluation.final-examples 2", "eval": "--examples 4"}
END = "<|im_end|>"
TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def steps():
    """("file", name, text) and ("command", line, what is typed) of the page, in order."""
    for number, (language, text) in enumerate(BLOCKS):
        if language == "python":
            yield "file", re.match(r"# (\S+)\n", text)[1], text
        for line in text.splitlines() if language == "bash" else ():
            line = line.partition(" #")[0].strip()
            typed = re.findall("^> (.*)$", BLOCKS[number + 1][1], re.MULTILINE) if "mmjax chat" in line else []
            if not line.startswith("pip "):
                yield "command", line, "\n".join(typed) + "\n"


def run(home, line, typed=""):
    """The output of a command of the page."""
    program, *rest = shlex.split(line)
    program = [sys.executable, "-m", "mmjax"] if program == "mmjax" else [sys.executable]
    rest += shlex.split(SHORTER.get(rest[0], ""))
    environment = os.environ | {"PYTHONPATH": str(ROOT), "MMJAX_DATA": str(home / "cache")}
    done = subprocess.run(
        [*program, *rest], cwd=home, capture_output=True, text=True, env=environment, input=typed, timeout=1800
    )
    if done.returncode and "fetch_pretrained.py" in line and re.search("pip|apt-get", done.stderr):
        pytest.skip(f"a package cannot be downloaded: {done.stderr[-300:]}")
    assert done.returncode == 0, f"{line}\n{done.stdout[-1000:]}\n{done.stderr[-3000:]}"
    return done.stdout or done.stderr  # reports of trainings go to standard error


def few(home):
    """Leaves a few conversations about recordings and pictures in the page's lists."""
    for split in ("train", "test"):
        lines = (home / "data" / f"{split}.jsonl").read_text("utf-8").splitlines()
        (home / "data" / f"{split}.jsonl").write_text("\n".join([*lines[:4], *lines[-4:]]))


def check_results(home, outputs):
    """What a reader of the page relies on."""
    train = outputs["mmjax train soft.py"]
    assert "initial: tasks.chat.decoder from imported/smollm2" in train and "adapters of 6 kernels" in train
    assert "initial: encoders.speech from imported/whisper" in train and "adapters changed: yes" in train
    assert "adapters of" not in outputs["mmjax train gated.py"]
    found = json.loads(next(text for line, text in outputs.items() if line.startswith("mmjax eval")))
    measured = found["subsets"]["speech+image+text"]
    assert {"chat/nll", "chat/exact_match", "chat/f1", "chat/wer"} <= measured.keys()
    replies = [json.loads(line) for line in (home / "replies.jsonl").read_text().splitlines()]
    tested = (home / "data" / "test.jsonl").read_text().splitlines()
    assert [one["reference"] for one in replies] == [json.loads(line)["messages"][-1]["content"] for line in tested]
    assert (home / "exported/merged/model.safetensors").is_file()
    assert (home / "exported/adapters/adapter_model.safetensors").is_file()
    talked = next(text for line, text in outputs.items() if line.startswith("mmjax chat runs/soft"))
    assert talked.count("tokens/s") + talked.count("first token") >= 3 and talked.count("attached data/") == 2


def tables(home):
    """The tables, recordings and pictures that the page fetches, with nothing to hear or see."""
    for kind, name, columns in (
        ("prompts", "train", ("speech", "transcript")),
        ("pictures", "train", ("image", "question", "answer")),
        ("pictures", "test", ("image", "question", "answer")),
    ):
        folder, rows = home / "data" / kind, []
        (folder / name).mkdir(parents=True, exist_ok=True)
        for number in range(6):
            if kind == "prompts":
                soundfile.write(folder / "agent-pass.wav", 0.1 * RANDOM.standard_normal(4_000), 8_000)
                rows.append(("agent-pass.wav", f"Press {number}, please."))
            else:
                pixels = RANDOM.integers(0, 256, (64, 64, 3), np.uint8)
                Image.fromarray(pixels).save(folder / name / f"{number}.png")
                rows.append((f"{name}/{number}.png", "what color is the shape?", "red"))
        with open(folder / f"{name}.tsv", "w", encoding="utf-8", newline="") as file:
            csv.writer(file, delimiter="\t").writerows([columns, *rows])


def tiny_models(home, tokenizer):
    """A Llama and a Whisper with random parameters, in Hugging Face's layout."""
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("torch")
    llama = transformers.LlamaConfig(
        vocab_size=400,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=2,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
    )
    transformers.LlamaForCausalLM(llama).save_pretrained(home / "models" / "smollm2")
    whisper = transformers.WhisperConfig(
        vocab_size=400,
        d_model=16,
        encoder_layers=2,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        decoder_start_token_id=1,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
        suppress_tokens=None,
        begin_suppress_tokens=None,
    )
    transformers.WhisperForConditionalGeneration(whisper).save_pretrained(home / "models" / "whisper")
    for name in ("smollm2", "whisper"):
        shutil.copy(tokenizer / "tokenizer.json", home / "models" / name)
    about = {"chat_template": TEMPLATE, "eos_token": END}
    (home / "models" / "smollm2" / "tokenizer_config.json").write_text(json.dumps(about))


def walk(home, left_out):
    """The outputs of the commands of the page by line; `left_out`: pattern of commands that are not executed."""
    outputs = {}
    for kind, line, text in steps():
        if kind == "file":
            (home / line).write_text(text)
        elif not re.search(left_out, line):
            outputs[line] = run(home, line, text)
        if line == "python write_list.py":
            few(home)
    return outputs


@pytest.fixture(scope="module")
def tiny(tmp_path_factory, tiny_tokenizer):  # noqa: F811
    """A directory with what the page fetches: tiny models, recordings and pictures."""
    home = tmp_path_factory.mktemp("tiny")
    tiny_models(home, tiny_tokenizer)
    tables(home)
    return home


@pytest.mark.slow
@pytest.mark.reference
@pytest.mark.timeout(1800)
def test_the_page_with_tiny_models(tiny):
    check_results(tiny, walk(tiny, "fetch_pretrained|mmjax check"))


@pytest.mark.long
@pytest.mark.reference
def test_the_invariants_hold(tiny):
    walk(tiny, "fetch_pretrained|mmjax (?!import)|choose.py")
    assert run(tiny, "mmjax check soft.py --smoke")


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_the_page(tmp_path):
    """With the models, recordings and pictures of the page."""
    if shutil.which("apt-get") is None or shutil.which("dpkg") is None:
        pytest.skip("there is no apt-get or dpkg")
    (tmp_path / "docs").symlink_to(ROOT / "docs")
    outputs = walk(tmp_path, "mmjax check")
    check_results(tmp_path, outputs)
    assert "Paris" in outputs["mmjax chat imported/smollm2"] and "Madrid" in outputs["mmjax chat imported/smollm2"]
