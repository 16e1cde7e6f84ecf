"""Counts collectives, FLOPs and memory traffic of a compiled program (XLA's HLO text), including loop trip counts."""

import itertools
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from mmjax.flops import turns
from mmjax.plan.hlo_flops import dimensions, flops_by
from mmjax.plan.hlo_text import Instruction, groups_in, parse, size_in_bytes

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "ragged-all-to-all", "collective-permute")
# From the prefix of an 8-bit HLO dtype to the key of its peak in `machines.DEVICES`.
NARROW = {"s8": "int8", "u8": "int8", "f8": "float8"}
# Instructions that move no data themselves: they name, forward or wait for it.
FREE = (
    "parameter",
    "constant",
    "tuple",
    "get-tuple-element",
    "bitcast",
    "while",
    "conditional",
    "call",
    "after-all",
    "partition-id",
    "replica-id",
    "async-start",
    "async-update",
    "async-done",
    "opt-barrier",
)


# Instructions that update part of an array in place, with the operand number of the update.
UPDATES = {"dynamic-update-slice": 1, "scatter": 2}


class Collective(NamedTuple):
    """A collective operation, with the number of its executions per step.

    Attributes:
      kind: of `KINDS`.
      part: of the model.
      groups: [groups, devices] positions in the mesh.
      times: per step.
      bytes: size of the whole gathered, reduced or exchanged array, per device and execution.
    """

    kind: str
    part: str
    groups: np.ndarray
    times: float
    bytes: float

    @property
    def wire_bytes(self) -> float:
        """Bytes that a device must receive per step (ring algorithms: Patarasuk and Yuan 2009)."""
        n = self.groups.shape[1]
        share = {"all-reduce": 2 * (n - 1) / n, "collective-permute": 1.0}.get(self.kind, (n - 1) / n)
        return self.times * self.bytes * share

    def axis(self, mesh_shape: dict[str, int]) -> str:
        """The mesh axes along which the devices of a group differ, such as "data+fsdp"; "none" for single devices."""
        places = np.stack(np.unravel_index(self.groups, tuple(mesh_shape.values())), -1)  # [groups, devices, axes]
        differs = (places != places[:, :1]).any((0, 1))
        return "+".join(name for name, found in zip(mesh_shape, differs, strict=True) if found) or "none"


class _Around(NamedTuple):
    """The context of a called computation.

    Attributes:
      times: its executions per step.
      part: the part of the model for instructions that name none, such as copies.
      chains: inside a fusion, the chains whose first step the calling computation already contains.
    """

    times: float
    part: str = "other"
    chains: set[str] | None = None


class Program:
    """A compiled program.

    Args:
      text: the program as HLO text.
      devices: number of devices that run it.
      slots: largest number of examples per row, for loops along examples (`mmjax.flops.turns`).

    Attributes:
      collectives: all collectives of the program.
      flops: of its matrix products, per device and step, by part of the model.
      narrow: the FLOPs of products with 8-bit factors, by (part, dtype of `NARROW`).
      traffic: bytes that instructions read and write in device memory, per device and step, by part.
      cycles: sum of the cycles that a TPU's compiler estimates per instruction, per step, by part; empty on other platforms.
      loops: number of loops whose trip count could not be read; their bodies are counted once.
    """

    def __init__(self, text: str, devices: int, slots: int = 1):
        self._computations, self._entry = parse(text)
        self._devices, self._slots, self.loops = devices, slots, 0
        self.collectives: list[Collective] = []
        self.flops: dict[str, float] = {}
        self.narrow: dict[tuple[str, str], float] = {}
        self.traffic: dict[str, float] = {}
        self.cycles: dict[str, float] = {}
        self._walk(self._entry, _Around(1.0))
        del self._computations

    def _walk(self, computation: str, around: _Around) -> None:
        table, fused = self._computations[computation], around.chains is not None
        chains = around.chains if fused else set()
        for one in map(Instruction.synchronous, table.values()):
            here = around._replace(part=one.part if one.part != "other" else around.part)
            chain = one.chain
            begins = chain is not None and chain not in chains
            if one.opcode in KINDS and (begins or chain is None):
                self._collect(one, table, computation, here)
            if chain is not None:
                chains.add(chain)
            if flops_of := flops_by(one.opcode, one.rest):
                factors = [table[name].shape for name in one.operands[:2]]
                flops = here.times * flops_of(one.rest, dimensions(one.shape), *map(dimensions, factors))
                _add(self.flops, here.part, flops)
                dtypes = {NARROW.get(factor[:2]) for factor in factors}
                if None not in dtypes and one.target != "tpu_custom_call":  # its first operands are masks
                    _add(self.narrow, (here.part, min(dtypes)), flops)
            if begins or (not fused and one.opcode not in FREE and not one.opcode.endswith("-done")):
                _add(self.traffic, here.part, here.times * self._moved(one, table))
            if not fused and (cycles := one.cycles):
                _add(self.cycles, here.part, here.times * cycles)
            self._enter(one, table, here._replace(chains=chains if fused or one.opcode == "fusion" else None))

    def _enter(self, one: Instruction, table: dict[str, Instruction], around: _Around) -> None:
        """Walks the computations that an instruction calls."""
        if one.opcode == "while":
            count = self._trips(one, table)
            if count is None and (most := turns(one.name_stack)):
                count = most / self._slots
            self.loops += count is None
            self._walk(one.attribute("body"), around._replace(times=around.times * (1 if count is None else count)))
        elif one.opcode == "conditional":
            branches = re.search(r"(?:branch|true|false)_computations?=.*", one.rest) or [""]
            self._dearest(re.findall(r"%([\w.-]+)", branches[0]), around)
        elif one.opcode in ("fusion", "call", "async-start"):
            name = one.attribute("calls") or one.attribute("to_apply")
            if name in self._computations:
                self._walk(name, around)

    def _dearest(self, branches: list[str], around: _Around) -> None:
        """Counts the most expensive branch: the one with the most FLOPs, then the most traffic."""

        def counts() -> tuple[dict, ...]:
            return self.flops, self.narrow, self.traffic, self.cycles

        before, totals, found = self.collectives, counts(), []
        for name in branches:
            if name in self._computations:
                self.collectives, self.flops, self.narrow, self.traffic, self.cycles = [], {}, {}, {}, {}
                self._walk(name, around)
                found.append((self.collectives, counts()))
        self.collectives, (self.flops, self.narrow, self.traffic, self.cycles) = before, totals
        if not found:
            return
        collectives, dearest = max(found, key=lambda one: (sum(one[1][0].values()), sum(one[1][2].values())))
        self.collectives += collectives
        for total, count in zip(totals, dearest, strict=True):
            for part, value in count.items():
                _add(total, part, value)

    def _collect(self, one: Instruction, table: dict, computation: str, here: _Around) -> None:
        kind, groups = one.opcode, groups_in(one.rest, self._devices)
        size = sum(size_in_bytes(table[name].shape, everywhere=True) for name in one.operands)
        if kind == "all-gather":
            size *= groups.shape[1]
        if kind == "all-reduce" and computation.startswith(
            "all-reduce-scatter"
        ):  # TPUs implement it as a fused all-reduce and slice
            kind = "reduce-scatter"
        if groups.shape[1] > 1:
            self.collectives.append(Collective(kind, here.part, groups, here.times, size))

    def _moved(self, one: Instruction, table: dict[str, Instruction]) -> float:
        """Bytes that an instruction reads and writes in the device's main memory."""
        if one.target == "AllocateBuffer":
            return 0.0
        if one.opcode in ("dynamic-slice", "slice", "gather"):
            return 2 * size_in_bytes(one.shape)
        if one.opcode in UPDATES:
            return 2 * size_in_bytes(table[one.operands[UPDATES[one.opcode]]].shape)
        inner = self._computations.get(one.attribute("calls") or "") if one.opcode == "fusion" else None
        if inner is None:
            return size_in_bytes(one.shape) + sum(
                size_in_bytes(table[name].shape) for name in one.operands if name in table
            )
        return self._moved_by_fusion(one, table, inner)

    def _moved_by_fusion(self, one: Instruction, table: dict, inner: dict[str, Instruction]) -> float:
        """Bytes that a fusion reads and writes: of an array sliced in place only the slice; of a forwarded array nothing."""
        written = size_in_bytes(one.shape)
        read, root = 0.0, _root(inner)
        handed_on = {each.name for each in inner.values() if each.opcode == "parameter" or each.chain}
        if root.opcode == "tuple":
            written -= sum(size_in_bytes(inner[name].shape) for name in root.operands if name in handed_on)
        elif root.target.startswith("AsyncCollective"):
            written = 0.0
        for name in (each.name for each in inner.values() if each.opcode == "parameter"):
            whole = size_in_bytes(table[one.operands[int(inner[name].operands[0])]].shape)
            part, kept = self._touched(name, inner)
            read, written = read + min(whole, part), written - kept
        return read + max(written, 0.0)

    def _touched(self, name: str, inner: dict[str, Instruction]) -> tuple[float, float]:
        """For an array inside a fusion: the bytes that are read, and the bytes that an in-place update does not touch."""
        read, kept = 0.0, 0.0
        for user in inner.values():
            for place in (place for place, operand in enumerate(user.operands) if operand == name):
                called = self._computations.get(user.attribute("calls") or "") if user.opcode == "fusion" else None
                if user.chain or user.opcode == "tuple" or user.target.startswith("AsyncCollective"):
                    continue
                if user.opcode in ("dynamic-slice", "slice", "gather") and not place:
                    read += size_in_bytes(user.shape)
                elif user.opcode in UPDATES and not place and _is_result(user, inner):
                    kept += size_in_bytes(user.shape) - size_in_bytes(inner[user.operands[UPDATES[user.opcode]]].shape)
                elif user.opcode == "bitcast" or called:
                    within = (_parameter(called, place), called) if called else (user.name, inner)
                    deeper = self._touched(*within)
                    read, kept = read + deeper[0], kept + deeper[1]
                else:
                    read += size_in_bytes(inner[name].shape)
        return read, kept

    def _trips(self, loop: Instruction, table: dict[str, Instruction]) -> int | None:
        """The trip count of a loop `for i in range(start, bound, step)`, read from its condition, body and initial state."""
        noted = re.search(r'known_trip_count"?:\{"?n"?:"?(\d+)', loop.rest)
        if noted:
            return int(noted[1])
        condition = self._computations[loop.attribute("condition")]
        found = self._inner(_root(condition), condition)
        if found is None or found[0].opcode != "compare" or "direction=LT" not in found[0].rest or None in found[1]:
            return None
        counter, bound = found[1]
        started = table.get(loop.operands[0])
        begin, end = (self._constant(value, started, table) for value in (counter, bound))
        body = self._computations[loop.attribute("body")]
        step, stays = self._step(counter, body), bound.opcode != "get-tuple-element" or _is_handed_on(bound, body)
        if None in (begin, end, step) or not stays:
            return None
        return max(-(-(end - begin) // step), 0)

    def _inner(
        self, one: Instruction, table: dict[str, Instruction]
    ) -> tuple[Instruction, list[Instruction | None]] | None:
        """An instruction, or the root of a fusion, with its operands as instructions of `table`."""
        if one.opcode != "fusion":
            return one, [table.get(name) for name in one.operands]
        inner = self._computations.get(one.attribute("calls") or "")
        if inner is None:
            return None
        root, given = _root(inner), [table.get(name) for name in one.operands]
        sources = [inner[name] for name in root.operands if name in inner]
        return root, [given[int(s.operands[0])] if s.opcode == "parameter" else s for s in sources]

    def _step(self, counter: Instruction, body: dict[str, Instruction]) -> int | None:
        """The constant that a loop's body adds to a counter in its state."""
        root = _root(body)
        if counter.opcode != "get-tuple-element" or root.opcode != "tuple":
            return None
        index = counter.attribute("index")
        found = self._inner(_source(body[root.operands[int(index)]], body), body)
        if found is None or found[0].opcode != "add" or None in found[1]:
            return None
        added = [_source(one, body) for one in found[1]]
        old = [one for one in added if _is_element(one, index, body)]
        steps = [int(one.operands[0]) for one in added if one.opcode == "constant" and one.operands[0].isdigit()]
        return steps[0] if old and steps and steps[0] > 0 else None

    def _constant(self, value: Instruction, started: Instruction | None, table: dict[str, Instruction]) -> int | None:
        """The integer that a condition reads: a constant, or an element of the loop's initial state."""
        if value.opcode == "get-tuple-element" and started is not None and started.opcode == "tuple":
            value = table[started.operands[int(value.attribute("index"))]]
        value = _source(value, table)
        if value.opcode == "constant" and re.fullmatch(r"-?\d+", value.operands[0]):
            return int(value.operands[0])
        return None


def _root(computation: dict[str, Instruction]) -> Instruction:
    """The result of a computation: its last instruction."""
    return list(computation.values())[-1]


def _source(one: Instruction, computation: dict[str, Instruction]) -> Instruction:
    """The instruction behind a chain of copies."""
    while one.opcode in ("copy", "copy-start", "copy-done", "bitcast") and one.operands[0] in computation:
        one = computation[one.operands[0]]
    return one


def _is_element(one: Instruction, index: str | None, computation: dict[str, Instruction]) -> bool:
    """Whether an instruction reads this element of the computation's tuple parameter."""
    reads = one.opcode == "get-tuple-element" and one.attribute("index") == index
    return reads and computation[one.operands[0]].opcode == "parameter"


def _is_handed_on(element: Instruction, body: dict[str, Instruction]) -> bool:
    """Whether a loop's body leaves an element of its state unchanged."""
    root, index = _root(body), element.attribute("index")
    return root.opcode == "tuple" and _is_element(_source(body[root.operands[int(index)]], body), index, body)


def _parameter(computation: dict[str, Instruction], number: int) -> str:
    """The name of a computation's parameter."""
    return next(p.name for p in computation.values() if p.opcode == "parameter" and p.operands == [str(number)])


def _is_result(one: Instruction, computation: dict[str, Instruction]) -> bool:
    """Whether an instruction's result is only returned by the computation, and not used inside it."""
    users = [user for user in computation.values() if one.name in user.operands]
    return all(user.opcode == "tuple" or (user.opcode == "bitcast" and _is_result(user, computation)) for user in users)


def _add(total: dict, key: Any, value: float) -> None:
    total[key] = total.get(key, 0.0) + value


def by_axis(collectives: list[Collective], mesh_shape: dict[str, int]) -> Iterator[tuple[str, str, list[Collective]]]:
    """Groups collectives: yields (axis, kind, collectives)."""

    def key(one: Collective) -> Any:
        return one.axis(mesh_shape), one.kind

    for (axis, kind), found in itertools.groupby(sorted(collectives, key=key), key=key):
        yield axis, kind, list(found)
