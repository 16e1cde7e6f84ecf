"""What `mmjax.parallel.runtime` sets before JAX starts."""

import platform
import subprocess
import sys
from statistics import median

import pytest

FAULTS = """
import resource
from mmjax.parallel import runtime
runtime.prepare()
import jax, jax.numpy as jnp
w = jnp.ones((64, 64))
step = jax.jit(jax.grad(lambda x: sum(jnp.sin(jnp.tanh(x * n) @ w).sum() for n in range(4))))
x = jnp.ones((60_000, 64))
for _ in range(30):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    step(x).block_until_ready()
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the setting is glibc's")
def test_a_step_on_a_cpu_works_in_the_memory_of_the_one_before():
    run = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, text=True, check=True)
    first, *later = map(int, run.stdout.split())
    assert first > 5000, "the step does not need memory worth keeping"
    # Not in every one: it may begin before the last one's memory is free, until there is room for both.
    assert median(later[10:]) < first / 50
