"""The GPU benchmark runs on a machine that has JAX, Flax, Optax and Orbax, and none of the data libraries."""

import json
import subprocess
import sys

import pytest

MISSING = (
    "grain",
    "array_record",
    "tensorflow_datasets",
    "soundfile",
    "soxr",
    "sentencepiece",
    "fsspec",
    "pyarrow",
    "PIL",
    "tokenizers",
    "torch",
    "transformers",
)
WITHOUT = f"""
import runpy, sys

class Without:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {MISSING}:
            raise ModuleNotFoundError(f"No module named '{{name}}'", name=name)

sys.meta_path.insert(0, Without())
sys.argv[0] = "benchmarks/gpu.py"
runpy.run_module("benchmarks.gpu", run_name="__main__", alter_sys=True)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "name, unit",
    [("conformer_l", "audio_seconds"), ("pretrain_300m", "images")],
)
def test_the_gpu_benchmark_needs_no_data_library(name, unit):
    command = [sys.executable, "-c", WITHOUT, "--one", name, "mmjax", "0", "--tiny"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found[f"{unit}_per_second"] > 0 and found["useful_tflops"] > 0 and found["parameters"] > 1000
    assert all(0 < share <= 1 for share in found["useful_share"].values())


def test_useful_flops_are_those_of_examples_alone():
    """A row with two examples of one length counts as twice the one, though its attention multiplies four times as much."""
    import jax
    import numpy as np

    from benchmarks.gpu import useful_flops
    from benchmarks.sides.cases import MODELS, Case, spoken, tiny
    from benchmarks.sides.ours import experiment
    from mmjax.parallel.machines import parse
    from mmjax.plan.compilation import describe
    from mmjax.train import report

    raws = [spoken(2.0, np.random.default_rng(0)) for _ in range(2)]

    def subject(hops: int):
        case = Case(
            tiny(MODELS["conformer_l"]), raws, 1, 1, {"speech": hops, "transcript": hops // 200 * 7, "examples": 2}
        )
        return describe(experiment(case), parse("cpu:1"), jax.devices()[:1])

    row, alone = subject(400), subject(200)
    counted = [report.step_flops(s.model, s.state.params, s.layout, 1, training=True) for s in (row, alone)]
    useful = useful_flops(row, raws)
    assert useful == pytest.approx(2 * sum(counted[1].values()), rel=1e-3)
    assert useful < sum(counted[0].values())


@pytest.mark.reference
def test_the_peers_of_quality_see_random_parts_of_pictures_and_each_example_once_an_epoch():
    torch = pytest.importorskip("torch")
    from benchmarks.sides.plain import SIDE, batches, parts

    torch.manual_seed(0)
    across = torch.linspace(0, 255, 96)
    rows, columns = torch.meshgrid(across, across, indexing="ij")  # colours tell where a pixel was
    cut = parts(torch.stack([rows, columns, 0 * rows], -1).round().to(torch.uint8).expand(200, 96, 96, 3))
    assert cut.shape == (200, SIDE, SIDE, 3) and cut.min() >= 0 and cut.max() <= 1
    height, width = cut[:, -1, 0, 0] - cut[:, 0, 0, 0], cut[:, 0, -1, 1] - cut[:, 0, 0, 1]
    area, aspect = height * width, height / width
    assert 0.4 < area.min() < 0.6 and area.max() > 0.9 and area.std() > 0.1
    assert 0.7 < aspect.min() < 0.85 and 1.2 < aspect.max() < 1.4
    drawn = batches(10, 4)
    order = torch.cat([next(drawn) for _ in range(5)]).tolist()
    assert sorted(order[:10]) == sorted(order[10:]) == list(range(10))


@pytest.mark.slow
def test_models_of_one_task_get_the_compute_of_the_joint_model_together(tmp_path):
    """Each has what its task needs of the joint model, and a quarter of its FLOPs, to half a step."""
    import dataclasses

    import corpora

    from benchmarks.multitask import SINGLES, flops, plans
    from mmjax import config as c

    rows = [
        dict(row, text=row["transcript"], target=row["transcript"])
        for row in corpora.rows(corpora.make_files(tmp_path))
    ]
    (tmp_path / "list.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    joint = c.smoke(c.load("configs/tuxpaint_all.py"), width=16)
    source = c.Manifest(splits=dict.fromkeys(("train", "test"), str(tmp_path / "list.jsonl")))
    tokenizer = c.SentencePiece(vocabulary=80, byte_fallback=False)
    data = dataclasses.replace(joint.data, source=source, tokenizer=tokenizer, directory=str(tmp_path / "data"))
    found = plans(dataclasses.replace(joint, data=data), 400)
    quarter = 400 * flops(found["joint"]) / 4
    for name, single in SINGLES.items():
        model, cost = found[name].model, flops(found[name])
        assert list(model.tasks) == [single.task] and set(model.encoders) == set(single.subset.split("+"))
        assert abs(found[name].steps * cost - quarter) <= 0.51 * cost and found[name].steps > 0
    assert found["captioning"].model.tasks["description"].reads == ("image",)
    assert found["translation"].model.tasks["description"].reads == ("speech",)
