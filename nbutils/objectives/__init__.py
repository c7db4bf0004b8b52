"""What the networks learn from: masks, masks held to be noisy, or the images alone.

Every objective has the same call, so that the training loop is the same for all arms.
"""

from nbutils.objectives.contrast import MoCo
from nbutils.objectives.correction import TeacherCorrection
from nbutils.objectives.distillation import DINO
from nbutils.objectives.masks import Supervised, cross_entropy, soft_dice
from nbutils.objectives.objective import Objective
from nbutils.objectives.regularisation import VICRegL
from nbutils.objectives.remedies import (
    Bootstrapping,
    ConfidentPixels,
    GeneralisedCrossEntropy,
    LabelSmoothing,
    SymmetricCrossEntropy,
    generalised_cross_entropy,
)
from nbutils.objectives.together import share_statistics
from nbutils.objectives.views import random_view

# Remedies for noisy masks: short names, and how each is made from a segmentation network.
REMEDIES = {
    "gce": GeneralisedCrossEntropy,
    "sce": SymmetricCrossEntropy,
    "bootstrap": Bootstrapping,
    "smooth": LabelSmoothing,
    "select": ConfidentPixels,
    "correct": TeacherCorrection,
}

__all__ = [
    "DINO",
    "REMEDIES",
    "Bootstrapping",
    "ConfidentPixels",
    "GeneralisedCrossEntropy",
    "LabelSmoothing",
    "MoCo",
    "Objective",
    "Supervised",
    "SymmetricCrossEntropy",
    "TeacherCorrection",
    "VICRegL",
    "cross_entropy",
    "generalised_cross_entropy",
    "random_view",
    "share_statistics",
    "soft_dice",
]
