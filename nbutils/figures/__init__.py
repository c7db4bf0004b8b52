"""Every picture of the study, in one house style.

The functions take arrays or long tables and return a `Figure`; they neither show nor save it (`save` does).
Scores and differences come in as fractions and are drawn in percent. An arm has the same colour and the same
marker in every figure, so it can be followed from one to the next, also in grey print. What pictures share is in
`nbutils.figures.house`.
"""

from nbutils.figures.curves import boundary_profile, layer_panels, layer_profile, learning_curves
from nbutils.figures.house import (
    ARMS,
    BANDS,
    OTHERS,
    STYLE,
    VERDICTS,
    WIDE,
    apply_style,
    label_of,
    rgb,
    save,
    save_table,
)
from nbutils.figures.intervals import forest, goodness_of_fit
from nbutils.figures.masks import point_map, point_section, qualitative_strip, show_masks
from nbutils.figures.matrices import confusion_heatmap, heat_map
from nbutils.figures.scores import arm_bars, break_even, budget_curves

__all__ = [
    "ARMS",
    "BANDS",
    "OTHERS",
    "STYLE",
    "VERDICTS",
    "WIDE",
    "apply_style",
    "arm_bars",
    "boundary_profile",
    "break_even",
    "budget_curves",
    "confusion_heatmap",
    "forest",
    "goodness_of_fit",
    "heat_map",
    "label_of",
    "layer_panels",
    "layer_profile",
    "learning_curves",
    "point_map",
    "point_section",
    "qualitative_strip",
    "rgb",
    "save",
    "save_table",
    "show_masks",
]
