"""The paper's scale, reckoned: what the profiles `paper` and `paper_ssl4eo` take, from speeds measured here.

The networks and the patches in training have their true size. What cannot be measured on this machine (a GPU, a node)
is an assumption that the page names.
"""

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import yaml
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.probings import everywhere, smooth_patches
from benchmarks.racing import Row, race
from nbutils import ROOT, networks, objectives, shards, study, training
from nbutils.execution import one_thread

PAGE = ROOT / "docs" / "paper_scale.md"
SUSTAINED = (10, 30, 100)  # TFLOP/s of a GPU, not those of its data sheet
NODE = {"disk": 2e12, "reading": 2e9, "hours": 72.0}  # bytes, bytes per second at random places, wall time of a job

TEXT = """\
# At the paper's scale

What the profiles `paper` and `paper_ssl4eo` would take. **No run of this size was made**: this is arithmetic on the
speed of training that `make bench` measured ({processor}, one core, fp32, batch 8, {date}), at
the true size of a patch; that command writes this page. Assumed, not measured: what a GPU sustains in training, what a
node holds and reads, and that a larger batch costs as much per image.

{table}

Work counts convolutions and matrix products, a multiplication and an addition as two. Cost is hours times what an hour
costs where you are. Not reckoned: self-supervised arms, whose work differs, what notebooks 02, 03 and 06 train, cutting
the patches, and New York's LiDAR, of which the number of points is not known.

## What breaks first

On a node with {disk} of disk that reads {reading} a second at random places, and one GPU that sustains {rate} TFLOP/s:
how many times as large the data, and with it the passes, may become. Below 1 it breaks as it is.

{breaks}
The memory of a training does not grow with the data: patches lie in files of at most {shard}, and each batch is read
when its turn comes; of its images, masks and true masks it holds at most {held} each. Notebooks 04 and 06 count classes
in whole masks, which for SSL4EO-S12 as a whole would take tens of gigabytes. Several devices or machines can share one
pretraining, and then read as many times more a second; more runs go to more machines ([cluster.md](cluster.md)).
"""


@dataclass(frozen=True)
class Experiment:
    """One of the paper's two data sets at its full size.

    Attributes:
        title: As the page calls it.
        profile: Name of the profile; encoder, patch size, batch and steps stand there.
        places: Squares of ground for pretraining, and where the number comes from.
        dates: Images of a place.
        value_bytes: Bytes of a pixel of a band.
        classes: Of the noisy map.
        source: Bytes of the published images, if known.
    """

    title: str
    profile: str
    places: int
    origin: str
    dates: int
    value_bytes: int
    classes: int
    source: float | None = None


EXPERIMENTS = (
    Experiment("New York", "paper", 9380, "778 km² of land, held-out ground included, in squares of 288 m", 1, 1, 4),
    Experiment("SSL4EO-S12", "paper_ssl4eo", 103_793, "those that Dynamic World's map covers", 4, 2, 9, 557e9),
)


def profile_of(one: Experiment) -> dict[str, Any]:
    """Its profile, with the bands and the name of its data set."""
    values = yaml.safe_load((ROOT / "notebooks" / "profiles" / f"{one.profile}.yaml").read_text(encoding="utf-8"))
    card = yaml.safe_load((ROOT / values["dataset"]).read_text(encoding="utf-8"))
    return values | {"bands": len(card["images"]["bands"])}


def training_row(one: Experiment) -> str:
    """Name of the row that holds its training speed."""
    values = profile_of(one)
    return f"train U-Net {values['encoder']}, {values['patch_px']} px, {values['bands']} bands"


def bench(repeats: int = 2) -> list[Row]:
    """Images per second of one core in training."""
    with one_thread():
        return [row for one in EXPERIMENTS for row in _training(one, repeats)]


def _training(one: Experiment, repeats: int, batch: int = 8, steps: int = 2) -> list[Row]:
    values = profile_of(one)
    data = smooth_patches(n=batch, size_px=values["patch_px"])
    bands = tuple(f"b{i}" for i in range(values["bands"]))
    images = np.resize(data.images, (batch, len(bands), *data.images.shape[-2:]))
    data = replace(everywhere(data), images=images, bands=bands, mean=(0.5,) * len(bands), std=(0.2,) * len(bands))
    objective = objectives.Supervised(_network(values, len(data.exact_legend)))
    plan = training.Plan(steps=steps, batch_size=batch, learning_rate=1e-4, precision="fp32", seed=0)
    runners = {training_row(one): lambda: training.fit(objective, data, "exact", plan)}
    return race("images/s", steps * batch, runners, repeats, time.process_time)


def _network(values: Mapping[str, Any], classes: int) -> torch.nn.Module:
    return networks.build(values["encoder"], "unet", in_channels=values["bands"], n_classes=classes, seed=0)


def work_of(one: Experiment) -> tuple[float, int]:
    """Floating point operations of training per image (a multiplication and an addition are two), and weights."""
    values = profile_of(one)
    network = _network(values, one.classes).to("meta")  # counted, not computed
    images = torch.empty(2, values["bands"], values["patch_px"], values["patch_px"], device="meta")
    with FlopCounterMode(display=False) as counter:
        network(images).sum().backward()
    return counter.get_total_flops() / len(images), sum(p.numel() for p in network.parameters())


def needs(one: Experiment, known: Mapping[str, Any]) -> dict[str, float]:
    """What it takes, by name, from the speeds that were measured.

    Args:
        one: The experiment.
        known: Parts of `report.read`, of which `scale` is used.
    """
    values, speed = profile_of(one), {row["name"]: row["median"] for row in known["scale"]["rows"]}
    number, pixels = one.places * one.dates, values["patch_px"] ** 2
    flops, weights = work_of(one)
    passes = values["pretrain_steps"] * values["pretrain_batch"]
    arms = ["random", *values["arms"], *values["more_arms"]]
    cells = study.grid(values["slices"], arms, usual=["random", *values["arms"]], most=number)
    patch_bytes, rate = pixels * (values["bands"] * one.value_bytes + 2), SUSTAINED[1] * 1e12 / flops  # two masks
    return {
        "patch bytes": number * patch_bytes,
        "read per second": rate * patch_bytes,
        "passes": passes,
        "epochs": passes / number,
        "flops": flops,
        "weights": weights,
        "images per core second": speed[training_row(one)],
        "core hours": passes / speed[training_row(one)] / 3600,
        "checkpoint bytes": 3 * 4 * weights,  # weights and two moments of AdamW
        "pretrainings": (len(arms) - 1) * len(values["seeds"]),
        "fine-tunings": sum(len(own) for own in cells.values()) * len(values["seeds"]),
    } | {f"GPU hours at {rate}": passes * flops / (rate * 1e12) / 3600 for rate in SUSTAINED}


def limits(need: Mapping[str, float]) -> dict[str, float]:
    """How many times as large the experiment may become before a node of `NODE` is full, by what fills it."""
    hours = NODE["hours"]
    return {
        "disk for the cut patches alone, without archive and scenes": NODE["disk"] / need["patch bytes"],
        f"a noisy pretraining within {hours:.0f} h on the GPU": hours / need[f"GPU hours at {SUSTAINED[1]}"],
    }


def page(known: Mapping[str, Any]) -> str:
    """The page of arithmetic."""
    found, machine = {one: needs(one, known) for one in EXPERIMENTS}, known["scale"]["machine"]
    lines = ["| | " + " | ".join(one.title for one in EXPERIMENTS) + " |", "|---|" + "---:|" * len(EXPERIMENTS)]
    lines += [f"| {name} | " + " | ".join(cells) + " |" for name, cells in _rows(found)]
    breaks = []
    for one, need in found.items():
        order = sorted(limits(need).items(), key=lambda item: item[1])
        first = f"{order[0][0]} breaks first" if order[0][1] < 10 else "none of these breaks"
        breaks += [f"**{one.title}**, ten times as large: {first}.", "", "| what suffices | times |", "|---|---:|"]
        breaks += [*(f"| {name} | {_number(times)} |" for name, times in order), ""]
    about = {"processor": machine["processor"], "date": machine["date"], "rate": SUSTAINED[1]}
    about |= {"reading": _bytes(NODE["reading"]), "disk": _bytes(NODE["disk"])}
    about |= {"shard": _binary(shards.SHARD_BYTES), "held": _binary(shards.HELD_BYTES)}
    return TEXT.format(table="\n".join(lines), breaks="\n".join(breaks), **about)


def _rows(found: Mapping[Experiment, Mapping[str, float]]) -> Iterator[tuple[str, list[str]]]:
    """The table's rows: a name, and a cell for every experiment."""
    each = [(one, profile_of(one), need) for one, need in found.items()]
    yield "places × dates", [f"{one.places:,} × {one.dates}" for one, _, _ in each]
    yield "places", [one.origin for one, _, _ in each]
    yield "network", [f"U-Net {p['encoder']}, {need['weights'] / 1e6:.1f} M weights" for _, p, need in each]
    yield "patch", [f"{p['patch_px']} px, {p['bands']} bands, {8 * one.value_bytes} bit" for one, p, _ in each]
    yield "archive of images", [_bytes(one.source) if one.source else "size not known" for one, _, _ in each]
    yield "cut patches", [_bytes(need["patch bytes"]) for *_, need in each]
    yield "image passes of a pretraining", [f"{need['passes'] / 1e6:.2f} M" for *_, need in each]
    yield "passes over each patch", [f"{need['epochs']:.0f}" for *_, need in each]
    yield "work per image, forward and backward", [f"{need['flops'] / 1e9:.0f} GFLOP" for *_, need in each]
    yield "measured, one core", [f"{need['images per core second']:.2f} images/s" for *_, need in each]
    yield "core hours of a noisy pretraining", [_number(need["core hours"]) for *_, need in each]
    for rate in SUSTAINED:
        yield f"GPU hours of it at {rate} TFLOP/s", [_number(need[f"GPU hours at {rate}"]) for *_, need in each]
    yield f"read per second at {SUSTAINED[1]} TFLOP/s", [_bytes(need["read per second"]) for *_, need in each]
    yield "checkpoint", [_bytes(need["checkpoint bytes"]) for *_, need in each]
    yield "pretrainings of notebook 04", [f"{need['pretrainings']:.0f}" for *_, need in each]
    yield "fine-tunings of notebook 05", [f"{need['fine-tunings']:.0f}" for *_, need in each]


def _bytes(number: float) -> str:
    unit, size = next((pair for pair in (("TB", 1e12), ("GB", 1e9)) if number >= pair[1]), ("MB", 1e6))
    return f"{_number(number / size)} {unit}"


def _binary(number: int) -> str:
    return f"{number / 2**30:g} GiB"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 99.5 else f"{value:.2g}"
