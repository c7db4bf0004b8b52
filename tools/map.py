"""Map large images with a network of the study: any size, on the image's own grid, as cloud-optimised GeoTIFFs.

    python tools/map.py data/runs/0123456789abcdef0123 ortho/*.tif --out maps
    python tools/map.py 0123456789abcdef0123 https://example.org/S2.tif --out maps --bands B02,B03,B04 --scale 10000

RUN is the folder of a stored run or its key; IMAGE is a file, an https address of which only parts are fetched, or a
STAC item in a JSON file together with --asset. Each map is `<out>/<name>_classes.tif`, uint8, 255 where the image has
no data, with the legend's colours and names; with --confidence the probability of the class stands beside it. Every
image is compared with the weights' card before the first is mapped: bands (by name), scale, pixel size. A map is whole
or absent, also where the command is killed or the disk is full, and one that is there is kept unless you say
--overwrite. An image that cannot be read to its end is named, and the others are mapped.
Exit status: 0 done, 1 an image could not be read or a map not be written, 2 wrong input, 130 interrupted.
"""

import argparse
import signal
import sys
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

import numpy as np
import pystac

from nbutils import mapping, remote, sources
from nbutils.legend import VOID
from nbutils.store import RUNS, StoreError


def parsed(arguments: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", metavar="RUN", help="folder of a stored run, or its key in data/runs")
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="files, https addresses, STAC items")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="where the maps go")
    parser.add_argument("--bands", metavar="NAME,NAME", help="names of the images' bands in file order, where the "
                        "files do not name them as the card does")  # fmt: skip
    parser.add_argument("--scale", type=float, help="divisor of raw values (default: 255 for 8-bit images)")
    parser.add_argument("--dataset", metavar="CARD", help="data set card that tells bands, scale and own legends")
    parser.add_argument("--asset", metavar="NAME", help="which asset of STAC items is the image")
    usual = mapping.Squares()
    parser.add_argument("--square", type=int, default=usual.size_px, metavar="PX",
                        help="side of the squares the network is shown (default: %(default)s)")  # fmt: skip
    parser.add_argument("--margin", type=int, default=usual.margin_px, metavar="PX",
                        help="rim of a square that is context alone (default: %(default)s)")  # fmt: skip
    parser.add_argument("--confidence", action="store_true", help="also write the probability of the class, per cent")
    parser.add_argument("--overwrite", action="store_true", help="replace maps that are there")
    return parser.parse_args(arguments)


def found(image: str, asset: str | None) -> str | pystac.Item:
    """An image of the command line: with `asset` the STAC item of a JSON file, else a path or an address."""
    if asset is None:
        return image
    if remote.is_remote(image):
        raise mapping.MappingError(f"{remote.plain(image)}: items are read from files; fetch it and name the file")
    try:
        return pystac.Item.from_file(image)
    except Exception as error:  # of the disk, the JSON or what it holds, which pystac passes on
        raise sources.SourceError(f"{image}: cannot be read as a STAC item: {error}; fetch it again") from None


def shares(counts: np.ndarray, names: Sequence[str]) -> str:
    """What a map holds, in per cent of the pixels with data, the most first."""
    known = counts[: len(names)]
    order = [i for i in np.argsort(-known, kind="stable") if known[i]]
    told = ", ".join(f"{names[i]} {known[i] / known.sum():.1%}" for i in order)
    return f"{told or 'no data'}; void {counts[VOID] / counts.sum():.1%} of all pixels"


def checked(options: argparse.Namespace) -> tuple[mapping.Model, dict, list[tuple[str | pystac.Item, mapping.Place]]]:
    """Everything that can be wrong before the first square: the network, how images are read, images and their maps."""
    card = sources.load_card(options.dataset) if options.dataset else None
    folder = Path(options.run).expanduser()
    model = mapping.load_model(folder if folder.is_dir() else RUNS / options.run, card)
    how = {
        "bands": [name.strip() for name in options.bands.split(",")] if options.bands else card and card.images.bands,
        "scale": card.images.scale if card and options.scale is None else options.scale,
    }
    squares = mapping.Squares(options.square, options.margin)
    images = [found(image, options.asset) for image in options.images]
    jobs = list(zip(images, mapping.places(images, options.out.expanduser()), strict=True))
    for image, place in jobs:
        mapping.check_free(place, overwrite=options.overwrite)
        with sources.open_raster(image, options.asset or "") as raster, warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            mapping.reader(model, raster, **how)
        for warning in told:
            say(f"{raster.path}: {warning.message}", sys.stderr)
    return model, {**how, "squares": squares, "confidence": options.confidence, "overwrite": options.overwrite}, jobs


def say(line: str, file: TextIO | None = None) -> None:
    """Print a line at once, to the output if no file is named."""
    print(line, file=file, flush=True)


def main(arguments: list[str] | None = None) -> int:
    """Check everything, then map image by image; returns the exit status."""
    options, failed = parsed(arguments), 0
    try:
        model, how, jobs = checked(options)
        for image, place in jobs:
            start = time.perf_counter()
            try:
                with sources.open_raster(image, options.asset or "") as raster, warnings.catch_warnings():
                    warnings.simplefilter("ignore", UserWarning)  # told before
                    counts = mapping.map_image(model, raster, place, **how)
            except (sources.SourceError, mapping.MappingError, OSError) as error:
                say(str(error), sys.stderr)
                failed += 1
            else:
                seconds = time.perf_counter() - start
                say(f"{place.classes}: {seconds:.0f} s; {shares(counts, model.legend.names)}")
    except (ValueError, StoreError, FileExistsError) as error:
        say(str(error), sys.stderr)
        return 1 if isinstance(error, sources.SourceError) else 2
    except KeyboardInterrupt:
        say("stopped; maps that are finished are kept", sys.stderr)
        return 130
    if failed:
        say(f"{failed} of {len(jobs)} images were not mapped", sys.stderr)
    return 1 if failed else 0


def stop(number: int, _frame: object) -> None:
    """Clean up on `kill` as on Ctrl-C."""
    signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, stop)
    sys.exit(main())
