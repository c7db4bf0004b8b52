"""What the libraries of a machine need: torchvision beside a CPU build of PyTorch, and memory that is kept.

PyPI's torchvision wheel for Linux is compiled against CUDA. Beside a CPU build of torch its compiled operators do not
load, and `import torchvision` stops with ``RuntimeError: operator torchvision::nms does not exist``, because the
package registers a fake implementation for an operator nobody declared. Declaring the schemas is enough: nothing in
this project runs non-maximum suppression. Where torchvision loads, nothing is done.
"""

import contextlib
import ctypes
import importlib
import sys
from functools import cache
from types import ModuleType

import torch

_MISSING_OPERATOR = "operator torchvision::nms does not exist"
_NMS_ARGUMENTS = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
_declared: list[torch.library.Library] = []  # a Library's declarations live as long as the object


def ensure_torchvision() -> ModuleType:
    """Import torchvision, declaring its two detection operators first if they are missing.

    Returns:
        The imported `torchvision` module.

    Raises:
        RuntimeError: torchvision fails to import for any other reason; passed on unchanged.
    """
    try:
        return importlib.import_module("torchvision")
    except RuntimeError as error:
        if _MISSING_OPERATOR not in str(error):
            raise
    for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
        del sys.modules[name]  # half-imported modules would be taken for the real ones
    library = torch.library.Library("torchvision", "DEF")
    library.define("nms" + _NMS_ARGUMENTS)
    library.define("qnms" + _NMS_ARGUMENTS)
    _declared.append(library)
    return importlib.import_module("torchvision")


@cache
def keep_memory() -> None:
    """Have this process keep the memory it frees: handed back, it would be cleared and faulted in again at once.

    With glibc it spares a sixth of the time of LiDAR labels and a twentieth of that of training; else it does nothing.
    """
    trim, map_apart = -1, -3  # glibc's names: M_TRIM_THRESHOLD, M_MMAP_THRESHOLD
    with contextlib.suppress(OSError, AttributeError, TypeError):  # other C libraries have no such setting
        library = ctypes.CDLL(None)
        library.mallopt(trim, 2**30)
        library.mallopt(map_apart, 2**30) or library.mallopt(map_apart, 2**25)  # the most that older ones take
