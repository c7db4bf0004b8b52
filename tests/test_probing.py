"""Probes and CKA: optima, closed forms, and implementations written from the definitions."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import logsumexp
from sklearn.linear_model import LogisticRegression
from toy import toy_patches

from nbutils import networks, probing, training
from nbutils.legend import VOID
from nbutils.objectives import Supervised

NETWORK = networks.build("tu-test_resnet", "unet", in_channels=4, n_classes=2, seed=0, width="slim").eval()
ENCODER, DATA = NETWORK.encoder, toy_patches()


def _rng(seed=0):
    return np.random.default_rng(seed)


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


def _related(seed, n):
    rng = _rng(seed)
    a = rng.normal(size=(n, 3))
    return a, a @ rng.normal(size=(3, 4)) + 0.5 * rng.normal(size=(n, 4))


def test_cka_agrees_with_the_definition_over_all_tuples():
    a, b = _related(0, 9)
    expected = _slow_hsic(a, b) / np.sqrt(_slow_hsic(a, a) * _slow_hsic(b, b))
    assert probing.cka(a, b) == pytest.approx(expected, abs=1e-10)


@settings(max_examples=5)
@given(st.integers(0, 2**16))
def test_minibatches_average_the_definition_whatever_their_sizes(seed):
    """Nguyen et al. (2021), eq. 4: means of HSIC over minibatches, then the ratio."""
    batches = [_related(seed + i, n) for i, n in enumerate((6, 7, 9))]
    both = probing.MinibatchCKA()
    for a, b in batches:
        both.update(a, b)
    ab, aa, bb = (np.mean([_slow_hsic(x[i], x[j]) for x in batches]) for i, j in ((0, 1), (0, 0), (1, 1)))
    assert both.n_batches == 3 and both.value() == pytest.approx(ab / np.sqrt(aa * bb), abs=1e-10)


def test_minibatches_converge_to_the_whole():
    a, b = _related(0, 4096)
    both = probing.MinibatchCKA()
    for start in range(0, 4096, 256):
        both.update(a[start : start + 256], b[start : start + 256])
    assert both.value() == pytest.approx(probing.cka(a, b), abs=2e-3)


@given(st.integers(0, 2**16))
def test_cka_of_equal_features_is_one_whatever_rotation_scale_and_shift(seed):
    rng = _rng(seed)
    a = rng.normal(size=(20, 5))
    rotation = np.linalg.qr(rng.normal(size=(5, 5)))[0]
    assert probing.cka(a, a) == 1.0
    assert probing.cka(a, 3 * a @ rotation + 7) == pytest.approx(1)


def test_cka_of_independent_features_is_zero_where_the_biased_form_is_not():
    values, biased = [], []
    for seed in range(20):
        a, b = _rng(seed).normal(size=(2, 64, 512))
        values.append(probing.cka(a, b))
        a, b = a - a.mean(0), b - b.mean(0)
        biased.append(np.linalg.norm(a.T @ b) ** 2 / np.linalg.norm(a.T @ a) / np.linalg.norm(b.T @ b))
    assert abs(np.mean(values)) <= 0.02 and np.mean(biased) > 0.8


def test_cka_needs_the_same_samples_and_says_nothing_of_constants():
    for b in (np.zeros((6, 2)), np.zeros((3, 2))):
        with pytest.raises(ValueError, match="same n >= 4"):
            probing.cka(np.zeros((3 if len(b) == 3 else 5, 2)), b)
    assert np.isnan(probing.cka(np.ones((5, 2)), _rng().normal(size=(5, 2))))


def test_networks_resemble_themselves_exactly():
    values = probing.cka_layers(NETWORK, NETWORK, DATA.split("test"), n_pixels=300, rng=_rng(), minibatch=64)
    assert list(values) == list(probing.layer_names(NETWORK)) and set(values.values()) == {1.0}


@settings(max_examples=10)
@given(st.integers(4, 60), st.integers(8, 40))
def test_every_pixel_drawn_is_compared_once(n, minibatch):
    from nbutils.probing import similarity

    sizes, plain = [], similarity.MinibatchCKA.update
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(similarity.MinibatchCKA, "update", lambda self, a, b: sizes.append(len(a)) or plain(self, a, b))
        part = DATA.split("test")
        probing.cka_layers(ENCODER, ENCODER, part, n_pixels=n, rng=_rng(), minibatch=minibatch, layers=["stem"])
    assert sum(sizes) == n and max(sizes) <= minibatch and min(sizes) >= 4


def test_networks_are_compared_where_both_have_layers():
    other = networks.build("tu-test_resnet", "unet", in_channels=4, n_classes=5, seed=1, width="slim").eval()
    part = DATA.split("test")
    values = probing.cka_layers(ENCODER, other, part, n_pixels=200, rng=_rng(), minibatch=200)
    assert list(values) == list(probing.layer_names(ENCODER))
    pixels = probing.sample_pixels(part.masks["exact"], 200, _rng())
    both = (probing.features_at(network, part, "stage2", pixels) for network in (ENCODER, other))
    assert values["stage2"] == pytest.approx(probing.cka(*both)) and values["stage2"] < 1
    with pytest.raises(ValueError, match="at least 8 pixels.*got 7"):
        probing.cka_layers(ENCODER, other, part, n_pixels=200, rng=_rng(), minibatch=7)
    void = replace(part, masks={**part.masks, "exact": np.full_like(part.masks["exact"], VOID)})
    with pytest.raises(ValueError, match="4 valid pixels in the exact masks, got 0"):
        probing.cka_layers(ENCODER, other, void, n_pixels=200, rng=_rng())


def _loss(weights, intercept, inputs, ids):
    logits = inputs @ weights + intercept
    return (logsumexp(logits, axis=1) - logits[np.arange(len(ids)), ids]).mean() + (weights**2).sum() / 2 / len(ids)


@pytest.mark.parametrize(("n", "p", "k"), [(400, 6, 3), (300, 200, 4), (500, 40, 2)])
def test_probe_reaches_the_optimum_of_logistic_regression(n, p, k):
    """Correlated channels of very different variance, as ReLU features are; also more weights than samples."""
    rng = _rng(p)
    mixed = rng.normal(size=(n, p)) @ (rng.normal(size=(p, p)) * np.exp(-4 * np.linspace(0, 1, p))[:, None])
    features = np.maximum(mixed, 0).astype(np.float32) + 3
    ids = (2 * mixed[:, :k] / mixed[:, :k].std(0) + rng.gumbel(size=(n, k))).argmax(1)
    labels = np.array([7, 1, 30, 4])[:k][ids]
    probe = probing.linear_probe(features, labels)
    order = {name: i for i, name in enumerate(probe.classes.tolist())}
    known = np.array([order[name] for name in labels.tolist()])
    scaled = (features.astype(np.float64) - features.mean(0, dtype=np.float64)) / features.std(0, dtype=np.float64)
    best = LogisticRegression(C=1.0, max_iter=20000, tol=1e-9).fit(scaled, known)
    weights, intercept = best.coef_.T, best.intercept_
    if k == 2:  # scikit-learn has one weight for two classes: w against 0, where w / 2 against -w / 2 is shorter
        best = LogisticRegression(C=2.0, max_iter=20000, tol=1e-9).fit(scaled, known)
        weights, intercept = np.hstack([-best.coef_.T, best.coef_.T]) / 2, np.array([-0.5, 0.5]) * best.intercept_
    assert probe.loss == pytest.approx(_loss(probe.weights, probe.intercept, scaled, known), abs=1e-6)
    assert probe.loss == pytest.approx(_loss(weights, intercept, scaled, known), abs=1e-5)
    agree = probe.predict(features) == probe.classes[(scaled @ weights + intercept).argmax(1)]
    assert agree.mean() > 0.99


def test_probe_without_signal_says_the_class_shares():
    """Closed form: constant features leave the intercepts, whose softmax is the shares of the labels."""
    probe = probing.linear_probe(np.full((100, 3), 4.2, np.float32), np.repeat([2, 5, 9], [20, 50, 30]))
    shares = np.exp(probe.intercept) / np.exp(probe.intercept).sum()
    np.testing.assert_allclose(shares, [0.2, 0.5, 0.3], atol=1e-4)
    assert np.abs(probe.weights).max() < 1e-9 and set(probe.predict(np.zeros((4, 3)))) == {5}


def test_a_probe_needs_two_classes():
    with pytest.raises(ValueError, match=r"two classes or more, got \[3\]"):
        probing.linear_probe(np.zeros((5, 2)), np.full(5, 3))


def test_probing_every_layer_counts_every_test_pixel():
    judges = {split: DATA.split(split) for split in ("test", "validation")}
    counts = probing.probe_layers(NETWORK, DATA.split("finetune"), judges, "exact", n_pixels=400, rng=_rng())
    for split, part in judges.items():
        assert list(counts[split]) == list(probing.layer_names(NETWORK))
        assert all(t.shape == (len(set(part.scenes)), 8, 8) and t.sum() == 400 for t in counts[split].values())


def test_probing_is_what_it_is_by_hand_scene_by_scene():
    train, test, rng = DATA.split("finetune"), DATA.split("test"), _rng(3)
    at = [probing.sample_pixels(part.masks["exact"], 200, rng) for part in (train, test)]
    fitted, asked = (
        probing.features_at(NETWORK, part, "decoder4", each) for part, each in zip((train, test), at, strict=True)
    )
    probe = probing.linear_probe(fitted, train.masks["exact"][tuple(at[0].T)])
    expected = np.zeros((2, 8, 8), int)
    for (patch, row, column), said in zip(at[1], probe.predict(asked), strict=True):
        scene = sorted(set(test.scenes)).index(test.scenes[patch])
        expected[scene, test.masks["exact"][patch, row, column], said] += 1
    asked_for = {"n_pixels": 200, "rng": _rng(3), "layers": ["decoder4"]}
    found = probing.probe_layers(NETWORK, train, {"test": test}, "exact", **asked_for)["test"]
    assert list(found) == ["decoder4"] and np.array_equal(found["decoder4"], expected)


def test_probes_without_valid_pixels_are_refused():
    train, test = DATA.split("finetune"), DATA.split("test")
    void = replace(test, masks={**test.masks, "exact": np.full_like(test.masks["exact"], VOID)})
    with pytest.raises(ValueError, match="toy: no valid pixel in the exact masks of 'test'"):
        probing.probe_layers(NETWORK, train, {"test": void}, "exact", n_pixels=9, rng=_rng())


class _Painted:
    """Patches with a noisy map in which a share of the pixels is wrong, each in a class of its own."""

    def __init__(self, seed=0, share=0.3):
        rng = _rng(seed)
        truth = DATA.exact_as_noisy()
        wrong = (rng.random(truth.shape) < share) & (truth != VOID)
        self.noisy = np.where(wrong, (truth + rng.integers(1, 4, truth.shape)) % 4, truth).astype(np.uint8)
        self.patches = replace(DATA, masks={**DATA.masks, "noisy": self.noisy})
        self.truth, self.wrong = truth, wrong


def _one_hot_network(monkeypatch, masks):
    """Stand in for a network whose only layer shows these masks, one channel for each class."""

    def stream(network, patches, pixels, layers=None, *, batch_size=32):
        yield slice(0, len(pixels)), {"seen": np.eye(256, dtype=np.float32)[masks[tuple(pixels.T)]][:, :4]}

    from nbutils.probing import layers, probes

    monkeypatch.setattr(probes, "stream", stream)
    monkeypatch.setattr(layers, "stream", stream)


@pytest.mark.parametrize(("shows", "column"), [("noisy", 0), ("truth", 1)])
def test_errors_are_found_where_they_are_stored(monkeypatch, shows, column):
    painted = _Painted()
    _one_hot_network(monkeypatch, getattr(painted, shows))
    counts = probing.probe_errors(NETWORK, painted.patches, n_pixels=500, rng=_rng(), layers=["seen"])["seen"]
    assert counts.shape == (10, 3) and counts.sum() == 1000  # 500 of each half
    assert counts[:, column].sum() == 1000


def test_asked_are_mislabelled_pixels_alone_and_void_is_neither_fitted_nor_asked(monkeypatch):
    painted, fitted, asked = _Painted(share=0.05), [], []
    exact = painted.patches.masks["exact"].copy()
    exact[:, 16:] = VOID
    noisy = painted.noisy.copy()
    noisy[:, :, :8] = VOID
    data = replace(painted.patches, masks={"noisy": noisy, "exact": exact})

    def stream(network, patches, pixels, layers=None, *, batch_size=32):  # a pixel's features are where it lies
        yield slice(0, len(pixels)), {"seen": pixels.astype(np.float32)}

    class Probe:
        def __init__(self, features, labels):
            fitted.append(features.astype(int))
            assert np.array_equal(labels, noisy[tuple(fitted[-1].T)])

        def predict(self, features):
            asked.append(features.astype(int))
            return noisy[tuple(asked[-1].T)]

    from nbutils.probing import layers, probes

    monkeypatch.setattr(layers, "stream", stream)
    monkeypatch.setattr(probes, "linear_probe", Probe)
    counts = probing.probe_errors(NETWORK, data, n_pixels=10**6, rng=_rng(), layers=["seen"])["seen"]
    for first, second in zip(fitted, asked, strict=True):  # a probe is asked about patches it has not seen
        assert not set(first[:, 0].tolist()) & set(second[:, 0].tolist())
    fitted, asked = np.concatenate(fitted), np.concatenate(asked)
    assert (data.masks["noisy"][tuple(fitted.T)] != VOID).all() and len(fitted) == (noisy != VOID).sum()
    expected = painted.wrong & (noisy != VOID) & (exact != VOID)
    assert {tuple(p) for p in asked.tolist()} == {tuple(p) for p in np.argwhere(expected).tolist()}
    assert counts.sum() == counts[:, 0].sum() == expected.sum() == len(asked)


def test_dates_of_a_place_stay_in_one_half():
    from nbutils.probing.probes import _halves

    places = np.arange(40) // 4 * 7
    first, second = _halves(replace(DATA, places=places), _rng())
    assert (first != second).all() and 0 < first.sum() < 40
    assert all(len(set(first[places == place].tolist())) == 1 for place in places)


def test_errors_of_real_layers_are_counted_scene_by_scene():
    counts = probing.probe_errors(NETWORK, _Painted().patches, n_pixels=300, rng=_rng())
    assert list(counts) == list(probing.layer_names(NETWORK))
    assert all(table.shape == (10, 3) and table.sum() == 600 for table in counts.values())


def test_a_network_that_memorised_stores_errors_late_and_one_that_saw_the_truth_nowhere():
    """Blocks in the wrong class, without a rule: who learned them says them, in the decoder and not in the stem."""
    data, rng = toy_patches(n=20), _rng(3)
    truth = data.masks["noisy"]
    wrong, shift = rng.random((20, 4, 4)) < 0.3, rng.integers(1, 4, (20, 4, 4))
    shift = np.kron(np.where(wrong, shift, 0), np.ones((8, 8), int))
    noisy = np.where(truth == VOID, VOID, (truth + shift) % 4).astype(np.uint8)
    plan, seen = training.Plan(steps=240, batch_size=5, learning_rate=3e-3, precision="fp32", seed=0), {}
    mapped = replace(data, masks={**data.masks, "noisy": noisy}).split("pretrain")
    for name, masks in (("noisy", noisy), ("truth", truth)):
        network = networks.build("tu-test_resnet", "unet", in_channels=4, n_classes=4, seed=0, width="slim")
        part = replace(data, masks={**data.masks, "noisy": masks}).split("pretrain")
        training.fit(Supervised(network), part, "noisy", plan)
        asked = {"n_pixels": 1000, "rng": _rng(), "layers": ["stem", "decoder5", "head"]}
        counts = probing.probe_errors(network.eval(), mapped, **asked)
        seen[name] = {layer: table.sum(0) / table.sum() for layer, table in counts.items()}
    for layer in ("decoder5", "head"):
        assert seen["noisy"][layer][0] > 0.5 > 0.2 > seen["truth"][layer][0]
        assert seen["truth"][layer][1] > 0.7
    assert seen["noisy"]["stem"][1] > seen["noisy"]["stem"][0]


def test_a_map_without_errors_has_nothing_to_ask():
    with pytest.raises(ValueError, match="each half of 40 patches must have valid and mislabelled pixels"):
        probing.probe_errors(NETWORK, DATA, n_pixels=50, rng=_rng())
