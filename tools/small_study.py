"""A true study of some seconds, to be killed and broken by `tools/reliability.py`.

    python tools/small_study.py STORE FINGERPRINT --workers 2

Two arms are pretrained on patches that are stored under FINGERPRINT and fine-tuned, frozen and not, beside a random
encoder. Checkpoints are written every fifth of a second, so that kills meet them; what is computed is the same.
Exit status: 0 all is in the store, 1 the store cannot be read or written.
"""

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from nbutils import patches, store, study, training, weights
from nbutils.patches import PatchSet
from nbutils.store import Run

SETTINGS = dict(encoder="tu-test_resnet", width="slim", batch_size=4, precision="fp32")
ARMS = ("noisy", "moco")


def runs(data: PatchSet, arms: Sequence[str] = ARMS) -> list[Run]:
    """Describe the study: pretrainings first, then what is fine-tuned from them."""
    parents = [study.pretraining(data, arm, steps=20, seed=0, **SETTINGS) for arm in arms]
    how = dict(decoder="unet", budget=4, steps=4, seed=0, **SETTINGS)
    tuned = [study.finetuning(data, parent, frozen=frozen, **how) for parent in parents for frozen in (True, False)]
    return [*parents, *tuned, study.finetuning(data, None, frozen=False, **how)]


def dask_setup(worker: object) -> None:
    """Have a worker save often; Dask calls this where the file is named as its preload."""
    save_often()


def save_often() -> None:
    """Let trainings of a second leave checkpoints."""
    training.fit = partial(training.fit, save_every_s=0.2)


def main() -> int:
    """Run the study; returns the exit status."""
    parser = argparse.ArgumentParser(description="A true study of some seconds.")
    parser.add_argument("store", type=Path, help="folder of the results")
    parser.add_argument("fingerprint", help="of stored patches")
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    save_often()
    try:
        asked = runs(patches.load(options.fingerprint))
        study.run_many(asked, workers=options.workers, store=options.store)
    except (store.StoreError, weights.WeightsError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
