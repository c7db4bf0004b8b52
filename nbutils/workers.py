"""Workers: processes that share the work of a script, and what the script must do to have them.

A fresh process imports the script that started it (`multiprocessing`, "Safe importing of main module"), to know what is
defined there. Where the script's top level does the work, it would do it again, and start processes from processes.
"""

import ast
import inspect
import os
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import Generic, TypeVar

T = TypeVar("T")


class Waiting(Generic[T]):
    """What takes seconds to start, left running for a while after its use for who needs the like again.

    Args:
        close: Ends one.
        idle_s: Seconds that it waits.
    """

    def __init__(self, close: Callable[[T], object], idle_s: float = 60.0) -> None:
        self.close, self.idle_s = close, idle_s
        self._lock = threading.Lock()
        self._waits: list[tuple[T, threading.Timer]] = []  # one at most

    @contextmanager
    def one(self, start: Callable[[], T], fits: Callable[[T], bool]) -> Iterator[T]:
        """Yield what waits, if it fits, or start one; afterwards it waits, but after an exception it is ended."""
        thing = self._taken()
        if thing is not None and not fits(thing):
            self.close(thing)
            thing = None
        thing = start() if thing is None else thing
        try:
            yield thing
        except BaseException:
            self.close(thing)  # what it is at must not go on unseen
            raise
        self.end()  # of two that were used at once, one waits
        timer = threading.Timer(self.idle_s, self.end)
        timer.daemon = True
        with self._lock:
            self._waits.append((thing, timer))
        timer.start()

    def end(self) -> None:
        """End what waits."""
        if (thing := self._taken()) is not None:
            self.close(thing)

    def _taken(self) -> T | None:
        with self._lock:
            if not self._waits:
                return None
            thing, timer = self._waits.pop()
            timer.cancel()
            return thing


_pools = Waiting(lambda pool: pool[1].shutdown(cancel_futures=True))


@contextmanager
def mapper(workers: int) -> Iterator[Callable]:
    """Yield a `map` that runs in this process, or in order on `workers` others, which end with this one.

    They import the study first, which takes seconds, and so wait a minute for the next call.

    Raises:
        RuntimeError: As `check_script`.
    """
    if workers <= 1:
        yield map
        return
    check_script()
    with _pools.one(partial(_pool, workers), partial(_serves, workers)) as (_, pool):
        yield partial(pool.map, chunksize=1)


def _pool(workers: int) -> tuple[int, ProcessPoolExecutor]:
    return workers, ProcessPoolExecutor(workers, get_context("spawn"), initializer=_end_with_parent)


def _serves(workers: int, waits: tuple[int, ProcessPoolExecutor]) -> bool:
    """Whether a pool has so many processes, none of which was killed meanwhile."""
    try:
        return waits[0] == workers and waits[1].submit(int).result() == 0
    except BrokenExecutor:
        return False


def check_script() -> None:
    """Refuse to start processes from the top level of a script.

    Notebooks, `python -c` and packages run with `python -m` are not imported anew and may start processes anywhere.

    Raises:
        RuntimeError: The running statement of the script has no main guard around it, or the script is not in a file.
    """
    main = sys.modules["__main__"]
    name = getattr(getattr(main, "__spec__", None), "name", "")
    script = getattr(main, "__file__", None)
    if script is None or name.rpartition(".")[2] == "__main__":
        return
    running = traceback.walk_stack(inspect.currentframe())
    top = ((f, line) for f, line in running if f.f_globals is vars(main) and f.f_code.co_name == "<module>")
    frame, line = next(top, (None, 0))
    if not Path(script).is_file() or (frame and not _guarded(Path(frame.f_code.co_filename), line)):
        raise RuntimeError(
            f"{script}, line {line}: processes were asked for outside the main guard of a script; each would run it "
            'anew and ask again. Put what it does under `if __name__ == "__main__":` in a file, or pass workers=1'
        )


def _end_with_parent() -> None:
    """End this process when its parent is gone, killed or not: the pipe it waits at is held open by its siblings."""

    def wait() -> None:
        parent_process().join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def _guarded(path: Path, line: int) -> bool:
    """Whether the top-level statement at a line compares `__name__`, however; what cannot be looked at passes."""
    try:
        body = ast.parse(path.read_bytes()).body
    except (OSError, SyntaxError, ValueError):
        return True
    running = [part for node in body if node.lineno <= line <= node.end_lineno for part in ast.walk(node)]
    inside = [part for node in running if isinstance(node, ast.Compare) for part in ast.walk(node)]
    return not running or any(isinstance(part, ast.Name) and part.id == "__name__" for part in inside)
