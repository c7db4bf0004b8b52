"""Arms: what each learns from, and the code its runs are named after."""

import pytest

from nbutils import arms, networks, objectives, study
from nbutils.objectives import Objective


def _named(arm: str) -> set[str]:
    return {module.__name__.removeprefix("nbutils.") for module in arms.code_of(arm)}


def test_a_run_is_named_after_the_code_of_its_arm_and_no_other():
    assert _named("exact") == _named("noisy") == {"objectives.masks", "objectives.objective", "objectives.together"}
    assert {"objectives.contrast", "objectives.views"} <= _named("moco")
    assert not {"objectives.distillation", "objectives.remedies"} & _named("moco")
    assert "objectives.remedies" in _named("noisy+gce") and "objectives.correction" not in _named("noisy+gce")
    assert {"objectives.correction", "memorisation"} <= _named("noisy+correct")
    assert study._code("moco") != study._code("dino") != study._code("exact")


def test_every_arm_has_masks_to_learn_from_a_rate_and_an_objective():
    network = networks.build("tu-test_resnet", "unet", in_channels=4, n_classes=3, seed=0, width="slim")
    for arm in arms.ARMS[1:]:
        supervised = arm not in arms.SELF_SUPERVISED
        assert arms.target_of(arm) == (("exact" if arm == "exact" else "noisy") if supervised else "")
        assert arms.rate_of(arm) == arms.LEARNING_RATES[arm.split("+")[0]]
        learner = network if supervised else network.encoder
        objective = arms.objective_of(arm, learner, seed=0, n_places=60, batch_size=8)
        assert isinstance(objective, Objective) and objective.paired == (not supervised)
    assert isinstance(arms.objective_of("noisy", network, seed=0, n_places=60, batch_size=8), objectives.Supervised)


@pytest.mark.parametrize("arm", ["random", "noisy+", "noisy+exact", "mocov3"])
def test_what_is_no_arm_is_refused_with_those_that_are(arm):
    with pytest.raises(ValueError, match=r"moco, dino, .*noisy\+gce, .*exact"):
        arms.target_of(arm)
