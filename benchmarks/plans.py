"""The plans of docs/performance.md: every config for real work, compiled for the machine that it names.

    python -m benchmarks.plans [-o runs/plans] [--only 'pretrain_1b;siglip_b16']

Needs the extras plan-tpu and plan-gpu, 8 GB of memory, and an hour on two cores. A plan that lies in the directory is not
made again, so that a stopped command goes on; remove what is to be new. Prints the table.
"""

import argparse
import json
import os
import shlex
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

from mmjax import progress

PLANS = (
    ("librispeech_conformer_s", "h100:1", ""),
    ("librispeech_conformer_m", "h100:8", ""),
    ("librispeech_conformer_l", "h100:8", ""),
    ("pretrain_300m", "h100:8", ""),
    ("pretrain_1b", "h100:8", ""),
    ("pretrain_1b", "v5p:4x4x4", ""),
    ("pretrain_1b", "v5p:4x4x4", "--mesh.fsdp 64 --xla.preset overlap"),
    ("pretrain_8b", "v5p:4x4x4", ""),
    ("siglip_b16", "v5e:8x8", ""),
    ("llama3_8b_hears_and_sees", "h100:8", ""),
    ("llama3_8b_hears_and_sees", "v5p:2x2x2", ""),
    ("qwen3_1p7b_hears_and_sees", "h100:8", ""),
    ("qwen3_1p7b_hears_and_sees", "v5p:2x2x1", ""),
)


def planned(config: str, machine: str, options: str) -> dict[str, Any]:
    """What `mmjax plan` says."""
    command = [sys.executable, "-m", "mmjax", "plan", f"configs/{config}.py", "--machine", machine, "--json"]
    return json.loads(
        subprocess.run([*command, *shlex.split(options)], stdout=subprocess.PIPE, text=True, check=True).stdout
    )


def table(results: list[tuple[str, dict[str, Any]]]) -> str:
    """As Markdown; the options of a plan stand beside its config."""
    lines = [
        "| config | machine | memory of a device | step | MFU | most time goes to | libtpu's own model |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, one in results:
        peak, usable = (f"{one[key] / 2**30:.1f}" for key in ("peak_memory_bytes", "usable_memory_bytes"))
        busy = {kind: sum(part[kind] for part in one["parts"].values()) for kind in ("compute", "memory", "network")}
        told = f"{1e3 * sum(one['compiler_seconds'].values()):.0f} ms" if "compiler_seconds" in one else ""
        how = "" if one["compiled"] else " (an estimate)"
        lines.append(
            f"| `{name}` | `{one['machine']}`{how} | {peak} of {usable} GiB | {1e3 * one['step_seconds']:.0f} ms | "
            f"{100 * one['mfu']:.0f} % | {max(busy, key=busy.get)} | {told} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--out", type=Path, default=Path("runs/plans"))
    parser.add_argument("--only", help="configs, as 'NAME;NAME'")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    wanted = [plan for plan in PLANS if options.only is None or plan[0] in options.only.split(";")]
    results = []
    with progress.bar("plans", len(wanted), "plans") as bar:
        for config, machine, extra in wanted:
            file = options.out / ("_".join((config, machine, *shlex.split(extra))).replace(":", "_") + ".json")
            if not file.exists():
                file.write_text(json.dumps(planned(config, machine, extra)))
            results.append((f"{config} {extra}".strip(), json.loads(file.read_text())))
            bar.advance()
    print(table(results))
    compilers = ", ".join(f"{name} {version(name)}" for name in ("jax", "libtpu", "jax-cuda12-plugin"))
    print(f"\n{compilers}; {os.cpu_count()} cores")


if __name__ == "__main__":
    main()
