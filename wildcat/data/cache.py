"""Where computed things are kept between commands."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """The folder named by WILDCAT_CACHE, otherwise `wildcat` in the user's cache folder. It may not exist yet."""
    named = os.environ.get("WILDCAT_CACHE")
    if named:
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "wildcat"
