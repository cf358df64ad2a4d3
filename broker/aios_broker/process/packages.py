"""Where packages are installed that bring programs and weights."""

import importlib.util
from pathlib import Path

KERNEL_EXTRA = "install 'aios-broker[kernel]'"  # the remedy where one of them is missing


def package_dir(package: str) -> Path | None:
    """Return where a package is installed, or None; the package itself is not run."""
    found = importlib.util.find_spec(package)
    if found is None or not found.submodule_search_locations:
        return None
    return Path(found.submodule_search_locations[0])
