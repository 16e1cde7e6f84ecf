"""`mmjax import` and `mmjax export`: converts Hugging Face models to mmjax models, and back."""

import tempfile
from pathlib import Path
from types import ModuleType
from typing import Any

import jax.numpy as jnp
import numpy as np

from mmjax.data.labels import Label
from mmjax.errors import UserError
from mmjax.files import local
from mmjax.interchange import (
    assemble,
    bert,
    certificate,
    clip,
    ctranslate2,
    dinov2,
    dinov3,
    directories,
    gemma3,
    gguf_file,
    gpt2,
    llama,
    modernbert,
    parakeet,
    peft,
    phi3,
    siglip,
    t5,
    tuned,
    vit,
    vocabulary,
    wav2vec2_bert,
    wav2vec2_conformer,
    whisper,
)
from mmjax.interchange.rules import TENSORS, to_ours, to_theirs
from mmjax.models.adapters import as_array
from mmjax.train.directory import LABELS, UNTRAINED, Which, read_run
from mmjax.train.experiment import Experiment
from mmjax.tree import to_dict

SPEECH = (parakeet, wav2vec2_bert, wav2vec2_conformer, whisper)
IMAGES = (vit, siglip, clip, dinov2, dinov3)
TEXTS = (bert, modernbert, t5, llama, gemma3, phi3, gpt2)
FAMILIES: tuple[ModuleType, ...] = (*SPEECH, *IMAGES, *TEXTS)


def family_of(theirs: dict[str, Any], where: str | Path) -> ModuleType:
    """The converter for a config.json.

    Raises:
      UserError: its `model_type` is not supported.
    """
    kind = theirs.get("model_type")
    known = {model_type: family for family in FAMILIES for model_type in family.MODEL_TYPES}
    if kind not in known:
        inner = (theirs.get("text_config") or {}).get("model_type")
        inside = f"; its text model, of type {inner!r}, cannot be taken out of it yet" if inner else ""
        raise UserError(
            f"{where} is a model of type {kind!r}{inside}; there are converters for {', '.join(sorted(known))}"
        )
    return known[kind]


def import_model(source: str | Path, out: str | Path) -> dict[str, Any]:
    """Converts a Hugging Face directory, a GGUF file, or a Whisper of CTranslate2 to a run that was not trained.

    The result holds `config.json` (an Experiment with the encoder, and a task for the decoder or the head), its parameters
    in float32, the tokenizer (`vocabulary.keep`), the names of classes, and `origin.json` (the original config, dtypes of
    tensors, names of unused tensors, and the parity certificate).

    Returns:
      {"model_type", "parameters": number of parameters, "left_out": unused tensors and files, "certificate"}.
    """
    source, out = local(source, "the model's directory"), local(out, "--out")
    is_gguf = source.suffix.lower() == ".gguf" and source.is_file()
    if is_gguf or ctranslate2.is_alone(source):
        out.parent.mkdir(parents=True, exist_ok=True)
        # Beside the import, because its tensors may not fit into the system's temporary folder.
        with tempfile.TemporaryDirectory(dir=out.parent) as folder:
            (gguf_file if is_gguf else ctranslate2).write_directory(source, Path(folder) / source.stem)
            return import_model(Path(folder) / source.stem, out)
    theirs = directories.read_object(source / "config.json")
    family = family_of(theirs, source)
    try:
        about = theirs | directories.read_normalisation(source) | directories.read_generation(source)
        about |= vocabulary.read_mask(source)
        part = family.part(about)
        tensors = directories.read_tensors(source)
        names = {_current(family, theirs, name): name for name in tensors}
        about |= {TENSORS: frozenset(names)}
        renamed = {current: tensors[name] for current, name in names.items()}
        unpacked = family.unpack(renamed) if hasattr(family, "unpack") else renamed
        made = {name: x for name, x in unpacked.items() if name not in names}
        copies = family.copies(about) if hasattr(family, "copies") else {}
        parameters, left_out = to_ours(family.rules(about), unpacked, family.ignored, copies)
        left_out = [names.get(name, name) for name in left_out]
        proof = certificate.certify(family, source, part, parameters)
        config = assemble.experiment(family, about, source, out)
    except (ArithmeticError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise UserError(
            f"{source / 'config.json'} does not fit its tensors, or lacks a value ({type(error).__name__}: {error})"
        ) from None
    origin = {
        "config": theirs,
        "dtypes": {name: str(x.dtype) for name, x in (made | tensors).items()},
        "left_out": left_out,
        "certificate": proof,
    }
    classes = family.classes(theirs) if hasattr(family, "classes") else []
    labels = {"answer": Label("class", tuple(classes))} if classes else {}
    documents = {"config.json": to_dict(config), LABELS: labels, directories.ORIGIN: origin}
    directories.write(out, assemble.to_run(config, parameters), UNTRAINED, documents)
    blank = family.blank(theirs) if hasattr(family, "blank") else None
    return {
        "model_type": theirs["model_type"],
        "parameters": int(sum(x.size for x in parameters.values())),
        "left_out": left_out + vocabulary.keep(source, out, blank),
        "certificate": proof,
    }


def export_model(
    source: str | Path,
    out: str | Path,
    adapters: bool = False,
    origin: str | Path | None = None,
    step: Which = "newest",
) -> dict[str, Any]:
    """The inverse of `import_model`: writes tensors with the original names, shapes and dtypes.

    Args:
      source: an import, or a run that was trained from imports. Of a run, the parameters that came from one import are
        exported, with their adapters merged into them; parts of the import that the run does not have stay as they were.
      adapters: write only the adapters, as a directory of PEFT (`interchange.peft`).
      origin: the directory of the import; None: the only one from which the run was trained.
      step: of the run's checkpoint.

    Returns:
      {"model_type", "tensors": their number, "merged": see `tuned.merging`; {} where no adapter was merged}.

    Raises:
      UserError: the run was not trained from an import, or from several, or has no adapters.
    """
    source, out = local(source, "the model's directory"), local(out, "--out")
    imported = source if (source / directories.ORIGIN).is_file() else tuned.origin_of(source, origin, step)
    about = directories.read_object(imported / directories.ORIGIN)
    theirs, dtypes = about["config"], about["dtypes"]
    family = family_of(theirs, imported)
    names = {_current(family, theirs, name): name for name in dtypes}
    rules = family.rules(theirs | {TENSORS: frozenset(names)})
    parameters = tuned.parameters(source, imported, step) if imported != source else read_imported(source)[1]
    if adapters:
        tensors, document = peft.adapter(rules, parameters, theirs, names, getattr(family, "pack", dict))
        directories.write(out, tensors, "adapter_model.safetensors", {"adapter_config.json": document})
    else:
        tensors = to_theirs(rules, {path: np.asarray(as_array(x)) for path, x in parameters.items()})
        tensors = family.pack(tensors) if hasattr(family, "pack") else tensors
        tensors = {name: x.astype(jnp.dtype(dtypes[names[name]])) for name, x in tensors.items()}
        if not getattr(family, "RENAMES", False):  # the export has the names of the file
            tensors = {names[name]: x for name, x in tensors.items()}
        config = family.exported(theirs) if hasattr(family, "exported") else theirs
        directories.write(out, tensors, "model.safetensors", {"config.json": config})
        vocabulary.give_back(imported, out)
    merged = {} if adapters else tuned.merging(parameters)
    return {"model_type": theirs["model_type"], "tensors": len(tensors), "merged": merged}


def _current(family: ModuleType, theirs: dict[str, Any], name: str) -> str:
    """The name of a tensor in the family's rules; files of other versions or architectures may have another."""
    return family.current(theirs, name) if hasattr(family, "current") else name


def read_imported(directory: str | Path) -> tuple[Experiment, dict[str, np.ndarray]]:
    """The config of an import, and its parameters by the paths of `Rule.ours`: "encoder/...", "decoder/...", "head/..."."""
    config, _, params = read_run(local(directory, "the directory of an imported model"))
    return config, assemble.from_run(config, params)


def tree(parameters: dict[str, np.ndarray], part: str) -> dict[str, Any]:
    """The parameters of one part as nested dictionaries for Flax."""
    nested: dict[str, Any] = {}
    for path, array in parameters.items():
        first, *keys = path.split("/")
        if first == part:
            node = nested
            for key in keys[:-1]:
                node = node.setdefault(key, {})
            node[keys[-1]] = array
    return nested
