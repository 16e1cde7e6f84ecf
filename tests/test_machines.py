"""What `mmjax plan` knows of machines, their links, and how they scale."""

import numpy as np
import pytest

from mmjax.errors import UserError
from mmjax.parallel import machines
from mmjax.plan import report, roofline
from mmjax.plan.hlo import Collective


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
        ("v5p:3x3x3", "there is no slice v5p:3x3x3; each of its dimensions is 1, 2 or a multiple of 4 chips"),
        ("v5p:16x16x32", "there is no slice v5p:16x16x32; the largest has 6,144 chips"),
        ("v5e:4x32", "each of its dimensions is 1, 2, 4, 8 or 16 chips"),
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
        assert (0.9e9 < device.cycles < 3e9) == (device.platform == "tpu"), kind
    assert machines.PEAKS["NVIDIA H100 80GB HBM3"] == pytest.approx(989e12, rel=1e-3)
    assert len(machines.PEAKS) == len(machines.DEVICES)


def test_weak_scaling_that_takes_as_long_is_one_line():
    rows = roofline.weak_scaling(machines.parse("h100:8"), {"data": 8}, 1e-3, 0.0, 1e8)
    table = report._scaling(rows)
    assert [row["devices"] for row in rows] == [8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096]
    assert list(table.columns[0].cells) == ["8 to 4,096"] and list(table.columns[2].cells) == ["100 %"]
    slower = report._scaling(roofline.weak_scaling(machines.parse("h100:8"), {"data": 8}, 1e-3, 0.0, 1e9))
    assert list(slower.columns[0].cells)[:2] == ["8", "16"]


def test_a_link_knows_nodes_and_rings():
    h100, v5p = machines.parse("h100:8x2"), machines.parse("v5p:4x4x4")
    reached = roofline.REACHED["network"]
    assert roofline.link(h100, range(8)) == (450e9 * reached, "within a node")
    assert roofline.link(h100, (3, 11)) == (50e9 * reached, "between nodes")
    assert roofline.link(h100, range(16))[0] == 400e9 * reached  # eight networks of each node together
    # The slowest node of a group, the slowest group of a collective; a node is as large as the machine has them.
    assert roofline.link(h100, range(4, 12))[0] == 4 * 50e9 * reached
    assert roofline.link(h100, (*range(8), *range(8, 12)))[0] == 4 * 50e9 * reached
    groups, places = np.arange(12).reshape(3, 4), np.arange(12)
    one = Collective("all-gather", "speech", groups, 1.0, 4e9)
    assert roofline.exchange_seconds(machines.parse("h100:6x2"), one, places, None) == one.wire_bytes / (
        100e9 * reached
    )
    small = roofline.weak_scaling(machines.parse("h100:4x2"), {"data": 8}, 0.0, 0.0, 1e9)
    assert small[0]["devices"] == 8 and "between nodes" in small[0]["assumption"]
    assert roofline.link(v5p, range(64))[0] == 600e9 * reached  # three closed rings: all six links
    assert roofline.link(v5p, range(4))[0] == pytest.approx(200e9 * reached)  # one ring: two links
    assert roofline.link(machines.parse("v5p:2x2x4"), range(4))[0] == pytest.approx(100e9 * reached)  # an open line
    assert roofline.link(machines.parse("v5p:2x2x1"), range(4))[0] == pytest.approx(200e9 * reached)  # two open lines
