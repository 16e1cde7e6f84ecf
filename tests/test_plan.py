"""`mmjax plan`: the search, and a plan against what its step really takes."""

import dataclasses
import importlib.util
import json
import os
import subprocess
import sys
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from conftest import EXAMPLES, tiny
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from mmjax import config as c
from mmjax.errors import UserError
from mmjax.parallel import machines
from mmjax.parallel.runtime import simulated
from mmjax.plan import plan, report, topology
from mmjax.plan.compilation import bisect
from mmjax.plan.hlo import Collective
from mmjax.plan.plan import gathers_by_summing

KEYS = {
    "machine",
    "devices",
    "compiled",
    "fits",
    "peak_memory_bytes",
    "memory",
    "flops",
    "collective_bytes",
    "step_seconds",
    "mfu",
}


def command(*arguments):
    """`mmjax plan` in a process of its own, since it needs devices of its own; its JSON, or its exit code and error."""
    environment = {k: v for k, v in os.environ.items() if k not in ("XLA_FLAGS", "JAX_PLATFORMS")}
    done = subprocess.run(
        [sys.executable, "-m", "mmjax", "plan", *map(str, arguments), "--json"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    return json.loads(done.stdout) if done.returncode == 0 else (done.returncode, done.stderr)


@pytest.mark.parametrize(
    "fsdp, kinds, expected",
    [
        (8, ["all-reduce"], True),
        (8, ["all-reduce", "all-gather"], False),
        (8, ["all-reduce", "collective-permute"], False),  # a gather in steps round a ring
        (1, ["all-reduce"], False),
    ],
)
def test_gathers_that_became_sums_are_told(fsdp, kinds, expected):
    mesh = jax.sharding.AbstractMesh((1, fsdp), ("data", "fsdp"))
    sharding = NamedSharding(mesh, P("fsdp"))
    state = SimpleNamespace(params={"kernel": jax.ShapeDtypeStruct((16,), np.float32, sharding=sharding)})
    groups = np.arange(fsdp)[None] if fsdp > 1 else np.arange(2)[None] * 0
    program = SimpleNamespace(collectives=[Collective(kind, "text", groups, 1.0, 1.0) for kind in kinds])
    subject = SimpleNamespace(mesh=mesh, state=state)
    assert gathers_by_summing(subject, SimpleNamespace(program=program)) == expected


# Search. --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit, best", [(1000, 12), (99, 0), (175, 1), (1e5, 1332)])
@pytest.mark.parametrize("start", [1, 4, 100])
def test_bisection_finds_the_largest_that_fits_in_few_compilations(limit, best, start):
    asked = []

    def fits(n):
        asked.append(n)
        peak = 100 + 75 * n
        return peak <= limit, peak if n < 1000 else float("inf")  # a compiler that says no more than no

    found, tried = bisect(fits, start, limit)
    assert found == best and [n for n, *_ in tried] == asked and len(asked) == len(set(asked)) <= 14


# Whole plans. ---------------------------------------------------------------------------------------------

FEW = ("--data.source.examples", str(EXAMPLES))  # the data gives the numbers of answers and of pieces
FSDP = ("--mesh.fsdp", "8", "--optimizer.rule", "AdamW", "--model.unroll", "false", *FEW)


@pytest.fixture(scope="module")
def quickstart(tmp_path_factory):
    """The quickstart compiled for 8 simulated devices, its parameters divided among all of them."""
    picture = tmp_path_factory.mktemp("plan") / "plan.svg"
    result = command("configs/quickstart.py", "--machine", "cpu:8", "--price", "2", "--picture", picture, *FSDP)
    return result, picture.read_text()


@pytest.mark.slow
def test_the_contract(quickstart):
    result, _ = quickstart
    assert set(result) >= KEYS
    assert (result["machine"], result["devices"], result["compiled"], result["fits"]) == ("cpu:8", 8, True, True)
    assert set(result["flops"]) == {"speech", "image", "text", "fusion", "answer", "transcript"}
    assert set(result["collective_bytes"]) >= {"data", "fsdp"}
    assert sum(result["memory"].values()) == pytest.approx(result["peak_memory_bytes"], rel=1e-9)
    # The peak of a computer that others use is what was measured.
    assert 0 < result["mfu"] < 1.2 and result["step_seconds"] > 0
    assert result["useful_share"]["from"] and 0 < result["useful_share"]["speech"] <= 1
    audio = 16 * 640 * 0.01 * result["useful_share"]["speech"] / result["step_seconds"]  # hops of 10 ms
    assert result["audio_seconds_per_second"] == pytest.approx(audio)
    assert result["cost_per_1000_hours_of_audio"] == pytest.approx(2 * 8 * 1000 / audio)


@pytest.mark.slow
def test_parameters_are_gathered_and_gradients_summed_once_or_twice(quickstart):
    """What fully sharded training costs (Rajbhandari et al. 2020, section 7): gathers for the forward and the backward
    pass (a compiler may keep the first), and one sum of the gradients; no more than a tenth of it is anything else."""
    result, _ = quickstart
    size = 8 * result["memory"]["parameters"]
    sent = {(one["axis"], one["kind"]): one["bytes"] for one in result["collectives"]}
    assert size < sent["fsdp", "all-gather"] < 2.2 * size
    summed = sent.get(("fsdp", "reduce-scatter"), 0.0) + sent.get(("fsdp", "all-reduce"), 0.0)
    assert 0.9 * size < summed < 1.2 * size
    assert not any("data" in axis for axis, _ in sent)  # which has one device


def sent_along(axis, *arguments):
    """Bytes of the quickstart's step by kind of collective, along one axis of 4 devices; parameters' bytes; the config."""
    rows = {"speech": 640, "image": 448, "text": 32, "transcript": 32, "examples": 8}  # which 4 divides
    mesh = (f"--mesh.{axis}", "4", "--data.rows", str(rows), "--optimizer.rule", "AdamW", "--model.unroll", "false")
    result = command("configs/quickstart.py", "--machine", "cpu:4", *mesh, *FEW)
    assert {one["axis"] for one in result["collectives"]} == {axis}
    sent = {one["kind"]: one["bytes"] for one in result["collectives"]}
    config = c.load("configs/quickstart.py")
    size = 4.0 * config.data.batch_rows  # bytes of one feature of one position of every row
    streams = {
        name: (size * rows[name] / getattr(tower, "subsampling", 1) * tower.width, tower.layers)
        for name, tower in config.model.encoders.items()
    }
    keys = size * sum(rows[n] / getattr(t, "subsampling", 1) for n, t in config.model.encoders.items())
    fusion = config.model.fusion
    queries = size * rows["examples"] * fusion.queries * fusion.width
    return sent, result["memory"]["parameters"], streams, queries, keys * fusion.width, fusion.layers


@pytest.mark.slow
def test_along_tensor_activations_are_summed_and_nothing_else_travels():
    """What tensor parallelism costs (Shoeybi et al. 2019, section 3): each part of a block is summed once forward, once backward."""
    sent, _, streams, queries, keys, layers = sent_along("tensor")
    parts = {"speech": 4, "image": 2, "text": 2}  # of a Conformer's block: feed-forward twice, attention, convolution
    expected = sum(2 * parts[name] * depth * stream for name, (stream, depth) in streams.items())
    expected += layers * (
        2 * 3 * queries + keys
    )  # attention to each other and to all tokens, feed-forward; the tokens' gradient
    assert sent.pop("all-reduce") == pytest.approx(expected, rel=0.1)
    assert sum(sent.values()) < 0.1 * expected, sent


@pytest.mark.slow
def test_along_context_keys_and_values_are_gathered_and_their_gradients_summed():
    sent, parameters, streams, _, keys, layers = sent_along("context")
    both = 2 * (sum(depth * stream for stream, depth in streams.values()) + layers * keys)
    assert sent.pop("all-reduce") == pytest.approx(both + parameters, rel=0.1)
    assert both < sent.pop("all-gather") < 2.5 * both  # again for the backward pass
    assert sum(sent.values()) < 0.15 * both, (
        sent
    )  # what convolutions hear of their neighbours, pictures across a border


@pytest.mark.slow
def test_micro_batches_take_a_share_of_every_device_and_their_gradients_alone_travel(tmp_path):
    def plan(accumulation):
        optimizer = dataclasses.replace(tiny().optimizer, accumulation=accumulation)
        return command(written(tmp_path, mesh=c.Mesh(data=4), optimizer=optimizer), "--machine", "cpu:4")

    result = plan(2)
    gradients = 2 * 4 * result["memory"]["parameters"]  # a device holds them all
    sent = {one["kind"]: one["bytes"] for one in result["collectives"]}
    assert 0.9 * gradients / 4 < sent.pop("all-reduce") < 1.1 * gradients / 4
    assert sum(sent.values()) < 0.05 * gradients / 4, sent
    assert sum(result["compiled_flops"].values()) < 1.2 * sum(result["flops"].values())
    code, error = plan(4)
    assert code == 2 and error.strip().endswith(
        "data.batch_rows=8 does not divide among 4 devices (mesh.data x mesh.fsdp) x optimizer.accumulation=4 micro-batches; "
        "write 16"
    )


@pytest.mark.slow
def test_towers_multiply_as_the_trace_says(quickstart):
    result, _ = quickstart
    for name in ("speech", "image", "fusion"):
        assert 0.85 < result["compiled_flops"][name] / result["flops"][name] < 1.15, name


@pytest.mark.slow
def test_the_picture_shows_memory_and_time(quickstart):
    from xml.etree import ElementTree

    result, picture = quickstart
    text = " ".join(node.text or "" for node in ElementTree.fromstring(picture).iter())
    for name in (*(n for n, size in result["memory"].items() if size), *result["flops"]):
        assert f"{name}: " in text
    assert "memory per device" in text and "MFU" in text


MEASURE = """
import ctypes, gc, json, os
import jax
from mmjax import config as c
from mmjax.parallel import machines
from mmjax.plan import compilation
from mmjax.parallel.mesh import to_devices
from mmjax.plan.plan import sized

rows = 16
flags = "--data.source.examples 300 --mesh.data 2 --mesh.fsdp 4 --model.unroll false".split()  # sooner prepared and compiled
config = sized(c.override(c.load("configs/quickstart.py"), flags))
subject = compilation.describe(config, machines.parse("cpu:8"), jax.devices())
executable = subject.lower(rows).compile()
predicted = compilation.outcome_of(executable, 8).peak

def status(name):
    line = next(line for line in open("/proc/self/status") if line.startswith(name))
    return 1024 * int(line.split()[1])

state, batch = subject.begun.initialise(), to_devices(subject.layout.empty(rows), subject.mesh)
state, _ = jax.block_until_ready(executable(state, batch))  # what is made once is there now
gc.collect(); ctypes.CDLL("libc.so.6").malloc_trim(0)
live = sum(s.data.nbytes for x in jax.live_arrays() for s in x.addressable_shards)
before = status("VmRSS")
open("/proc/self/clear_refs", "w").write("5")  # the peak from now on
jax.block_until_ready(executable(state, batch))
print(json.dumps([predicted, (live + status("VmHWM") - before) / 8]))
"""


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/proc/self/clear_refs"), reason="the peak of a process is read in /proc")
def test_predicted_peak_memory_is_what_a_step_takes():
    """Against the process's resident memory: 8 devices live in it, and hold their temporaries at the same time."""
    environment = os.environ | simulated(8) | {"PYTHONPATH": os.getcwd()}
    done = subprocess.run([sys.executable, "-c", MEASURE], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    predicted, measured = json.loads(done.stdout.splitlines()[-1])
    assert predicted == pytest.approx(measured, rel=0.1), (predicted, measured)


def written(tmp_path, **changes):
    path = tmp_path / "config.json"
    path.write_text(c.to_json(tiny(**changes)))
    return path


@pytest.mark.slow
def test_without_a_compiler_the_plan_is_an_estimate_and_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(topology.importlib.util, "find_spec", lambda name: None)
    result = plan.plan(tiny(mesh=c.Mesh(fsdp=4)), machines.parse("h100:4x2"))
    assert set(result) >= KEYS and not result["compiled"] and "pip install 'mmjax[plan-gpu]'" in result["note"]
    assert result["fits"] and set(result["memory"]) >= {"parameters", "optimizer", "activations", "logits", "gradients"}
    # AdamW: two moments in float32, and counts.
    assert result["memory"]["optimizer"] == pytest.approx(2 * result["memory"]["parameters"], abs=32)
    assert result["memory"]["activations"] > result["memory"]["logits"] > 0
    sent = {(one["axis"], one["kind"]) for one in result["collectives"]}
    assert sent == {("fsdp", "all-gather"), ("fsdp", "reduce-scatter"), ("fsdp", "all-reduce"), ("data", "all-reduce")}
    assert [row["devices"] for row in result["weak_scaling"]] == [2**n for n in range(3, 13)]
    assert all(row["assumption"] for row in result["weak_scaling"])
    with pytest.raises(UserError, match="--search compiles"):
        plan.plan(tiny(), machines.parse("v5p:2x2x1"), search=True)


def test_what_does_not_fit_says_by_how_much(monkeypatch):
    monkeypatch.setattr(topology.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setenv("XLA_CLIENT_MEM_FRACTION", "0.0001")
    result = plan.plan(tiny(), machines.parse("t4:1"))
    assert not result["fits"] and result["usable_memory_bytes"] < result["peak_memory_bytes"]
    assert "does not fit" in report.tables(result)[2].title and "too much" in report.tables(result)[2].title


def test_bad_requests_are_one_line(tmp_path):
    code, error = command(written(tmp_path), "--machine", "h10:8")
    assert code == 2 and error.strip().endswith("did you mean 'h100'?")
    for machine in ("cpu:100000", "h100:²"):
        with pytest.raises(UserError, match=f"cannot read the machine '{machine}'"):
            machines.parse(machine)
    with pytest.raises(UserError, match="the price is nan"):
        plan.plan(tiny(), machines.parse("cpu:1"), price=float("nan"))
    with pytest.raises(UserError, match="=8 does not divide among 3 devices .mesh.data x mesh.fsdp.; write 9$"):
        plan.plan(tiny(), machines.parse("cpu:3"), estimate=True)


@pytest.mark.slow
def test_an_estimate_counts_every_micro_batch_and_what_lies_along_which_axis():
    """Without a compiler: as many rows in more micro-batches send more, and move no less."""

    def estimated(**optimizer):
        config = tiny(mesh=c.Mesh(fsdp=2, tensor=2), optimizer=dataclasses.replace(tiny().optimizer, **optimizer))
        return plan.plan(config, machines.parse("h100:8"), estimate=True)

    one, two = estimated(), estimated(accumulation=2)
    assert not one["compiled"] and "leave out --estimate" in one["note"] and one["step_seconds"] > 0
    parameters = {row["along"]: row["parameters"] for row in one["division"]}
    along = 4 * (parameters["fsdp+tensor"] / 2 + parameters["fsdp"])  # bytes, as a device uses them
    whole = 4 * (parameters["tensor"] / 2 + parameters["nothing"])
    sent = {(row["axis"], row["kind"]): row["bytes"] for row in one["collectives"]}
    assert sent == {
        ("fsdp", "all-gather"): 2 * along,
        ("fsdp", "reduce-scatter"): along,
        ("fsdp", "all-reduce"): whole,
        ("data", "all-reduce"): along / 2 + whole,
    }
    assert {(row["axis"], row["kind"]): row["bytes"] for row in two["collectives"]} == {
        k: 2 * v for k, v in sent.items()
    }
    for part, times in one["parts"].items():
        assert two["parts"][part]["memory"] >= times["memory"] > 0


def test_frozen_parameters_have_no_gradients_and_are_kept_once():
    """A frozen language model with adapters and gated cross-attention; its tokenizer is not here."""
    block = c.BlockStyle(norm="rms", activation="silu", gated=True, bias=False)
    decoder = c.TextDecoder(vocabulary=8, layers=4, width=8, heads=2, mlp=4096, cross_attention=False, block=block)
    chat = c.CausalLM(
        decoder=decoder.clone(remat="block"),
        media=("image",),
        fusion=c.GatedCrossAttention(every=2, mlp=16, remat="block"),
    )
    image = c.ViT(patch=4, image_size=8, layers=1, width=8, heads=2, mlp=16)
    config = tiny(
        data=c.Data(
            source=c.Manifest(splits={"train": "list.jsonl"}),
            inputs={"text": c.Conversation()},
            tokenizer=c.HuggingFaceTokenizer(file="tokenizer.json"),
            batch_rows=8,
            rows={"text": 16, "image": 8, "examples": 2},
            subsets={"image+text": 1.0},
        ),
        model=c.Multimodal(encoders={"text": c.TokenIds(), "image": image}, tasks={"chat": chat}, dtype="bfloat16"),
        adapters={"tasks.chat.decoder.layers.**": c.LoRA(rank=2)},
        evaluation=c.Evaluation(subsets=("image+text",)),
        optimizer=c.Optimizer(
            schedule=c.Constant(peak=1e-3),
            groups=dict.fromkeys(("encoders", "tasks.chat.decoder"), c.Group(frozen=True, dtype="bfloat16")),
        ),
    )
    result = plan.plan(config, machines.parse("h100:8"), estimate=True)
    sent = {(row["axis"], row["kind"]): row["bytes"] for row in result["collectives"]}
    gradients = result["memory"]["gradients"]
    assert sent == {("data", "all-reduce"): gradients / 2}  # computed in bfloat16, kept in float32
    assert gradients < result["memory"]["parameters"]
    assert result["memory"]["activations"] < result["memory"]["parameters"] / 10  # the inputs of blocks alone


@pytest.mark.parametrize("machine, kept", [("cpu:2", "None"), ("h100:8", "false"), ("v5p:2x2x1", "false")])
def test_programs_that_cannot_be_read_again_are_not_kept(machine, kept):
    """JAX 0.10.2 writes what is compiled for machines that are not here, and warns when it cannot read it."""
    code = "import os, sys; from mmjax.parallel.runtime import prepare_plan; prepare_plan(sys.argv[1]); "
    code += "print(os.environ.get('JAX_ENABLE_COMPILATION_CACHE'))"
    printed = subprocess.run([sys.executable, "-c", code, machine], capture_output=True, text=True, check=True).stdout
    assert printed.strip() == kept


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs mmjax[plan-tpu]")
def test_a_tpu_that_is_not_here(tmp_path):
    result = command(written(tmp_path, mesh=c.Mesh(fsdp=4)), "--machine", "v5p:2x2x1")
    assert result["compiled"] and result["fits"] and result["devices"] == 4
    assert sum(result["compiled_flops"].values()) == pytest.approx(result["compiler_flops"], rel=0.5)
    sent = {one["kind"] for one in result["collectives"] if one["axis"] == "fsdp"}
    assert "all-gather" in sent and sent & {"reduce-scatter", "all-reduce"}
    expected = result["compiler_seconds"]
    assert expected.keys() >= {"speech", "image", "fusion"} and sum(expected.values()) > result["step_seconds"] / 2


@pytest.mark.skipif(importlib.util.find_spec("jax_cuda12_plugin") is None, reason="needs mmjax[plan-gpu]")
def test_gpus_that_are_not_here(tmp_path):
    result = command(written(tmp_path, mesh=c.Mesh(fsdp=4)), "--machine", "h100:4x2")
    assert result["compiled"] and result["fits"] and result["devices"] == 8
    assert {one["axis"] for one in result["collectives"]} >= {"data", "fsdp"}
