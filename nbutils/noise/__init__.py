"""Label noise: operators that break an exact mask in the ways maps are wrong, and recipes that combine them.

Every operator takes masks of shape (H, W), or (N, H, W) for N independent ones, and returns the noisy copy and where
it differs. Void (255) stays where it is and never spreads; only classes of the mask's legend come out, or those of
another mask passed to copy from, which a recipe checks and a bare operator does not; the caller passes the random
generator. Strength 0 changes nothing.

Where the operators come from: pixels flipped independently are the textbook noise and the easiest one; removing and
displacing whole objects, and a rate drawn anew for each image, follow AIO2 (Liu et al., TGRS 2024), which also erodes
and dilates object by object, where `move_boundaries` does both along one smooth field and `resize_classes` by class.
Outlines are generalised as in maps (Douglas and Peucker), and seen through the blocks and the least area of a
product. Confusion between classes in patches is our own stand-in for what product comparisons report (grass, shrub
and bare soil are confused often, water seldom).

Rates are achieved, not only expected: flips and matrices meet them to within a pixel in every image, object operators
to within an object, and a recipe searches for the strength that meets its rate.
"""

from nbutils.noise.fields import Mask, Noisy, smooth_field
from nbutils.noise.geometry import (
    coarsen,
    move_boundaries,
    resize_classes,
    rotate_mask,
    shift_mask,
    simplify_outlines,
)
from nbutils.noise.objects import add_objects, age_map, omit_objects, rotate_objects, shift_objects
from nbutils.noise.pairs import CONFUSED_PAIRS, HEIGHT_PAIRS
from nbutils.noise.pixels import confuse_classes, confusion_matrix, flip_labels
from nbutils.noise.recipes import GRADES, RECIPES, STEPS, Recipe, Report, Step, report

__all__ = [
    "CONFUSED_PAIRS",
    "GRADES",
    "HEIGHT_PAIRS",
    "Mask",
    "Noisy",
    "RECIPES",
    "Recipe",
    "Report",
    "STEPS",
    "Step",
    "add_objects",
    "age_map",
    "coarsen",
    "confuse_classes",
    "confusion_matrix",
    "flip_labels",
    "move_boundaries",
    "omit_objects",
    "report",
    "resize_classes",
    "rotate_mask",
    "rotate_objects",
    "shift_mask",
    "shift_objects",
    "simplify_outlines",
    "smooth_field",
]
