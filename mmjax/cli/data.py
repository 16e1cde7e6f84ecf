"""`mmjax data ...`: build, inspect, bench, encode, tokenizer."""

import argparse
from typing import Any

from mmjax.cli.shared import print_json, whole


def add_parser(commands: Any) -> None:
    """Adds the command `data` and the commands inside it."""
    parser = commands.add_parser("data", help="prepare your own data")
    parser.set_defaults(computes=False)
    kinds = parser.add_subparsers(dest="what", required=True, metavar="WHAT")
    sub = kinds.add_parser(
        "build",
        help="write shards of any collection",
        description="Writes shards of any collection. Each example is decoded once; duplicates and examples that cannot be read are "
        "left out and listed.",
    )
    sub.set_defaults(func=_build)
    sub.add_argument(
        "source",
        metavar="SOURCE",
        help="a config file; or a .jsonl, .csv, .tsv, *.tar, *.parquet, a folder, or tfds:NAME",
    )
    sub.add_argument(
        "-o", "--out", required=True, metavar="DIR", help="output folder; a build that was interrupted resumes there"
    )
    sub.add_argument("--split", help="for a path: the name of its split (default: train); else: build only this split")
    sub.add_argument("--shard-megabytes", type=whole(1), default=256, help="approximate size of a shard")
    sub.add_argument("--keep-duplicates", action="store_true")
    sub = kinds.add_parser(
        "inspect", help="show counts and sizes (from file headers), and a page with examples to see and hear"
    )
    sub.set_defaults(func=_inspect, overrides=True)
    sub.add_argument("source", metavar="SOURCE", help="a config file, a folder of shards, or any SOURCE of `build`")
    sub.add_argument("--split", default="train")
    sub.add_argument("-o", "--out", metavar="FILE", help="write one HTML page with histograms, pictures and recordings")
    sub.add_argument("--examples", type=whole(1), default=24, help="number of examples on the page")
    _add_bench_and_encode(kinds)
    sub = kinds.add_parser(
        "tokenizer",
        help="train a tokenizer on the texts of the training split, and measure it",
        description="Trains the tokenizer that data.tokenizer of a config describes (or opens its file), and measures it "
        "on the texts of the training split. The other arguments are keys of SentencePiece, which override the config's.",
    )
    sub.set_defaults(func=_tokenizer)
    sub.add_argument("source", metavar="SOURCE", help="a config file, a folder of shards, or any SOURCE of `build`")
    sub.add_argument("-o", "--out", metavar="FILE", help="file for the tokenizer; default: measure only")
    sub.add_argument("--vocabulary", type=whole(1), metavar="N", help="number of pieces")
    sub.add_argument("--byte-fallback", action=argparse.BooleanOptionalAction)
    sub.add_argument("--normalisation", metavar="RULE", help="nmt_nfkc, nmt_nfkc_cf, nfkc, nfkc_cf or identity")
    sub.add_argument("--special", nargs="+", metavar="TOKEN", help="special tokens")
    for sub in kinds.choices.values():
        sub.add_argument("--json", action="store_true", help="one JSON value on standard output")


def _add_bench_and_encode(kinds: Any) -> None:
    sub = kinds.add_parser(
        "bench",
        help="find the bottleneck between data loading and training",
        description="Measures the time of reading, decoding, packing and transferring a few batches, and of a few training steps.",
    )
    sub.set_defaults(func=_bench, overrides=True, computes=True)
    sub.add_argument("config", metavar="CONFIG", help="a config file")
    sub.add_argument("--batches", type=whole(1), default=8, help="number of batches to measure")
    sub.add_argument(
        "--step-seconds", type=float, metavar="S", help="seconds per training step, if known; default: measured now"
    )
    sub = kinds.add_parser(
        "encode",
        help="compute the outputs of frozen encoders once",
        description="Computes what the encoders in data.encoded of a config make of their inputs, and writes it to the "
        "folders there; training reads it instead of the inputs. An interrupted call can be repeated.",
    )
    sub.set_defaults(func=_encode, overrides=True, computes=True)
    sub.add_argument("config", metavar="CONFIG", help="a config file")
    sub.add_argument("--split", action="append", help="default: train, and the split of the evaluation")


def _build(options, rest) -> int:
    from mmjax import prepare

    result = prepare.build(
        options.source,
        options.out,
        options.split,
        shard_bytes=options.shard_megabytes * 2**20,
        keep_duplicates=options.keep_duplicates,
    )
    if options.json:
        print_json(result)
        return 0
    for split, made in result.items():
        left = ", ".join(f"{count:,} {reason}" for reason, count in made["left_out"].items())
        print(
            f"{split}: {made['examples']:,} examples in {made['shards']} shards, {made['bytes'] / 1e6:,.1f} MB"
            + (f"; left out: {left} (listed in {options.out}/{split}-left-out.tsv)" if left else "")
        )
    return 0


def _encode(options, rest) -> int:
    from mmjax import prepare
    from mmjax.train.experiment import load
    from mmjax.tree import override

    result = prepare.encode(override(load(options.config), rest), options.split)
    if options.json:
        print_json(result)
        return 0
    for split, made in result.items():
        print(f"{split}: " + ", ".join(f"{count:,} vectors of {name}" for name, count in made.items()))
    return 0


def _bench(options, rest) -> int:
    from mmjax import progress
    from mmjax.bottleneck import measure, table
    from mmjax.config import load, override

    found = measure(override(load(options.config), rest), options.batches, options.step_seconds)
    if options.json:
        print_json(found)
    else:
        progress.out.print(table(found))
        print(found["verdict"])
    return 0


def _inspect(options, rest) -> int:
    from mmjax import prepare

    found = prepare.inspect(options.source, options.split, options.out, options.examples, rest)
    if options.json:
        print_json(found)
        return 0
    print(f"{found['examples']:,} examples" + (f", {found['hours']:,.2f} hours of speech" if "hours" in found else ""))
    for name, size in found["sizes"].items():
        print(
            f"  {name}: {size['examples']:,} examples, {size['least']:.3g} to {size['largest']:.3g}, "
            f"mean {size['mean']:.3g} {size['unit']}"
        )
    for name, label in found.get("labels", {}).items():
        kind = {"numbers": "number"}.get(label["kind"], "class")
        plural = kind + ("es" if kind == "class" else "s") * (label["names"] > 1)
        more = ", ..." * (label["names"] > len(label["first"]))
        print(f"  {name}: {label['names']:,} {plural}: {', '.join(label['first'])}{more}")
    for kind, counts in found.get("groups", {}).items():
        print(f"  {kind}: " + ", ".join(f"{name} {count:,}" for name, count in sorted(counts.items())))
    for title in ("dropped", "padding"):
        for name, value in found.get(title, {}).items():
            print(
                f"  left out, {name}: {value:,}" if title == "dropped" else f"  padding of {name}: {100 * value:.1f} %"
            )
    for reason in found["reasons"]:
        print(f"    {reason}")
    for note in found["notes"]:
        print(f"  {note}")
    if rows := found.get("rows"):
        print(f"  FLOPs of the towers spent on padding: {100 * rows['wasted']:.1f} %")
        if rows["proposed_wasted"] < rows["wasted"] - 0.002:
            better = ", ".join(f'"{name}": {room}' for name, room in rows["proposed"].items())
            print(f"  better rows, at no more FLOPs: {{{better}}} ({100 * rows['proposed_wasted']:.1f} % on padding)")
    if options.out:
        print(f"see {options.out}")
    return 0


def _tokenizer(options, rest) -> int:
    from mmjax import prepare

    chosen = {key: getattr(options, key) for key in ("vocabulary", "byte_fallback", "normalisation", "special")}
    chosen = {key: value for key, value in chosen.items() if value is not None}
    found = prepare.tokenizer(options.source, options.out, **chosen)
    if options.json:
        print_json(found)
        return 0
    print(
        f"{found['pieces']:,} pieces, {found['characters_per_token']:.2f} characters per token; {found['texts']:,} texts, "
        f"{found['tokens']:,} tokens: {100 * found['unknown']:.2f} % unknown, {100 * found['bytes']:.2f} % single bytes"
    )
    if options.out:
        print(f"see {options.out}")
    return 0
