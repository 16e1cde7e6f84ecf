"""Options of the compiler: presets that the compilers which are here know, errors that name what they do not."""

import dataclasses
import importlib.util
import json
import re
import subprocess
import sys
import threading
from types import SimpleNamespace

import jax
import pytest
from conftest import tiny

from mmjax import config as c
from mmjax.errors import UserError
from mmjax.parallel.xla import check_options, described, explained, options_of
from mmjax.parallel.xla_presets import PRESETS
from mmjax.train.program import compiling

CPU = jax.devices()[0]
CHECK = """
import os, sys
os.environ["JAX_PLATFORMS"] = "cpu"
from mmjax.parallel import machines
from mmjax.plan import topology
from mmjax.parallel.xla import check_options
from mmjax.parallel.xla_presets import PRESETS
machine = machines.parse(sys.argv[1])
device = topology.devices_of(machine)[0]
for name, preset in PRESETS.items():
    check_options(preset.get(machine.platform, {}), device)
    print(name)
try:
    check_options({sys.argv[2]: True}, device)
except Exception as error:
    print(error)
"""


def test_the_config_names_every_preset():
    kinds = c.XLA.__dataclass_fields__["preset"].type
    assert set(kinds.__args__) == set(PRESETS)


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_known_here(name):
    check_options(options_of(c.XLA(preset=name), CPU), CPU)


@pytest.mark.parametrize(
    "machine, module, wrong, right",
    [
        (
            "h100:1",
            "jax_plugins.xla_cuda12",
            "xla_gpu_enable_latency_hiding_schedule",
            "xla_gpu_enable_latency_hiding_scheduler",
        ),
        ("v5p:2x2x1", "libtpu", "xla_tpu_enable_async_collective_fusio", "xla_tpu_enable_async_collective_fusion"),
    ],
)
def test_presets_are_known_to_compilers_of_machines_that_are_not_here(machine, module, wrong, right):
    if importlib.util.find_spec(module.split(".")[0]) is None or importlib.util.find_spec(module) is None:
        pytest.skip(f"needs the compiler for {machine}")
    done = subprocess.run([sys.executable, "-c", CHECK, machine, wrong], capture_output=True, text=True, check=False)
    lines = done.stdout.splitlines()
    assert lines[:-1] == list(PRESETS), done.stderr[-2000:]
    assert f"has no option '{wrong}'; did you mean '{right}'?" in lines[-1]


@pytest.mark.parametrize(
    "options, message",
    [
        (
            {"xla_cpu_enable_fast_mat": True},
            r"jaxlib \S+ has no option 'xla_cpu_enable_fast_mat'; did you mean 'xla_cpu_enable_fast_math'\?",
        ),
        ({"xla_cpu_enable_fast_math": "perhaps"}, r"jaxlib \S+ refuses xla_cpu_enable_fast_math='perhaps'"),
    ],
)
def test_an_option_that_the_version_does_not_know_is_named(options, message):
    good = {"xla_backend_optimization_level": 0}
    with pytest.raises(UserError, match=message):
        check_options(good | options, CPU)


def test_the_users_options_go_before_the_presets():
    chosen = c.XLA(preset="compile_fast", options={"xla_backend_optimization_level": 1})
    assert options_of(chosen, CPU) == {"xla_backend_optimization_level": 1}
    assert options_of(c.XLA(preset="overlap"), CPU) == {}
    said = described(chosen, CPU)
    assert said["options"] == {"xla_backend_optimization_level": 1} and said["jax"] == jax.__version__
    assert re.fullmatch(r"jaxlib \d+\.\d+\.\d+.*", said["compiler"]) and json.dumps(said)


def test_options_of_a_config_file_and_the_command_line():
    config = c.override(tiny(), ["--xla.preset", "compile_fast", "--xla.options", "{'xla_cpu_enable_fast_math': True}"])
    assert config.xla == c.XLA(preset="compile_fast", options={"xla_cpu_enable_fast_math": True})
    assert c.from_json(c.to_json(config)) == config


def test_a_run_is_compiled_with_its_options_and_says_so(run, tmp_path, monkeypatch):
    """What reaches the compiler is what the record says; and a run that knows no such option does not begin."""
    from mmjax.train.loop import train

    first = json.loads((run / "compiler.jsonl").read_text().splitlines()[0])
    assert (first["first_step"], first["preset"], first["options"]) == (0, "default", {})
    config = dataclasses.replace(tiny(), xla=c.XLA(options={"xla_no_such": True}))
    with pytest.raises(UserError, match="has no option 'xla_no_such'"):
        train(config, tmp_path / "run")
    assert not list((tmp_path / "run").glob("*.json"))


def test_the_step_gets_the_options(monkeypatch):
    from mmjax.parallel.machines import parse
    from mmjax.plan.compilation import describe

    given = []
    jit = jax.jit
    monkeypatch.setattr(jax, "jit", lambda f, **kwargs: given.append((f.__name__, kwargs)) or jit(f, **kwargs))
    config = dataclasses.replace(tiny(), xla=c.XLA(options={"xla_cpu_enable_fast_math": False}))
    describe(config, parse("cpu:1"), jax.devices()).lower(config.data.batch_rows)
    assert dict(given)["train_step"]["compiler_options"] == {"xla_cpu_enable_fast_math": False}


@pytest.mark.parametrize(
    "reason, remedy",
    [
        ("INTERNAL: Couldn't find output tile sizes for the fusion", "'xla_gpu_enable_triton_gemm': False"),
        ("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 81 GiB", "lower data.batch_rows"),
    ],
)
def test_a_step_that_fails_says_what_to_do(reason, remedy):
    with pytest.raises(UserError, match=remedy), explained():
        raise jax.errors.JaxRuntimeError(reason)


def test_other_failures_of_a_step_are_left_as_they_are():
    with pytest.raises(jax.errors.JaxRuntimeError, match="device lost"), explained():
        raise jax.errors.JaxRuntimeError("INTERNAL: device lost")


def test_a_program_is_compiled_beside_the_block_and_once(monkeypatch):
    """The call after the block neither traces nor compiles again."""
    traced, compiled, inside = [], [], threading.Event()
    compile_lowered = jax.stages.Lowered.compile
    monkeypatch.setattr(
        jax.stages.Lowered, "compile", lambda self: compiled.append(inside.wait(60)) or compile_lowered(self)
    )
    ones = jax.numpy.ones(3)  # compiled before
    double = jax.jit(lambda x: traced.append(0) or 2 * x, compiler_options={"xla_cpu_enable_fast_math": False})
    events = []
    with compiling(double.trace(jax.ShapeDtypeStruct((3,), "float32")).lower(), str):
        inside.set()  # the block runs while the compiler works
    jax.monitoring.register_event_duration_secs_listener(listener := lambda name, seconds, **_: events.append(name))
    try:
        assert double(ones).tolist() == [2, 2, 2]
    finally:
        jax.monitoring.unregister_event_duration_listener(listener)
    assert compiled == [True] and len(traced) == 1
    assert not any("backend_compile" in name for name in events), events


def test_a_step_that_cannot_be_compiled_says_what_to_do():
    def fails():
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 81 GiB")

    with (
        pytest.raises(UserError, match="lower data.batch_rows.*it needs 81 GiB"),
        compiling(SimpleNamespace(compile=fails), lambda: "it needs 81 GiB"),
    ):
        pass
