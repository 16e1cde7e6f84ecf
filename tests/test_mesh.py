"""Division along every axis of the mesh: the same loss and gradients as on one device."""

import dataclasses
import json
import os
import subprocess
import sys

import jax
import numpy as np
import pytest
from conftest import tiny
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from mmjax import config as c
from mmjax.check import difference, free_port, on_processes
from mmjax.errors import UserError
from mmjax.parallel.mesh import AXES, make_mesh, mesh_shape, share_of_rows
from mmjax.parallel.runtime import simulated
from mmjax.train.report import division
from mmjax.train.validate import check_config

ON_8_DEVICES = """
import json, sys
from mmjax import config as c
from mmjax.check import Subject, difference, divided
from mmjax.parallel.mesh import make_mesh
import jax
with jax.default_matmul_precision("highest"):
    subject = Subject(c.load(sys.argv[1]))
    one = divided(subject, make_mesh(devices=jax.devices()[:1]))
    for axes in json.loads(sys.argv[2]):
        print("difference", difference(one, divided(subject, make_mesh(**axes))))
"""
MESHES = [
    {"data": 8},
    {"fsdp": 8},
    {"tensor": 8},
    {"context": 8},
    {"fsdp": 2, "tensor": 2, "context": 2},
    {"data": 2, "fsdp": 2, "tensor": 2},
]


def divisible(**mesh):
    """The tiny model with as many heads, and rows as long, as 8 devices can divide."""
    model = c.Multimodal(
        encoders={
            "speech": c.Conformer(
                layers=1, width=32, heads=8, stem=c.StridedStem(channels=8), convolution=c.Convolution(kernel=4)
            ),
            "image": c.ViT(patch=8, image_size=64, layers=1, width=32, heads=8, mlp=64),
            "text": c.Transformer(vocabulary=128, layers=1, width=32, heads=8, mlp=64),
        },
        fusion=c.CrossAttention(layers=1, width=32, heads=8, mlp=64, queries=2),
        tasks=tiny().model.tasks,
    )
    data = dataclasses.replace(
        tiny().data, rows={"speech": 352, "image": 128, "text": 16, "transcript": 24, "examples": 3}
    )
    return tiny(model=model, data=data, mesh=c.Mesh(**mesh))


@pytest.mark.slow
def test_every_axis_on_8_devices_is_one_device(tmp_path):
    (tmp_path / "config.json").write_text(c.to_json(divisible()))
    process = subprocess.run(
        [sys.executable, "-c", ON_8_DEVICES, str(tmp_path / "config.json"), json.dumps(MESHES)],
        env=os.environ | simulated(8),
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert process.returncode == 0, process.stderr[-3000:]
    found = [float(line.split()[1]) for line in process.stdout.splitlines() if line.startswith("difference")]
    assert len(found) == len(MESHES)
    for mesh, off in zip(MESHES, found, strict=True):
        assert off < 1e-5, mesh


@pytest.fixture(scope="module")
def one_process():
    """Loss and gradients of a process of its own: another compiler's settings would round otherwise."""
    return on_processes(divisible(), 1)


@pytest.mark.parametrize(
    "count, axes",
    [
        (2, {"fsdp": 2}),
        pytest.param(2, {"tensor": 2}, marks=pytest.mark.slow),
        pytest.param(2, {"context": 2}, marks=pytest.mark.slow),
        pytest.param(4, {"tensor": 2, "context": 2}, marks=pytest.mark.slow),
    ],
)
@pytest.mark.slow
def test_every_axis_on_real_processes_is_one_process(one_process, count, axes):
    assert difference(one_process, on_processes(divisible(), count, **axes)) < 1e-5


def test_what_takes_the_devices_that_others_leave():
    assert mesh_shape(16, tensor=2, context=4) == {"data": 2, "fsdp": 1, "tensor": 2, "context": 4}
    for axes, message in {
        (3, 1, 2, 1): "mesh.data=3 x mesh.tensor=2 = 6 is not the number of devices, 8",
        (1, 1, 1, 1): "mesh.data=1 is not the number of devices, 8",
        (-1, 8, 5, 1): "mesh.fsdp=8 x mesh.tensor=5 = 40 does not divide the number of devices, 8",
        (-1, 1, 1, 3): "mesh.context=3 does not divide the number of devices, 8",
    }.items():
        with pytest.raises(UserError, match=f"^{message}$"):
            mesh_shape(8, *axes)


def test_data_lies_across_slices_and_the_other_axes_inside():
    """As gradients are summed once a step, the slow network carries them alone."""

    class Device:
        platform, device_kind, process_index = "gpu", "a chip", 0

        def __init__(self, number):
            self.id, self.slice_index = number, number % 2  # as listed, the slices take turns

    mesh = make_mesh(data=2, fsdp=2, tensor=2, devices=[Device(number) for number in range(8)])
    assert mesh.axis_names == AXES and mesh.devices.shape == (2, 2, 2, 1)
    slices = np.vectorize(lambda device: device.slice_index)(mesh.devices)
    assert (slices[0] == 0).all() and (slices[1] == 1).all()


def test_other_axes_lie_across_slices_where_data_cannot():
    """Three slices of two, divided along fsdp alone: neighbours along it are of one slice as long as they can be."""

    class Device:
        platform, device_kind, process_index = "gpu", "a chip", 0

        def __init__(self, number):
            self.id, self.slice_index = number, number % 3

    mesh = make_mesh(fsdp=6, devices=[Device(number) for number in range(6)])
    assert mesh.devices.shape == (1, 6, 1, 1)
    assert [device.slice_index for device in mesh.devices.flat] == [0, 0, 1, 1, 2, 2]


@pytest.mark.parametrize("fsdp, reached", [(8, (4, 2, 1)), (16, (4, 4, 1)), (64, (4, 4, 4))])
def test_axes_of_every_size_lie_on_a_torus(fsdp, reached):
    """8 x 8 devices of 4 x 4 x 4: a dimension must be split, and is, where JAX's own `make_mesh` refuses."""

    class Chip:
        platform, device_kind, process_index, slice_index, core_on_chip = "tpu", "TPU v5", 0, 0, 0

        def __init__(self, number):
            self.id, self.coords = number, tuple(map(int, np.unravel_index(number, (4, 4, 4))))

    mesh = make_mesh(fsdp=fsdp, devices=[Chip(number) for number in range(64)])
    assert mesh.devices.shape == (64 // fsdp, fsdp, 1, 1)
    assert len({device.id for device in mesh.devices.flat}) == 64
    for group in mesh.devices[:, :, 0, 0]:  # neighbours: a block of the torus, of whole dimensions as far as they go
        places = np.array([device.coords for device in group])
        assert sorted((len(set(axis)) for axis in places.T), reverse=True) == list(reached)


@pytest.mark.parametrize("slices", [1, 2])
@pytest.mark.parametrize("fsdp, tensor", [(1, 1), (4, 1), (16, 1), (1, 2), (4, 4)])
def test_hosts_of_tpus_load_the_rows_of_their_devices(monkeypatch, slices, fsdp, tensor):
    """A host has a block of 2 x 2 chips of a torus, whose rows of chips axes follow: what it loads is not in one piece."""

    class Chip:
        platform, device_kind, core_on_chip = "tpu", "TPU v5 lite", 0

        def __init__(self, number):
            self.id, (self.slice_index, y, x) = number, np.unravel_index(number, (slices, 4, 4))
            self.coords, self.process_index = (int(x), int(y), 0), int(4 * self.slice_index + 2 * (y // 2) + x // 2)

    mesh = make_mesh(fsdp=fsdp, tensor=tensor, devices=[Chip(number) for number in range(16 * slices)])
    parts, loaded = mesh.shape["data"] * fsdp, []
    for process in range(4 * slices):
        monkeypatch.setattr(jax, "process_index", lambda process=process: process)
        share = share_of_rows(mesh)
        held = {
            n for n, group in enumerate(mesh.devices.reshape(parts, -1)) for d in group if d.process_index == process
        }
        assert share == (tuple(sorted(held)), parts) and len(share.rows(3 * parts)) == 3 * len(held)
        loaded += share.rows(3 * parts).tolist()
    assert sorted(set(loaded)) == list(range(3 * parts))


ON_2_PROCESSES = """
import sys, jax, numpy as np
jax.distributed.initialize(f"localhost:{sys.argv[1]}", 2, int(sys.argv[2]))
from mmjax.parallel.mesh import AXES, share_of_rows, to_devices
from mmjax.stream import Stream
order = np.array(jax.devices())[[0, 2, 1, 3]]  # the processes' devices take turns
mesh = jax.sharding.Mesh(order.reshape(2, 2, 1, 1), AXES)
share, rows = share_of_rows(mesh), np.arange(24).reshape(8, 3)
mine = rows[share.rows(8)]
there = to_devices({"examples": Stream(mine, mine, mine)}, mesh)["examples"].segments
right = [(shard.data == rows[shard.index]).all() and shard.data.shape == (2, 3) for shard in there.addressable_shards]
print(share.parts, there.shape, len(right), all(right))
"""


def test_rows_that_are_not_neighbours_come_to_their_devices():
    port = free_port()
    both = [
        subprocess.Popen(
            [sys.executable, "-c", ON_2_PROCESSES, str(port), str(number)],
            env=os.environ | simulated(2),
            stdout=subprocess.PIPE,
            text=True,
        )
        for number in range(2)
    ]
    printed = [process.communicate(timeout=120)[0].strip() for process in both]
    assert printed == ["(0, 2) (8, 3) 2 True", "(1, 3) (8, 3) 2 True"]


def test_a_topology_without_slices_is_one_slice():
    """As `mmjax plan` has it for TPUs: axes take whole dimensions of the torus, not the blocks of its hosts."""

    class Chip:
        platform, device_kind, core_on_chip = "tpu", "TPU v5", 0

        def __init__(self, number):
            self.id, self.coords = number, tuple(map(int, np.unravel_index(number, (4, 4, 4))))
            self.process_index = number // 4

    ring = make_mesh(tensor=4, devices=[Chip(number) for number in range(64)]).devices[0, 0, :, 0]
    assert sorted(len({device.coords[axis] for device in ring}) for axis in range(3)) == [1, 1, 4]


def test_groups_of_other_sizes_are_one_behind_the_other():
    class Device:
        platform, device_kind, process_index = "gpu", "a chip", 0

        def __init__(self, number):
            self.id, self.slice_index = number, int(number > 2)

    mesh = make_mesh(devices=[Device(number) for number in range(8)])
    assert [device.slice_index for device in mesh.devices.flat] == [0] * 3 + [1] * 5


def test_how_parameters_are_divided_is_told():
    mesh = jax.sharding.AbstractMesh((1, 4, 2, 1), AXES)

    def parameter(shape, *spec):
        return jax.ShapeDtypeStruct(shape, np.float32, sharding=NamedSharding(mesh, P(*spec)))

    params = {
        "encoders_text": {"up": parameter((8, 6), "fsdp", "tensor"), "down": parameter((6, 8, 2), "tensor", "fsdp")},
        "tasks_answer": {"kernel": parameter((8, 5), "fsdp", None), "bias": parameter((5,))},
    }
    assert division(params) == [
        {"along": "fsdp+tensor", "parameters": 144, "largest": "encoders_text/down 6x8x2"},
        {"along": "fsdp", "parameters": 40, "largest": "tasks_answer/kernel 8x5"},
        {"along": "nothing", "parameters": 5, "largest": "tasks_answer/bias 5"},
    ]


def test_tokens_that_cannot_be_divided_are_an_error_not_a_slower_run():
    check_config(divisible(context=8))
    with pytest.raises(UserError, match=r"data.rows.speech=328 does not divide among mesh.context=8 .* write 320"):
        check_config(dataclasses.replace(tiny(), mesh=c.Mesh(context=8)))
