"""Noisy maps, useful encoders: the helper rooms of the notebooks.

Each room imports only from the rooms below it (see the README). Importing the package makes `torchvision`
importable beside a CPU build of PyTorch first, because the libraries the rooms stand on import it. It also leaves out
those drivers of GDAL by which a file that comes as an image or a map makes it ask servers; set GDAL_SKIP to have them.
"""

import os
from pathlib import Path

from nbutils import compat

__version__ = "0.1.0"
ROOT = Path(__file__).resolve().parents[1]

SERVICES = (
    "ADBC AmigoCloud Carto CSW DAAS EEDA EEDAI Elasticsearch HTTP NGW OAPIF OGCAPI PLMOSAIC PLSCENES STACIT STACTA WCS "
    "WFS WMS WMTS"
)
os.environ.setdefault("GDAL_SKIP", SERVICES)  # read when rasterio and pyogrio are first used
compat.ensure_torchvision()
