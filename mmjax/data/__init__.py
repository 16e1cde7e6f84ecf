"""Sources, sampling, packing, loading. NumPy only; JAX is never imported here.

This package imports every part of the data that a config can have, so that a config in JSON finds each class by its name.
"""

from mmjax.data.asked import Asked, Turn
from mmjax.data.asterisk_prompts import AsteriskPrompts
from mmjax.data.conversation import Conversation
from mmjax.data.debian_manual import DebianManual
from mmjax.data.filters import Filters
from mmjax.data.folder import Folder
from mmjax.data.folds import Fold
from mmjax.data.image_augmentation import ImageAugmentation
from mmjax.data.image_mixing import ImageMixing
from mmjax.data.inputs import Audio, Image, Input, Text
from mmjax.data.joined import Joined
from mmjax.data.manifest import Manifest
from mmjax.data.manual_pages import ManualPages
from mmjax.data.mixture import Mixture
from mmjax.data.openclipart import OpenClipart
from mmjax.data.own import OwnSource
from mmjax.data.parquet import Parquet
from mmjax.data.portion import Portion
from mmjax.data.relabelled import Relabelled
from mmjax.data.shards import Shards
from mmjax.data.source import Collection, Source
from mmjax.data.sources import Data
from mmjax.data.speed import SpeedPerturbation
from mmjax.data.spoken_easy_vqa import SpokenEasyVQA
from mmjax.data.tar_shards import TarShards
from mmjax.data.tfds import TFDS
from mmjax.data.tokenizers import HuggingFaceTokenizer, SentencePiece
from mmjax.data.tuxpaint_stamps import TuxPaintStamps
from mmjax.data.vectors import VectorInput
