"""Fixtures: a data set of a few hundred questions, prepared once, and a model that trains in seconds."""

import gc
import os
import tempfile

from mmjax.parallel.runtime import COLLECT_AFTER, COMPILE_FAST

# MMJAX_TEST_PLATFORMS=cuda,cpu pytest tests/test_attention_backends.py, where there is a GPU.
os.environ["JAX_PLATFORMS"] = os.environ.get("MMJAX_TEST_PLATFORMS", "cpu")
# Little optimisation: these tests compile more than they compute. Tests of several devices start a process for it.
# Of the flags that are set only the processor's instructions stay: XLA_FLAGS=--xla_cpu_max_isa=SSE4_2 pytest ...
os.environ["XLA_FLAGS"] = " ".join(
    [flag for flag in os.environ.get("XLA_FLAGS", "").split() if flag.startswith("--xla_cpu_max_isa=")]
    + [f"--{name}={int(value)}" for name, value in COMPILE_FAST.items()]
    + ["--xla_cpu_parallel_codegen_split_count=1"]  # several parts are more work, for idle cores
)
# The same small programs are compiled by many tests, by the processes that they start, and in the next run of the tests. Even
# an empty program takes XLA 8 ms, and 2 ms from the cache.
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
os.environ.setdefault("JAX_COMPILATION_CACHE_MAX_SIZE", "-1")  # a limit costs a look at all files with each new one
os.environ.setdefault(
    "JAX_COMPILATION_CACHE_DIR", os.path.join(tempfile.gettempdir(), f"mmjax-test-compilations-{os.getuid()}")
)
# The tests of several files run at once. More threads of torch and NumPy would wait for each other, and busily.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
# Prepared once per machine and checkout of the tests, not once per test run.
os.environ.setdefault("MMJAX_DATA", os.path.join(tempfile.gettempdir(), f"mmjax-test-data-{os.getuid()}"))
# Something secret, which no run directory may have.
os.environ["MMJAX_TESTS_TOKEN"] = "token-8f1e9c4a7d"

import contextlib
import ctypes
import dataclasses
import pathlib
import shutil
import signal

import jax
import pytest
from filelock import FileLock

from mmjax import config as c

gc.set_threshold(*COLLECT_AFTER)

# A shell lets processes in the background ignore Ctrl-C, and so would the processes that tests start and interrupt.
with contextlib.suppress(ValueError):  # not in the main thread
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)

EXAMPLES = 300  # questions per split
MEMORY = 3e9  # bytes of a process of the tests, above which it forgets the programs that it has compiled
GROWTH = 0.5e9  # and again after so much more, if what remains is above it: forgetting takes a second


@pytest.fixture(scope="session")
def allowance():
    """{"bytes": the memory above which a process forgets its programs}."""
    return {"bytes": MEMORY}


@pytest.fixture(scope="module", autouse=True)
def forgotten(allowance):
    """Programs of earlier files take memory, and later files seldom need them."""
    yield
    if resident() > allowance["bytes"]:
        jax.clear_caches()
        gc.collect()
        ctypes.CDLL("libc.so.6").malloc_trim(0)  # else what is free still counts
        allowance["bytes"] = max(MEMORY, resident() + GROWTH)


def resident() -> int:
    """The bytes of memory that this process takes."""
    return int(pathlib.Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def stepped(run: pathlib.Path) -> bool:
    """Whether a training has taken a step, by its metrics."""
    metrics = run / "metrics.jsonl"
    return metrics.exists() and '"kind": "train"' in metrics.read_text()


def tiny(**changes) -> c.Experiment:
    """spoken_easy_vqa on a model of a few thousand parameters."""
    config = c.Experiment(
        name="tiny",
        steps=6,
        data=c.Data(
            source=c.SpokenEasyVQA(examples=EXAMPLES),
            batch_rows=8,
            rows={"speech": 328, "image": 128, "text": 16, "transcript": 20, "examples": 3},
            subsets={"speech+image": 0.5, "image+text": 0.3, "speech+image+text": 0.2},
        ),
        model=c.Multimodal(
            encoders={
                "speech": c.Conformer(
                    layers=1, width=16, heads=2, stem=c.StridedStem(channels=4), convolution=c.Convolution(kernel=4)
                ),
                "image": c.ViT(patch=8, image_size=64, layers=1, width=16, heads=2, mlp=32),
                "text": c.Transformer(vocabulary=128, layers=1, width=16, heads=2, mlp=32),
            },
            fusion=c.CrossAttention(layers=1, width=16, heads=2, mlp=32, queries=2),
            tasks={"answer": c.Classify(outputs=13), "transcript": c.CTC(outputs=128, weight=0.3)},
        ),
        optimizer=c.Optimizer(schedule=c.WarmupCosine(peak=1e-2, warmup=2, steps=6)),
        log=c.Log(every_steps=1, tensorboard=False),
        checkpoint=c.Checkpoint(every_steps=2),
        evaluation=c.Evaluation(subsets=("speech+image",), examples=32),
    )
    return dataclasses.replace(config, **changes)


@pytest.fixture(scope="session")
def source():
    from mmjax.train.build import build_source

    return build_source(tiny().data, "train")


@pytest.fixture(scope="session")
def run(tmp_path_factory, worker_id):
    """A run of the tiny model, trained to its end: once, and a copy for each process of pytest-xdist."""
    from mmjax.train.loop import train

    here = tmp_path_factory.getbasetemp()
    trained = (here if worker_id == "master" else here.parent) / "tiny"
    with FileLock(f"{trained}.lock"):
        if not trained.exists():
            train(tiny(), here / "training")
            (here / "training").rename(trained)
    return shutil.copytree(trained, here / "runs" / "tiny")
