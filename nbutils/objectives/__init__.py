"""What the networks learn from: masks, masks held to be noisy, or the images alone.

Every objective has the same call, so that the training loop is the same for all arms.
"""

from nbutils.objectives import contrast, distillation, masks, objective, regularisation, selfsupervised, views
from nbutils.objectives.contrast import MoCo
from nbutils.objectives.distillation import DINO
from nbutils.objectives.masks import Supervised, cross_entropy, soft_dice
from nbutils.objectives.objective import Objective
from nbutils.objectives.regularisation import VICRegL
from nbutils.objectives.views import random_view

__all__ = [
    "DINO",
    "MoCo",
    "Objective",
    "Supervised",
    "VICRegL",
    "contrast",
    "cross_entropy",
    "distillation",
    "masks",
    "objective",
    "random_view",
    "regularisation",
    "selfsupervised",
    "soft_dice",
    "views",
]
