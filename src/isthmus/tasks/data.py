"""Where the real data for tests and claims lies, if this machine has it."""

from __future__ import annotations

import os
from pathlib import Path


def data_folder() -> Path | None:
    """Return the folder of real data, or None where there is none.

    It is the folder that the environment variable ``ISTHMUS_DATA`` names; without that variable it is
    ``../shared/data`` seen from the checkout, the nearest folder above the package that holds ``pyproject.toml``.
    """
    named = os.environ.get("ISTHMUS_DATA")
    if named:
        folder = Path(named).expanduser()
        return folder if folder.is_dir() else None
    for root in Path(__file__).resolve().parents[2:4]:
        if (root / "pyproject.toml").is_file():
            folder = root.parent / "shared" / "data"
            return folder if folder.is_dir() else None
    return None
