"""Reading compiled programs: a small one by hand, and real ones against XLA's own analysis."""

import numpy as np
import pytest

from mmjax.flops import matrix_flops
from mmjax.parallel import machines
from mmjax.plan import hlo, roofline
from mmjax.plan.hlo_flops import flops_by

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
  ROOT %mean = f32[4,8]{1,0} all-reduce(%result), replica_groups={{0,4},{1,5},{2,6},{3,7}}, to_apply=%add, metadata={op_name="jit(step)/tasks_answer/sum"}
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


def test_cycles_that_a_compiler_expects_count_as_often_as_a_loop_runs():
    def told(line, cycles):
        return line + f', backend_config={{"window_config":{{}},"estimated_cycles":"{cycles}"}}'

    text = PROGRAM.replace("GROUPS", "[2,4]<=[8]")
    for name, cycles in (("%kernel", 10), ("%y", 100), ("%flat", 7), ("%mean", 2**63 - 1), ("%small", 1)):
        (line,) = (line for line in text.splitlines() if line.strip().removeprefix("ROOT ").startswith(f"{name} = "))
        text = text.replace(line, told(line, cycles))
    # %flat is inside a fusion, whose own count covers it; of %mean the compiler cannot say.
    assert hlo.Program(text, 8).cycles == {"other": 6 * 11, "speech": 6 * 100}


def test_what_a_ring_of_four_sends():
    """Patarasuk and Yuan 2009: of N bytes each device receives 3/4 to gather or scatter them, 3/2 to sum them for all."""
    groups = np.arange(8).reshape(2, 4)
    received = {kind: hlo.Collective(kind, "speech", groups, 2.0, 100.0).wire_bytes for kind in hlo.KINDS}
    assert received["all-gather"] == received["reduce-scatter"] == received["all-to-all"] == 2 * 75
    assert received["all-reduce"] == 2 * 150 and received["collective-permute"] == 2 * 100


def test_a_loop_whose_end_is_data_is_counted_once_and_said():
    text = PROGRAM.replace("GROUPS", "[2,4]<=[8]").replace(
        "%bound = s32[] constant(6)", "%bound = s32[] all-reduce(%begin), replica_groups=[1,8]<=[8], to_apply=%add"
    )
    program = hlo.Program(text, 8)
    assert program.loops == 1 and program.flops == {"speech": 2 * 4 * 32 * 8}


@pytest.mark.parametrize(
    "was, becomes, times",
    [
        ("%one = s32[] constant(1)", "%one = s32[] constant(2)", 3),
        ("add(%i, %one)", "add(%one, %i)", 6),
        ("%next = s32[] add(%i, %one)", "%copied = s32[] copy(%i)\n  %next = s32[] add(%copied, %one)", 6),
        ("%next = s32[] add(%i, %one)", "%raised = s32[] add(%i, %one)\n  %next = s32[] copy(%raised)", 6),
        ("%next = s32[] add(%i, %one)", "%next = s32[] add(%i, %i)", None),
        ("%next = s32[] add(%i, %one)", "%next = s32[] multiply(%i, %one)", None),
        ("%next = s32[] add(%i, %one)", "%next = s32[] add(%n, %one)", None),
        ("compare(%i.1, %n.1), direction=LT", "compare(%i.1, %n.1), direction=NE", None),
        (
            "ROOT %less = pred[] compare(%i.1, %n.1), direction=LT",
            "%less = pred[] compare(%i.1, %n.1), direction=LT\n  ROOT %both = pred[] and(%less, %less)",
            None,
        ),
        ("%layers, %n)\n}", "%layers, %next)\n}", None),  # the end is data
        (
            "%next = s32[] add(%i, %one)",
            "%inner = (s32[]) copy(%n)\n  %same = s32[] get-tuple-element(%inner), index=0\n  %next = s32[] add(%same, %one)",
            None,
        ),
        ("%begin = s32[] constant(0)", "%begin = s32[] constant(4)", 2),
        ("%begin = s32[] constant(0)", "%begin = s32[] constant(9)", 0),
    ],
)
def test_a_loop_runs_as_often_as_its_counter_allows(was, becomes, times):
    """What counts it need not be `range(n)`: only what can be read is multiplied, all else is counted once and said."""
    text = PROGRAM.replace("GROUPS", "[2,4]<=[8]")
    assert was in text
    program = hlo.Program(text.replace(was, becomes), 8)
    assert program.loops == (times is None)
    assert program.flops["speech"] == (1 if times is None else times) * 2 * 4 * 32 * 8


ASYNCHRONOUS = """HloModule jit_step, is_scheduled=true

%inside (p0: f32[64,64]) -> f32[16,64] {
  %p0 = f32[64,64]{1,0} parameter(0)
  %part = f32[16,64]{1,0} slice(%p0), slice={[0:16], [0:64]}
  ROOT %y = f32[16,64]{1,0} dot(%part, %p0), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}

ENTRY %main (x: f32[64,64]) -> f32[16,64] {
  %x = f32[64,64]{1,0} parameter(0)
  INSTRUCTIONS
}
"""


@pytest.mark.parametrize(
    "instruction, traffic, multiplied",
    [
        # To a TPU's fast memory, which does not count: what is read from the other.
        ("%c = (f32[64,64]{1,0:S(1)}, f32[64,64]{1,0}, u32[]) copy-start(%x)", 64 * 64 * 4, 0),
        (
            "%c = ((f32[64,64]{1,0}), f32[16,64]{1,0}, u32[]) slice-start(%x), slice={[0:16], [0:64]}",
            2 * 16 * 64 * 4,
            0,
        ),
        (
            "%c = ((f32[64,64]{1,0}), f32[16,64]{1,0}, u32[]) fusion-start(%x), kind=kLoop, calls=%inside",
            (64 + 16) * 64 * 4,
            2 * 16 * 64 * 64,
        ),
        (
            "%c = (f32[64,64]{1,0}, f32[256,64]{1,0}) all-gather-start(%x), replica_groups=[1,4]<=[4], dimensions={0}",
            5 * 64 * 64 * 4,
            0,
        ),
        ("%c = f32[64,64]{1,0} all-reduce-start(%x), replica_groups=[1,4]<=[4], to_apply=%add", 2 * 64 * 64 * 4, 0),
    ],
)
def test_the_two_halves_of_what_runs_asynchronously_count_once(instruction, traffic, multiplied):
    program = hlo.Program(ASYNCHRONOUS.replace("INSTRUCTIONS", instruction), 4)
    assert program.traffic == {"other": traffic}
    assert sum(program.flops.values()) == multiplied
    assert [one.bytes for one in program.collectives] == (
        [64 * 64 * 4 * (4 if "gather" in instruction else 1)] if "all-" in instruction else []
    )


CONTINUED = """HloModule jit_step, is_scheduled=true

%start (p0: bf16[16,64]) -> (bf16[16,64], bf16[64,64]) {
  %p0 = bf16[16,64]{1,0} parameter(0)
  %gather.1 = bf16[64,64]{1,0} all-gather(%p0), channel_id=8, replica_groups=[1,4]<=[4], dimensions={0}, frontend_attributes={chain_id="0"}
  ROOT %started = (bf16[16,64]{1,0}, bf16[64,64]{1,0}) custom-call(%gather.1), custom_call_target="AsyncCollectiveStart"
}

%step (p0: bf16[16,64], p1: bf16[64,64], p2: bf16[32,64], p3: bf16[64,64]) -> (bf16[32,64], bf16[16,64], bf16[64,64], bf16[64,64]) {
  %p0.1 = bf16[16,64]{1,0} parameter(0)
  %p1.1 = bf16[64,64]{1,0} parameter(1)
  %p2.1 = bf16[32,64]{1,0} parameter(2)
  %p3.1 = bf16[64,64]{1,0} parameter(3)
  %y = bf16[32,64]{1,0} dot(%p2.1, %p3.1), lhs_contracting_dims={1}, rhs_contracting_dims={0}
  %gather.2 = bf16[64,64]{1,0} all-gather(%p0.1), channel_id=8, replica_groups=[1,4]<=[4], dimensions={0}, frontend_attributes={chain_id="0"}
  ROOT %all = (bf16[32,64]{1,0}, bf16[16,64]{1,0}, bf16[64,64]{1,0}, bf16[64,64]{1,0}) tuple(%y, %p0.1, %p1.1, %gather.2)
}

%done (p0: bf16[16,64], p1: bf16[64,64]) -> bf16[64,64] {
  %p0.2 = bf16[16,64]{1,0} parameter(0)
  %p1.2 = bf16[64,64]{1,0} parameter(1)
  %gather.3 = bf16[64,64]{1,0} all-gather(%p0.2), channel_id=8, replica_groups=[1,4]<=[4], dimensions={0}, frontend_attributes={chain_id="0"}
  ROOT %ended = bf16[64,64]{1,0} custom-call(%p0.2, %p1.2, %gather.3), custom_call_target="AsyncCollectiveDone"
}

ENTRY %main (shard: bf16[16,64], x: bf16[32,64], other: bf16[64,64]) -> bf16[64,64] {
  %shard = bf16[16,64]{1,0} parameter(0)
  %x = bf16[32,64]{1,0} parameter(1)
  %other = bf16[64,64]{1,0} parameter(2)
  %a = (bf16[16,64]{1,0}, bf16[64,64]{1,0}) fusion(%shard), kind=kCustom, calls=%start
  %a0 = bf16[16,64]{1,0} get-tuple-element(%a), index=0
  %a1 = bf16[64,64]{1,0} get-tuple-element(%a), index=1
  %b = (bf16[32,64]{1,0}, bf16[16,64]{1,0}, bf16[64,64]{1,0}, bf16[64,64]{1,0}) fusion(%a0, %a1, %x, %other), kind=kOutput, calls=%step
  %b0 = bf16[16,64]{1,0} get-tuple-element(%b), index=1
  %b1 = bf16[64,64]{1,0} get-tuple-element(%b), index=2
  ROOT %c = bf16[64,64]{1,0} fusion(%b0, %b1), kind=kCustom, calls=%done
}
"""


def test_a_gather_that_runs_in_steps_inside_other_work_counts_once():
    """As TPUs do ("continuation fusion"): every step names the whole array, and hands its buffers to the next."""
    program = hlo.Program(CONTINUED, 4)
    (gather,) = program.collectives
    assert (gather.kind, gather.times, gather.bytes) == ("all-gather", 1, 64 * 64 * 2)
    assert program.flops == {"other": 2 * 32 * 64 * 64}
    moved_by_gather, moved_by_product = (16 + 64) * 64 * 2, (32 + 64 + 32) * 64 * 2
    assert program.traffic == {"other": moved_by_gather + moved_by_product}


def test_what_names_no_part_belongs_to_that_of_the_loop_it_stands_in():
    text = PROGRAM.replace("GROUPS", "[2,4]<=[8]").replace(
        "body=%body", 'body=%body, metadata={op_name="jit(step)/encoders_text/while"}'
    )
    program = hlo.Program(text, 8)
    assert program.traffic["text"] == 6 * ((256 + 4 + 256) + 2 * 128 + 12) and "other" not in program.traffic
    assert set(program.flops) == {"speech"}  # has a name of its own


def test_a_fusion_inside_a_fusion_that_reads_one_slice_moves_one_slice():
    outer = """%outer (q0: f32[6,8,8], q1: s32[]) -> f32[8,8] {
  %q0 = f32[6,8,8]{2,1,0} parameter(0)
  %q1 = s32[] parameter(1)
  %same = f32[6,8,8]{2,1,0} bitcast(%q0)
  ROOT %deep = f32[8,8]{1,0} fusion(%same, %q1), kind=kLoop, calls=%inside
}

%body (state"""
    text = PROGRAM.replace("GROUPS", "[2,4]<=[8]").replace("%body (state", outer, 1)
    nested = hlo.Program(text.replace("kind=kLoop, calls=%inside\n  %whole", "kind=kLoop, calls=%outer\n  %whole"), 8)
    assert nested.traffic == hlo.Program(PROGRAM.replace("GROUPS", "[2,4]<=[8]"), 8).traffic


UPDATED = """HloModule jit_step

%update (p0: f32[64,64], p1: f32[1,64], p2: s32[]) -> f32[64,64] {
  %p0 = f32[64,64]{1,0} parameter(0)
  %p1 = f32[1,64]{1,0} parameter(1)
  %p2 = s32[] parameter(2)
  %zero = s32[] constant(0)
  RESULT
}

ENTRY %main (x: f32[64,64], row: f32[1,64], i: s32[]) -> f32[64,64] {
  %x = f32[64,64]{1,0} parameter(0)
  %row = f32[1,64]{1,0} parameter(1)
  %i = s32[] parameter(2)
  ROOT %new = f32[64,64]{1,0} fusion(%x, %row, %i), kind=kLoop, calls=%update
}
"""


@pytest.mark.parametrize(
    "result, rows",
    [
        ("ROOT %u = f32[64,64]{1,0} dynamic-update-slice(%p0, %p1, %p2, %zero)", 2),
        ("ROOT %u = f32[64,64]{1,0} scatter(%p0, %p2, %p1), to_apply=%add", 2),
        ("%u = f32[64,64]{1,0} dynamic-update-slice(%p0, %p1, %p2, %zero)\n  ROOT %v = f32[64,64]{1,0} bitcast(%u)", 2),
        # Made something of: the whole is written, and what was not updated is read for it.
        (
            "%u = f32[64,64]{1,0} dynamic-update-slice(%p0, %p1, %p2, %zero)\n  ROOT %v = f32[64,64]{1,0} negate(%u)",
            None,
        ),
    ],
)
def test_a_fusion_that_updates_one_row_moves_one_row(result, rows):
    program = hlo.Program(UPDATED.replace("RESULT", result), 1)
    (moved,) = program.traffic.values()
    if rows:
        assert moved == rows * 64 * 4 + 4  # the row, as read and as written, and its place
    else:
        assert moved >= 2 * 64 * 64 * 4


SPLASH = """HloModule jit_step

ENTRY %main (mask: s8[1,1,1], q: bf16[8,256,64], k: bf16[8,512,64]) -> bf16[8,256,64] {
  %mask = s8[1,1,1]{2,1,0} parameter(0)
  %q = bf16[8,256,64]{2,1,0} parameter(1)
  %k = bf16[8,512,64]{2,1,0} parameter(2)
  ROOT %splash_mha_KERNEL.7 = bf16[8,256,64]{2,1,0} custom-call(%mask, %mask, %q, %k, %k), custom_call_target="tpu_custom_call", operand_layout_constraints={s8[1,1,1]{2,1,0}, s8[1,1,1]{2,1,0}, bf16[8,256,64]{2,1,0}, bf16[8,512,64]{2,1,0}, bf16[8,512,64]{2,1,0}}, frontend_attributes={kernel_metadata={
"xprof_metadata":"{\\"block_q\\": 256}"
}}, metadata={op_name="jit(step)/encoders_image/attention/splash_mha_KERNEL_residuals"}, backend_config={}
}
"""


@pytest.mark.parametrize("kernel, products", [("fwd", 2), ("dq", 3), ("dkv", 4)])
def test_the_kernels_of_attention_on_tpus_multiply(kernel, products):
    """Dao 2023 (FlashAttention-2), algorithms 1 and 2: two products forward, five backward, of which two kernels share two."""
    program = hlo.Program(SPLASH.replace("KERNEL", kernel), 1)
    assert program.flops == {"image": products * 2 * 8 * 256 * 512 * 64} and program.narrow == {}
    assert program.traffic == {"image": 2 * 1 + 2 * 8 * 256 * 64 * 2 + 2 * 8 * 512 * 64 * 2}


def test_of_a_choice_the_dearest_branch_counts():
    text = ASYNCHRONOUS.replace("%inside (p0", "%cheap (p0", 1).replace(
        " dot(%part, %p0), lhs_contracting_dims={1}, rhs_contracting_dims={0}", " copy(%part)"
    )
    text = text.replace("ENTRY", ASYNCHRONOUS[ASYNCHRONOUS.index("%inside") : ASYNCHRONOUS.index("ENTRY")] + "ENTRY")
    choice = "%c = f32[16,64]{1,0} conditional(%n, %x, %x, %x), branch_computations={%cheap, %inside, %inside}"
    assert hlo.Program(text.replace("INSTRUCTIONS", choice), 4).flops == {"other": 2 * 16 * 64 * 64}


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


@pytest.mark.parametrize(
    "left, right, machine, faster",
    [
        ("s8", "s8", "v5p:2x2x1", 2.0),
        ("s8", "s8", "h100:1", 1978.9 / 989.4),
        ("s8", "bf16", "h100:1", 1.0),
        ("f8e4m3fn", "f8e5m2", "h100:1", 1978.9 / 989.4),
        ("f8e4m3fn", "f8e4m3fn", "a100:1", 1.0),
        ("bf16", "bf16", "v5p:2x2x1", 1.0),
    ],
)
def test_products_of_8_bits_take_the_time_of_units_for_8_bits(left, right, machine, faster):
    text = f"""HloModule jit_step

ENTRY %main (x: {left}[64,64], y: {right}[64,64]) -> f32[64,64] {{
  %x = {left}[64,64]{{1,0}} parameter(0)
  %y = {right}[64,64]{{1,0}} parameter(1)
  ROOT %z = f32[64,64]{{1,0}} dot(%x, %y), lhs_contracting_dims={{1}}, rhs_contracting_dims={{0}}
}}
"""
    program, reached = hlo.Program(text, 1), roofline.rates(machines.parse(machine), "bfloat16")
    assert program.flops == {"other": 2 * 64**3}
    seconds = roofline.by_part(reached, program.flops, program.narrow, {}, {})["other"]["compute"]
    assert seconds == pytest.approx(2 * 64**3 / reached.matrix / faster)


def test_products_and_attention_of_nvidias_libraries_are_counted():
    """As a program for GPUs calls them (jax 0.10.2, shortened): [12, 8] x [8, 20], and attention with 2 heads of 16 features."""
    product = (
        ', custom_call_target="__cublas$lt$matmul", backend_config={"gemm_backend_config":{"dot_dimension_numbers":'
        '{"lhs_contracting_dimensions":["1"],"rhs_contracting_dimensions":["0"]}}}'
    )
    assert flops_by("custom-call", product)(product, (12, 20), (12, 8), (8, 20)) == 2 * 12 * 8 * 20
    attention = (
        ', custom_call_target="__cudnn$fmhaScaleBiasSoftmaxNAME", backend_config={"cudnn_fmha_backend_config":'
        '{"intermediate_tensor_shape": {"element_type": "BF16", "dimensions": ["3", "2", "10", "14"]}}}'
    )
    for name, products in (("", 2), ("Backward", 5)):
        text, shapes = attention.replace("NAME", name), ((3, 2, 10, 16), (3, 10, 2, 16), (3, 14, 2, 16))
        assert flops_by("custom-call", text)(text, *shapes) == products * 2 * 3 * 2 * 10 * 14 * 16
    assert flops_by("custom-call", ', custom_call_target="Sharding"') is None and flops_by("add", "") is None
