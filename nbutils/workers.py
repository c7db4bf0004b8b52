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
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import Generic, TypeVar

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class _Left(Generic[T]):
    thing: T
    about: tuple


class Waiting(Generic[T]):
    """What takes seconds to start, left running for a while after its use for who needs the like again.

    It serves another call of this process in the same folder and environment, while the code of this package is as it
    was: processes that wait have all of these from their start.

    Args:
        close: Ends one.
        idle_s: Seconds that it waits.
    """

    def __init__(self, close: Callable[[T], object], idle_s: float = 60.0) -> None:
        self.close, self.idle_s = close, idle_s
        self._left: list[_Left[T]] = []  # one at most but for moments; without a lock, which a fork could leave locked

    @contextmanager
    def one(self, start: Callable[[], T], fits: Callable[[T], bool]) -> Iterator[T]:
        """Yield what waits, if it fits, or start one; afterwards it waits, but after an exception it is ended."""
        about, held = _surroundings(), []
        try:
            if (left := self._taken()) is not None and left.about[0] == about[0]:  # else it is the parent's
                held.append(left.thing)
                if left.about != about or not fits(left.thing):
                    self._end(held.pop())
            if not held:
                held.append(start())
                about = _surroundings()  # Dask has set variables for its workers by now
            yield held[0]
        except BaseException:
            for thing in held:
                self._end(thing)  # what it is at must not go on unseen
            raise
        self._leave(_Left(held[0], about))

    def end(self) -> None:
        """End what waits."""
        while (left := self._taken()) is not None:
            self._end(left.thing)

    def _leave(self, left: _Left[T]) -> None:
        self.end()  # of two that were used at once, one waits
        self._left.append(left)
        timer = threading.Timer(self.idle_s, self._expire, (left,))
        timer.daemon = True
        timer.start()

    def _taken(self) -> _Left[T] | None:
        try:
            return self._left.pop()
        except IndexError:
            return None

    def _expire(self, left: _Left[T]) -> None:
        try:
            self._left.remove(left)
        except ValueError:
            return  # in use again, or ended
        self._end(left.thing)

    def _end(self, thing: T) -> None:
        try:
            self.close(thing)
        except Exception as error:  # neither the call that comes nor the one that failed has to do with it
            warnings.warn(f"worker processes may be left, they could not be ended: {error!r}", stacklevel=2)


def _surroundings() -> tuple:
    """What processes are started with, first of all by whom."""
    code = max(path.stat().st_mtime_ns for path in Path(__file__).parent.rglob("*.py"))
    return os.getpid(), os.getcwd(), dict(os.environ), code


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
