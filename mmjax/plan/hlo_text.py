"""Parses the text of compiled programs (XLA's HLO): instructions, array sizes and replica groups."""

import math
import re
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from mmjax.models.roles import part_of
from mmjax.plan.hlo_flops import ARRAY

BYTES = {"pred": 1, "c64": 8, "c128": 16}
UNKNOWN_CYCLES = 2**62


class Instruction(NamedTuple):
    """One line of a computation; `rest` is the text after the operands."""

    name: str
    opcode: str
    shape: str
    operands: list[str]
    rest: str

    def attribute(self, name: str) -> str | None:
        """The computation or number after `name=`."""
        found = re.search(rf"\b{name}=%?([\w.-]+)", self.rest)
        return found and found[1]

    def synchronous(self) -> "Instruction":
        """Turns the start of an asynchronous pair into its synchronous instruction, with the shape of the result only."""
        if not self.opcode.endswith("-start") or self.opcode == "async-start":
            return self
        shape, found = self.shape, elements(self.shape)
        if self.opcode == "copy-start":
            shape = found[0]  # from (result, operand, context)
        elif self.opcode != "all-reduce-start" and len(found) > 1:
            shape = found[1]  # from (operands, result, contexts)
        return self._replace(opcode=self.opcode.removesuffix("-start"), shape=shape)

    @property
    def chain(self) -> str | None:
        """The id of a gather that a TPU splits into steps, to overlap it; each step has the full shape."""
        found = re.search(r'chain_id="([^"]*)"', self.rest)
        return found and found[1]

    @property
    def target(self) -> str:
        """The target of a custom call; "" for other instructions."""
        found = re.search(r'custom_call_target="([^"]*)"', self.rest)
        return found[1] if found else ""

    @property
    def cycles(self) -> float:
        """The cycles estimated by a TPU's compiler; 0 if absent, or unknown to the compiler (a sentinel value)."""
        found = re.search(r'"estimated_cycles":"(\d+)"', self.rest)
        return float(found[1]) if found and int(found[1]) < UNKNOWN_CYCLES else 0.0

    @property
    def name_stack(self) -> str:
        """The name scopes of the traced program, or ""."""
        found = re.search(r'op_name="((?:[^"\\]|\\.)*)"', self.rest)
        return found[1] if found else ""

    @property
    def part(self) -> str:
        """The part of the model, from the name scopes; "other" for instructions of no part, mostly the optimizer's."""
        return part_of(self.name_stack)


def parse(text: str) -> tuple[dict[str, dict[str, Instruction]], str]:
    computations: dict[str, dict[str, Instruction]] = {}
    entry, current = "", None
    for line in _lines(text):
        if line.startswith((" ", "\t")) and current is not None:
            one = _instruction(line)
            if one:
                current[one.name] = one
        elif line.endswith("{") and (found := re.match(r"(ENTRY )?%?([\w.-]+)", line)) and "(" in line:
            current = computations.setdefault(found[2], {})
            entry = found[2] if found[1] else entry
    return computations, entry


def _lines(text: str) -> Iterator[str]:
    """The lines of a program; joins lines that were split by line breaks in the metadata of kernels."""
    whole = ""
    for line in text.splitlines():
        if (whole.startswith(" ") and line and line[0] not in " }") or line.startswith("}}"):
            whole += line
        else:
            yield whole
            whole = line
    yield whole


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


def elements(shape: str) -> list[str]:
    """ "((f32[2]{0}), f32[4]{0}, u32[])" -> its elements, which may be tuples; an array gives itself."""
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
    """The index of the parenthesis that closes the one at `begin`."""
    depth = 0
    for found in re.finditer(r"[()]", text[begin:]):
        depth += 1 if found[0] == "(" else -1
        if depth == 0:
            return begin + found.start()
    return len(text) - 1


def size_in_bytes(shape: str, everywhere: bool = False) -> float:
    """The size of an array or tuple; arrays in a TPU's fast memory, S(1), count only with `everywhere`."""
    total = 0.0
    for dtype, sizes, layout in ARRAY.findall(shape):
        if ("S(1)" in layout and not everywhere) or dtype in ("token", "opaque"):
            continue
        bits = re.search(r"\d+", dtype)
        size = BYTES.get(dtype) or (int(bits[0]) / 8 if bits else 0)
        total += size * math.prod(int(d) for d in sizes.split(",") if d)
    return total


def groups_in(text: str, devices: int) -> np.ndarray:
    """The replica groups [groups, devices] of a collective, from any of the syntaxes of HLO."""
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
    """ "[2,4]T(1,0)" -> 0 .. 7 in this shape, transposed."""
    shape, order = re.fullmatch(r"\[([\d,]*)\](?:T\(([\d,]*)\))?", text).groups()
    sizes = [int(d) for d in shape.split(",")]
    array = np.arange(math.prod(sizes)).reshape(sizes)
    return array.transpose([int(d) for d in order.split(",")]) if order else array


def _groups_of_mesh(axes: str, order: str | None, chosen: str) -> np.ndarray:
    """ "'a'=2,'b'=4", "[8]", "'b'" -> groups along b; "'b':(2)2" is the minor part, of size 2, of b split into (2, 2)."""
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
    """Source-target pairs as groups of two, without pairs of a device with itself."""
    return np.array([pair for pair in pairs if pair[0] != pair[1]] or [(0,)])
