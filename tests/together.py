"""Train toy patches in as many processes as asked, and keep what came out: `OUT DEVICES ARM STEPS WORD`.

WORD is `die` or `live`.
"""

import json
import os
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from lightning_fabric import Fabric
from toy import toy_patches

from nbutils import arms, legend, networks, training


def main(out: Path, devices: int, arm: str, steps: int, word: str) -> None:
    """Train, from a checkpoint if there is one, and save weights and curve; or die half way."""
    torch.set_num_threads(1)
    data = toy_patches(n=40)
    noisy = data.masks["noisy"].copy()
    noisy[::3, : np.arange(len(noisy))[::3].max() % 29] = legend.VOID  # shares of a batch that differ in void
    data = replace(data, masks={**data.masks, "noisy": noisy})
    network = networks.build("tu-test_resnet", "unet", in_channels=4, n_classes=4, seed=0, width="slim")
    objective = arms.objective_of(arm, network, seed=0, n_places=40, batch_size=8)
    fabric = Fabric(accelerator="cpu", devices=devices, strategy="ddp" if devices > 1 else "auto")
    fabric.launch()
    plan = training.Plan(steps, batch_size=8, learning_rate=3e-3, precision="fp32", seed=0)
    seen = []

    def judge() -> dict[str, float]:
        if word == "die":
            os._exit(9)
        seen.append(1)
        return {"judged": network.decoder.blocks[0].conv1[0].weight.sum().item()}

    about = dict(truth=data.exact_as_noisy(), judge=judge, looks=2)
    about |= dict(checkpoint=out.with_suffix(".checkpoint"), save_every_s=0.0)
    curve = training.fit(objective, data, "noisy", plan, fabric=fabric, **about)
    state = {name: value.contiguous() for name, value in network.state_dict().items()}
    own = out.with_name(f"{out.name}-{fabric.global_rank}")
    safetensors.torch.save_file(state, own.with_suffix(".safetensors"))
    own.with_suffix(".json").write_text(json.dumps(curve))
    if not fabric.is_global_zero:
        assert not seen, "the first process judges alone"


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3], int(sys.argv[4]), sys.argv[5])
