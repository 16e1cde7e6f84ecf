"""Computes the outputs of frozen encoders for `mmjax data encode`, and refuses outputs of other encoders."""

import hashlib
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np

from mmjax import progress
from mmjax.data.encoded import EncodedFiles, EncodedWriter, Piece
from mmjax.data.loader import Batches, prefetch
from mmjax.data.sampler import Sampler
from mmjax.data.text import Tokenizer
from mmjax.decode import by_example
from mmjax.errors import UserError
from mmjax.files import local
from mmjax.models.media import numbers
from mmjax.models.roles import by_path, matches
from mmjax.parallel.mesh import make_mesh, share_of_rows, to_devices, within
from mmjax.train.build import build_layout, build_model
from mmjax.train.experiment import Experiment
from mmjax.train.initial import check_initialised, load_initial
from mmjax.train.program import begin
from mmjax.tree import to_dict


def initial_parameters(config: Experiment, tokenizer: Tokenizer | None) -> Any:
    """The parameters with which a training of the config begins; `tokenizer`: of its data."""
    begun = begin(config, build_model(config.model), build_layout(config), make_mesh(**vars(config.mesh)))
    check_initialised(config, begun.specs, begun.groups)
    return load_initial(config, begun.initialise(), begun.specs, tokenizer).params


def encoder_digests(config: Experiment, params: Any) -> dict[str, str]:
    """A hash of the settings and parameters of each encoder in `data.encoded`."""
    found = {}
    for name in config.data.encoded:
        whole = hashlib.sha256(json.dumps(to_dict(config.model.encoders[name]), sort_keys=True).encode())
        for path, x in by_path(params).items():
            if matches(f"encoders.{name}", path):
                whole.update(path.encode())
                for array in jax.tree.leaves(x):  # a kernel of few bits has two
                    whole.update(np.asarray(jax.device_get(array)).tobytes())
        found[name] = whole.hexdigest()
    return found


def check_encoded(config: Experiment, params: Any, groups: Any) -> None:
    """Checks that the data holds what the frozen encoders of these parameters made.

    Args:
      groups: the group of every parameter; None: all are trained.

    Raises:
      UserError: other encoders made it, or an encoder is trained.
    """
    if not config.data.encoded:
        return
    for name in config.data.encoded:
        own = (
            [group for path, group in by_path(groups).items() if matches(f"encoders.{name}", path)]
            if groups
            else [None]
        )
        if not all(group is not None and group.frozen for group in own):
            raise UserError(
                f"data.encoded has '{name}', but model.encoders.{name} is trained; freeze it: "
                f"optimizer.groups={{'encoders.{name}': Group(frozen=True)}}"
            )
    for name, digest in encoder_digests(config, params).items():
        folder = local(config.data.encoded[name], "data.encoded")
        if EncodedFiles(folder, "train").identity["encoder"] != digest:
            raise UserError(
                f"{folder} holds what another encoder made, or one with other parameters or settings; encode the data again "
                "into another folder: mmjax data encode CONFIG"
            )


def encode_split(config: Experiment, params: Any, source: Any, name: str, digest: str, folder: Path) -> int:
    """Writes what an encoder makes of a split; returns the number of vectors.

    Args:
      config: with raw inputs.
      source: the split.
      name: of the encoder.
      digest: of the encoder.
      folder: of the files.
    """
    mesh, model = make_mesh(**vars(config.mesh)), build_model(config.model)
    layout = build_layout(config, source.tokenizer).without(*(set(config.model.encoders) - {name}))
    sampler = Sampler(
        layout.positions(source.sizes),
        layout.rows,
        {name: 1.0},
        config.data.batch_rows,
        shuffle=False,
        epochs=1,
        window=config.data.window,
        needs=layout.needs,
    )
    if jax.process_count() > 1:
        raise UserError("mmjax data encode runs on one process; start it alone")
    dropped = config.data.filters.largest_share_dropped
    batches = Batches(source, layout, sampler, share_of_rows(mesh), largest_share_dropped=dropped, measuring=True)
    writer = EncodedWriter(folder, {"encoder": digest, "examples": len(source), "rows": config.data.rows[name]})

    @jax.jit
    def program(params: Any, batch: Any) -> tuple[Any, Any]:
        def run(params: Any, batch: Any) -> tuple[Any, Any]:
            encoded = model.apply({"params": params}, batch, name, method="encode")
            return encoded._replace(positions=numbers(encoded)), batch["examples"]

        return within(mesh, run)(params, batch)

    with progress.bar(f"encoding {name}", len(sampler), "batches", done=writer.steps) as bar:
        if not writer.complete:
            for batch in prefetch(batches, writer.steps, len(sampler), config.data.threads):
                encoded, examples = jax.device_get(program(params, to_devices(batch, mesh)))
                pieces = []
                for (row, segment), vectors in by_example(encoded):
                    number = int(examples.features[row, segment - 1])
                    own = encoded.positions[row][encoded.segments[row] == segment]
                    pieces += [Piece(number, int(n), vectors[own == n]) for n in np.unique(own)]
                writer.write(pieces)
                bar.advance()
            writer.finish()
    missing = len(batches.skipped) + sampler.too_long
    if missing:
        progress.warn(
            f"{missing} examples are too long or cannot be read, and were not encoded; training leaves them out"
        )
    return int(EncodedFiles(folder.parent, folder.name).sizes.sum())
