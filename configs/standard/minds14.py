"""Intent and language of spoken requests to a bank: MINDS-14 (Gerz et al. 2021, arXiv:2104.08524), in 14 languages, on one GPU.

    mmjax crossval configs/standard/minds14.py --folds 5
    mmjax train configs/standard/minds14.py

TFDS does not have MINDS-14, so this config reads Hugging Face's tables (huggingface.co/datasets/PolyAI/minds14): put the Parquet files
of all languages into data/minds14. They have one split; the first of five folds is measured here. One encoder predicts both labels.
Only the data, the length and the tasks differ from speech_commands.py. This config has not been trained yet.
"""

import dataclasses
from pathlib import Path

from mmjax.config import Classify, Fold, MeanPool, Parquet, load

commands = load(Path(__file__).with_name("speech_commands.py"))

config = dataclasses.replace(
    commands,
    name="minds14",
    data=dataclasses.replace(
        commands.data,
        source=Fold(source=Parquet(splits={"train": "data/minds14/*.parquet"}), fold=1, folds=5),
        rows={"speech": 4000, "examples": 8},
    ),
    model=dataclasses.replace(
        commands.model,
        tasks={
            "intent": Classify(reads="speech", label="intent_class", pool=MeanPool()),
            "language": Classify(reads="speech", label="lang_id", pool=MeanPool(), weight=0.3),
        },
    ),
    evaluation=dataclasses.replace(commands.evaluation, split="held_out"),
)
