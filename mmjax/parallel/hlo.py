"""Reads a compiled program (XLA's HLO text): what it sends, multiplies and moves, loops as often as they run."""

import itertools
import math
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from mmjax.flops import part_of
from mmjax.parallel.hlo_flops import ARRAY, dimensions, flops_by

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "ragged-all-to-all", "collective-permute")
BYTES = {"pred": 1, "c64": 8, "c128": 16}
# Of factors of 8 bits, the dtype under which `machines.DEVICES` has the peak of their products.
NARROW = {"s8": "int8", "u8": "int8", "f8": "float8"}
# What only names, forwards or waits for data that others have moved.
FREE = (
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional", "call", "after-all",
    "partition-id", "replica-id", "async-start", "async-update", "async-done", "opt-barrier",
)  # fmt: skip


class Instruction(NamedTuple):
    """One line of a computation; `rest` is all that stands behind the operands."""

    name: str
    opcode: str
    shape: str
    operands: list[str]
    rest: str

    def attribute(self, name: str) -> str | None:
        """The computation or number that stands behind `name=`."""
        found = re.search(rf"\b{name}=%?([\w.-]+)", self.rest)
        return found and found[1]

    def synchronous(self) -> "Instruction":
        """Of the first half of an asynchronous pair, the instruction that the pair stands for, with its result alone."""
        if not self.opcode.endswith("-start") or self.opcode == "async-start":
            return self
        shape, elements = self.shape, _elements(self.shape)
        if self.opcode == "copy-start":
            shape = elements[0]  # of (result, operand, context)
        elif self.opcode != "all-reduce-start" and len(elements) > 1:
            shape = elements[1]  # of (operands, result, contexts)
        return self._replace(opcode=self.opcode.removesuffix("-start"), shape=shape)

    @property
    def part(self) -> str:
        """The part of the model that it belongs to; "other" where none is named: mostly the optimizer."""
        found = re.search(r'op_name="((?:[^"\\]|\\.)*)"', self.rest)
        return part_of(found[1]) if found else "other"


class Collective(NamedTuple):
    """Devices exchanging data, as often as one step does it.

    Attributes:
      kind: of `KINDS`.
      part: of the model.
      groups: [groups, devices] positions in the mesh.
      times: per step.
      bytes: of the whole array once, per device and time: what is gathered, reduced, or exchanged.
    """

    kind: str
    part: str
    groups: np.ndarray
    times: float
    bytes: float

    @property
    def wire_bytes(self) -> float:
        """That a device receives in a step, at best (rings: Patarasuk and Yuan 2009)."""
        n = self.groups.shape[1]
        share = {"all-reduce": 2 * (n - 1) / n, "collective-permute": 1.0}.get(self.kind, (n - 1) / n)
        return self.times * self.bytes * share

    def axis(self, mesh_shape: dict[str, int]) -> str:
        """The mesh axes along which devices differ within a group, as "fsdp" or "data+fsdp"; "none" of one device."""
        places = np.stack(np.unravel_index(self.groups, tuple(mesh_shape.values())), -1)  # [groups, devices, axes]
        differs = (places != places[:, :1]).any((0, 1))
        return "+".join(name for name, found in zip(mesh_shape, differs, strict=True) if found) or "none"


class Program:
    """A compiled program.

    Attributes:
      collectives: all that are in it.
      flops: of its matrix products, per device and step, by part of the model.
      narrow: of those, the ones whose factors have 8 bits, by (part, dtype of `NARROW`).
      traffic: bytes between the device's memory and its units, likewise: what every instruction reads and writes.
      loops: how many loops there are whose count could not be read; they are counted once.
    """

    def __init__(self, text: str, devices: int):
        self._computations, self._entry = _parse(text)
        self._devices, self.loops = devices, 0
        self.collectives: list[Collective] = []
        self.flops: dict[str, float] = {}
        self.narrow: dict[tuple[str, str], float] = {}
        self.traffic: dict[str, float] = {}
        self._walk(self._entry, 1.0, fused=False)
        del self._computations

    def _walk(self, computation: str, times: float, fused: bool) -> None:
        table = self._computations[computation]
        for one in map(Instruction.synchronous, table.values()):
            if one.opcode in KINDS:
                self._collect(one, table, computation, times)
            if flops_of := flops_by(one.opcode, one.rest):
                factors = [table[name].shape for name in one.operands[:2]]
                flops = times * flops_of(one.rest, dimensions(one.shape), *map(dimensions, factors))
                self.flops[one.part] = self.flops.get(one.part, 0.0) + flops
                dtypes = {NARROW.get(factor[:2]) for factor in factors}
                if None not in dtypes:
                    key = one.part, min(dtypes)
                    self.narrow[key] = self.narrow.get(key, 0.0) + flops
            if not fused and one.opcode not in FREE and not one.opcode.endswith("-done"):
                self.traffic[one.part] = self.traffic.get(one.part, 0.0) + times * self._moved(one, table)
            self._enter(one, table, times, fused)

    def _enter(self, one: Instruction, table: dict[str, Instruction], times: float, fused: bool) -> None:
        """Walks the computations that an instruction calls."""
        if one.opcode == "while":
            count = self._trips(one, table)
            self.loops += count is None
            self._walk(one.attribute("body"), times * (1 if count is None else count), fused)
        elif one.opcode == "conditional":
            branches = re.search(r"(?:branch|true|false)_computations?=.*", one.rest) or [""]
            self._dearest(re.findall(r"%([\w.-]+)", branches[0]), times, fused)
        elif one.opcode in ("fusion", "call", "async-start"):
            name = one.attribute("calls") or one.attribute("to_apply")
            if name in self._computations:
                self._walk(name, times, fused or one.opcode == "fusion")

    def _dearest(self, branches: list[str], times: float, fused: bool) -> None:
        """Counts that one of several computations which multiplies, then moves, the most."""
        before, found = (self.collectives, self.flops, self.narrow, self.traffic), []
        for name in branches:
            if name in self._computations:
                self.collectives, self.flops, self.narrow, self.traffic = [], {}, {}, {}
                self._walk(name, times, fused)
                found.append((self.collectives, self.flops, self.narrow, self.traffic))
        self.collectives, self.flops, self.narrow, self.traffic = before
        if not found:
            return
        collectives, *counts = max(found, key=lambda one: (sum(one[1].values()), sum(one[3].values())))
        self.collectives += collectives
        for total, count in zip((self.flops, self.narrow, self.traffic), counts, strict=True):
            for part, value in count.items():
                total[part] = total.get(part, 0.0) + value

    def _collect(self, one: Instruction, table: dict, computation: str, times: float) -> None:
        kind, groups = one.opcode, _groups(one.rest, self._devices)
        size = sum(_bytes(table[name].shape, everywhere=True) for name in one.operands)
        if kind == "all-gather":
            size *= groups.shape[1]
        if kind == "all-reduce" and computation.startswith("all-reduce-scatter"):  # how TPUs fuse it with a slice
            kind = "reduce-scatter"
        if groups.shape[1] > 1:
            self.collectives.append(Collective(kind, one.part, groups, times, size))

    def _moved(self, one: Instruction, table: dict[str, Instruction]) -> float:
        """Bytes that an instruction reads and writes in the device's main memory."""
        if one.opcode in ("dynamic-slice", "slice", "gather"):
            return 2 * _bytes(one.shape)
        if one.opcode in ("dynamic-update-slice", "scatter"):
            return 2 * _bytes(table[one.operands[1 if one.opcode == "dynamic-update-slice" else 2]].shape)
        inner = self._computations.get(one.attribute("calls") or "") if one.opcode == "fusion" else None
        if inner is None:
            return _bytes(one.shape) + sum(_bytes(table[name].shape) for name in one.operands if name in table)
        return self._moved_by_fusion(one, table, inner)

    def _moved_by_fusion(self, one: Instruction, table: dict, inner: dict[str, Instruction]) -> float:
        """Of an array of which a fusion reads or writes a slice in place, only the slice."""
        used: dict[str, list[tuple[Instruction, int]]] = {}
        for user in inner.values():
            for place, name in enumerate(user.operands):
                used.setdefault(name, []).append((user, place))
        moved, updated = 0.0, 0.0
        for parameter in (p for p in inner.values() if p.opcode == "parameter"):
            number = int(parameter.operands[0])
            whole, users = _bytes(table[one.operands[number]].shape), used.get(parameter.name, [])
            if users and all(u.opcode in ("dynamic-slice", "slice", "gather") and not place for u, place in users):
                moved += min(whole, sum(_bytes(u.shape) for u, _ in users))
            elif users and all(u.opcode == "dynamic-update-slice" and not place for u, place in users):
                updated += sum(_bytes(inner[u.operands[1]].shape) - _bytes(u.shape) for u, _ in users)
            else:
                moved += whole
        return moved + max(_bytes(one.shape) + updated, 0.0)

    def _trips(self, loop: Instruction, table: dict[str, Instruction]) -> int | None:
        """How often a loop `for i in range(start, bound)` runs: from its condition and what it is started with."""
        noted = re.search(r'known_trip_count"?:\{"?n"?:"?(\d+)', loop.rest)
        if noted:
            return int(noted[1])
        condition = self._computations[loop.attribute("condition")]
        compared = next(
            (one for one in condition.values() if "pred[]" in one.shape and one.opcode in ("compare", "fusion")), None
        )
        if compared is None:
            return None
        names, rest = compared.operands, compared.rest
        if compared.opcode == "fusion":
            inner = self._computations[compared.attribute("calls")]
            core = next((one for one in inner.values() if one.opcode == "compare"), None)
            if core is None:
                return None
            sources = [inner[name] for name in core.operands]
            values = [condition[names[int(s.operands[0])]] if s.opcode == "parameter" else s for s in sources]
            rest = core.rest
        else:
            values = [condition[name] for name in names]
        started = table.get(loop.operands[0])
        ends = [self._constant(value, started, table) for value in values]
        if "direction=LT" not in rest or None in ends:
            return None
        return max(ends[1] - ends[0], 0)

    def _constant(self, value: Instruction, started: Instruction | None, table: dict[str, Instruction]) -> int | None:
        """The integer that a condition reads: a constant, or what the loop is started with."""
        if value.opcode == "get-tuple-element" and started is not None and started.opcode == "tuple":
            value = table[started.operands[int(value.attribute("index"))]]
        while value.opcode in ("copy", "bitcast") and value.operands[0] in table:
            value = table[value.operands[0]]
        if value.opcode == "constant" and re.fullmatch(r"-?\d+", value.operands[0]):
            return int(value.operands[0])
        return None


# Text. ----------------------------------------------------------------------------------------------------


def _parse(text: str) -> tuple[dict[str, dict[str, Instruction]], str]:
    computations: dict[str, dict[str, Instruction]] = {}
    entry, current = "", None
    for line in text.splitlines():
        if line.startswith((" ", "\t")) and current is not None:
            one = _instruction(line)
            if one:
                current[one.name] = one
        elif line.endswith("{") and (found := re.match(r"(ENTRY )?%?([\w.-]+)", line)) and "(" in line:
            current = computations.setdefault(found[2], {})
            entry = found[2] if found[1] else entry
    return computations, entry


def _instruction(line: str) -> Instruction | None:
    found = re.match(r"\s*(?:ROOT )?%?([\w.-]+) = ", line)
    if not found:
        return None
    rest = line[found.end() :]
    end = _closing(rest, 0) + 1 if rest.startswith("(") else rest.index(" ")
    shape, rest = rest[:end], rest[end:].lstrip()
    begin = rest.index("(")
    close = _closing(rest, begin)
    inside = rest[begin + 1 : close]
    operands = re.findall(r"%([\w.-]+)", inside) or ([inside] if inside else [])
    return Instruction(found[1], rest[:begin], shape, operands, rest[close + 1 :])


def _elements(shape: str) -> list[str]:
    """ "((f32[2]{0}), f32[4]{0}, u32[])" -> its elements, of which some may be tuples; an array is one element."""
    if not shape.startswith("("):
        return [shape]
    found, depth, begin = [], 0, 1
    for place, letter in enumerate(shape):
        depth += (letter in "([{") - (letter in ")]}")
        if (letter == "," and depth == 1) or (letter == ")" and depth == 0):
            found.append(shape[begin:place].strip())
            begin = place + 1
    return found


def _closing(text: str, begin: int) -> int:
    """Where the parenthesis at `begin` is closed."""
    depth = 0
    for found in re.finditer(r"[()]", text[begin:]):
        depth += 1 if found[0] == "(" else -1
        if depth == 0:
            return begin + found.start()
    return len(text) - 1


def _bytes(shape: str, everywhere: bool = False) -> float:
    """Of an array or a tuple of them; what lies in a TPU's fast memory, S(1), counts only `everywhere`."""
    total = 0.0
    for dtype, sizes, layout in ARRAY.findall(shape):
        if ("S(1)" in layout and not everywhere) or dtype in ("token", "opaque"):
            continue
        bits = re.search(r"\d+", dtype)
        size = BYTES.get(dtype) or (int(bits[0]) / 8 if bits else 0)
        total += size * math.prod(int(d) for d in sizes.split(",") if d)
    return total


def _groups(text: str, devices: int) -> np.ndarray:
    """The replica groups [groups, devices] of a collective, in whichever way they are written."""
    pairs = re.search(r"source_target_pairs=\{((?:\{\d+,\d+\},?)*)\}", text)
    if pairs:
        return _cycles([tuple(map(int, pair)) for pair in re.findall(r"\{(\d+),(\d+)\}", pairs[1])])
    named = re.search(
        r"replica_groups=mesh\[([^\]]*)\](?:, ?device_ids=\(([^)]*(?:\([\d,]*\))?)\))? ?\{([^}]*)\}", text
    )
    if named:
        return _groups_of_mesh(*named.groups())
    ordered = re.search(r"replica_groups=\[(\d+),(\d+)\]<=(\[[\d,]*\](?:T\([\d,]*\))?)", text)
    if ordered:
        return _iota(ordered[3]).reshape(int(ordered[1]), int(ordered[2]))
    listed = re.search(r"replica_groups=\{((?:\{[\d,]*\},?)*)\}", text)
    found = [[int(i) for i in one.split(",")] for one in re.findall(r"\{([\d,]+)\}", listed[1])] if listed else []
    return np.array(found or [list(range(devices))])


def _iota(text: str) -> np.ndarray:
    """ "[2,4]T(1,0)" -> 0 .. 7 in that shape, transposed."""
    shape, order = re.fullmatch(r"\[([\d,]*)\](?:T\(([\d,]*)\))?", text).groups()
    sizes = [int(d) for d in shape.split(",")]
    array = np.arange(math.prod(sizes)).reshape(sizes)
    return array.transpose([int(d) for d in order.split(",")]) if order else array


def _groups_of_mesh(axes: str, order: str | None, chosen: str) -> np.ndarray:
    """ "'a'=2,'b'=4", "[8]", "'b'" -> groups along b; "'b':(2)2" is the part of b behind its first 2."""
    sizes = {name: int(size) for name, size in re.findall(r"'([^']*)'=(\d+)", axes)}
    ids = _iota(order) if order else np.arange(math.prod(sizes.values()))
    split, names, moved = [], list(sizes), []
    wanted = re.findall(r"'([^']*)'(?::\((\d+)\)(\d+))?", chosen)
    for name in names:
        parts = [(int(before), int(size)) for n, before, size in wanted if n == name and before]
        if parts:
            before, size = parts[0]
            moved.append(len(split) + 1)
            split += [before, size, sizes[name] // before // size]
        else:
            if any(n == name for n, *_ in wanted):
                moved.append(len(split))
            split.append(sizes[name])
    array = np.moveaxis(ids.reshape(split), moved, range(-len(moved), 0))
    return array.reshape(-1, math.prod(split[i] for i in moved))


def _cycles(pairs: list[tuple[int, int]]) -> np.ndarray:
    """Who exchanges with whom: pairs as groups of two, without those who keep their own."""
    return np.array([pair for pair in pairs if pair[0] != pair[1]] or [(0,)])


def by_axis(collectives: list[Collective], mesh_shape: dict[str, int]) -> Iterator[tuple[str, str, list[Collective]]]:
    """(axis, kind, the collectives of that kind along it)."""

    def key(one: Collective) -> Any:
        return one.axis(mesh_shape), one.kind

    for (axis, kind), found in itertools.groupby(sorted(collectives, key=key), key=key):
        yield axis, kind, list(found)
