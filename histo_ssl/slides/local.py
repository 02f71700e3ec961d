"""A local file that is opened in a few microseconds: nothing of it is looked at."""

import os


class LocalFile:
    """A file that is open to be read anywhere; closed with its last reference at the latest."""

    def __init__(self, path: str) -> None:
        self.closed = True
        self._descriptor = os.open(path, os.O_RDONLY)
        self.closed, self._place = False, 0

    def fileno(self) -> int:
        """Its number."""
        return self._descriptor

    def seek(self, place: int) -> None:
        """Where to read next."""
        self._place = place

    def read(self, n_bytes: int) -> bytes:
        """So many bytes, fewer at the file's end."""
        return os.pread(self._descriptor, n_bytes, self._place)

    def close(self) -> None:
        """Close it, unless it is closed."""
        if not self.closed:
            self.closed = True
            os.close(self._descriptor)

    def __del__(self) -> None:
        self.close()
