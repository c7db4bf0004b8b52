"""Data set cards: what a card may say, and how its faults are told.

A card is a short YAML file that says where images, exact masks and the noisy source are, how they are coded,
which scene a file belongs to and how scenes are split. It is checked whole before the first pixel is read; what
is wrong is said in one line per fault, with the key, what came and what is allowed.
"""

import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    field_validator,
    model_serializer,
    model_validator,
)

from nbutils import ROOT, guarded, noise
from nbutils import legend as legends
from nbutils.legend import Legend
from nbutils.worlds import check_kinds

SPLITS = ("pretrain", "finetune", "validation", "test")
MOST_FAULTS = 20  # told at once; who needs more has another kind of file


class CardError(ValueError):
    """A data set card is wrong; the message names the file and, line by line, every fault."""


class DataMissing(FileNotFoundError):
    """The files a card points at are not there; the message says how to get them."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True, coerce_numbers_to_str=True)


def _check_regex(pattern: str | None) -> str | None:
    if pattern is not None:
        try:
            groups = re.compile(pattern).groups
        except (re.error, OverflowError, RecursionError) as error:
            raise ValueError(f"not a regular expression: {error}") from None
        if groups != 1:
            raise ValueError(f"needs exactly one (group), has {groups}; the group's text is the name")
    return pattern


def to_legend(spec: str | Mapping[str, Any]) -> Legend:
    """Return the legend a card names, or the one it defines itself: {name, classes: {class: [r, g, b]}, codes}.

    Raises:
        ValueError: Unknown name, or a definition that is incomplete or takes the name of a shipped legend.
    """
    if not isinstance(spec, Mapping):
        return legends.get(str(spec))
    try:
        name, classes, codes = str(spec["name"]), dict(spec["classes"]), tuple(map(int, spec.get("codes") or ()))
        colours = tuple((int(r), int(g), int(b)) for r, g, b in classes.values())
        if extra := sorted(set(spec) - {"name", "classes", "codes"}):
            raise ValueError(f"no such key {few(extra)}")
        if not all(0 <= value <= 255 for colour in colours for value in colour):
            raise ValueError("colours are 0..255")
        if name in legends.LEGENDS:
            raise ValueError(f"{name!r} is a shipped legend, choose another name")
        return Legend(name, tuple(map(str, classes)), colours, codes)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        form = "{name: mine, classes: {class: [r, g, b], ...}, codes: [1, ...]}, `codes` only where not 0, 1, ..."
        raise ValueError(f"a legend of one's own is {form}; {type(error).__name__}: {error}") from None


def _check_legend(spec: Any) -> Any:
    if spec is not None:
        to_legend(spec)
    return spec


LegendSpec = Annotated[Any, AfterValidator(_check_legend)]


class Files(_Strict):
    """Where files are: a `glob` below the root, or the name of an `asset` of the catalogue's items."""

    glob: str | None = None
    asset: str | None = None
    key: str | None = None

    _key = field_validator("key")(_check_regex)

    @model_validator(mode="after")
    def _one_place(self):
        if (self.glob is None) == (self.asset is None):
            raise ValueError("give either `glob` (files below root) or `asset` (of the catalogue's items)")
        return self


class Images(Files):
    """The images: files, bands in file order, divisor to 0..1, scene of each file, and the same ground on `dates`.

    `dates` are further globs or assets, like the one of the images themselves.
    """

    bands: tuple[str, ...] = Field(min_length=1)
    scale: float = Field(255, gt=0)
    scene: str | None = None
    dates: tuple[str, ...] = ()

    _scene = field_validator("scene")(_check_regex)

    @model_validator(mode="after")
    def _other_dates(self):
        named = [self.asset or self.glob, *self.dates]
        if twice := [name for name, count in Counter(named).items() if count > 1]:
            raise ValueError(f"`dates` are further dates than that of the images themselves, got {twice[0]!r} twice")
        return self


class Masks(Files):
    """Mask files: the legend, and whether it is written as class index, source code or colour."""

    legend: LegendSpec
    coding: Literal["index", "code", "colour"]
    void: tuple[int | tuple[int, int, int], ...] = ()

    @model_validator(mode="after")
    def _void_fits(self):
        wanted, text = (tuple, "[R, G, B] triples") if self.coding == "colour" else (int, "integers")
        if wrong := [value for value in self.void if not isinstance(value, wanted)]:
            raise ValueError(f"`void` holds {text} when coding is {self.coding}, got {wrong[0]}")
        return self


class Inject(_Strict):
    """Noisy masks made from the exact ones by a named recipe of `nbutils.noise`, at a strength or to a rate."""

    source: Literal["inject"] = Field(alias="from")
    recipe: str = "map-like"
    strength: float = Field(1.0, ge=0)
    rate: float | None = Field(None, ge=0, le=1)
    seed: int = Field(0, ge=0)

    @field_validator("recipe")
    @classmethod
    def _known_recipe(cls, name: str) -> str:
        if name not in noise.RECIPES:
            raise ValueError(f"unknown recipe {name!r}; known are {', '.join(noise.RECIPES)}")
        return name


class Lidar(Files):
    """Noisy masks made from LiDAR points by the rules of `nbutils.labelling`."""

    source: Literal["lidar"] = Field(alias="from")
    legend: Literal["autogeo4"] = "autogeo4"


class NoisyMasks(Masks):
    """Noisy masks that lie in files."""

    source: Literal["mask"] = Field(alias="from")


class _Map(Files):
    """A map that is laid on the images' grid: a file each, or one `file` below the root for all of them."""

    file: str | None = None
    legend: LegendSpec

    @model_validator(mode="after")
    def _one_place(self):
        if [self.glob, self.asset, self.file].count(None) != 2:
            raise ValueError("give one of `glob` (a file for each image), `asset` and `file` (one for all)")
        return self


class Product(_Map):
    """Noisy masks taken from a coded land-cover raster, resampled and translated by `nbutils.maps`."""

    source: Literal["product"] = Field(alias="from")
    to: LegendSpec = None
    mapping: dict[str, str | None] | None = None
    method: Literal["nearest", "majority"] = "nearest"
    void: tuple[int, ...] = ()

    @model_validator(mode="after")
    def _complete(self):
        legends.crosswalk(to_legend(self.legend), to_legend(self.to or self.legend), self.mapping)
        return self


class Vector(_Map):
    """Noisy masks drawn from a vector map by `nbutils.maps`: the classes of a column's values, lines with a width."""

    source: Literal["vector"] = Field(alias="from")
    column: str
    classes: dict[str | int, str | None] = Field(min_length=1)
    background: str | None = None
    order: tuple[str | None, ...] | None = None
    width_m: float | str | None = None
    layer: str | None = None
    where: str | None = None
    ignore: tuple[str | int, ...] = ()

    @model_validator(mode="after")
    def _known_classes(self):
        legend = to_legend(self.legend)
        for name in filter(None, (*self.classes.values(), *(self.order or ()), self.background)):
            legend.index(name)
        drawn = set(self.classes.values())
        if self.order is not None and (missing := sorted(str(name) for name in drawn if name not in self.order)):
            raise ValueError(f"`order` does not say when {few(missing)} is drawn; it holds {few(self.order)}")
        return self


class World(_Strict):
    """An embedded world that is generated on first use: scenes per split and their side length in pixels.

    `kinds` are the styles of the city or the biomes of the globe that take turns, where not the usual ones.
    """

    generator: Literal["city", "globe"]
    seed: int = Field(0, ge=0)
    pretrain: int = Field(ge=1)
    finetune: int = Field(ge=1)
    validation: int = Field(ge=1)
    test: int = Field(ge=1)
    size_px: int = Field(ge=64)
    kinds: tuple[str, ...] | None = None

    @model_validator(mode="after")
    def _known_kinds(self):
        check_kinds(self.generator, self.kinds)
        return self

    @model_serializer(mode="wrap")
    def _said(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out `kinds` where the card does: patches, and with them runs, are named by what a card says."""
        return {key: value for key, value in handler(self).items() if value is not None}


class Split(_Strict):
    """Scene names or patterns (`*`, `?`) per split; one left out takes every scene that is not held out."""

    test: tuple[str, ...] = Field(min_length=1)
    validation: tuple[str, ...] = Field(min_length=1)
    pretrain: tuple[str, ...] | None = Field(None, min_length=1)
    finetune: tuple[str, ...] | None = Field(None, min_length=1)


class Task(_Strict):
    """Something else to fine-tune for: other classes made of the exact ones, other exact masks, or other test scenes.

    `legend` (with a `mapping` where none is shipped) translates the exact masks, `exact` reads others of the same
    images, `card` judges on the test scenes of another data set.
    """

    legend: LegendSpec = None
    mapping: dict[str, str | None] | None = None
    exact: Masks | None = None
    card: str | None = None

    @model_validator(mode="after")
    def _one_way(self):
        if [self.legend, self.exact, self.card].count(None) != 2:
            raise ValueError("give one of `legend` (with or without `mapping`), `exact` and `card`")
        if self.mapping is not None and self.legend is None:
            raise ValueError("`mapping` leads from the exact classes to those of `legend`, which is missing")
        return self


class Card(_Strict):
    """A data set card; see `data/README.md` for every key with an example."""

    name: str = Field(pattern=r"^[\w.-]+$", description="a word that names the data set in tables")
    title: str = ""
    licence: str = Field(description='under what terms the data may be used, in words; "unknown" is one')
    attribution: str = ""
    get: str = ""
    root: str = Field(description="the folder of the files, absolute, with ~, or relative to this repository")
    gsd_m: float | None = Field(None, gt=0)
    world: World | None = None
    catalog: str | None = None
    images: Images = Field(
        description='where the images are, e.g. {glob: "*.tif", bands: [red, green, blue], scale: 255}'
    )
    exact: Masks = Field(
        description='where masks drawn by people are, e.g. {glob: "*.png", coding: index, legend: nyc8}'
    )
    noisy: Annotated[Inject | Lidar | NoisyMasks | Product | Vector, Field(discriminator="source")]
    crosswalk: dict[str, str | None] | None = None
    split: Split = Field(
        description="whole scenes to test and to validate on, e.g. {test: [north], validation: [east]}"
    )
    tasks: dict[str, Task] = {}

    @model_validator(mode="after")
    def _places_fit(self):
        for part in ("images", "exact", "noisy"):
            place = getattr(self, part)
            if (
                isinstance(place, Files)
                and not getattr(place, "file", None)
                and bool(place.asset) != bool(self.catalog)
            ):
                has, want = ("an asset", "give `catalog`") if place.asset else ("a glob", "name an `asset`")
                raise ValueError(f"{part} is {has} but catalog is {self.catalog!r}: {want}")
        if self.crosswalk is not None:
            if self.exact_legend == self.noisy_legend:
                raise ValueError("`crosswalk` leads from the exact to the noisy legend; here they are the same")
            legends.crosswalk(self.exact_legend, self.noisy_legend, self.crosswalk)
        own, other = self.exact_legend, self.noisy_legend
        if own.name == other.name and own.names != other.names:  # masks tell their legend by its name alone
            told = f"{few(own.names, 4)} in the exact masks and {few(other.names, 4)} in the noisy ones"
            raise ValueError(f"legend {own.name!r} is {told}; give the two different names")
        return self

    @model_validator(mode="after")
    def _tasks_fit(self):
        for name, task in self.tasks.items():
            if name == "own":
                raise ValueError("tasks: `own` is the task of the card's exact masks; choose another name")
            if task.legend is not None:
                legends.crosswalk(self.exact_legend, to_legend(task.legend), task.mapping)
            if task.exact is not None and bool(task.exact.asset) != bool(self.catalog):
                raise ValueError(f"tasks.{name}.exact: an `asset` goes with `catalog`, a `glob` without")
        return self

    @property
    def exact_legend(self) -> Legend:
        """Legend of the exact masks."""
        return to_legend(self.exact.legend)

    @property
    def noisy_legend(self) -> Legend:
        """Legend of the noisy masks; that of the exact ones when the noise is injected."""
        noisy = self.noisy
        return self.exact_legend if isinstance(noisy, Inject) else to_legend(getattr(noisy, "to", None) or noisy.legend)

    @property
    def folder(self) -> Path:
        """The root folder, absolute: `~` expanded, relative paths taken from the repository."""
        return ROOT / os.path.expanduser(self.root)

    @property
    def about(self) -> str:
        """Title, how to get the data, and licence, in three lines."""
        get = self.get or "the card does not say; correct its `root`, or add `get` for whoever comes next"
        lines = [f"data set : {self.title or self.name}", f"get it   : {get}", f"licence  : {self.licence}"]
        return "\n".join([*lines, f"credit   : {self.attribution}"] if self.attribution else lines)


_PARTS = {
    (): Card,
    ("images",): Images,
    ("exact",): Masks,
    ("world",): World,
    ("split",): Split,
    ("noisy", "inject"): Inject,
    ("noisy", "lidar"): Lidar,
    ("noisy", "mask"): NoisyMasks,
    ("noisy", "product"): Product,
    ("noisy", "vector"): Vector,
}
_SOURCES = [repr(part[1]) for part in _PARTS if part[:1] == ("noisy",)]


def _fault(error: dict[str, Any]) -> str:
    """One line for one pydantic error: path of the key, what came, what is allowed."""
    loc = tuple(error["loc"])
    tagged = loc[:2] in _PARTS and loc[:1] == ("noisy",)  # pydantic puts the value of `from` into the path
    path = ".".join(map(str, (loc[:1] + loc[2:]) if tagged else loc)) or "card"
    kind, given = error["type"], error["input"]
    if kind == "extra_forbidden":
        part = _PARTS.get(loc[:-1], Card) if loc[0] != "tasks" else Task if len(loc) == 3 else Masks
        fields = part.model_fields
        allowed = [field.alias or name for name, field in fields.items()]
        close = get_close_matches(str(loc[-1]), allowed, 1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        return f"{path}: no such key; {hint}allowed are {', '.join(allowed)}"
    if kind == "missing":
        field = _PARTS.get(loc[:-1], Card).model_fields.get(str(loc[-1]))
        return f"{path}: missing; {field.description}" if field and field.description else f"{path}: missing"
    if kind in ("union_tag_not_found", "union_tag_invalid"):
        came = given.get("from", "nothing") if isinstance(given, dict) else given
        return f"{path}.from: got {came!r}; allowed are {', '.join(_SOURCES)}"
    shown = "" if isinstance(given, (dict, BaseModel)) else f"got {guarded.shortened(repr(given), 200)}; "
    return f"{path}: {shown}{error['msg'].removeprefix('Value error, ')}"


def load_card(path: str | Path) -> Card:
    """Read and check a data set card.

    Args:
        path: YAML file; a relative path is taken from the working folder, else from the repository.

    Raises:
        CardError: no such file, not YAML, or wrong keys and values; the message lists every fault.
    """
    path = locate(path)
    try:
        raw = guarded.read_yaml(path)
    except FileNotFoundError:
        there = sorted(p.name for p in (ROOT / "data/datasets").glob("*.yaml"))
        raise CardError(f"{path}: no such card; data/datasets holds {', '.join(there)}") from None
    except ValueError as error:
        raise CardError(f"{path}: {error}") from None
    if not isinstance(raw, dict):
        raise CardError(f"{path}: a card is a mapping of keys to values, this is {type(raw).__name__}")
    try:
        return Card.model_validate(raw)
    except ValidationError as error:
        faults = [guarded.shortened(_fault(e)) for e in error.errors()]
        more = [f"and {len(faults) - MOST_FAULTS} more"] if len(faults) > MOST_FAULTS else []
        raise CardError("\n  ".join([f"{path}: {len(faults)} fault(s)", *faults[:MOST_FAULTS], *more])) from None


def locate(path: str | Path) -> Path:
    """Return the absolute path: from the working folder if it exists there, else from the repository."""
    path = Path(path).expanduser()
    return path.resolve() if path.exists() else ROOT / path


def few(values: Iterable[object], most: int = 5) -> str:
    """List the first values and count the rest."""
    values = [str(v) for v in values]
    rest = f" and {len(values) - most} more" if len(values) > most else ""
    return ", ".join(values[:most]) + rest
