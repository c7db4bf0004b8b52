"""What is kept on disk: written whole or not at all, and named by digests, also of the code that made it."""

import ast
import fcntl
import hashlib
import inspect
import json
import os
import shutil
import textwrap
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType


@contextmanager
def scratch_folder(parent: Path) -> Iterator[Path]:
    """Make a folder for what is being written (with the permissions a folder has here) and leave nothing behind.

    Who is killed cannot tidy up. The folder is locked as long as its process lives, so that whoever writes in the same
    place next knows, and removes, what nobody will finish.
    """
    parent.mkdir(parents=True, exist_ok=True)
    for left in parent.glob(".writing-*"):
        if (lock := _lock(left)) is not None:
            shutil.rmtree(left, ignore_errors=True)  # where it may not be removed, nothing can be written either
            os.close(lock)
    folder, lock = _claim(parent)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def _claim(parent: Path) -> tuple[Path, int]:
    """Make a locked folder; one that another process took for left behind, before it was locked, is made anew."""
    while True:
        folder = parent / f".writing-{uuid.uuid4().hex}"
        folder.mkdir()
        if (lock := _lock(folder)) is not None:
            if folder.is_dir():
                return folder, lock
            os.close(lock)


def _lock(folder: Path) -> int | None:
    """Return the handle that holds a folder's lock; None where another process holds it or the folder is gone."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        return None
    return handle


def publish(scratch: Path, folder: Path) -> None:
    """Move a finished scratch folder to its place; where another process was first, keep that one."""
    try:
        os.rename(scratch, folder)
    except OSError:
        if not folder.is_dir():
            raise
        shutil.rmtree(scratch)


def write_text(path: Path, text: str) -> None:
    """Write text under a temporary name, flush, rename."""
    with scratch_folder(path.parent) as scratch:
        with open(scratch / path.name, "w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(scratch / path.name, path)


def write_json(path: Path, content: dict) -> None:
    """Write JSON under a temporary name, flush, rename."""
    write_text(path, json.dumps(content, indent=1, sort_keys=True) + "\n")


def code_digest(*parts: ModuleType | type | Callable) -> str:
    """Hash what modules, classes or functions compute: their source without comments and docstrings."""
    return source_digest(*(inspect.getsource(part) for part in parts))


def source_digest(*sources: str) -> str:
    """Hash Python sources without their comments and docstrings."""
    digest = hashlib.sha256()
    for source in sources:
        tree = ast.parse(textwrap.dedent(source))
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
                node.body = node.body[1:] or [ast.Pass()]
        digest.update(ast.unparse(tree).encode())
    return digest.hexdigest()
