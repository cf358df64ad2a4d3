"""What others wrote and the page serves: one exact version of each, with its licence and hash."""

from dataclasses import dataclass

FOLDER = "vendor"


@dataclass(frozen=True, slots=True)
class Vendored:
    """One file, as it stands in its npm package."""

    file: str
    package: str
    version: str
    path: str  # in the package
    licence: str  # by its SPDX name
    licence_file: str
    sha256: str


VENDORED = (
    Vendored(
        "htmx-2.0.11.min.js",
        "htmx.org",
        "2.0.11",
        "dist/htmx.min.js",
        "0BSD",
        "htmx-2.0.11.LICENSE",
        "d6fdc75f204e6bdefa99b69bf1e6d4ac69b8a364f77929f45c13476b4000f717",
    ),
    Vendored(
        "uplot-1.6.32.iife.min.js",
        "uplot",
        "1.6.32",
        "dist/uPlot.iife.min.js",
        "MIT",
        "uplot-1.6.32.LICENSE",
        "19c8d4c6ad88929a79f4ae49d6f7161566dfd0ba3d15cc495e974f787eb78f1f",
    ),
    Vendored(
        "uplot-1.6.32.min.css",
        "uplot",
        "1.6.32",
        "dist/uPlot.min.css",
        "MIT",
        "uplot-1.6.32.LICENSE",
        "df630c6a8d6f8eeaff264b50f73ce5b114f646ffd9a0bb74f049b0a00135fa04",
    ),
)
