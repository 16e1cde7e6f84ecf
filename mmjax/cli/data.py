"""`mmjax data ...`: build, inspect, bench, tokenizer."""

import argparse
from typing import Any

from mmjax.cli.shared import print_json, whole


def add_parser(commands: Any) -> None:
    """Adds the command `data` and the commands inside it."""
    kinds = commands.add_parser("data", help="prepare data of your own").add_subparsers(
        dest="what", required=True, metavar="WHAT"
    )
    sub = kinds.add_parser(
        "build",
        help="shards of any collection",
        description="Shards of any collection: each example is decoded once; what cannot be read, and duplicates, are left out and listed.",
    )
    sub.add_argument(
        "source",
        metavar="SOURCE",
        help="a config file; or a .jsonl, .csv, .tsv, *.tar, *.parquet, a folder, or tfds:NAME",
    )
    sub.add_argument("-o", "--out", required=True, metavar="DIR", help="where to; an interrupted build goes on there")
    sub.add_argument("--split", help="of a path, the split that it is (default: train); else only this one")
    sub.add_argument("--shard-megabytes", type=whole(1), default=256, help="about how large a shard is")
    sub.add_argument("--keep-duplicates", action="store_true")
    sub.add_argument("--json", action="store_true", help="one JSON value on standard output")
    sub = kinds.add_parser(
        "inspect", help="how much there is, how large (by the headers of its files), and some of it to see and hear"
    )
    sub.add_argument("source", metavar="SOURCE", help="a config file, a folder of shards, or whatever `build` takes")
    sub.add_argument("--split", default="train")
    sub.add_argument("-o", "--out", metavar="FILE", help="write one HTML page with histograms, pictures and recordings")
    sub.add_argument("--examples", type=whole(1), default=24, help="how many the page shows")
    sub.add_argument("--json", action="store_true", help="one JSON value on standard output")
    sub = kinds.add_parser(
        "bench",
        help="does the model wait for its data, and for what of it?",
        description="Times reading, decoding, packing and moving a few batches, and a few training steps beside them.",
    )
    sub.add_argument("config", metavar="CONFIG", help="a config file")
    sub.add_argument("--batches", type=whole(1), default=8, help="how many are timed")
    sub.add_argument("--step-seconds", type=float, metavar="S", help="of a step, elsewhere measured; else it is now")
    sub.add_argument("--json", action="store_true", help="one JSON value on standard output")
    sub = kinds.add_parser(
        "tokenizer",
        help="train one on the texts of the training split, and measure it on them",
        description="Trains the tokenizer that data.tokenizer of a config describes (or opens its file), and measures it "
        "on the texts of the training split. The other arguments are the keys of SentencePiece, before the config's.",
    )
    sub.add_argument("source", metavar="SOURCE", help="a config file, a folder of shards, or whatever `build` takes")
    sub.add_argument("-o", "--out", metavar="FILE", help="where to write it; without, it is measured only")
    sub.add_argument("--vocabulary", type=whole(1), metavar="N", help="pieces")
    sub.add_argument("--byte-fallback", action=argparse.BooleanOptionalAction)
    sub.add_argument("--normalisation", metavar="RULE", help="nmt_nfkc, nmt_nfkc_cf, nfkc, nfkc_cf or identity")
    sub.add_argument("--special", nargs="+", metavar="TOKEN", help="special tokens")
    sub.add_argument("--json", action="store_true", help="one JSON value on standard output")


def run(options, rest) -> int:
    """Runs one of the commands."""
    from mmjax import prepare

    if options.what == "bench":
        return _bench(options, rest)
    if options.what == "inspect":
        return _inspect(options, prepare.inspect(options.source, options.split, options.out, options.examples, rest))
    if options.what == "tokenizer":
        chosen = {key: getattr(options, key) for key in ("vocabulary", "byte_fallback", "normalisation", "special")}
        chosen = {key: value for key, value in chosen.items() if value is not None}
        return _tokenizer(options, prepare.tokenizer(options.source, options.out, **chosen))
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


def _inspect(options, found: dict[str, Any]) -> int:
    if options.json:
        print_json(found)
        return 0
    print(f"{found['examples']:,} examples" + (f", {found['hours']:,.2f} hours of speech" if "hours" in found else ""))
    for name, size in found["sizes"].items():
        print(
            f"  {name}: {size['examples']:,} examples, {size['least']:.3g} to {size['largest']:.3g}, "
            f"mean {size['mean']:.3g} {size['unit']}"
        )
    if "answers" in found:
        print(f"  answers: {found['answers']:,} to choose from")
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
        print(f"  wasted on padding, of the towers' FLOPs: {100 * rows['wasted']:.1f} %")
        if rows["proposed_wasted"] < rows["wasted"] - 0.002:
            better = ", ".join(f'"{name}": {room}' for name, room in rows["proposed"].items())
            print(
                f"  rows that would waste less: {{{better}}} ({100 * rows['proposed_wasted']:.1f} %, and cost no more)"
            )
    if options.out:
        print(f"see {options.out}")
    return 0


def _tokenizer(options, found: dict[str, Any]) -> int:
    if options.json:
        print_json(found)
        return 0
    print(
        f"{found['pieces']:,} pieces, {found['characters_per_token']:.2f} characters per token; of {found['tokens']:,} tokens in "
        f"{found['texts']:,} texts {100 * found['unknown']:.2f} % are unknown, {100 * found['bytes']:.2f} % single bytes"
    )
    if options.out:
        print(f"see {options.out}")
    return 0
