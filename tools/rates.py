"""Choose learning rates: the same small search for every arm, judged on the validation scenes.

    python tools/rates.py

Reading profile, U-Net, 16 labelled patches. A rate of pretraining is judged by the mean IoU that its encoder reaches,
averaged over frozen and fine-tuned, over rates of fine-tuning and seeds; then one rate of fine-tuning is chosen for
all arms, as the best on average over the arms at their own rates. Writes `tools/rates.csv`; `study.LEARNING_RATES`
holds what it says. Resumes; 53 minutes on two busy cores.
"""

import itertools
from pathlib import Path

import pandas as pd

from nbutils import patches, study

CARD = "data/datasets/city.yaml"
PRETRAINING = (5e-4, 2e-3, 5e-3, 1e-2)
FINETUNING = (3e-3, 6e-3, 1.2e-2)
SEEDS = (0, 1)
COMMON = {"encoder": "tu-test_resnet", "width": "slim", "precision": "auto"}


def search() -> pd.DataFrame:
    """Run every combination; one row each, with the mean IoU on the validation scenes and the run's key."""
    data = patches.cut(patches.open_dataset(CARD), size_px=64, max_patches=864)
    parents = {
        (arm, rate, seed): study.pretraining(
            data, arm, steps=500, batch_size=16, seed=seed, learning_rate=rate, **COMMON
        )
        for arm, rate, seed in itertools.product(study.arms_of(data)[1:], PRETRAINING, SEEDS)
    }
    parents |= {("random", float("nan"), seed): None for seed in SEEDS}
    runs = {
        (*key, frozen, rate): study.finetuning(
            data,
            parent,
            decoder="unet",
            budget=16,
            frozen=frozen,
            steps=150,
            batch_size=8,
            seed=key[-1],
            learning_rate=rate,
            **COMMON,
        )
        for key, parent in parents.items()
        for frozen, rate in itertools.product((True, False), FINETUNING)
    }
    rows = [
        (*key, round(result.mean_iou("validation"), 4), result.run.key)
        for key, result in zip(runs, study.run_many(list(runs.values())), strict=True)
    ]
    names = ["arm", "pretraining_rate", "seed", "frozen", "finetuning_rate", "validation_miou", "run"]
    return pd.DataFrame(rows, columns=names)


def choose(tried: pd.DataFrame) -> dict[str, float]:
    """Pick the best rate of every arm, then of fine-tuning."""
    trained = tried[tried.arm != "random"]
    means = trained.groupby(["arm", "pretraining_rate"]).validation_miou.mean()
    best = {arm: rate for arm, rate in means.groupby("arm").idxmax()}
    chosen = tried[(tried.arm == "random") | (tried.pretraining_rate == tried.arm.map(best))]
    return best | {"finetune": float(chosen.groupby("finetuning_rate").validation_miou.mean().idxmax())}


if __name__ == "__main__":
    tried = search()
    tried.to_csv(Path(__file__).with_name("rates.csv"), index=False)
    print(choose(tried))
