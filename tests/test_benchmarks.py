"""Benchmarks: what is reckoned from seconds, and that the README's table of speeds is the committed one."""

import itertools

import numpy as np
import pytest
import torch

from benchmarks import __main__, growth, probings, racing, readings, report, scale
from nbutils import ROOT, audit, networks, noise, patches


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0, 2.0])
def test_the_exponent_of_a_power_is_found_whatever_constant_hides_it_in_small_sizes(power):
    sizes = [1e2, 1e3, 1e4, 1e5]
    assert growth.exponent(sizes, [3 * n**power for n in sizes]) == pytest.approx(power)
    hidden = growth.exponent(sizes, [3 * n**power + 10 for n in sizes])
    assert 0.9 * power - 1e-9 <= hidden <= power + 1e-9


def test_two_sizes_of_the_upper_decade_are_needed():
    with pytest.raises(ValueError, match="fewer than two"):
        growth.exponent([1, 100], [1, 100])


def test_memory_that_grows_is_measured():
    sizes = (10_000, 1_000_000, 4_000_000)
    found = growth.grow("zeros", "numbers", sizes, lambda i: lambda: np.ones(sizes[i]).sum())
    assert found.megabytes[-1] == pytest.approx(8 * sizes[-1] / growth.MB, rel=0.02)
    assert found.memory == pytest.approx(1, abs=0.05) and len(found.seconds) == 3
    assert growth.grow("zeros", "numbers", sizes, lambda i: lambda: None, memory=False).memory is None


def test_rounds_take_turns_and_the_first_does_not_count():
    calls, clock = [], itertools.count()
    seconds = racing.rounds({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, 2, lambda: next(clock))
    assert calls == ["a", "b"] * 3 and seconds == {"a": [1, 1], "b": [1, 1]}


def test_ratios_say_how_many_times_as_fast_the_first_is():
    (row,) = racing.ratios({"as fast as b": ("a", "b")}, {"a": [1.0, 2.0, 4.0], "b": [3.0, 4.0, 2.0]})
    assert (row.median, row.low, row.high, row.unit) == (2.0, 0.5, 3.0, "x")
    (speed,) = racing.speeds("px/s", 8, {"a": [1.0, 2.0, 4.0]})
    assert (speed.median, speed.low, speed.high) == (4.0, 2.0, 8.0)


@pytest.fixture
def places(tmp_path, monkeypatch):
    for name in ("KEPT", "PAGE", "COPY", "README"):
        monkeypatch.setattr(report, name, tmp_path / name)
    report.README.write_text(f"# Title\n\n{report.BEGIN}old\n{report.END}tail\n")
    return tmp_path


def row(name, unit="Mpx/s", value=2.0):
    return racing.Row(name, unit, value, value / 2, value * 2, 3)


def test_a_part_measured_anew_replaces_its_own_rows_alone(places):
    grown = growth.Growth("read", "scenes", (4, 400), (0.1, 9.0), 0.98, (1.0, 30.0), 0.75)
    report.keep("growth", [grown], {"cores": "2"})
    report.keep("noise", [row("flips"), row("- peer"), row("- as fast as peer", "x", 4.0)], {"cores": "2"})
    report.publish()
    page, readme = report.PAGE.read_text(), report.README.read_text()
    assert list(report.read(report.KEPT)) == ["noise", "growth"], "in their order, not in that of measuring"
    assert "| - peer | 2 | 1 - 4 | Mpx/s |" in page
    assert "| flips | 2 Mpx/s | as fast as peer | 4.00 (2.00 - 8.00) |" in readme and "peer | 2 |" not in readme
    assert "| read | scenes | 4 - 400 | 0.98 | 9 s | 0.75 | 30 MB |" in readme
    assert readme.startswith("# Title\n") and readme.endswith("tail\n") and "old" not in readme
    assert readme.count("cores: 2") == 1
    report.keep("noise", [row("flips", value=3.0)], {"cores": "4"})
    report.publish()
    again = report.README.read_text()
    assert "peer" not in again and "| read | scenes |" in again and "cores: 2" in again and "cores: 4" in again


def test_every_part_has_its_place_in_the_report(tmp_path):
    assert tuple(__main__.parts(tmp_path)) == report.PARTS


def test_an_unknown_part_is_refused_before_anything_runs(capsys):
    with pytest.raises(SystemExit):
        __main__.main(["growht"])
    assert "no part is called growht" in capsys.readouterr().err


def test_a_readme_without_its_marks_is_refused():
    with pytest.raises(ValueError, match="each once"):
        report.put("# Title\n", {})


def test_the_table_of_the_readme_is_that_of_the_committed_rows():
    readme, known = (ROOT / "README.md").read_text(encoding="utf-8"), report.read(report.KEPT)
    assert known and report.put(readme, known) == readme
    assert tuple(known) == report.PARTS


def test_nothing_that_should_be_linear_was_seen_to_grow_faster():
    rows = report.read(report.KEPT)["growth"]["rows"]
    assert {row["against"] for row in rows} >= {"scenes", "classes", "pixels of a patch", "pixels of a mask", "runs"}
    for one in rows:
        assert max(one["sizes"]) >= 99 * min(one["sizes"]), one["name"]
        assert one["time"] < 1.15 and (one["memory"] or 0) < 1.15, one


# ---- the paper's scale


@pytest.fixture(scope="module")
def known():
    return report.read(report.KEPT)


def test_the_page_of_arithmetic_is_that_of_the_committed_speeds(known):
    assert scale.PAGE.read_text(encoding="utf-8") == scale.page(known)


def test_twice_the_speed_halves_the_hours_and_nothing_else_of_a_training(known):
    one = scale.EXPERIMENTS[0]
    rows = [row | {"median": row["median"] * (2 if row["name"] == scale.training_row(one) else 1)}
            for row in known["scale"]["rows"]]  # fmt: skip
    slow, fast = scale.needs(one, known), scale.needs(one, known | {"scale": known["scale"] | {"rows": rows}})
    assert fast["core hours"] == pytest.approx(slow["core hours"] / 2)
    assert {name for name in slow if slow[name] != fast[name]} == {"core hours", "images per core second"}


def test_needs_are_those_reckoned_by_hand(known):
    need = scale.needs(scale.EXPERIMENTS[1], known)
    assert need["patch bytes"] == 810_203_175_936  # 415,172 patches of 264 x 264 px, 13 bands of 2 bytes, two masks
    assert need["passes"] == 20_761_600 and need["epochs"] == pytest.approx(50, abs=0.1)
    assert need["pretrainings"] == 3 * 4 and need["fine-tunings"] == 3 * 4 * (3 + 1 + 3)
    assert scale.profile_of(scale.EXPERIMENTS[1])["max_patches"] == 415_172
    assert min(scale.limits(need).values()) == pytest.approx(2e12 / 810_203_175_936)  # the disk
    assert need["read per second"] == pytest.approx(30e12 / need["flops"] * 264**2 * 28)


@pytest.mark.parametrize("one", scale.EXPERIMENTS, ids=lambda one: one.profile)
def test_every_decoder_of_a_profile_fits_its_patches(one):
    profile = scale.profile_of(one)
    asked = [name for part in profile["slices"] for name in np.atleast_1d(part.get("decoder", "unet")).tolist()]
    for decoder in {*asked, "unet"}:
        with torch.device("meta"):
            net = networks.build(
                profile["encoder"], decoder, in_channels=profile["bands"], n_classes=one.classes, seed=0
            )
            size = profile["patch_px"]
            said = net.eval()(torch.empty(1, profile["bands"], size, size))
        assert said.shape == (1, one.classes, size, size), decoder


def test_work_counts_a_multiplication_and_an_addition_as_two(monkeypatch):
    one = scale.EXPERIMENTS[0]
    size, bands = scale.profile_of(one)["patch_px"], 4
    monkeypatch.setattr(scale, "_network", lambda values, classes: torch.nn.Conv2d(bands, classes, 3, padding=1))
    flops, weights = scale.work_of(one)
    forward = 2 * bands * one.classes * 9 * size**2
    assert flops == 2 * forward, "backward has the weights' gradient; the images need none"
    assert weights == bands * one.classes * 9 + one.classes


# ---- what is measured does what it says


def test_scenes_are_cut_anew_each_time_and_leave_nothing_behind(tmp_path, monkeypatch):
    monkeypatch.setattr(patches, "CACHE", tmp_path / "own")
    own, calls = patches._cut, []
    monkeypatch.setattr(patches, "_cut", lambda *given: calls.append(given) or own(*given))
    cut = readings.cutting(readings.write_scenes(tmp_path, range(4), 64), 32)
    assert cut() == cut() == 4 * 4 and len(calls) == 2
    assert patches.CACHE == tmp_path / "own" and not patches.CACHE.exists()


def test_peers_count_and_confuse_the_same():
    peer = pytest.importorskip("torchmetrics.functional.classification")
    from cleanlab.benchmarking.noise_generation import generate_noisy_labels

    exact, matrix = growth.classes_mask(256), noise.confusion_matrix(8, 0.2)
    mapped = noise.confuse_classes(exact, matrix, rng=np.random.default_rng(0))[0]
    tensors = torch.as_tensor(mapped).long(), torch.as_tensor(exact).long()
    theirs = peer.multiclass_confusion_matrix(*tensors, num_classes=8, ignore_index=255, validate_args=False)
    ours = audit.compare(mapped, exact, 8).confusion
    assert np.array_equal(ours, theirs)
    rival = audit.compare(generate_noisy_labels(exact.ravel(), matrix.T).reshape(exact.shape), exact, 8).confusion
    assert np.abs(ours - rival).max() <= 8, "to within rounding"


def test_smooth_areas_have_all_classes_about_equally_often():
    mask = growth.classes_mask(128, 20)
    assert np.bincount(mask.ravel(), minlength=20).min() > 0.5 * mask.size / 20 and mask.max() == 19


def test_everywhere_puts_patches_into_every_split():
    data = probings.everywhere(probings.smooth_patches(n=4, size_px=32))
    assert all(len(data.split(name)) == 4 for name in patches.SPLITS)
