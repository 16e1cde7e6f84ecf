"""What `mmjax data` does: from recordings, pictures and texts in any form to shards."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from mmjax import config as c
from mmjax.data import build as building
from mmjax.data.capacity import propose, useful
from mmjax.data.index import open_index
from mmjax.data.page import facts
from mmjax.data.page import page as show
from mmjax.data.sampler import best_fit
from mmjax.data.sources import open_collection
from mmjax.data.tuxpaint_stamps import SPLITS
from mmjax.errors import UserError
from mmjax.train.build import build_layout, build_source, data_directory
from mmjax.train.loop import make_sampler

KINDS = {
    ".jsonl": c.Manifest,
    ".json": c.Manifest,
    ".csv": c.Manifest,
    ".tsv": c.Manifest,
    ".tar": c.TarShards,
    ".parquet": c.Parquet,
}


def collection_at(place: str, split: str) -> c.Collection:
    """The source that a path means by its ending; a folder is a folder of files."""
    if Path(place).is_dir():
        return c.Folder(splits={split: place})
    kind = KINDS.get(Path(place).suffix.lower())
    if kind is None:
        raise UserError(f"{place} is no folder, and none of {', '.join(KINDS)}")
    return kind(splits={split: place})


def build(source: str, out: str, split: str | None = None, **options: Any) -> dict[str, Any]:
    """`mmjax data build`: a config's data, all splits or one, or a path, as shards in `out`.

    Returns:
      What `mmjax.data.build.build` returns, by split.
    """
    if source.endswith(".py"):
        data = c.load(source).data
        if not isinstance(data.source, c.Collection) or isinstance(data.source, c.Shards):
            raise UserError(f"data.source of {source} is {type(data.source).__name__}, of which no shards can be made")
        chosen, home = data.source, data_directory(data.directory)
        splits = [split] if split else list(getattr(chosen, "splits", SPLITS))
    else:
        splits = [split or "train"]
        chosen, home = collection_at(source, splits[0]), data_directory()
    found = {}
    for name in splits:
        collection, stamp = open_collection(chosen, name, home)
        index = open_index(collection, stamp, home, f"{stamp['class']} {stamp['place']}")
        found[name] = building.build(collection, index, stamp, Path(out), name, **options)
    return found


def inspect(source: str, split: str, page: str | None, examples: int = 24) -> dict[str, Any]:
    """`mmjax data inspect`: what a config's data, a path, or a folder of shards holds.

    Args:
      page: where to write one HTML page that shows it; None: nowhere.

    Returns:
      What `mmjax.data.page.facts` returns, and of a config {"padding": {stream: share of empty positions}, "rows": what
      `better_rows` returns}.

    Raises:
      UserError: the page cannot be written.
    """
    padding: dict[str, float] = {}
    proposed: dict[str, Any] = {}
    if source.endswith(".py"):
        config = c.load(source)
        data = build_source(config.data, split)
        layout = build_layout(config, data.tokenizer)
        sampler = make_sampler(config, layout, data) if split == "train" else None
        if sampler is not None:
            useful = sampler.useful_share(layout.tokens(data.sizes), range(50))
            padding = {name: 1.0 - share for name, share in useful.items()}
            proposed = {"rows": better_rows(config, layout, sampler)}
    else:
        chosen = (
            c.Shards(directory=source) if list(Path(source).glob("*.array_record")) else collection_at(source, split)
        )
        settings = dict(rows={"examples": 1}, subsets={"speech": 1.0}, filters=c.Filters(largest_share_dropped=1.0))
        data = build_source(c.Data(source=chosen, **settings), split)
    if page:
        try:
            Path(page).write_text(show(data, f"{source}, {split} split", padding, examples))
        except OSError as error:
            raise UserError(f"cannot write {page}: {error.strerror or error}") from None
    return facts(data) | ({"padding": padding} if padding else {}) | proposed


def better_rows(config: c.Experiment, layout: Any, sampler: Any) -> dict[str, Any]:
    """Rows that would waste less of what the towers compute, and cost no more.

    Returns:
      {"now": {stream: positions}, "wasted": share of the FLOPs that empty positions cost, "proposed": likewise {stream:
      positions}, "proposed_wasted"}; of a window of examples that is packed both ways.
    """
    from mmjax.train import report

    flops, taken = report.position_flops(config, layout), sampler.taken()
    cost = np.array([flops[name] for name in layout.rows])
    cost = cost + 1e-3 * cost.max()  # a stream without a tower takes memory, at least
    now = np.array(list(layout.rows.values()))
    picture = layout.image_size // layout.patch
    picture = picture**2 + layout.class_token + layout.registers if layout.max_patches is None else 1
    multiple = np.array([{"speech": layout.align, "image": picture}.get(name, 1) for name in layout.rows])
    found = propose(taken, cost, float((now * cost).sum()), multiple, start=now)
    rows = dict(zip(layout.rows, found.tolist(), strict=True))
    wasted = [1.0 - useful(taken, len(best_fit(taken, some)), some, cost) for some in (now, found)]
    try:
        build_layout(dataclasses.replace(config, data=dataclasses.replace(config.data, rows=rows)), layout.tokenizer)
    except UserError:  # a tower cannot be as long
        rows, wasted[1] = dict(layout.rows), wasted[0]
    return {"now": dict(layout.rows), "wasted": wasted[0], "proposed": rows, "proposed_wasted": wasted[1]}
