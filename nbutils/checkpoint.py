"""Checkpoints: the state of a training in one safetensors file, whole or not there.

A state is a tree of dicts, lists, tensors, numbers, words and None. Tensors are stored as such, the tree as JSON beside
them; nothing in the file can be executed.
"""

import contextlib
import glob
import hashlib
import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor


def save(path: Path, tag: str, state: Any) -> None:
    """Write a state under a temporary name, flush it, rename it.

    Args:
        path: Of the file.
        tag: What the state belongs to; `load` wants the same.
        state: The tree.

    Raises:
        TypeError: The tree holds something else; the message names its type.
    """
    tensors: dict[str, Tensor] = {}
    tree = json.dumps(_pack(state, tensors))
    about = {"tag": tag, "tree": tree, "digest": _digest(tag, tree, tensors)}
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = _scratch(path)
    save_file(tensors, scratch, metadata=about)
    with open(scratch, "rb") as file:
        os.fsync(file.fileno())
    with contextlib.suppress(FileNotFoundError):  # gone: another process has finished the same training
        os.replace(scratch, path)
    _flush_folder(path.parent)


def load(path: Path, tag: str) -> Any | None:
    """Read a state back; None, and the file is gone, where it is damaged or belongs to something else.

    Args:
        path: Of the file; it need not be there.
        tag: As given to `save`.
    """
    try:
        with safe_open(path, framework="pt") as file:
            about = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 it has no iterator
        if about["tag"] == tag and about["digest"] == _digest(tag, about["tree"], tensors):
            return _unpack(json.loads(about["tree"]), tensors)
    except FileNotFoundError:
        return None
    except (OSError, SafetensorError, ValueError, KeyError, TypeError):
        pass  # damaged: nothing of it can be trusted, and the training only starts anew
    remove(path)
    return None


def remove(path: Path) -> None:
    """Delete a checkpoint and what killed processes left of the next one."""
    for each in (path, *path.parent.glob(f".{glob.escape(path.name)}.*.writing")):
        with contextlib.suppress(FileNotFoundError):
            each.unlink()


def _scratch(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}.writing")  # two processes may compute the same run


def _flush_folder(folder: Path) -> None:
    if os.name == "nt":
        return  # Windows opens no folders
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _pack(node: Any, tensors: dict[str, Tensor]) -> Any:
    """Describe a tree in JSON, moving its tensors to `tensors`."""
    if isinstance(node, Tensor):
        name = f"{len(tensors):06d}"
        own = torch.empty(node.shape, dtype=node.dtype)  # safetensors wants memory in order, shared with no other
        tensors[name] = own.copy_(node.detach())
        return {"tensor": name}
    if isinstance(node, dict):
        return {"dict": [[key, _pack(value, tensors)] for key, value in node.items()]}  # JSON keys are words only
    if isinstance(node, list | tuple):
        return {"list": [_pack(value, tensors) for value in node]}
    if node is None or isinstance(node, bool | int | float | str):
        return node
    raise TypeError(f"a checkpoint holds tensors, numbers, words, lists and dicts, got {type(node).__name__}")


def _unpack(node: Any, tensors: dict[str, Tensor]) -> Any:
    if not isinstance(node, dict):
        return node
    ((kind, content),) = node.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "dict":
        return {key: _unpack(value, tensors) for key, value in content}
    return [_unpack(value, tensors) for value in content]


def _digest(tag: str, tree: str, tensors: dict[str, Tensor]) -> str:
    """SHA-256 of all that a file says."""
    digest = hashlib.sha256(json.dumps([tag, tree]).encode())
    for name in sorted(tensors):
        digest.update(tensors[name].reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
