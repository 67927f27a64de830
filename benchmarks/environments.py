"""Environments of the tools that ours are held against: each has its own, from PyPI, made once."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path

from isthmus.errors import IsthmusError

CONSTRAINTS = Path(__file__).resolve().parents[1] / "constraints.txt"


def own_torch() -> str:
    """Return the build of torch that is here, as pip is asked for it.

    Left to itself, pip takes the newest with gigabytes of another accelerator's libraries.
    """
    return f"torch=={version('torch').partition('+')[0]}"


def environment(
    venv: Path, packages: Sequence[str], *, constrained: bool = False, say: Callable[[str], None] = print
) -> Path:
    """Return the Python of an environment that has some packages, making it where it is not there.

    Parameters
    ----------
    venv : Path
        Its folder.
    packages : sequence of str
        As pip takes them.
    constrained : bool
        Whether all else has the versions that are pinned here.

    Raises
    ------
    IsthmusError
        If it cannot be installed.
    """
    python, stamp, wanted = venv / "bin" / "python", venv / ".installed", "\n".join(packages)
    if stamp.exists() and stamp.read_text() == wanted:
        return python
    say(f"installing {', '.join(packages)} into {venv.name} (some minutes the first time)")
    pip = [str(python), "-m", "pip", "install", "-q", "--disable-pip-version-check"]
    pins = ["-c", str(CONSTRAINTS)] if constrained else []
    for command in ([sys.executable, "-m", "venv", str(venv)], [*pip, *pins, *packages]):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            lines = (done.stderr or done.stdout).strip().splitlines()
            raise IsthmusError(f"{venv.name}: {lines[-1] if lines else 'cannot be made'}; remove it and try again")
    (venv / ".gitignore").write_text("*\n")
    stamp.write_text(wanted)
    return python
