"""What the networks learn from: masks, masks held to be noisy, or the images alone.

Every objective has the same call, so that the training loop is the same for all arms.
"""

from nbutils.objectives import masks, objective, selfsupervised, views
from nbutils.objectives.masks import Supervised, cross_entropy, soft_dice
from nbutils.objectives.objective import Objective
from nbutils.objectives.remedies import REMEDIES
from nbutils.objectives.selfsupervised import MoCo
from nbutils.objectives.views import random_view

__all__ = [
    "MoCo",
    "Objective",
    "REMEDIES",
    "Supervised",
    "correction",
    "cross_entropy",
    "masks",
    "objective",
    "random_view",
    "remedies",
    "selfsupervised",
    "soft_dice",
    "views",
]
