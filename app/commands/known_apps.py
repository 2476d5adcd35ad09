"""The app tokens of the workspaces file, compared to unknown ones."""

from pathlib import Path

import adapters
from app import workspaces_file
from app.commands.likeness import is_alike


class KnownApps:
    """The app tokens of the workspaces file, which is read again after a change.

    Without a readable file there are none: it only makes a remedy more precise.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._vendors = adapters.load()
        self._version: tuple[int, int] | None = None
        self._apps: workspaces_file.Apps = {}

    def alike(self, vendor: str, token: str) -> str:
        """Return the app token that differs in letter case or white space only, or an empty text.

        A token that is an app by now has none.
        """
        self._refresh()
        if not token or (vendor, token) in self._apps:
            return ""
        known = (known for owner, known in self._apps if owner == vendor)
        return next((each for each in known if is_alike(each, token)), "")

    def _refresh(self) -> None:
        if not self._path:
            return
        try:
            found = Path(self._path).stat()
            version = (found.st_mtime_ns, found.st_size)
            if version != self._version:
                self._version = version
                self._apps = workspaces_file.read(Path(self._path), self._vendors)
        except (OSError, workspaces_file.WorkspacesError):
            self._apps = {}
