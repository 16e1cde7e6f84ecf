"""`mmjax plan`: machines, the reading of compiled programs, and a plan against what its step really takes."""

import json
import os
import subprocess
import sys

import pytest

from mmjax.errors import UserError
from mmjax.parallel import hlo, machines, roofline
from mmjax.parallel.plan import bisect
from mmjax.telemetry import matrix_flops

KEYS = {
    "machine", "devices", "compiled", "fits", "peak_memory_bytes", "memory", "flops", "collective_bytes", "step_seconds",
    "mfu",
}  # fmt: skip


def command(*arguments):
    """`mmjax plan` in a process of its own, since it needs devices of its own; its JSON, or its exit code and error."""
    environment = {k: v for k, v in os.environ.items() if k not in ("XLA_FLAGS", "JAX_PLATFORMS")}
    done = subprocess.run(
        [sys.executable, "-m", "mmjax", "plan", *map(str, arguments), "--json"],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    return json.loads(done.stdout) if done.returncode == 0 else (done.returncode, done.stderr)


# Machines. ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text, platform, count, per_node",
    [
        ("h100:8", "gpu", 8, 8),
        ("h100:8x2", "gpu", 16, 8),
        ("L4", "gpu", 1, 1),
        ("v5p:4x4x4", "tpu", 64, 64),
        ("v5e:16x16", "tpu", 256, 256),
        ("tpu7x:2x2x1", "tpu", 8, 8),
        ("cpu:8", "cpu", 8, 8),
    ],
)
def test_machines_are_read(text, platform, count, per_node):
    machine = machines.parse(text)
    assert (machine.platform, machine.count, machine.per_node) == (platform, count, per_node)


@pytest.mark.parametrize(
    "text, message",
    [
        ("h10:8", "there is no machine 'h10'; did you mean 'h100'?"),
        ("v5:2x2", "did you mean 'v5p'?"),
        ("abacus", "there are h100, h200"),
        ("v5p:8", "write v5p:4x4x4 (chips in each dimension)"),
        ("v6e:2x2x2", "write v6e:4x4"),
        ("h100:16", "a node has at most 8 H100s; write h100:8x2"),
        ("cpu:2x2", "write cpu:8"),
        ("h100:0", "cannot read the machine"),
    ],
)
def test_an_unknown_machine_names_the_nearest_or_what_to_write(text, message):
    with pytest.raises(UserError) as error:
        machines.parse(text)
    assert message in str(error.value)


def test_every_machine_is_whole_and_dense():
    """The known mistakes: peaks with sparsity, both directions of a link, one kind of device under two names."""
    for kind, device in machines.DEVICES.items():
        assert {"float32"} < set(device.peak) and device.matrix_peak >= device.peak["float32"], kind
        assert device.between < device.inside and device.inside < device.bandwidth, kind
        assert 100e12 < device.matrix_peak < 2500e12 or kind == "t4"
    assert machines.PEAKS["NVIDIA H100 80GB HBM3"] == pytest.approx(989e12, rel=1e-3)
    assert len(machines.PEAKS) == len(machines.DEVICES)


def test_a_link_knows_nodes_and_rings():
    h100, v5p = machines.parse("h100:8x2"), machines.parse("v5p:4x4x4")
    reached = roofline.REACHED["network"]
    assert roofline.link(h100, range(8)) == (450e9 * reached, "within a node")
    assert roofline.link(h100, (3, 11)) == (50e9 * reached, "between nodes")
    assert roofline.link(h100, range(16))[0] == 400e9 * reached  # eight networks of each node together
    assert roofline.link(v5p, range(64))[0] == 600e9 * reached  # three closed rings: all six links
    assert roofline.link(v5p, range(4))[0] == pytest.approx(200e9 * reached)  # one ring: two links
    assert roofline.link(machines.parse("v5p:2x2x1"), range(4))[0] == pytest.approx(200e9 * reached)  # two open lines


# Programs. ------------------------------------------------------------------------------------------------

PROGRAM = """HloModule jit_step, is_scheduled=true

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}

%inside (p0: f32[6,8,8], p1: s32[]) -> f32[8,8] {
  %p0 = f32[6,8,8]{2,1,0} parameter(0)
  %p1 = s32[] parameter(1)
  %zero = s32[] constant(0)
  %slice = f32[1,8,8]{2,1,0} dynamic-slice(%p0, %p1, %zero, %zero), dynamic_slice_sizes={1,8,8}
  ROOT %flat = f32[8,8]{1,0} bitcast(%slice)
}

%body (state: (s32[], f32[4,8], f32[6,8,8], s32[])) -> (s32[], f32[4,8], f32[6,8,8], s32[]) {
  %state = (s32[], f32[4,8]{1,0}, f32[6,8,8]{2,1,0}, s32[]) parameter(0)
  %i = s32[] get-tuple-element(%state), index=0
  %x = f32[4,8]{1,0} get-tuple-element(%state), index=1
  %layers = f32[6,8,8]{2,1,0} get-tuple-element(%state), index=2
  %n = s32[] get-tuple-element(%state), index=3
  %one = s32[] constant(1)
  %next = s32[] add(%i, %one)
  %kernel = f32[8,8]{1,0} fusion(%layers, %i), kind=kLoop, calls=%inside
  %whole = f32[8,32]{1,0} all-gather(%kernel), replica_groups=GROUPS, dimensions={1}, metadata={op_name="jit(step)/encoders_speech/layers/up"}
  %y = f32[4,32]{1,0} dot(%x, %whole), lhs_contracting_dims={1}, rhs_contracting_dims={0}, metadata={op_name="jit(step)/encoders_speech/layers/up"}
  %small = f32[4,8]{1,0} slice(%y), slice={[0:4], [0:8]}
  ROOT %out = (s32[], f32[4,8]{1,0}, f32[6,8,8]{2,1,0}, s32[]) tuple(%next, %small, %layers, %n)
}

%condition (state: (s32[], f32[4,8], f32[6,8,8], s32[])) -> pred[] {
  %state.1 = (s32[], f32[4,8]{1,0}, f32[6,8,8]{2,1,0}, s32[]) parameter(0)
  %i.1 = s32[] get-tuple-element(%state.1), index=0
  %n.1 = s32[] get-tuple-element(%state.1), index=3
  ROOT %less = pred[] compare(%i.1, %n.1), direction=LT
}

ENTRY %main (x: f32[4,8], layers: f32[6,8,8]) -> f32[4,8] {
  %x.1 = f32[4,8]{1,0} parameter(0)
  %layers.1 = f32[6,8,8]{2,1,0} parameter(1)
  %begin = s32[] constant(0)
  %bound = s32[] constant(6)
  %init = (s32[], f32[4,8]{1,0}, f32[6,8,8]{2,1,0}, s32[]) tuple(%begin, %x.1, %layers.1, %bound)
  %loop = (s32[], f32[4,8]{1,0}, f32[6,8,8]{2,1,0}, s32[]) while(%init), condition=%condition, body=%body
  %result = f32[4,8]{1,0} get-tuple-element(%loop), index=1
  ROOT %mean = f32[4,8]{1,0} all-reduce(%result), replica_groups={{0,4},{1,5},{2,6},{3,7}}, to_apply=%add, metadata={op_name="jit(step)/heads_answer/sum"}
}
"""
MESH = {"data": 2, "fsdp": 4}


@pytest.mark.parametrize(
    "groups",
    [
        "{{0,1,2,3},{4,5,6,7}}",
        "[2,4]<=[8]",
        "mesh['a'=2,'b'=4] {'b'}",
        "mesh['b'=4,'a'=2], device_ids=([2,4]T(1,0)) {'b'}",
        "mesh['a'=8] {'a':(2)4}",
    ],
)
def test_collectives_in_loops_are_counted_as_often_as_they_run(groups):
    program = hlo.Program(PROGRAM.replace("GROUPS", groups), 8)
    gather, reduce = program.collectives
    assert (gather.kind, gather.axis(MESH), gather.part) == ("all-gather", "fsdp", "speech")
    assert gather.times == 6 and gather.bytes == 8 * 32 * 4  # what is gathered, not what each device brings
    assert gather.wire_bytes == 6 * 8 * 32 * 4 * 3 / 4
    assert (reduce.kind, reduce.axis(MESH), reduce.part) == ("all-reduce", "data", "answer")
    assert reduce.bytes == 4 * 8 * 4 and reduce.wire_bytes == reduce.bytes  # twice, to one other
    assert program.flops == {"speech": 6 * 2 * 4 * 32 * 8} and program.loops == 0


def test_a_loop_whose_end_is_data_is_counted_once_and_said():
    text = PROGRAM.replace("GROUPS", "[2,4]<=[8]").replace(
        "%bound = s32[] constant(6)", "%bound = s32[] all-reduce(%begin), replica_groups=[1,8]<=[8], to_apply=%add"
    )
    program = hlo.Program(text, 8)
    assert program.loops == 1 and program.flops == {"speech": 2 * 4 * 32 * 8}


def test_a_fusion_that_reads_one_slice_moves_one_slice():
    """Of stacked layers a loop reads one at a time: not all of them every time."""
    program = hlo.Program(PROGRAM.replace("GROUPS", "[2,4]<=[8]"), 8)
    # The fusion (its slice, the counter, its result), the slice of y, and the counter's addition.
    assert program.traffic["other"] == 6 * ((256 + 4 + 256) + 2 * 128 + 12)


def test_products_and_traffic_agree_with_the_compiler_on_a_real_program():
    """Against XLA's own cost analysis: convolutions with padding, strides and holes, products, reductions."""
    import jax
    import jax.numpy as jnp

    def function(x, kernel, weight):
        strided = jax.lax.conv_general_dilated(
            x, kernel, (2, 1), ((1, 2), (0, 1)), dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        holes = jax.lax.conv_transpose(
            strided, kernel.swapaxes(2, 3), (2, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        return jnp.einsum("bhwc,cd->bhwd", holes, weight)

    shapes = ((2, 9, 7, 4), (3, 3, 4, 5), (4, 6))
    arguments = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    compiled = jax.jit(function).lower(*arguments).compile()
    program = hlo.Program(compiled.as_text(), 1)
    assert sum(program.flops.values()) == pytest.approx(compiled.cost_analysis()["flops"], rel=1e-6)
    assert sum(program.traffic.values()) == pytest.approx(compiled.cost_analysis()["bytes accessed"], rel=0.02)


def test_loops_over_layers_multiply_as_traced():
    """`lax.scan` of a real program: compiled FLOPs are the traced ones, which XLA's own analysis counts once."""
    import jax
    import jax.numpy as jnp

    def function(x, layers):
        return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), x.sum()), x, layers)

    arguments = jax.ShapeDtypeStruct((4, 16), jnp.float32), jax.ShapeDtypeStruct((7, 16, 16), jnp.float32)
    compiled = jax.jit(function).lower(*arguments).compile()
    program = hlo.Program(compiled.as_text(), 1)
    assert sum(program.flops.values()) == sum(matrix_flops(function, *arguments).values()) == 7 * 2 * 4 * 16 * 16
    assert compiled.cost_analysis()["flops"] < 7 * 2 * 4 * 16 * 16


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
