"""Probes and CKA: closed forms and an independent implementation."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from toy import toy_patches

from nbutils import networks, probing
from nbutils.legend import VOID

ENCODER = networks.build("tu-test_resnet", "unet", in_channels=4, n_classes=2, seed=0, width="slim").encoder.eval()
DATA = toy_patches()


def _slow_hsic(x, y):
    """Unbiased HSIC by its definition as a U-statistic (Song et al. 2012, eq. 5), over all 4-tuples."""
    k, m, n = x @ x.T, y @ y.T, len(x)
    index = range(n)
    total = 0.0
    for i in index:
        for j in index:
            for q in index:
                for r in index:
                    if len({i, j, q, r}) == 4:
                        total += k[i, j] * (m[i, j] + m[q, r] - 2 * m[i, q])
    return total / (n * (n - 1) * (n - 2) * (n - 3))


def test_cka_agrees_with_the_definition_over_all_tuples():
    rng = np.random.default_rng(0)
    a = rng.normal(size=(9, 3))
    b = a @ rng.normal(size=(3, 4)) + 0.5 * rng.normal(size=(9, 4))
    expected = _slow_hsic(a, b) / np.sqrt(_slow_hsic(a, a) * _slow_hsic(b, b))
    assert probing.cka(a, b) == pytest.approx(expected, abs=1e-10)


@given(st.integers(0, 2**16))
def test_cka_of_equal_features_is_one_whatever_rotation_scale_and_shift(seed):
    rng = np.random.default_rng(seed)
    a = rng.normal(size=(20, 5))
    rotation = np.linalg.qr(rng.normal(size=(5, 5)))[0]
    assert probing.cka(a, a) == pytest.approx(1)
    assert probing.cka(a, 3 * a @ rotation + 7) == pytest.approx(1)


def test_cka_of_independent_features_is_zero_where_the_biased_form_is_not():
    values = []
    for seed in range(20):
        rng = np.random.default_rng(seed)
        values.append(probing.cka(rng.normal(size=(64, 512)), rng.normal(size=(64, 512))))
    assert abs(np.mean(values)) < 0.02


def test_cka_needs_the_same_samples():
    with pytest.raises(ValueError, match="same n >= 4"):
        probing.cka(np.zeros((5, 2)), np.zeros((6, 2)))


def test_features_are_those_of_the_cell_a_pixel_lies_in():
    import torch

    from nbutils.batches import normalise

    pixels = np.array([[0, 0, 0], [0, 31, 31], [3, 17, 2]])
    with torch.no_grad():
        maps = ENCODER(normalise(torch.as_tensor(DATA.images[:4]), DATA))[2]  # stage1, a quarter of the size
    expected = [maps[p, :, r // 4, c // 4].numpy() for p, r, c in pixels]
    np.testing.assert_allclose(probing.features_at(ENCODER, DATA, "stage1", pixels, batch_size=3), expected, atol=1e-5)


def test_unknown_layers_list_the_known():
    with pytest.raises(ValueError, match="stem, stage1, stage2, stage3, stage4"):
        probing.features_at(ENCODER, DATA, "stage9", np.zeros((1, 3), int))


def test_sampled_pixels_are_valid_distinct_and_sorted():
    pixels = probing.sample_pixels(DATA.masks["exact"], 300, np.random.default_rng(0))
    assert len({tuple(p) for p in pixels}) == 300 and (np.diff(pixels[:, 0]) >= 0).all()
    assert (DATA.masks["exact"][tuple(pixels.T)] != VOID).all()


def test_probe_reaches_the_optimum_of_logistic_regression():
    rng = np.random.default_rng(0)
    features, labels = rng.normal(size=(400, 6)).astype(np.float32), rng.integers(0, 3, 400)
    scaled = (features - features.mean(0)) / features.std(0)
    expected = LogisticRegression(C=1.0, max_iter=5000, tol=1e-8).fit(scaled, labels).predict(scaled)
    assert (probing.linear_probe(features, labels).predict(features) == expected).mean() > 0.99


def test_probing_every_layer_counts_every_test_pixel():
    judges = {split: DATA.split(split) for split in ("test", "validation")}
    train, rng = DATA.split("finetune"), np.random.default_rng(0)
    counts = probing.probe_layers(ENCODER, train, judges, "exact", n_pixels=400, rng=rng)
    for split, part in judges.items():
        assert list(counts[split]) == list(probing.layer_names(ENCODER))
        assert all(t.shape == (len(set(part.scenes)), 8, 8) and t.sum() == 400 for t in counts[split].values())


def test_networks_resemble_themselves():
    values = probing.cka_layers(ENCODER, ENCODER, DATA.split("test"), n_pixels=100, rng=np.random.default_rng(0))
    assert all(value == pytest.approx(1) for value in values.values())
