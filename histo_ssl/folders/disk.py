"""What a disk did to us, in a sentence: full, read-only, gone, broken.

Such an error is never the data's fault, so no stage may take it for a slide that can't be read.
"""

import errno

GO_ON = "the same command goes on from here"
# errno -> what happened, what to do
REASONS = {
    errno.ENOSPC: ("the disk is full", "make room"),
    errno.EDQUOT: ("the disk quota is used up", "make room"),
    errno.EFBIG: ("the file is larger than this process may write", "raise the limit (ulimit -f)"),
    errno.EROFS: ("the disk is read-only", "mount it for writing or choose another runs_dir"),
    errno.EACCES: ("permission denied", "allow it or choose another runs_dir"),
    errno.EPERM: ("permission denied", "allow it or choose another runs_dir"),
    errno.EIO: ("the disk failed (input/output error)", "look after the disk"),
    errno.ESTALE: ("the file server has lost it (stale handle)", "mount it again"),
    errno.ENOTDIR: ("a file stands where a folder belongs", "choose another runs_dir"),
    errno.EMFILE: ("too many open files", "raise the limit (ulimit -n)"),
}
VANISHED = ("its folder has vanished", "bring it back, or leave it: what is missing is made again")


class NotWrittenError(OSError):
    """A file of ours could not be written. Its text is a sentence; `errno` and `filename` are kept."""

    def __str__(self) -> str:
        reason, advice = VANISHED if self.errno == errno.ENOENT else _words(self)
        return f"{self.filename}: not written, {reason}; {advice}: {GO_ON}"


def sentence(error: OSError) -> str | None:
    """What happened to which file and what to do, or None where the error says it best itself."""
    if isinstance(error, NotWrittenError) or error.errno not in REASONS:
        return None
    reason, advice = _words(error)
    place = f"{error.filename}: " if error.filename is not None else ""
    return f"{place}{reason}; {advice}: {GO_ON}"


def _words(error: OSError) -> tuple[str, str]:
    return REASONS.get(error.errno or 0, (error.strerror or "the system refused", "see to it"))
