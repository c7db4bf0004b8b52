"""Cluster: tasks of runs go to worker processes of Dask, started on this machine or waiting at a scheduler elsewhere.

Workers elsewhere work on the same files: this repository at the same code, its patches and the store of the results
lie on a file system that all machines see under the same paths.
"""

import logging
import os
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import dask
from distributed import Client, LocalCluster, as_completed

from nbutils import ROOT, disk, provenance
from nbutils.store import Result, Run
from nbutils.workers import Waiting

logging.getLogger("distributed").setLevel(logging.ERROR)  # workers slow to leave a busy machine are no news
SCHEDULER = "NOISY_MAPS_SCHEDULER"  # environment variable: address of a running scheduler, such as tcp://10.0.0.1:8786
ANSWER_S = 30  # a scheduler has for its first word, and its workers to be there
_STARTS = 3  # of the worker processes


def joined() -> str:
    """Address of the scheduler that computes instead of this machine; empty where there is none."""
    return os.environ.get(SCHEDULER, "")


def compute(task: Callable, missing: Sequence[Run], workers: int, store: Path) -> Iterator[Result]:
    """Compute runs on a cluster, each after its parent, yielding results as they come.

    A run whose worker is lost goes to another one, from its last checkpoint.

    Args:
        task: Called on a worker with run, store, and the parent's result or None; pickled by name.
        missing: Runs, parents first.
        workers: Processes of a cluster on this machine; one elsewhere has its own.
        store: Folder of the results.

    Raises:
        RuntimeError: No scheduler answers at the address of `SCHEDULER`, no worker waits there, or one of them, then
            or later, has other code or does not see the store.
    """
    if joined():
        task = partial(_checked, task, _code())
    with _client(min(workers, len(missing)), workers, store) as client:
        futures, call = {}, uuid.uuid4().hex  # a scheduler that remembers a key does not compute it again
        for run in missing:
            after = futures.get(run.parent.key) if run.parent else None
            futures[run.key] = client.submit(task, run, store, after, key=f"{run.key}-{call}")
        for future in as_completed(futures.values(), loop=client.loop):
            yield future.result()


@contextmanager
def _client(needed: int, most: int, store: Path) -> Iterator[Client]:
    settings = {
        "temporary-directory": str(ROOT / "data" / "cache" / "dask"),
        "distributed.nanny.pre-spawn-environ.OMP_NUM_THREADS": 1,
        # Dask has workers hand memory back at once, which makes every training step fault its pages in again.
        "distributed.nanny.pre-spawn-environ.MALLOC_TRIM_THRESHOLD_": 2**30,
        "distributed.nanny.pre-spawn-environ.MALLOC_MMAP_THRESHOLD_": 2**30,
        "distributed.logging.distributed": "error",
    }
    with dask.config.set(settings):
        if joined():
            with _elsewhere(joined(), store) as client:
                yield client
        else:
            with _waiting.one(partial(_Here, needed), lambda here: here.serves(needed, most)) as here:
                yield here.client


class _Here:
    """Worker processes on this machine, and a client that is nobody's default."""

    def __init__(self, count: int) -> None:
        self.count, self.cluster = count, _started(count)
        try:
            self.client = Client(self.cluster, set_as_default=False)
        except BaseException:
            self.cluster.close()
            raise

    def serves(self, needed: int, most: int) -> bool:
        """Whether they are enough and not too many, and all there."""
        there = self.client.status == "running" and len(self.cluster.scheduler.workers) == self.count
        return there and needed <= self.count <= most

    def close(self) -> None:
        try:
            self.client.close()
        finally:
            self.cluster.close()


_waiting = Waiting(_Here.close)


def _started(workers: int) -> LocalCluster:
    """Start worker processes; Dask replaces one that is killed, but not while it starts, so that is tried again."""
    for left in reversed(range(_STARTS)):
        try:
            return LocalCluster(n_workers=workers, threads_per_worker=1, dashboard_address=":0")
        except RuntimeError:
            if not left:
                raise


@contextmanager
def _elsewhere(address: str, store: Path) -> Iterator[Client]:
    """Connect to a running scheduler whose workers can do what is asked."""
    try:
        client = Client(address, timeout=ANSWER_S)
    except (OSError, ValueError) as error:  # among them TimeoutError
        raise RuntimeError(
            f"{SCHEDULER} is {address!r}, and no Dask scheduler answers there ({error}); start one with "
            "`dask scheduler`, correct the address, or unset the variable to compute on this machine"
        ) from None
    with client:
        try:
            client.wait_for_workers(1, timeout=ANSWER_S)
        except TimeoutError:
            told = (
                f"no worker came to {address} within {ANSWER_S} s; start some with `dask worker {address} --nthreads 1`"
            )
            raise RuntimeError(told) from None
        with disk.scratch_folder(store) as scratch:
            (mark := scratch / "seen").touch()
            for worker, (code, seen) in client.run(_sight, mark).items():
                if code != _code():
                    raise RuntimeError(
                        f"worker {worker} has other code of the study; give all machines the same commit"
                    )
                if not seen:
                    raise RuntimeError(f"worker {worker} does not see {store}; it must be on a shared file system")
        yield client


def _checked(task: Callable, code: str, run: Run, store: Path, parent: Result | None) -> Result:
    """Run a task on a worker that may have come after the others were asked; its result would bear a wrong code."""
    if _code() != code:
        raise RuntimeError("a worker that came later has other code of the study; give all machines the same commit")
    if not store.is_dir():
        raise RuntimeError(f"a worker that came later does not see {store}; it must be on a shared file system")
    return task(run, store, parent)


def _sight(mark: Path) -> tuple[str, bool]:
    """What a worker has: the digest of its code, and whether it sees a file of the store."""
    return _code(), mark.exists()


def _code() -> str:
    return provenance.digest_of(provenance.environment()["code"])
