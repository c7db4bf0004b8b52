"""Acquire a public archive: fetch what its recipe names, cut it into scenes, and end with a data set card.

    python tools/acquire.py --list
    python tools/acquire.py nyc --bbox -73.99 40.67 -73.96 40.69
    python tools/acquire.py ssl4eo_dfc2020 --file dfc2020=~/DFC2020.zip --parts 1 --most 200

Size and licence are told first, and nothing is fetched before you agree (or say `--yes`). An interrupted acquisition
goes on where it stopped when the same command is given again.
Exit status: 0 done, 1 the archive could not be had or read, 2 wrong input, 3 not agreed to, 130 interrupted.
"""

import argparse
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from tqdm import tqdm

from nbutils import ROOT, sources
from nbutils.archives import recipes


def in_bytes(size: int | None) -> str:
    """A size for people: "1.3 GB"."""
    if size is None:
        return "size not published, and the server does not tell it"
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if size < 1000 or unit == "TB":
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    raise AssertionError


def describe(plan: recipes.Plan) -> str:
    """What is fetched, how large, under which terms, and where it goes."""
    card = sources.load_card(ROOT / "data/datasets" / f"{plan.name}.yaml")
    lines = [card.title, f"licence  : {card.licence}", f"credit   : {card.attribution}"]
    for piece in recipes.RECIPES[plan.name].pieces:
        if piece.name in plan.sizes:
            lines.append(f"see      : {piece.page} ({piece.name}{'' if piece.sha256 else ', no checksum is known'})")
    lines += [f"fetches  : {name}: {in_bytes(size)}" for name, size in plan.sizes.items()]
    if plan.scenes:
        names = [scene["name"].split("-")[0] for scene in plan.scenes]
        parts = ", ".join(f"{names.count(split)} {split}" for split in dict.fromkeys(sorted(names)))
        lines.append(f"scenes   : {len(names)} ({parts}) of {plan.wish.scene_px} px")
    lines += [f"left out : {line}" for line in plan.left_out[:10]]
    lines += [f"left out : and {len(plan.left_out) - 10} more"] if len(plan.left_out) > 10 else []
    return "\n".join([*lines, f"into     : {plan.root}"])


def list_archives() -> str:
    """One line on every recipe."""
    cards = {name: sources.load_card(ROOT / "data/datasets" / f"{name}.yaml") for name in recipes.RECIPES}
    return "\n".join(f"{name:15} {card.title}\n{'':15} {card.licence}" for name, card in cards.items())


def wished(options: argparse.Namespace) -> recipes.Wish:
    """The options as a wish; ValueError where a file is not NAME=PATH."""
    if wrong := [text for text in options.file if "=" not in text]:
        raise ValueError(f"--file takes NAME=PATH, got {wrong[0]!r}")
    files: Mapping[str, str] = dict(text.split("=", 1) for text in options.file)
    given = {"bbox": options.bbox and tuple(options.bbox), "api": options.api, "year": options.year,
             "scene_px": options.scene_px, "most": options.most, "parts": options.parts, "files": files}  # fmt: skip
    return recipes.Wish(**{key: value for key, value in given.items() if value is not None})


def agreed(options: argparse.Namespace) -> bool:
    """Whether the user agrees, asked only where somebody can answer."""
    if options.yes:
        return True
    if not sys.stdin.isatty():
        print("not agreed to: say --yes to fetch this", file=sys.stderr)
        return False
    return input("fetch this? [y/N] ").strip().lower() in ("y", "yes")


@contextmanager
def bars() -> Iterator[Callable[[str, int, int | None], None]]:
    """A bar for each file as it is fetched, bytes of earlier runs counted in; nothing where nobody watches."""
    if not sys.stderr.isatty():
        yield lambda name, done, size: None
        return
    shown: dict[str, tqdm] = {}

    def show(name: str, done: int, size: int | None) -> None:
        if name not in shown:
            shown[name] = tqdm(desc=name, total=size, initial=done, unit="B", unit_scale=True, file=sys.stderr)
        shown[name].update(done - shown[name].n)  # backwards where a file is begun again
        if done == size:
            shown[name].close()

    try:
        yield show
    finally:
        for bar in shown.values():
            bar.close()


def main(arguments: list[str] | None = None) -> int:
    """Plan, tell, ask, fetch; returns the exit status."""
    parser = argparse.ArgumentParser(description="Acquire a public archive as a data set with a card.")
    parser.add_argument("name", nargs="?", help=f"one of {', '.join(recipes.RECIPES)}")
    parser.add_argument("--list", action="store_true", help="say which archives there are")
    parser.add_argument("--bbox", nargs=4, type=float, metavar=("W", "S", "E", "N"), help="area in degrees")
    parser.add_argument("--api", metavar="URL", help="STAC API (default: the Planetary Computer)")
    parser.add_argument("--root", metavar="DIR", help="folder to fill (default: that of the shipped card)")
    parser.add_argument("--year", type=int, help="of images and products (default: the recipe's)")
    parser.add_argument("--scene-px", type=int, help="side of a scene in pixels (default: 512)")
    parser.add_argument("--most", type=int, help="scenes at most, of published files for each split")
    parser.add_argument("--parts", type=int, choices=range(1, 13), metavar="1..12",
                        help="how many parts of SSL4EO-S12's images, 48 GB each, the last 26 (default: 1)")  # fmt: skip
    parser.add_argument("--file", action="append", default=[], metavar="NAME=PATH", help="a file or link of your own")
    parser.add_argument("--yes", action="store_true", help="fetch without asking")
    options = parser.parse_args(arguments)
    if options.list or not options.name:
        print(list_archives())
        return 0 if options.list else 2
    try:
        plan = recipes.make_plan(options.name, wished(options), options.root)
        print(describe(plan))
        if not agreed(options):
            return 3
        with bars() as show:
            card, left_out = recipes.acquire(plan, lambda line: tqdm.write(line, file=sys.stdout), show)
    except (ValueError, sources.DataMissing) as error:
        print(error, file=sys.stderr)
        return 1 if isinstance(error, sources.SourceError) else 2
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
        return 130
    for line in left_out[len(plan.left_out) :]:
        print(f"left out : {line}")
    print(f"card     : {card}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
