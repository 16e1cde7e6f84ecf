"""The language model of Gemma 3 with pictures, as its sizes from 4B on are published."""

import json

import pytest
import safetensors.numpy

from mmjax.errors import UserError
from mmjax.interchange import convert
from mmjax.interchange.convert import export_model, import_model
from mmjax.interchange.directories import read_tensors

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
from tests.test_interchange import DECODERS, GEMMAS, PICTURES, randomise  # noqa: E402

pytestmark = pytest.mark.reference


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    texts = transformers.Gemma3TextConfig(**DECODERS | GEMMAS)
    config = transformers.Gemma3Config(
        text_config=texts,
        vision_config=transformers.SiglipVisionConfig(**PICTURES),
        mm_tokens_per_image=4,
        image_token_index=30,
        architectures=["Gemma3ForConditionalGeneration"],
    )
    directory = tmp_path_factory.mktemp("gemma3") / "theirs"
    randomise(transformers.Gemma3ForConditionalGeneration(config)).save_pretrained(directory)
    return directory


def test_its_text_model_is_imported_and_exported_alone(saved, tmp_path):
    imported = import_model(saved, tmp_path / "ours")
    assert imported["certificate"]["holds"], imported["certificate"]
    left_out = {name.removeprefix("model.").split(".")[0] for name in imported["left_out"]}
    assert left_out == {"vision_tower", "multi_modal_projector"}
    export_model(tmp_path / "ours", tmp_path / "back")
    again, info = transformers.Gemma3ForCausalLM.from_pretrained(
        tmp_path / "back", local_files_only=True, output_loading_info=True
    )
    assert not info["missing_keys"] and not info["unexpected_keys"]
    whole = transformers.Gemma3ForConditionalGeneration.from_pretrained(saved, local_files_only=True)
    ids = torch.arange(3, 12)[None]
    assert abs(again(ids).logits - whole(ids).logits).max() < 1e-5


def test_names_of_tensors_in_older_and_newer_files_are_read(saved, tmp_path, monkeypatch):
    monkeypatch.setattr(convert.certificate, "certify", lambda *_: {"skipped": "by a test"})
    tensors = read_tensors(saved)
    plain = {convert.gemma3.current({}, name): x for name, x in tensors.items()}
    newer = {
        f"model.language_model.{name[6:]}" if name.startswith("model.") else f"model.{name}": x
        for name, x in plain.items()
    }
    (tmp_path / "newer").mkdir()
    safetensors.numpy.save_file(newer, tmp_path / "newer" / "model.safetensors")
    (tmp_path / "newer" / "config.json").write_bytes((saved / "config.json").read_bytes())
    found = [import_model(source, tmp_path / f"{n}") for n, source in enumerate((saved, tmp_path / "newer"))]
    assert found[0]["parameters"] == found[1]["parameters"]
    assert any(name.startswith("language_model.model.") for name in tensors)  # as the published files have them


def test_the_published_config_of_4b_is_understood():
    """It states little of its text model; the rest are defaults of transformers."""
    text = {"hidden_size": 2560, "intermediate_size": 10240, "model_type": "gemma3_text", "num_hidden_layers": 34}
    text |= {"rope_scaling": {"factor": 8.0, "rope_type": "linear"}, "sliding_window": 1024}
    config = {"architectures": ["Gemma3ForConditionalGeneration"], "model_type": "gemma3", "text_config": text}
    ours = convert.gemma3.part(config | {"eos_token_id": [1, 106]})
    theirs = transformers.Gemma3TextConfig(**text)
    assert (ours.vocabulary, ours.heads) == (theirs.vocab_size, theirs.num_attention_heads)
    assert (ours.block.key_value_heads, ours.head_width) == (theirs.num_key_value_heads, theirs.head_dim)
    assert ours.sliding_window.full_layers == (5, 11, 17, 23, 29) and ours.sliding_window.window == 1024
    assert ours.positions.base == 1e6 and ours.positions.scaling.factor == 8.0 and ours.block.qk_norm and ours.tied
    assert convert.gemma3.tasks(config | {"eos_token_id": [1, 106]})["continuation"].ends == (1, 106)


def test_a_text_model_that_cannot_be_taken_out_is_named(tmp_path):
    (tmp_path / "config.json").write_text(
        json.dumps({"model_type": "mistral3", "text_config": {"model_type": "mistral"}})
    )
    with pytest.raises(
        UserError, match="type 'mistral3'; its text model, of type 'mistral', cannot be taken out of it yet"
    ):
        import_model(tmp_path, tmp_path / "out")
