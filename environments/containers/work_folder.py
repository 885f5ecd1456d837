"""The content of an image's work folder, as it is put into a fresh volume."""

import io
import tarfile
from dataclasses import dataclass
from typing import Self

_END = tarfile.RECORDSIZE * b"\0"


@dataclass(frozen=True, kw_only=True, slots=True)
class WorkFolder:
    """A tar of what is in the folder, and what the folder itself is like."""

    entries: bytes
    """Of a tar without its end, so that another one can follow; names relative to the folder."""
    mount_options: str
    """Owner and mode of the folder, as options of a tmpfs."""

    @classmethod
    def of(cls, archive: bytes) -> Self:
        """From the engine's archive of the folder, whose names start with the folder's own."""
        out = io.BytesIO()
        options, end = "", 0
        with tarfile.open(fileobj=io.BytesIO(archive)) as source, tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as target:
            for entry in source:
                _, _, name = entry.name.partition("/")
                if not name:
                    options = f"mode={entry.mode & 0o7777:o},uid={entry.uid},gid={entry.gid}"
                    continue
                entry.name = name
                if entry.islnk():
                    entry.linkname = entry.linkname.partition("/")[2]
                entry.pax_headers = {key: value for key, value in entry.pax_headers.items() if key not in ("path", "linkpath")}
                target.addfile(entry, source.extractfile(entry) if entry.isreg() else None)
                end = out.tell()
        return cls(entries=out.getvalue()[:end], mount_options=options)

    @classmethod
    def absent(cls) -> Self:
        """Of an image that has no such folder: an empty one of the agent's."""
        return cls(entries=b"", mount_options="mode=755,uid=1000,gid=1000")

    def with_more(self, tar: bytes = b"") -> bytes:
        """One tar of the folder's content and then of `tar`; empty when there is nothing in either."""
        return self.entries + (tar or _END) if self.entries or tar else b""
