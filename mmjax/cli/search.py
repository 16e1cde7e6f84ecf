"""The commands `index` and `search`."""

from typing import Any

from mmjax.cli.shared import add_step, command, files_and_others, print_json, whole
from mmjax.errors import UserError
from mmjax.files import local


def add_parsers(commands: Any) -> None:
    """Adds the commands."""
    sub = command(commands, "index", "make files searchable by a run that compares modalities (Contrast)", "RUN")
    sub.set_defaults(func=_index, overrides=True)
    sub.add_argument("files", metavar="FILES", nargs="*", help="recordings and pictures, folders, and patterns")
    sub.add_argument("--manifest", metavar="TABLE", help="the items of a .jsonl, .csv, .tsv or .parquet")
    sub.add_argument("-o", "--out", required=True, metavar="DIR", help="the index; continued if it was interrupted")
    add_step(sub)

    sub = command(commands, "search", "find items of an index by a text, a picture or a recording", "DIR")
    sub.set_defaults(func=_search)
    sub.add_argument("--text", metavar="STRING")
    sub.add_argument("--image", metavar="FILE")
    sub.add_argument("--speech", metavar="FILE")
    sub.add_argument("--count", type=whole(1), default=10, metavar="N", help="items to show (default: 10)")
    sub.add_argument("--page", metavar="FILE.html", help="also write a page with the pictures, recordings and texts")


def _index(options, rest) -> int:
    from mmjax.data.to_predict import check_places
    from mmjax.run import Run

    files, others = files_and_others(options.files, rest)
    if others:
        raise UserError(f"mmjax index has no argument {others[0]}")
    check_places([*files, options.manifest] if options.manifest else files)
    counts = Run(options.run, step=options.step).index(files, options.out, options.manifest)
    if options.json:
        print_json(counts | {"out": options.out})
    else:
        print(f"{counts['items']:,} items, {counts['errors']:,} with an error: {options.out}")
    return 0


def _search(options, rest) -> int:
    from rich.markup import escape
    from rich.table import Column, Table

    from mmjax import progress
    from mmjax.data.inputs import Use
    from mmjax.search import SearchIndex, write_page

    page = options.page and local(options.page, "--page")
    given = {name: value for name in ("text", "image", "speech") if (value := getattr(options, name)) is not None}
    if len(given) != 1:
        raise UserError("give one of --text, --image and --speech")
    index = SearchIndex(options.dir)
    found = index.search(**given, count=options.count)
    if page:
        (query,) = given.items()
        use = Use(index.run.sample_rate, index.run.config.data.rescale)
        write_page(page, f"{query[0]}: {query[1]}", found, index.run.fields.inputs, use)
    if options.json:
        print_json([one._asdict() for one in found])
        return 0
    result = Table(Column("score", justify="right"), "input", Column("name", overflow="fold"))
    for one in found:
        text = f": {one.content}" if one.input in index.run.fields.read_texts else ""
        result.add_row(f"{one.score:.3f}", one.input, escape(f"{one.name}{text}"))
    progress.out.print(result)
    return 0
