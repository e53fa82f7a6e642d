"""Prints what extras of pyproject.toml need, a requirement a line, so that an image installs its dependencies before its source.

Usage: requirements.py EXTRA[,EXTRA…] [PYPROJECT]. Knows no versions: those are in constraints.txt.
"""

import sys
import tomllib
from pathlib import Path


def requirements_of(extras: str, pyproject: Path) -> list[str]:
    """What the package itself and the extras (commas between) ask for. Raises KeyError for an extra that there is not."""
    project = tomllib.loads(pyproject.read_text())["project"]
    wanted = [line for extra in extras.split(",") for line in project["optional-dependencies"][extra]]
    return sorted({*project["dependencies"], *wanted})


if __name__ == "__main__":
    try:
        lines = requirements_of(sys.argv[1], Path(sys.argv[2] if len(sys.argv) > 2 else "pyproject.toml"))
    except (IndexError, KeyError) as error:
        sys.exit(f"requirements.py: name one extra of pyproject.toml ({error})")
    sys.stdout.write("\n".join(lines) + "\n")
