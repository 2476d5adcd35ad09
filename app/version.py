"""The version, in one place: `pyproject.toml` reads it from here."""

import platform
from typing import Final

VERSION: Final = "0.2.0"
PYTHON_VERSION: Final = platform.python_version()
