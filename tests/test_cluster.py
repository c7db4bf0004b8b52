"""A running scheduler: its workers give the same bits, one that is lost loses nothing, what cannot serve is told."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import study as run_notebooks
from distributed import get_client
from toy import toy_patches

from nbutils import ROOT, cluster, execution, patches, study, weights
from nbutils.workers import Waiting

HOW = dict(encoder="tu-test_resnet", width="slim", steps=12, batch_size=4, precision="fp32")


@pytest.fixture(scope="module")
def data():
    data = toy_patches(n=22)  # not those of another module: they lie where workers find them
    patches.store(data)
    yield data
    for path in (patches.CACHE / data.fingerprint).iterdir():
        path.unlink()
    (patches.CACHE / data.fingerprint).rmdir()


class Running:
    """A scheduler and workers, each a process of its own."""

    def __init__(self, folder):
        self.folder, self.workers = folder, []
        self.file = folder / "scheduler.json"
        self.scheduler = self._start("scheduler", "--port", "0", "--no-dashboard")
        deadline = time.monotonic() + 60
        while not self.file.exists() and time.monotonic() < deadline:
            time.sleep(0.1)
        self.address = json.loads(self.file.read_text())["address"]

    def _start(self, what, *options):
        command = [sys.executable, "-m", "dask", what, "--scheduler-file", str(self.file), *options]
        env = os.environ | {"PYTHONPATH": str(ROOT), "DASK_DISTRIBUTED__LOGGING__DISTRIBUTED": "error"}
        return subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def add(self):
        options = ("--nthreads", "1", "--no-nanny", "--no-dashboard", "--local-directory", str(self.folder))
        self.workers.append(self._start("worker", *options))

    def end(self):
        for process in (*self.workers, self.scheduler):
            process.kill()
            process.wait()


@pytest.fixture
def running(tmp_path, monkeypatch) -> Iterator[Running]:
    running = Running(tmp_path)
    monkeypatch.setenv(cluster.SCHEDULER, running.address)
    yield running
    running.end()


def test_a_worker_lost_in_mid_run_loses_nothing_and_changes_no_bit(data, running, tmp_path, monkeypatch):
    asked = [study.pretraining(data, "noisy", seed=seed, **HOW) for seed in range(5)]
    asked.append(study.finetuning(data, asked[0], decoder="fpn", budget=5, frozen=True, seed=0, **HOW))
    running.add()
    running.add()

    def kill_one():
        while not (tmp_path / "runs/log.txt").exists():
            time.sleep(0.01)
        running.workers[0].send_signal(signal.SIGKILL)

    killer = threading.Thread(target=kill_one, daemon=True)
    killer.start()
    elsewhere = study.run_many(asked, workers=1, store=tmp_path / "runs")
    killer.join(timeout=60)
    assert running.workers[0].wait(timeout=60) == -signal.SIGKILL and running.workers[1].poll() is None
    monkeypatch.delenv(cluster.SCHEDULER)
    here = study.run_many(asked, workers=1, store=tmp_path / "here")
    for a, b in zip(elsewhere, here, strict=True):
        assert (a.run, a.counts, a.curve) == (b.run, b.counts, b.curve)
        assert (a.folder / "weights.safetensors").read_bytes() == (b.folder / "weights.safetensors").read_bytes()


def test_a_worker_that_comes_later_is_asked_with_every_run(data, tmp_path):
    run, task = study.pretraining(data, "noisy", seed=0, **HOW), lambda run, store, parent: "done"
    assert cluster._checked(task, cluster._code(), run, tmp_path, None) == "done"
    with pytest.raises(RuntimeError, match="has other code"):
        cluster._checked(task, "another", run, tmp_path, None)
    with pytest.raises(RuntimeError, match="does not see .*nowhere"):
        cluster._checked(task, cluster._code(), run, tmp_path / "nowhere", None)


def test_the_study_hands_its_scheduler_on_to_the_kernels(monkeypatch):
    monkeypatch.setenv(cluster.SCHEDULER, "")  # to be put back
    assert run_notebooks.main(["--scheduler", "tcp://10.0.0.1:8786", "--profile", "there is none"]) == 2
    assert cluster.joined() == "tcp://10.0.0.1:8786"


def test_a_scheduler_that_does_not_answer_is_named(data, tmp_path, monkeypatch):
    monkeypatch.setattr(cluster, "ANSWER_S", 2)
    run = study.pretraining(data, "noisy", seed=0, **HOW)
    for address in ("tcp://127.0.0.1:1", "nonsense://x", "not an address"):
        monkeypatch.setenv(cluster.SCHEDULER, address)
        with pytest.raises(RuntimeError, match=f"{cluster.SCHEDULER} is '{address}', and no Dask scheduler .*unset"):
            study.run_many([run], store=tmp_path / "runs")


def test_workers_that_cannot_serve_are_refused(data, running, tmp_path, monkeypatch):
    run = study.pretraining(data, "noisy", seed=0, **HOW)
    monkeypatch.setattr(cluster, "ANSWER_S", 2)
    with pytest.raises(RuntimeError, match="no worker came to tcp:.* start some with `dask worker tcp://"):
        study.run_many([run], store=tmp_path / "runs")
    running.add()
    monkeypatch.setattr(cluster, "ANSWER_S", 60)
    monkeypatch.setattr(cluster, "_code", lambda: "another")
    with pytest.raises(RuntimeError, match="worker tcp:.* has other code of the study; give all machines the same"):
        study.run_many([run], store=tmp_path / "runs")
    monkeypatch.undo()
    monkeypatch.setenv(cluster.SCHEDULER, running.address)
    monkeypatch.setattr(Path, "touch", lambda path: None)  # as if the file were on this machine alone
    with pytest.raises(RuntimeError, match="does not see .*runs; it must be on a shared file system"):
        list(cluster.compute(execution._task, [run], 1, tmp_path / "runs"))


@pytest.mark.parametrize(("failures", "starts"), [(0, 1), (2, 3), (3, 3)])
def test_workers_that_die_while_they_start_are_started_again_thrice_at_most(failures, starts, monkeypatch):
    asked = []

    def start(*, n_workers, **settings):
        asked.append(n_workers)
        if len(asked) <= failures:
            raise RuntimeError("Nanny failed to start.")
        return "cluster"

    monkeypatch.setattr(cluster, "LocalCluster", start)
    if failures == 3:
        with pytest.raises(RuntimeError, match="Nanny"):
            cluster._started(2)
    else:
        assert cluster._started(2) == "cluster"
    assert asked == [2] * starts


@pytest.fixture
def waiting(monkeypatch):
    waiting = Waiting(cluster._Here.close)
    monkeypatch.setattr(cluster, "_waiting", waiting)
    yield waiting
    waiting.end()


@pytest.mark.slow
def test_workers_here_wait_for_the_next_runs_and_remember_none(data, tmp_path, monkeypatch, waiting):
    monkeypatch.delenv(cluster.SCHEDULER, raising=False)
    starts, start = [], cluster._started
    monkeypatch.setattr(cluster, "_started", lambda workers: starts.append(workers) or start(workers))
    asked = [study.pretraining(data, "noisy", seed=seed, **HOW) for seed in range(2)]
    first = study.run_many(asked, workers=2, store=tmp_path / "runs")
    shutil.rmtree(first[0].folder)
    again, (elsewhere,) = (
        study.run_many(asked, workers=2, store=tmp_path / "runs"),
        study.run_many(asked[:1], workers=2, store=tmp_path / "other"),
    )
    assert starts == [2] and len(waiting._left[0].thing.cluster.scheduler.workers) == 2
    with pytest.raises(ValueError, match="No global client"):
        get_client()  # what else uses Dask here does not find ours
    assert again[0].folder.is_dir() and elsewhere.folder.parent == tmp_path / "other"
    assert again[0].counts == first[0].counts == elsewhere.counts
    with pytest.raises(weights.WeightsError):  # its parent went
        shutil.rmtree(again[0].folder)
        child = study.finetuning(data, asked[0], decoder="fpn", budget=5, frozen=True, seed=0, **HOW)
        monkeypatch.setattr(execution, "_parents_first", list)
        study.run_many([child, asked[1]], workers=2, store=tmp_path / "runs")
    assert not waiting._left  # nothing goes on behind an error
