"""Choose learning rates: the same small search for every arm, judged on the validation scenes.

    python tools/rates.py

Reading profile, U-Net, 16 labelled patches. A rate of pretraining is judged by the mean IoU that its encoder reaches
on the city's validation scenes, averaged over two seeds and over frozen and fine-tuned, with the middle rate of fine-
tuning. The supervised arms (exact, noisy and its remedies) share one rate, the best on average over noisy and exact,
so that they differ in their labels alone; exact by itself would take 0.02, by 0.3 points. Then one rate of fine-
tuning is taken for all arms, on the first seed: the one that suits the random encoder best, so that no lead over it
is owed to the rate; averaged over all arms at their own rates, 0.006 would be ahead by 0.8 points.
Writes `tools/rates.csv`, whose keys are of the code at that time; `arms.LEARNING_RATES` holds what it says. Resumes.
"""

import itertools
from pathlib import Path

import pandas as pd

from nbutils import arms, patches, study

CARD = "data/datasets/city.yaml"
PRETRAINING = (5e-4, 2e-3, 6e-3, 2e-2)
FINETUNING = (3e-3, 6e-3, 1.2e-2)
MIDDLE = FINETUNING[1]
SEEDS = (0, 1)
SUPERVISED = ("noisy", "exact")
COMMON = {"encoder": "tu-test_resnet", "width": "slim", "precision": "auto"}
COLUMNS = ["arm", "pretraining_rate", "seed", "frozen", "finetuning_rate", "validation_miou", "run"]


def search() -> pd.DataFrame:
    """Run both steps of the search; one row per fine-tuning, with its score and the run's key."""
    data = patches.cut(patches.open_dataset(CARD), size_px=64, max_patches=864)
    asked = itertools.product([arm for arm in arms.ARMS[1:] if arm not in arms.REMEDIES], PRETRAINING)
    first = _finetuned(data, asked, [MIDDLE], SEEDS)
    others, one = [rate for rate in FINETUNING if rate != MIDDLE], SEEDS[:1]
    second = _finetuned(data, _best(first).items(), others, one)
    rows = [first, second, _finetuned(data, [("random", None)], FINETUNING, one)]
    return pd.concat(rows, ignore_index=True)


def choose(tried: pd.DataFrame) -> dict[str, float]:
    """Pick the best rate of every arm, then of fine-tuning."""
    plain = tried[(tried.arm == "random") & (tried.seed == SEEDS[0])]
    finetuning = float(plain.groupby("finetuning_rate").validation_miou.mean().idxmax())
    return _best(tried) | {"finetune": finetuning}


def _best(tried: pd.DataFrame) -> dict[str, float]:
    judged = tried[(tried.arm != "random") & (tried.finetuning_rate == MIDDLE)]
    alike = judged.arm.where(~judged.arm.isin(SUPERVISED), "supervised").rename("alike")
    means = judged.groupby([alike, "pretraining_rate"]).validation_miou.mean()
    best = {name: float(rate) for name, (_, rate) in means.groupby("alike").idxmax().items()}
    return {arm: best.get(arm) or best["supervised"] for arm in judged.arm.unique()}


def _finetuned(data: patches.PatchSet, pretrained, rates, seeds) -> pd.DataFrame:
    runs = {}
    for (arm, rate), seed in itertools.product(list(pretrained), seeds):
        parent = None
        if arm != "random":
            how = dict(steps=500, batch_size=16, seed=seed, learning_rate=rate, **COMMON)
            parent = study.pretraining(data, arm, **how)
        for frozen, own in itertools.product((True, False), rates):
            how = dict(decoder="unet", budget=16, frozen=frozen, steps=150, batch_size=8, learning_rate=own, **COMMON)
            runs[arm, rate, seed, frozen, own] = study.finetuning(data, parent, seed=seed, **how)
    results = study.run_many(list(runs.values()))
    scores = [(round(result.mean_iou("validation"), 4), result.run.key) for result in results]
    return pd.DataFrame([(*key, *score) for key, score in zip(runs, scores, strict=True)], columns=COLUMNS)


if __name__ == "__main__":
    tried = search()
    tried.to_csv(Path(__file__).with_name("rates.csv"), index=False)
    print(choose(tried))
