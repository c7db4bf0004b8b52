"""SSL4EO-S12 with its noisy labels and the sets to fine-tune on, from small archives with the published names."""

import hashlib
import io
import shutil
import tarfile
from dataclasses import replace

import loopback
import numpy as np
import pytest
from loopback import geotiff, zipped
from rasterio.transform import from_origin

from nbutils import labelling, legend, sources
from nbutils.archives import recipes, ssl4eo
from nbutils.files import SourceError
from nbutils.legend import VOID

UTM, X, Y = "EPSG:32618", 586_000, 4_505_000


@pytest.fixture(scope="module")
def server():
    with loopback.serving() as running:
        yield running


def stack(bands, size, seed, dtype=np.uint16):
    pixels = np.random.default_rng(seed).integers(0, 9000, (bands, size, size)).astype(dtype)
    return geotiff(pixels, UTM, from_origin(X, Y, 10, 10), "GTiff"), pixels


def codes_of(values, size=24, count=1):
    pixels = np.resize(np.array(values, np.uint8), (count, size, size))
    return geotiff(pixels, UTM, from_origin(X, Y, 10, 10), "GTiff"), pixels[-1]


def noldo(tmp_path, target):
    """The files of an SSL4EO recipe: labels, images as tar in two parts, the set for fine-tuning; and the truth."""
    truth, labels = {}, {"../../escape/0000001/s1/label.tif": codes_of(range(9))[0]}
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as archive:
        for place in range(1, 7):
            for season in ("20200110T100000_a", "20200710T100000_b"):
                where = f"{place:07d}/{season}"
                label, mask = codes_of(np.arange(9)[:: 1 if place % 2 else -1])
                labels[f"dw_noisy_labels/{where}/label.tif"] = label
                truth[f"pretrain-{where.replace('/', '-')}"] = mask
                for number, band in enumerate(ssl4eo.BANDS):
                    size = {0: 4, 9: 4, 10: 4, 4: 12, 5: 12, 6: 12, 8: 12, 11: 12, 12: 12}.get(number, 24)
                    data = stack(1, size, 100 * place + number)[0]
                    info = tarfile.TarInfo(f"s2_l1c/{where}/{band.replace('B0', 'B')}.tif")
                    info.size = len(data)
                    archive.addfile(info, io.BytesIO(data))
    tar = stream.getvalue()
    parts = [tmp_path / "parta", tmp_path / "partb"]
    parts[0].write_bytes(tar[: len(tar) * 2 // 3]), parts[1].write_bytes(tar[len(tar) * 2 // 3 :])
    (tmp_path / "nol.zip").write_bytes(zipped(labels))
    tuning = {"../../../tmp/evil.tif": b"x"}
    for number in range(8):
        part = "train" if number < 5 else "test"
        if target == "dfc2020":
            part = {"train": "validation"}.get(part, part)
            names = [f"{part}/{kind}_{part}/ROIs0000_{part}_{kind}_0_p{number}.tif" for kind in ("s2", "dfc")]
            label, mask = codes_of(legend.get("dfc8").codes)
        else:
            place = f"{number - 2}.5_12.25-20190816"
            kinds = ("image_s2/s2", f"label_{target}/{target}")
            names = [f"data/{target}_{part}/{kind}_{place}.tif" for kind in kinds]
            label, mask = codes_of(range(14 if target == "osm" else 11), count=2 if target == "dw" else 1)
        tuning |= {names[0]: stack(13, 24, number)[0], names[1]: label}
        truth[number] = mask
    (tmp_path / f"{target}.zip").write_bytes(zipped(tuning))
    return truth, parts


@pytest.mark.parametrize(("target", "labels"), [("dw", "dw9"), ("osm", "osm13"), ("dfc2020", "dfc8")])
def test_ssl4eo_and_the_set_to_fine_tune_on(server, tmp_path, monkeypatch, target, labels):
    truth, parts = noldo(tmp_path, target)
    name = f"ssl4eo_{target}"
    pieces = tuple(recipes.Piece(f"images-0{n + 1}", f"{server.url}/s2.part{n}", "-",
                                  sha256=hashlib.sha256(path.read_bytes()).hexdigest())
                   for n, path in enumerate(parts))  # fmt: skip
    server.files |= {f"/s2.part{n}": path.read_bytes() for n, path in enumerate(parts)}
    recipe = recipes.RECIPES[name]
    own = [piece for piece in recipe.pieces if not piece.name.startswith("images")]
    monkeypatch.setitem(recipes.RECIPES, name, replace(recipe, pieces=(*own, *pieces)))
    files = {"nol": str(tmp_path / "nol.zip"), target: str(tmp_path / f"{target}.zip")}
    root = tmp_path / "root"
    plan = recipes.make_plan(name, recipes.Wish(files=files), root)
    assert plan.sizes["images-01"] == parts[0].stat().st_size and "images-02" not in plan.sizes
    card, _ = recipes.acquire(plan)
    dataset = sources.read_dataset(card)
    some = set(dataset.scenes("pretrain"))
    assert 0 < len(some) < 12 and all(s in truth for s in some)  # one part holds the first places only
    assert [len(dataset.scenes(s)) for s in ("finetune", "validation", "test")] == [4, 1, 3]
    for tile in dataset.tiles:
        image, _ = dataset.read_image(tile)
        assert image.shape == (13, 24, 24)
        if tile.scene in truth:
            assert (labelling.noisy_mask(dataset, tile) == truth[tile.scene]).all()
            place = int(tile.scene.split("-")[1])
            assert (image[1] == stack(1, 24, 100 * place + 1)[1][0]).all()
        else:
            exact, raw = sources.read_exact(dataset, tile), truth[0]
            if labels == "dfc8":
                assert (exact == legend.get("dfc8").encode(raw)).all()
            else:
                inside = (raw > 0) & (raw <= len(legend.get(labels)))
                assert (exact[inside] == raw[inside] - 1).all() and (exact[~inside] == VOID).all()
    assert max(dataset.scenes("finetune")) < min(dataset.scenes("validation")) or target != "dfc2020"
    before = {p: p.stat().st_mtime_ns for p in (root / "scenes").glob("*/*")}
    recipes.acquire(recipes.make_plan(name, recipes.Wish(files=files, parts=2), root))
    assert len(sources.read_dataset(card).scenes("pretrain")) == 12  # the next part adds to what is there
    assert all(p.stat().st_mtime_ns == then for p, then in before.items())
    outside = {p.relative_to(tmp_path).parts[0] for p in tmp_path.rglob("*")}
    assert outside == {"nol.zip", f"{target}.zip", "parta", "partb", "root"}
    server.files["/s2.part0"] = b"something else"
    shutil.rmtree(root)
    with pytest.raises(SourceError, match="s2.part0: SHA-256 is"):
        recipes.acquire(recipes.make_plan(name, recipes.Wish(files=files), root))
    assert not list((root / "scenes").iterdir())


def test_an_archive_of_images_given_by_hand_must_be_whole(tmp_path):
    _, parts = noldo(tmp_path, "dw")
    files = {"nol": str(tmp_path / "nol.zip"), "dw": str(tmp_path / "dw.zip"), "images": str(parts[0])}
    with pytest.raises(SourceError, match="parta: .*fetch it again"):
        recipes.acquire(recipes.make_plan("ssl4eo_dw", recipes.Wish(files=files), tmp_path / "root"))


def test_what_the_archives_do_not_hold_is_told(tmp_path):
    with pytest.raises(sources.DataMissing, match="ieee-dataport.org.*dfc2020=PATH"):
        recipes.make_plan("ssl4eo_dfc2020", recipes.Wish(files={"nol": __file__, "images": str(tmp_path)}))
    with pytest.raises(sources.DataMissing, match="nol: .*none.zip is not there"):
        recipes.make_plan("ssl4eo_dw", recipes.Wish(files={"nol": str(tmp_path / "none.zip")}))
    (tmp_path / "empty.zip").write_bytes(zipped({"readme.tif": b""}))
    with pytest.raises(SourceError, match="empty.zip: holds 0 training and 0 test images"):
        next(ssl4eo.tuning(tmp_path / "empty.zip", "dw9"))
    with pytest.raises(SourceError, match="empty.zip: holds no <place>/<season>/label.tif"):
        next(ssl4eo.pretraining(tmp_path / "empty.zip", [tmp_path], whole=True, skip=lambda name: False))
    (tmp_path / "bad.tar.gz").write_bytes(b"no tar at all")
    (tmp_path / "nol.zip").write_bytes(zipped({"0000001/a/label.tif": codes_of(range(9))[0]}))
    with pytest.raises(SourceError, match="bad.tar.gz: .*fetch it again"):
        list(ssl4eo.pretraining(tmp_path / "nol.zip", [tmp_path / "bad.tar.gz"], whole=True, skip=lambda name: False))
