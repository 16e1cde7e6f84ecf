"""Adapters trained on an import: as a directory of PEFT, and merged into the layout of the original."""

import dataclasses
import json
import re
import shutil

import jax.numpy as jnp
import numpy as np
import pytest
from test_pretrained import louder, spelling

from mmjax import config as c
from mmjax.cli import main
from mmjax.errors import UserError
from mmjax.interchange import convert, peft
from mmjax.interchange.convert import export_model, import_model
from mmjax.interchange.directories import read_safetensors, read_tensors
from mmjax.models.adapters import adapted
from mmjax.models.roles import Parameter
from mmjax.run import Run
from mmjax.train.loop import train
from mmjax.train.step import unboxed

tokenizers = pytest.importorskip("tokenizers")
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytestmark = [pytest.mark.reference, pytest.mark.slow]

WORDS = ("up", "down", "left", "right", "stop", "go")
DECODER = "tasks.continuation.decoder"


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A directory with a tiny Llama ("theirs"), its import ("ours") and texts to learn ("texts.tsv")."""
    home = tmp_path_factory.mktemp("adapted")
    config = transformers.LlamaConfig(
        vocab_size=264,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        bos_token_id=257,
        eos_token_id=256,
        pad_token_id=256,
    )
    louder(transformers.LlamaForCausalLM(config), 1.5).save_pretrained(home / "theirs")
    spelling(home / "theirs" / "tokenizer.json")
    import_model(home / "theirs", home / "ours")
    (home / "texts.tsv").write_text("text\n" + "".join(f"go {word} and {word}\n" for word in WORDS))
    return home


def adapting(home, adapters, dtype=None, **changes):
    """A config that trains adapters of the import for a few steps."""
    config = c.load(home / "ours" / "config.json")
    manifest = c.Manifest(splits=dict.fromkeys(("train", "test"), str(home / "texts.tsv")))
    data = dataclasses.replace(
        config.data,
        source=manifest,
        batch_rows=3,
        rows={"text": 48, "examples": 2},
        directory=str(home / "cache"),
    )
    groups = {DECODER: c.Group(frozen=True, dtype=dtype)}
    fields = dict(
        name="adapted",
        steps=3,
        data=data,
        adapters=adapters,
        initial={DECODER: str(home / "ours")},
        optimizer=c.Optimizer(schedule=c.Constant(peak=1e-2), groups=groups),
        log=c.Log(every_steps=1, tensorboard=False),
        evaluation=c.Evaluation(subsets=()),
    )
    return dataclasses.replace(config, **fields | changes)


@pytest.fixture(scope="module")
def runs(home):
    """Runs with LoRA of two sizes, and with DoRA of attention alone."""
    layers = f"{DECODER}.layers"
    kinds = {
        "lora": {f"{layers}.mlp": c.LoRA(rank=3, alpha=6), layers: c.LoRA(rank=2, alpha=3, scaling="rank_stabilised")},
        "dora": {f"{layers}.self_attention": c.LoRA(rank=2, dora=True)},
    }
    for name, adapters in kinds.items():
        train(adapting(home, adapters), home / name)
    return home


def logits(directory, adapter=None):
    model = transformers.LlamaForCausalLM.from_pretrained(directory).eval()
    if adapter is not None:
        model = pytest.importorskip("peft").PeftModel.from_pretrained(model, str(adapter)).eval()
    with torch.no_grad():
        return model(torch.arange(32, 60)[None]).logits[0].numpy()


def ours(run):
    from mmjax.stream import Stream

    ids = np.arange(32, 60, dtype=np.int32)[None]
    text = Stream(ids, np.ones_like(ids), ids - 32)
    task = run.model.tasks["continuation"]
    params = run.params["tasks_continuation"]["decoder"]
    return np.asarray(task.decoder.apply({"params": params}, text).features[0])


@pytest.mark.parametrize("name", ["lora", "dora"])
def test_a_merged_export_computes_what_the_run_computes(runs, name, tmp_path, capsys):
    assert main(["export", str(runs / name), "--out", str(tmp_path / "merged")]) == 0
    kernels, difference = re.search(
        r"adapters of (\d+) kernels merged: .* at most (\S+)", capsys.readouterr().out
    ).groups()
    assert int(kernels) > 0 and 0 < float(difference) < 1e-5
    run, found = Run(runs / name), logits(tmp_path / "merged")
    np.testing.assert_allclose(found, ours(run), atol=2e-5 * np.abs(found).max())
    assert np.abs(found - logits(runs / "theirs")).max() > 0.01 * np.abs(found).max()  # it learned
    assert (tmp_path / "merged" / "tokenizer.json").is_file()


@pytest.mark.parametrize("name", ["lora", "dora"])
def test_the_adapters_are_those_of_peft(runs, name, tmp_path):
    """By PEFT's definition, the original's weights with the exported adapters are the merged weights."""
    assert main(["export", str(runs / name), "--out", str(tmp_path / "adapters"), "--adapters"]) == 0
    export_model(runs / name, tmp_path / "merged")
    tensors = read_safetensors(tmp_path / "adapters" / "adapter_model.safetensors")
    about = json.loads((tmp_path / "adapters" / "adapter_config.json").read_text())
    before, after = read_tensors(runs / "theirs"), read_tensors(tmp_path / "merged")
    modules = {key.removeprefix("base_model.model.").rsplit(".lora_", 1)[0] for key in tensors}
    changed = {key.removesuffix(".weight") for key in before if not np.array_equal(before[key], after[key])}
    assert modules == changed and len(modules) == (14 if name == "lora" else 8)
    assert about["peft_type"] == "LORA" and about["use_dora"] == (name == "dora")
    assert about["target_modules"] == sorted({module.rpartition(".")[2] for module in modules})
    for module in modules:
        part = f"base_model.model.{module}.lora_"
        rank = about["rank_pattern"].get(module, about["r"])
        scale = about["alpha_pattern"].get(module, about["lora_alpha"]) / rank
        a, b = tensors[f"{part}A.weight"], tensors[f"{part}B.weight"]
        assert a.shape[0] == b.shape[1] == rank
        weight = before[f"{module}.weight"] + scale * b @ a
        if name == "dora":
            weight *= (tensors[f"{part}magnitude_vector"] / np.linalg.norm(weight, axis=1))[:, None]
        np.testing.assert_allclose(after[f"{module}.weight"], weight, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["lora", "dora"])
def test_peft_loads_the_adapters(runs, name, tmp_path):
    export_model(runs / name, tmp_path / "adapters", adapters=True)
    found = logits(runs / "theirs", tmp_path / "adapters")
    np.testing.assert_allclose(found, ours(Run(runs / name)), atol=2e-5 * np.abs(found).max())


def test_a_run_of_a_run_of_an_import_is_exported_too(runs, tmp_path):
    """The second run has no adapters, so its kernels begin with those of the first one merged into them."""
    config = adapting(runs, {}, initial={DECODER: str(runs / "lora")}, steps=1)
    optimizer = dataclasses.replace(config.optimizer, groups={f"{DECODER}.layers": c.Group(frozen=True)})
    train(dataclasses.replace(config, optimizer=optimizer), tmp_path / "second")
    export_model(tmp_path / "second", tmp_path / "out")
    export_model(runs / "lora", tmp_path / "first")
    first, second = read_tensors(tmp_path / "first"), read_tensors(tmp_path / "out")
    name = "model.layers.1.self_attn.q_proj.weight"
    np.testing.assert_array_equal(first[name], second[name])
    with pytest.raises(UserError, match="none of the kernels that came from the import has an adapter"):
        export_model(tmp_path / "second", tmp_path / "adapters", adapters=True)


@pytest.mark.parametrize("dtype", ["int8", "int4"])
def test_adapters_of_a_quantised_decoder(home, dtype, tmp_path):
    """QLoRA: what is trained is exported; the kernels of the import are those of few bits, within half a step."""
    pytest.importorskip("qwix")
    config = adapting(home, {f"{DECODER}.layers": c.LoRA(rank=2)}, dtype=dtype, steps=2)
    train(config, tmp_path / "run")
    kernel = Run(tmp_path / "run").params["tasks_continuation"]["decoder"]["layers"]["mlp"]["up"]["kernel"]
    assert kernel.base.qvalue.dtype == dtype and kernel.b.any()
    export_model(tmp_path / "run", tmp_path / "out")
    before, after = read_tensors(home / "theirs"), read_tensors(tmp_path / "out")
    for layer in (0, 1):
        name = f"model.layers.{layer}.mlp.up_proj.weight"
        change = np.asarray(kernel.scale * kernel.a[layer] @ kernel.b[layer]).T
        steps = {"int8": 127, "int4": 7}[dtype]
        half = 0.51 * np.abs(before[name]).max(axis=1, keepdims=True) / steps
        assert (np.abs(after[name] - change - before[name]) <= half).all()


def test_errors(runs, tmp_path):
    shutil.copytree(runs / "ours", tmp_path / "run", ignore=shutil.ignore_patterns("origin.json"))
    with pytest.raises(UserError, match="was not trained from an import"):
        export_model(tmp_path / "run", tmp_path / "out")
    with pytest.raises(UserError, match="is not one of them"):
        export_model(runs / "lora", tmp_path / "out", origin=tmp_path)


@pytest.mark.parametrize("name", ["GPT-2", "Phi-3", "Whisper", "DeiT", "T5", "BERT"])
def test_every_layout_of_linear_layers(name, tmp_path, monkeypatch):
    """Weights that join several projections, or are transposed, too: the merged weights are those of PEFT's definition."""
    import test_interchange as models

    make = next(make for key, make in models.MODELS.items() if key.startswith(name))
    models.randomise(make()).save_pretrained(tmp_path / "theirs")
    import_model(tmp_path / "theirs", tmp_path / "ours")
    config, params = convert.read_imported(tmp_path / "ours")
    random, scale = np.random.default_rng(0), 0.5

    def with_adapter(path, kernel):
        if not ("layers/" in path and path.endswith("/kernel")):
            return kernel
        heads = path.endswith(("qkv/kernel", "query/kernel", "key_value/kernel"))
        inputs = (-4,) if heads else (-3, -2) if path.endswith("attention/out/kernel") else (-2,)
        box = Parameter(jnp.asarray(kernel), (None,) * kernel.ndim, inputs=inputs, outputs=(-2, -1) if heads else (-1,))
        node = unboxed(adapted({"kernel": box}, {"kernel": c.LoRA(rank=2, alpha=2 * scale)}, 0))["kernel"]
        return node.replace(b=jnp.asarray(random.standard_normal(node.b.shape, np.float32)))

    params = {path: with_adapter(path, kernel) for path, kernel in params.items()}
    monkeypatch.setattr(convert, "read_imported", lambda directory: (config, params))
    export_model(tmp_path / "ours", tmp_path / "merged")
    export_model(tmp_path / "ours", tmp_path / "adapters", adapters=True)
    before, merged = read_tensors(tmp_path / "theirs"), read_tensors(tmp_path / "merged")
    found = read_safetensors(tmp_path / "adapters" / "adapter_model.safetensors")
    document = json.loads((tmp_path / "adapters" / "adapter_config.json").read_text())
    modules = {key.removeprefix(peft.PREFIX).removesuffix(".lora_A.weight") for key in found if "lora_A" in key}
    assert len(modules) * 2 == len(found) > 0 and document["fan_in_fan_out"] == (name == "GPT-2")
    for module in modules:
        change = scale * found[f"{peft.PREFIX}{module}.lora_B.weight"] @ found[f"{peft.PREFIX}{module}.lora_A.weight"]
        change = change.T if name == "GPT-2" else change
        np.testing.assert_allclose(merged[f"{module}.weight"], before[f"{module}.weight"] + change, atol=1e-5)
    changed = {key.removesuffix(".weight") for key in before if not np.array_equal(before[key], merged[key])}
    assert changed == modules
