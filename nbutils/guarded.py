"""What strangers wrote, read within bounds.

YAML cannot grow or run, regular expressions have a time limit, and no file makes GDAL fetch what it refers to.
"""

import json
import logging
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import rasterio
import yaml
from rasterio.io import DatasetReader

MOST_BYTES = 1 << 18  # of a card or a profile; none comes near a tenth of it
MOST_VALUES = 20_000  # in a document, repeated ones as often as they are
MOST_DEPTH = 50  # of lists and mappings within one another
SEARCH_S = 10.0  # for all texts together; ten thousand paths take a fifth of a second
OFFLINE = {"CPL_VSIL_CURL_ALLOWED_EXTENSIONS": ".none"}
"""Settings under which GDAL fetches nothing, whatever a file of this machine refers to."""

_PIXELS = ["GTiff", "JP2OpenJPEG", "JPEG", "PNG", "HFA"]  # formats that hold their pixels themselves
_SEARCH = """
import json, re, sys
pattern, texts = json.load(sys.stdin)
matches = [re.search(pattern, text) for text in texts]
json.dump([match and match[1] for match in matches], sys.stdout)
"""


def _register_drivers() -> None:
    """Let rasterio register GDAL's drivers now, without those that `nbutils` leaves out.

    No build has all of these, and of each that it lacks GDAL says so.
    """
    log = logging.getLogger("rasterio._env")
    before, log.disabled = log.disabled, True
    with rasterio.Env():
        log.disabled = before


_register_drivers()


class _Loader(yaml.SafeLoader):
    """Safe YAML in which a key given twice is an error, not a silent overwrite, and which cannot grow without end.

    An alias repeats a part of the document at no cost: twelve of them, one within another, make a line of text describe
    10^11 values. So values are counted as often as they are repeated.
    """

    def __init__(self, stream):
        super().__init__(stream)
        self.depth, self.sizes = 0, {}

    def compose_node(self, parent, index):
        alias, mark = self.check_event(yaml.AliasEvent), self.peek_event().start_mark
        if self.depth == MOST_DEPTH:
            problem = f"lists and mappings are nested more than {MOST_DEPTH} deep"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=mark)
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        if alias and node not in self.sizes:
            raise yaml.MarkedYAMLError(problem="an alias lies within what it repeats", problem_mark=mark)
        if not alias:
            values = [] if isinstance(node, yaml.ScalarNode) else node.value
            parts = [part for pair in values for part in pair] if isinstance(node, yaml.MappingNode) else values
            self.sizes[node] = 1 + sum(self.sizes[part] for part in parts)
        if max(self.sizes[node], len(self.sizes)) > MOST_VALUES:
            raise yaml.MarkedYAMLError(problem=f"it holds more than {MOST_VALUES} values", problem_mark=mark)
        return node

    def construct_mapping(self, node, deep=False):
        names = [self.construct_object(key, deep=deep) for key, _ in node.value]
        for name, count in Counter(map(str, names)).items():
            if count > 1:
                raise yaml.MarkedYAMLError(problem=f"key {name!r} is given {count} times", problem_mark=node.start_mark)
        return super().construct_mapping(node, deep)

    def construct_yaml_int(self, node):
        value = super().construct_yaml_int(node)
        if abs(value) >= 1 << 63:  # Python refuses to write some of them down, even in an error
            raise yaml.MarkedYAMLError(problem="an integer of more than 64 bits", problem_mark=node.start_mark)
        return value


_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_yaml_int)


def read_yaml(path: Path) -> Any:
    """Read a YAML file that holds plain values, lists and mappings only.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It cannot be read, is no such YAML, or too large; the message is one line without the file's name.
    """
    try:
        size = path.stat().st_size
        if size > MOST_BYTES:
            raise ValueError(f"has {size} bytes, at most {MOST_BYTES} are read; is it the right file?")
        return yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except FileNotFoundError:
        raise
    except Exception as error:  # of the disk, the encoding or the parser, which passes on what constructors raise
        told = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"cannot be read as YAML: {shortened(told)}; correct the file") from None


def search_all(pattern: str, texts: Sequence[str]) -> list[str | None]:
    """Search texts for a regular expression with one group; what the group holds in each, None where nothing is found.

    An expression such as ``(a+)+$`` can take longer than the universe is old, and nothing in Python can stop it but
    the end of its process: so it has one of its own.

    Raises:
        ValueError: It takes more than `SEARCH_S` seconds, or fails.
    """
    command, given = [sys.executable, "-I", "-S", "-c", _SEARCH], json.dumps([pattern, list(texts)])
    try:
        done = subprocess.run(command, input=given, capture_output=True, text=True, timeout=SEARCH_S, check=True)
    except subprocess.TimeoutExpired:
        why = f"takes more than {SEARCH_S:g} s on {len(texts)} paths; write it without a repetition within another"
        raise ValueError(f"{shortened(repr(pattern))} {why}") from None
    except subprocess.CalledProcessError as error:
        raise ValueError(f"{shortened(repr(pattern))} fails: {shortened(error.stderr.strip()[-200:])}") from None
    return json.loads(done.stdout)


def open_raster(where: str | Path) -> DatasetReader:
    """Open a raster without following it to anything else on the web.

    To GDAL a file is what its first bytes say, whatever its name: an ``image.tif`` may be a description that sends it
    to any server or, from a server, to the files of this machine. So what comes from elsewhere, or out of an archive,
    has to hold its pixels itself. A file of this machine may be a VRT of others, to be opened and read under `OFFLINE`
    and without the drivers that `nbutils` leaves out.

    Args:
        where: Path, http(s) address or GDAL's name of a member of an archive.
    """
    if "://" in str(where) or str(where).startswith("/vsi"):
        with rasterio.Env():
            return DatasetReader(str(where), driver=_PIXELS)  # `rasterio.open` takes one driver only
    with rasterio.Env(**OFFLINE):
        return rasterio.open(where)


def shortened(text: str, most: int = 500) -> str:
    """Return a text, cut where it is longer than a person reads."""
    return text if len(text) <= most else f"{text[:most]}... ({len(text)} characters)"
