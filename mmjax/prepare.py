"""What `mmjax data` does: from recordings, pictures and texts in any form to shards."""

from pathlib import Path
from typing import Any

from mmjax import config as c
from mmjax.data import build as building
from mmjax.data.index import open_index
from mmjax.data.sources import open_collection
from mmjax.data.tuxpaint_stamps import SPLITS
from mmjax.errors import UserError
from mmjax.train.build import data_directory

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
        index = open_index(collection, stamp, home, f"{stamp['kind']} {stamp['place']}")
        found[name] = building.build(collection, index, stamp, Path(out), name, **options)
    return found
