"""Shows the result of `mmjax plan` as tables and as one picture."""

from collections.abc import Mapping
from html import escape
from typing import Any

from rich.table import Table
from rich.text import Text

COLOURS = ("#4477aa", "#66ccee", "#228833", "#ccbb44", "#ee6677", "#aa3377", "#bbbbbb", "#44aa99", "#882255", "#ddcc77")


def tables(result: Mapping[str, Any]) -> list[Any]:
    """Lines and tables for a terminal."""
    how = "compiled for this machine" if result["compiled"] else "an estimate"
    mesh = " x ".join(f"{name} {size}" for name, size in result["mesh"].items())
    shown: list[Any] = [f"{result['config']} on {result['machine']} ({how}), mesh {mesh}, {result['batch_rows']} rows"]
    if "note" in result:
        shown.append(Text(result["note"], style="yellow"))
    shown += [_memory(result), _parts(result), _division(result)]
    shown += [_collectives(result)] if result["collectives"] else []
    shown.append(_summary(result))
    if "weak_scaling" in result:
        shown.append(_scaling(result["weak_scaling"]))
    if "search" in result:
        found = result["search"]
        shown.append(
            f"largest batch that fits: {found['batch_rows']} rows ({found['rows_per_device']} per device); tried "
            + ", ".join(f"{one['batch_rows']} ({_size(one['peak_memory_bytes'])})" for one in found["tried"])
        )
        shown.append(_remats(found))
    return [*shown, *result["attention"], "assumed: " + "; ".join(result["assumptions"])]


def _memory(result: Mapping[str, Any]) -> Table:
    usable, peak = result["usable_memory_bytes"], result["peak_memory_bytes"]
    verdict = (
        f"fits, {_size(usable - peak)} free" if result["fits"] else f"does not fit, {_size(peak - usable)} too much"
    )
    title = Text(f"{_size(peak)} of {_size(usable)}: {verdict}", style="" if result["fits"] else "red")
    table = Table("memory per device", title=title, title_justify="left")
    table.add_column("", justify="right")
    for name, size in result["memory"].items():
        table.add_row(name, _size(size))
    return table


def _parts(result: Mapping[str, Any]) -> Table:
    table = Table("part")
    for heading in ("GFLOP per step", "compiled", "compute ms", "memory ms", "network ms", "bound by"):
        table.add_column(heading, justify="right")
    compiled = result.get("compiled_flops", {})
    for name, part in sorted(result["parts"].items(), key=lambda item: -max(item[1][k] for k in ("compute", "memory"))):
        times = [f"{1e3 * part[key]:.3g}" for key in ("compute", "memory", "network")]
        counts = [f"{found[name] / 1e9:,.1f}" if name in found else "–" for found in (result["flops"], compiled)]
        table.add_row(name, *counts, *times, part["bound"])
    return table


def _division(result: Mapping[str, Any]) -> Table:
    table = Table("divided along")
    table.add_column("parameters", justify="right")
    table.add_column("the largest of them")
    for one in result["division"]:
        table.add_row(one["along"], f"{one['parameters']:,}", one["largest"])
    return table


def _collectives(result: Mapping[str, Any]) -> Table:
    table = Table("axis", "collective")
    for heading in ("times", "MB per step", "expected of parameters"):
        table.add_column(heading, justify="right")
    for one in result["collectives"]:
        table.add_row(
            one["axis"],
            one["kind"],
            f"{one['times']:,.0f}",
            f"{one['bytes'] / 1e6:,.1f}",
            f"{one['expected'] / 1e6:,.1f}",
        )
    return table


def _remats(found: Mapping[str, Any]) -> Table:
    cheapest = found["cheapest_remat"]
    verdict = f"the cheapest that fits: {cheapest}" if cheapest else Text("none fits", style="red")
    table = Table("remat of all towers", title=verdict, title_justify="left")
    for heading in ("memory per device", "fits", "step ms"):
        table.add_column(heading, justify="right")
    for one in found["remat"]:
        fits = "yes" if one["fits"] else "no"
        table.add_row(one["remat"], _size(one["peak_memory_bytes"]), fits, f"{1e3 * one['step_seconds']:.3g}")
    return table


def _summary(result: Mapping[str, Any]) -> str:
    lines = [f"step {1e3 * result['step_seconds']:.3g} ms, MFU {100 * result['mfu']:.1f} %"]
    if expected := result.get("compiler_seconds"):
        dearest = sorted(expected.items(), key=lambda item: -item[1])
        by_part = ", ".join(f"{name} {1e3 * seconds:.3g}" for name, seconds in dearest)
        lines.append(
            f"libtpu's own cost model, without overlap of instructions: {1e3 * sum(expected.values()):.3g} ms ({by_part})"
        )
    tokens = ", ".join(
        f"{name} {rate:,.0f}" for name, rate in result["tokens_per_second"].items() if name != "examples"
    )
    lines.append(f"tokens per second: {tokens} (useful positions: {result['useful_share']['from']})")
    if "audio_seconds_per_second" in result:
        lines.append(f"{result['audio_seconds_per_second']:,.0f} seconds of audio per second")
    if "cost_per_1000_hours_of_audio" in result:
        lines.append(f"1,000 hours of audio cost {_money(result['cost_per_1000_hours_of_audio'])}")
    if "cost_of_the_run" in result:
        lines.append(f"all steps of the run cost {_money(result['cost_of_the_run'])}")
    if result.get("loops_counted_once"):
        lines.append(
            f"{result['loops_counted_once']} loops have a trip count that depends on the data; they are counted once"
        )
    return "\n".join(lines)


def _scaling(rows: list[Mapping[str, Any]]) -> Table:
    """Device counts with equal times share a row, which shows the assumption of the largest count."""
    table = Table("devices", "step ms", "efficiency", "on paper, assuming", title="weak scaling", title_justify="left")
    lines: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for row in rows:
        lines.setdefault((f"{1e3 * row['step_seconds']:.3g}", f"{100 * row['efficiency']:.0f} %"), []).append(row)
    for columns, alike in lines.items():
        counts = f"{alike[0]['devices']:,}" + (f" to {alike[-1]['devices']:,}" if len(alike) > 1 else "")
        table.add_row(counts, *columns, alike[-1]["assumption"])
    return table


def _money(amount: float) -> str:
    return f"{amount:,.2f}" if amount >= 1 else f"{amount:.2g}"


def _size(size: float) -> str:
    for unit, scale in (("GiB", 2**30), ("MiB", 2**20)):
        if abs(size) >= scale:
            return f"{size / scale:,.2f} {unit}"
    return f"{size / 1024:,.1f} KiB"


# Picture. -------------------------------------------------------------------------------------------------


def svg(result: Mapping[str, Any]) -> str:
    """Two bars: a device's memory by kind, and step time by part of the model."""
    memory = {name: (size, _size(size)) for name, size in result["memory"].items() if size > 0}
    times = {
        name: (seconds, f"{1e3 * seconds:.3g} ms, {part['bound']}")
        for name, part in result["parts"].items()
        if (seconds := max(part["compute"], part["memory"])) > 0
    }
    network = sum(part["network"] for part in result["parts"].values())
    room = max(result["usable_memory_bytes"], result["peak_memory_bytes"])
    title = f"{result['config']} on {result['machine']}" + ("" if result["compiled"] else " (an estimate)")
    heading = f"memory per device: {_size(result['peak_memory_bytes'])} of {_size(result['usable_memory_bytes'])}"
    step = f"a step: {1e3 * result['step_seconds']:.3g} ms, MFU {100 * result['mfu']:.1f} %; network {1e3 * network:.3g} ms"
    first, height = _bar(heading, memory, room, 50)
    second, end = _bar(step, times, max(sum(t for t, _ in times.values()), 1e-12), height + 30)
    body = f'<text x="20" y="28" font-size="18" font-weight="bold">{escape(title)}</text>' + first + second
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="860" height="{end + 10}" font-family="sans-serif" font-size="13">'
        f'<rect width="100%" height="100%" fill="white"/>{body}</svg>\n'
    )


def _bar(heading: str, values: Mapping[str, tuple[float, str]], whole: float, top: int) -> tuple[str, int]:
    """One bar of 820 pixels with its legend, and the y coordinate of its end."""
    parts = [f'<text x="20" y="{top + 14}">{escape(heading)}</text>']
    parts.append(f'<rect x="20" y="{top + 22}" width="820" height="34" fill="none" stroke="#888"/>')
    left = 20.0
    for number, (name, (value, label)) in enumerate(values.items()):
        width, colour = 820 * value / whole, COLOURS[number % len(COLOURS)]
        text = escape(f"{name}: {label}")
        parts.append(
            f'<rect x="{left:.1f}" y="{top + 22}" width="{width:.2f}" height="34" fill="{colour}"><title>{text}</title></rect>'
        )
        x, y = 20 + 275 * (number % 3), top + 76 + 20 * (number // 3)
        parts.append(
            f'<rect x="{x}" y="{y - 10}" width="11" height="11" fill="{colour}"/><text x="{x + 17}" y="{y}">{text}</text>'
        )
        left += width
    return "".join(parts), top + 76 + 20 * (-(-len(values) // 3) - 1) + 10
