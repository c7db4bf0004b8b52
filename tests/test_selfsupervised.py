"""Self-supervision: views, and that every objective teaches the encoder, follows its seed and can be resumed."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from nbutils import networks, objectives
from nbutils.objectives import contrast, distillation, regularisation, views

OBJECTIVES = {
    "moco": (lambda encoder, seed: objectives.MoCo(encoder, seed=seed, queue=32), 4),
    "dino": (lambda encoder, seed: objectives.DINO(encoder, seed=seed), 2),
    "vicregl": (lambda encoder, seed: objectives.VICRegL(encoder, seed=seed), 2),
}
every = pytest.mark.parametrize("name", OBJECTIVES)


def _encoder(bands: int = 4, encoder: str = "tu-test_resnet") -> nn.Module:
    return networks.build(encoder, "unet", in_channels=bands, n_classes=2, seed=0).encoder


def _pair(n: int = 4, bands: int = 4, size_px: int = 32, seed: int = 0) -> torch.Tensor:
    return torch.randn(2, n, bands, size_px, size_px, generator=torch.Generator().manual_seed(seed))


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("bands", [1, 4, 13])
def test_views_take_any_number_of_bands_and_follow_the_generator(bands):
    images = torch.rand(6, bands, 32, 32)
    drawn = [objectives.random_view(images, _generator(seed)) for seed in (0, 0, 1)]
    assert drawn[0].shape == images.shape and torch.isfinite(drawn[0]).all()
    assert torch.equal(drawn[0], drawn[1]) and not torch.allclose(drawn[0], drawn[2])


def test_views_do_not_touch_the_global_generator():
    images, before = torch.rand(2, 4, 32, 32), torch.get_rng_state()
    objectives.random_view(images, _generator())
    assert torch.equal(before, torch.get_rng_state())


@given(st.integers(0, 2**16), st.floats(0.05, 1.0))
@settings(deadline=None)
def test_crops_cover_the_area_asked_for_and_stay_on_the_image(seed, least):
    crops = views.random_crops(20, _generator(seed), min_area=least, max_area=1.0)
    turn, middle = crops[:, :, :2], crops[:, :, 2]
    area = torch.linalg.det(turn).abs()
    assert (area >= least - 1e-5).all() and (area <= 1 + 1e-5).all()
    side = area.sqrt()
    torch.testing.assert_close(turn @ turn.mT, side[:, None, None] ** 2 * torch.eye(2).expand(20, 2, 2))  # no shear
    assert (middle.abs() <= 1 - side[:, None] + 1e-5).all()


def test_a_crop_shows_the_image_at_the_places_it_names():
    """Brightness that is the place itself comes out as the place, whatever the crop."""
    ramp = (torch.arange(64) + 0.5) / 32 - 1
    image = torch.stack(torch.meshgrid(ramp, ramp, indexing="xy")).expand(5, 2, 64, 64)
    crops = views.random_crops(5, _generator(), min_area=0.1, max_area=0.4)
    view, at = views.cut(image, crops, 16), views.places(crops, 16, 16).permute(0, 3, 1, 2)
    inside = (at.abs() < 1 - 1 / 64).all(dim=1, keepdim=True).expand_as(at)
    assert view.shape == (5, 2, 16, 16) and inside.sum() > 1000
    torch.testing.assert_close(view[inside], at[inside], atol=1e-4, rtol=0)


@given(st.integers(0, 2**16))
@settings(deadline=None, max_examples=20)
def test_places_are_found_again_in_the_view(seed):
    crops = views.random_crops(4, _generator(seed))
    own = views.places(torch.eye(2, 3).expand(4, 2, 3), 3, 5).flatten(1, 2)
    torch.testing.assert_close(views.within(views.places(crops, 3, 5).flatten(1, 2), crops), own, atol=1e-5, rtol=0)


def test_colours_stay_where_nothing_may_change():
    images = torch.randn(3, 4, 8, 8)
    assert torch.equal(views.recolour(images, _generator(), jitter=0.0), images)


def test_colours_change_band_by_band_within_their_strength():
    images = torch.ones(200, 3, 2, 2)
    changed = views.recolour(images, _generator(), jitter=0.1)
    assert (changed - changed[:, :, :1, :1]).abs().max() == 0  # one change for all pixels of a band
    assert changed.min() >= 0.9**2 - 0.1 and changed.max() <= 1.1**2 + 0.1 and changed.std(dim=1).min() > 0


@every
@pytest.mark.parametrize("bands", [1, 13])
def test_any_number_of_bands_teaches_the_encoder(name, bands):
    build, _ = OBJECTIVES[name]
    encoder = _encoder(bands)
    objective = build(encoder, 0)
    assert objective.paired
    loss = objective(_pair(bands=bands), None)
    loss.backward()
    assert loss.ndim == 0 and torch.isfinite(loss)
    first = next(encoder.parameters())
    assert first.grad is not None and first.grad.abs().sum() > 0


@every
def test_the_seed_says_it_all_and_the_global_generator_nothing(name):
    build, _ = OBJECTIVES[name]
    losses = []
    for seed, noise in ((0, 1), (0, 2), (1, 1)):
        torch.manual_seed(noise)
        losses.append(build(_encoder(), seed)(_pair(), None).item())
    assert losses[0] == losses[1] and losses[0] != losses[2]


def _steps(objective, optimizer, start: int, stop: int) -> list[float]:
    losses = []
    for step in range(start, stop):
        objective.done = step / 6
        loss = objective(_pair(seed=step), None)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def _sgd(objective) -> torch.optim.Optimizer:
    return torch.optim.SGD([p for p in objective.parameters() if p.requires_grad], lr=0.01)


@every
def test_a_saved_state_resumes_to_the_same_bits(name):
    build, _ = OBJECTIVES[name]
    whole = build(_encoder(), 0)
    _steps(whole, _sgd(whole), 0, 3)
    state = {key: value.clone() for key, value in whole.state_dict().items()}
    resumed = build(_encoder(), 1)
    resumed.load_state_dict(state)
    expected, seen = (_steps(objective, _sgd(objective), 3, 6) for objective in (whole, resumed))
    assert expected == seen
    assert all(torch.equal(value, resumed.state_dict()[key]) for key, value in whole.state_dict().items())


@every
def test_batches_too_small_are_refused(name):
    build, need = OBJECTIVES[name]
    with pytest.raises(ValueError, match=f"{need} images or more, got {need - 1}; raise the batch size"):
        build(_encoder(), 0)(_pair(need - 1), None)


@every
def test_images_that_are_no_pairs_are_refused(name):
    build, _ = OBJECTIVES[name]
    with pytest.raises(ValueError, match=r"learns from pairs, \(2, N, B, H, W\), got \(4, 4, 32, 32\)"):
        build(_encoder(), 0)(torch.zeros(4, 4, 32, 32), None)


@every
def test_each_view_comes_from_its_own_date(name, monkeypatch):
    """One date is 0, the other 1: unchanged views are all 0 or all 1."""
    build, _ = OBJECTIVES[name]
    seen = []
    encoder = _encoder()

    def watch(module, arguments):
        seen.append(arguments[0])

    monkeypatch.setattr(views, "recolour", lambda images, generator, **settings: images)
    monkeypatch.setattr(regularisation, "recolour", lambda images, generator, **settings: images)
    encoder.register_forward_pre_hook(watch)  # copied into the teacher as well
    objective = build(encoder, 0)
    pair = torch.stack([torch.zeros(4, 4, 32, 32), torch.ones(4, 4, 32, 32)])
    objective.eval()(pair, None)
    values = torch.cat([images.mean(dim=(1, 2, 3)) for images in seen])
    assert set(values.round(decimals=5).tolist()) == {0.0, 1.0}
    if name == "moco":  # query from the first, key from the second
        assert [images.mean().round(decimals=5).item() for images in seen] == [0.0, 0.0, 1.0, 1.0]
    else:
        assert (values == 0).sum() == (values == 1).sum()


@pytest.mark.parametrize("name", ["moco", "dino"])
def test_no_gradient_reaches_the_teacher(name):
    build, _ = OBJECTIVES[name]
    objective = build(_encoder(), 0)
    objective(_pair(), None).backward()
    teacher = {"moco": ("key_encoder", "key_head"), "dino": ("teacher", "teacher_head")}[name]
    frozen = [p for part in teacher for p in getattr(objective, part).parameters()]
    assert frozen and all(p.grad is None and not p.requires_grad for p in frozen)
    assert all(p.grad is not None for p in objective.head.parameters() if p.requires_grad)


def test_moco_moves_the_key_slowly():
    encoder = _encoder()
    moco = objectives.MoCo(encoder, seed=0, queue=32)
    before = [p.clone() for p in moco.key_encoder.parameters()]
    moco(_pair())
    after = list(moco.key_encoder.parameters())
    assert all(torch.allclose(a, b) for a, b in zip(before, after, strict=True))  # the two start equal
    with torch.no_grad():
        for p in encoder.parameters():
            p.add_(1.0)
    moco(_pair())
    moved = torch.cat([(a - b).flatten() for a, b in zip(moco.key_encoder.parameters(), before, strict=True)])
    assert moved.mean().item() == pytest.approx(1 - moco.momentum, rel=1e-3)


def test_moco_normalises_keys_in_other_company_than_queries():
    """With the same views and weights a key equals its query only where both saw the same group statistics."""
    encoder = _encoder().train()
    images = torch.rand(8, 4, 32, 32, generator=_generator())
    whole, grouped = (objectives.MoCo(encoder, seed=0, groups=groups)._pooled(encoder, images) for groups in (1, 2))
    one = objectives.MoCo(encoder, seed=0, groups=1)
    halves = torch.cat([one._pooled(encoder, half) for half in (images[:4], images[4:])])
    assert torch.equal(grouped, halves) and not torch.allclose(grouped, whole)


def test_moco_pairs_each_query_with_its_own_key(monkeypatch):
    """Shuffling must be undone: without augmentation and BatchNorm, queries equal their keys."""
    moco = objectives.MoCo(_encoder().eval(), seed=0, queue=32).eval()
    monkeypatch.setattr(contrast, "random_view", lambda images, generator, **settings: images)
    seen = []
    del moco.contrast  # a module's child cannot be replaced by a function
    moco.contrast = lambda query, key: seen.append((query, key)) or query.sum()
    moco(torch.rand(8, 4, 32, 32).expand(2, -1, -1, -1, -1))
    query, key = seen[0]
    torch.testing.assert_close(query, key, atol=1e-4, rtol=1e-4)


def test_dino_shows_the_teacher_whole_views_and_the_student_small_crops_too():
    encoder, sizes = _encoder(), {"student": [], "teacher": []}
    dino = objectives.DINO(encoder, seed=0, local_views=3, local_scale=0.5)
    encoder.register_forward_pre_hook(lambda module, given: sizes["student"].append(tuple(given[0].shape)))
    dino.teacher.register_forward_pre_hook(lambda module, given: sizes["teacher"].append(tuple(given[0].shape)))
    dino(_pair(size_px=64), None)
    assert sizes["teacher"] == [(8, 4, 64, 64)]
    assert sizes["student"] == [(8, 4, 64, 64), (12, 4, 32, 32)]


def test_dino_loss_of_a_collapsed_network_is_the_entropy_of_all_prototypes():
    """A head that says 0 of everything spreads over the prototypes evenly: cross-entropy log(prototypes)."""
    dino = objectives.DINO(_encoder(), seed=0, prototypes=32)
    with torch.no_grad():
        for head in (dino.head, dino.teacher_head):
            head.last_layer.weight_v.copy_(torch.ones_like(head.last_layer.weight_v))
    assert dino(_pair(), None).item() == pytest.approx(math.log(32), rel=1e-4)


def test_dino_centre_follows_the_teacher():
    dino = objectives.DINO(_encoder(), seed=0)
    said = []
    dino.teacher_head.register_forward_hook(lambda module, given, output: said.append(output))
    dino(_pair(), None)
    torch.testing.assert_close(dino.distance.center[0, 0], 0.1 * said[0].mean(dim=0))


def test_dino_teacher_stands_still_at_the_end():
    dino = objectives.DINO(_encoder(), seed=0, momentum=0.5)
    for done, share in ((0.0, 0.5), (0.5, 0.25), (1.0, 0.0)):
        before = [p.clone() for p in dino.teacher.parameters()]
        with torch.no_grad():
            for student, teacher in zip(dino.encoder.parameters(), before, strict=True):
                student.copy_(teacher + 1)
        dino.done = done
        dino(_pair(), None)
        moved = [(a - b).mean().item() for a, b in zip(dino.teacher.parameters(), before, strict=True)]
        np.testing.assert_allclose(moved, share, atol=1e-3)


def test_shared_cells_are_of_the_same_ground():
    """Features that are the place itself come out equal; interpolation is exact for them but in outer half cells."""
    here, there = (views.random_crops(6, _generator(seed), min_area=0.5) for seed in (0, 1))
    features = torch.cat([views.places(crops, 8, 8).permute(0, 3, 1, 2) for crops in (here, there)])
    ours, theirs = regularisation.shared_cells(features, here, there)
    error = (ours - theirs).norm(dim=1)
    assert len(ours) > 6 * 8 and error.max() < 1 / 8 * 2**0.5  # half a cell of a view as large as the image
    assert (error < 1e-5).float().mean() > 0.6


@given(st.integers(0, 2**16))
@settings(deadline=None, max_examples=20)
def test_views_of_half_the_image_always_share_cells(seed):
    here, there = (views.random_crops(2, _generator(seed + i), min_area=0.5) for i in range(2))
    for i in range(2):
        ours, _ = regularisation.shared_cells(torch.zeros(2, 1, 8, 8), here[i : i + 1], there[i : i + 1])
        assert len(ours) >= 4


@pytest.mark.parametrize("whole", [0.0, 0.3])
def test_vicregl_closed_forms(whole):
    """Heads that say 0 of everything: no distance, no covariance, and a variance hinge of 1 less its epsilon."""
    vicregl = objectives.VICRegL(_encoder(), seed=0, weights=(1.0, 10.0, 100.0), whole=whole)
    with torch.no_grad():
        for parameter in (*vicregl.heads.parameters(), *vicregl.whole_head.parameters()):
            parameter.zero_()
    assert vicregl(_pair(), None).item() == pytest.approx(10 * (1 - 0.01), rel=1e-4)


def test_vicregl_finds_no_distance_where_both_views_are_described_by_their_place(monkeypatch):
    """An encoder whose features are the ground's: matches are equal, while unmatched cells would not be."""
    vicregl = objectives.VICRegL(_encoder(), seed=0, stages=(3,), whole=0.0, weights=(1.0, 0.0, 0.0))
    crops = []
    draw = regularisation.random_crops
    monkeypatch.setattr(
        regularisation, "random_crops", lambda *args, **named: crops.append(draw(*args, **named)) or crops[-1]
    )
    vicregl.encoder = nn.Identity()
    vicregl.encoder.forward = lambda images: 4 * [views.places(torch.cat(crops), 8, 8).permute(0, 3, 1, 2)]
    vicregl.heads = nn.ModuleList([nn.Identity()])
    vicregl.whole_head = nn.Identity()
    assert vicregl(_pair(size_px=64), None).item() < 1e-3


def test_vicregl_refuses_views_without_shared_cells(monkeypatch):
    corners = iter([-0.5, 0.5])  # quarters of the image at opposite corners

    def draw(n, generator, **settings):
        at = next(corners)
        return torch.tensor([[0.4, 0.0, at], [0.0, 0.4, at]]).expand(n, 2, 3)

    monkeypatch.setattr(regularisation, "random_crops", draw)
    with pytest.raises(ValueError, match=r"share 0 cells of stage 3, which has \(4, 4\).*earlier stages"):
        objectives.VICRegL(_encoder(), seed=0)(_pair(), None)


@every
def test_mixed_precision_gives_nearly_the_same_loss(name):
    build, _ = OBJECTIVES[name]
    losses = []
    for mixed in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
            losses.append(build(_encoder(), 0)(_pair(8), None))
    assert losses[1].dtype == torch.float32
    assert losses[1].item() == pytest.approx(losses[0].item(), rel=0.05)


@every
def test_other_encoders_fit(name):
    build, _ = OBJECTIVES[name]
    build(_encoder(encoder="resnet18"), 0)(_pair(), None).backward()


def test_distillation_head_warns_of_nothing(recwarn):
    distillation._head(8, 8, 4, 4)
    assert not recwarn
