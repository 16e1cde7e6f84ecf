"""What `mmjax.parallel.runtime` and `allocator` set before JAX starts, and do after compilations."""

import os
import platform
import subprocess
import sys
from statistics import median

import pytest

glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the settings are glibc's")

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


@glibc
@pytest.mark.slow
def test_a_step_on_a_cpu_works_in_the_memory_of_the_one_before():
    run = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, text=True, check=True)
    first, *later = map(int, run.stdout.split())
    assert first > 5000, "the step does not need memory worth keeping"
    # Not in every one: it may begin before the last one's memory is free, until there is room for both.
    assert median(later[10:]) < first / 50


PIECES = """
import ctypes
from mmjax.parallel.allocator import keep_freed_memory, set_aside_pieces
keep_freed_memory()
libc = ctypes.CDLL("libc.so.6")
libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]

def resident():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmRSS"))

def between(size, count=200):  # how many of so many allocations lie between those that stay
    found = [libc.malloc(size) for _ in range(count)]
    for address in found:
        libc.free(address)
    return sum(address < last for address in found)

SIZES = 30_000, 5_000
all_ = [libc.malloc(SIZES[n % 2]) for n in range(4000)]
for address in all_:
    ctypes.memset(address, 1, SIZES[1])
last = max(all_)
for address in all_[::2]:
    libc.free(address)
print(between(20_000), between(1_500))
before = resident()
print(set_aside_pieces(), resident() - before)
print(between(20_000), between(1_500))
"""


@glibc
def test_what_a_compilation_leaves_in_pieces_is_set_aside_and_takes_no_memory():
    run = subprocess.run([sys.executable, "-c", PIECES], capture_output=True, text=True, check=True)
    (large, small), (pieces, grown), after = (map(int, line.split()) for line in run.stdout.splitlines())
    assert large > 150 and small > 150, "the allocator cuts what it gives from free pieces"
    assert pieces >= 2000 and grown <= 0
    assert list(after) == [0, 0]


SEVERAL = """
import os
from mmjax.parallel import runtime
runtime.prepare(devices=8)
import jax
print(jax.device_count(), len(os.listdir("/proc/self/task")))
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/task"), reason="threads are counted in /proc")
def test_simulated_devices_have_threads_for_several_collectives_each():
    """With one each, XLA's choice, a step that gathers and sums on two axes waits for itself for ever."""
    run = subprocess.run([sys.executable, "-c", SEVERAL], capture_output=True, text=True, check=True)
    devices, threads = map(int, run.stdout.split())
    assert devices == 8 and threads > 8 * devices
