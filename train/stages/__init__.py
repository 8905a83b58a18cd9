"""The training stages of the road: pretrain, fine-tune, distil, probe, prune; one file each."""

from train.stages.common import Data, open_data
from train.stages.detect import detect_encoder, detect_student
from train.stages.distill import distill, prune
from train.stages.finetune import finetune
from train.stages.pretrain import pretrain
from train.stages.probe import probe

__all__ = ["Data", "detect_encoder", "detect_student", "distill", "finetune", "open_data", "pretrain", "probe", "prune"]
