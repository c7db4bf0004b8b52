"""What is kept on disk: written whole or not at all, and named by digests, also of the code that made it."""

import ast
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
    """Make a folder for what is being written (with the permissions a folder has here) and leave nothing behind."""
    folder = parent / f".writing-{uuid.uuid4().hex}"
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def publish(scratch: Path, folder: Path) -> None:
    """Move a finished scratch folder to its place; where another process was first, keep that one."""
    try:
        os.rename(scratch, folder)
    except OSError:
        if not folder.is_dir():
            raise
        shutil.rmtree(scratch)


def write_json(path: Path, content: dict) -> None:
    """Write JSON under a temporary name, flush, rename."""
    write_text(path, json.dumps(content, indent=1, sort_keys=True) + "\n")


def write_text(path: Path, content: str) -> None:
    """Write text under a temporary name, flush, rename."""
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    with open(scratch, "w") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(scratch, path)


def code_digest(*parts: ModuleType | type | Callable) -> str:
    """Hash what modules, classes or functions compute: their source without comments and docstrings."""
    digest = hashlib.sha256()
    for part in parts:
        tree = ast.parse(textwrap.dedent(inspect.getsource(part)))
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
                node.body = node.body[1:] or [ast.Pass()]
        digest.update(ast.unparse(tree).encode())
    return digest.hexdigest()
