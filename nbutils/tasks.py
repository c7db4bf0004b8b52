"""Tasks: other things to fine-tune an encoder for, and to judge it by, on the ground of a data set.

A data set's own task is its exact masks. Its card may name others under `tasks`: the same ground in other classes, or
the same classes judged on other ground. The scenes for pretraining and fine-tuning stay those of the data set.
"""

import hashlib
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from nbutils import cards, noise, patches, sources
from nbutils.legend import VOID, Legend
from nbutils.patches import SPLITS, PatchSet
from nbutils.shards import blocks

OWN = "own"  # the task of the card's exact masks
PATCHES = noise.Recipe("patches", "look-alikes mixed up", (("confuse", {"rate": 0.2, "correlation_px": 20.0}),))


def task(
    dataset: sources.Dataset, data: PatchSet, name: str, *, size_px: int, max_patches: int, workers: int = 2
) -> PatchSet:
    """Return the patches of a task that a card names.

    Args:
        dataset: The data set whose card names it.
        data: Its patches, of all splits.
        name: `OWN`, or one of the card's `tasks`.
        size_px: As in `patches.cut`, where further files have to be cut; the same as for `data`.
        max_patches: See `size_px`.
        workers: See `size_px`.

    Raises:
        ValueError: The card names no such task, or its patches are not the windows of the data set.
    """
    if name == OWN:
        return data
    if name not in dataset.card.tasks:
        known = ", ".join([OWN, *dataset.card.tasks])
        raise ValueError(f"{dataset.card.name}: no task {name!r}; the card has {known}")
    spec, how = dataset.card.tasks[name], dict(size_px=size_px, max_patches=max_patches, workers=workers)
    if spec.legend is not None:
        return patches.in_legend(data, cards.to_legend(spec.legend), spec.mapping)
    if spec.exact is not None:
        card = dataset.card.model_copy(update={"exact": spec.exact, "crosswalk": None})
        found = patches.cut(sources.Dataset(card, dataset.path, sources.list_tiles(card)), **how)
        if not (_same_images(found, data) and _same_splits(found, data)):
            raise ValueError(
                f"{data.name}: the exact masks of task {name!r} are known on other windows than those of the data set, "
                "so that arms would be judged on other ground; make both void in the same places, or give it a card"
            )
        return found
    return judged_on(data, patches.cut(patches.open_dataset(spec.card), **how))


def judged_on(data: PatchSet, other: PatchSet) -> PatchSet:
    """Return the patches with the test scenes of another set in place of their own, under a fingerprint of its own.

    Args:
        data: What is learned from.
        other: Of the same bands, scale, patch size and exact legend.

    Raises:
        ValueError: They differ in one of these, or in ground sampling distance or noisy legend; the message says in
            which. Or a patch of both is the same.
    """
    for what in ("bands", "scale", "patch_px", "gsd_m", "exact_legend", "noisy_legend"):
        ours, theirs = getattr(data, what), getattr(other, what)
        if ours != theirs:
            raise ValueError(f"{data.name} cannot be judged on {other.name}: {what} is {ours}, there {theirs}")
    kept = np.logical_or.reduce([member for split, member in data.member.items() if split != "test"])
    ours, theirs = data.take(kept), other.split("test")
    shown = [{hashlib.sha256(image.tobytes()).digest() for image in each.images} for each in (ours, theirs)]
    if shared := set.intersection(*shown):
        raise ValueError(f"{data.name} cannot be judged on {other.name}: {len(shared)} of its test patches are its own")
    n, m = len(ours), len(theirs)
    member = {split: np.r_[ours.member[split], np.zeros(m, bool)] for split in SPLITS}
    member["test"] = np.arange(n + m) >= n
    places = None if ours.places is None else np.r_[ours.places, ours.places.max() + 1 + np.arange(m)]
    joined = replace(
        ours,
        images=np.concatenate([ours.images, theirs.images]),
        masks={name: np.concatenate([ours.masks[name], theirs.masks[name]]) for name in ours.masks},
        scenes=np.concatenate([ours.scenes, np.char.add(f"{other.name}/", theirs.scenes)]),
        member=member,
        places=places,
    )
    return patches.named(joined)


def _same_splits(first: PatchSet, second: PatchSet) -> bool:
    return all(np.array_equal(first.member[split], second.member[split]) for split in SPLITS)


def _same_images(first: PatchSet, second: PatchSet) -> bool:
    return first.images.shape == second.images.shape and all(
        np.array_equal(block, second.images[start : start + len(block)]) for start, block in blocks(first.images)
    )


def mislabelled(data: PatchSet, noisy: NDArray[np.uint8]) -> PatchSet:
    """Return the patches with noisy masks to fine-tune on, judged by the exact ones as before.

    Args:
        data: The whole set; its splits share no patch with `finetune` but perhaps `pretrain`.
        noisy: (N, h, w) uint8 in the exact legend, 255 = void; read where patches are for fine-tuning.

    Raises:
        ValueError: The masks are not uint8 of that shape, or a patch that judges is one for fine-tuning.
    """
    exact, learned = data.masks["exact"], data.member["finetune"]
    if noisy.shape != exact.shape or noisy.dtype != np.uint8:
        raise ValueError(f"noisy must be uint8 {exact.shape}, got {noisy.dtype} {noisy.shape}")
    if (learned & (data.member["test"] | data.member["validation"])).any():
        raise ValueError(f"{data.name}: patches to fine-tune on are also judged by, so their masks cannot be broken")
    masks = {**data.masks, "exact": np.where(learned[:, None, None], noisy, exact)}
    return patches.named(replace(data, masks=masks))


def broken(
    truth: NDArray[np.uint8],
    legend: Legend,
    kind: str,
    rate: float,
    *,
    where: NDArray[np.bool_],
    places: NDArray[np.int64] | None = None,
    seed: int = 0,
) -> NDArray[np.uint8]:
    """Inject noise into masks, at one strength for all: so that `rate` of the pixels of some of them change.

    Args:
        truth: (N, h, w) uint8, 255 = void.
        legend: Their legend.
        kind: ``flips`` of single pixels, ``patches`` (20 px) of look-alikes, or one of `noise.RECIPES`.
        rate: Share of valid pixels, in [0, 1].
        where: (N,) the masks that the rate is of; about 96 of them are tried.
        places: (N,) the place of each mask. Dates of one place then share their errors, as those of a map would: drawn
            anew for each date they would average out. What the first date does not know is void.
        seed: Of the noise.

    Raises:
        ValueError: The kind is unknown, or cannot change so many.
    """
    if places is not None:
        _, first, of = np.unique(places, return_index=True, return_inverse=True)
        alike = broken(truth[first], legend, kind, rate, where=where[first], seed=seed)[of]
        return np.where(truth == VOID, VOID, alike).astype(np.uint8)
    rng = np.random.default_rng(seed)
    if kind == "flips":
        return noise.flip_labels(truth, rate, len(legend), rng=rng)[0]
    recipes = {"patches": PATCHES, **noise.RECIPES}
    if kind not in recipes:
        raise ValueError(f"unknown kind of noise {kind!r}; known are flips, {', '.join(recipes)}")
    tried = list(truth[where][:: max(1, where.sum() // 96)])
    strength = recipes[kind].strength_for(tried, legend, rate, seed=0)
    return recipes[kind].apply(truth, legend, rng, strength)[0]
