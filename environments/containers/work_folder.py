"""The content of an image's work folder, as it is put into a fresh volume."""

import io
import tarfile
from dataclasses import dataclass
from typing import Self


@dataclass(frozen=True, kw_only=True, slots=True)
class WorkFolder:
    """A tar of what is in the folder, and what the folder itself is like."""

    tar: bytes
    """Names relative to the folder; empty when there is nothing in it."""
    mount_options: str
    """Owner and mode of the folder, as options of a tmpfs."""

    @classmethod
    def of(cls, archive: bytes) -> Self:
        """From the engine's archive of the folder, whose names start with the folder's own."""
        out = io.BytesIO()
        options, entries = "", 0
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
                entries += 1
        return cls(tar=out.getvalue() if entries else b"", mount_options=options)

    @classmethod
    def absent(cls) -> Self:
        """Of an image that has no such folder: an empty one of the agent's."""
        return cls(tar=b"", mount_options="mode=755,uid=1000,gid=1000")
