"""Parquet files that are written a bounded number of rows at a time, a new file when one has become large."""

from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pyarrow as pa
import pyarrow.parquet as pq

_ROWS = 256
"""Of a row group; fewer when they are large."""
_GROUP_SIZE = 32 << 20
_FILE_BYTES = 256 << 20


class ParquetSeries:
    """The files `<name><number>.parquet` of a folder, all of one schema. Closes with the block it manages, or by `close`."""

    def __init__(self, folder: Path, name: str, schema: pa.Schema) -> None:
        self._folder, self._name, self._schema = folder, name, schema
        self._writer: pq.ParquetWriter | None = None
        self._path = folder
        self._rows: list[dict[str, Any]] = []
        self._size = 0
        self.files = 0

    def add(self, row: dict[str, Any], *, size: int) -> None:
        """A row; columns that it does not name are null. `size`: about how many bytes it takes."""
        self._rows.append(row)
        self._size += size
        if len(self._rows) == _ROWS or self._size > _GROUP_SIZE:
            self._flush()

    def close(self) -> None:
        """Write what waits and end the last file."""
        try:
            self._flush()
        finally:
            self._finish()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _flush(self) -> None:
        if not self._rows:
            return
        if self._writer is None or self._path.stat().st_size > _FILE_BYTES:
            self._finish()
            self._path = self._folder / f"{self._name}{self.files:05d}.parquet"
            self._writer = pq.ParquetWriter(self._path, self._schema, compression="zstd")
            self.files += 1
        self._writer.write_table(pa.Table.from_pylist(self._rows, schema=self._schema))
        self._rows, self._size = [], 0

    def _finish(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None
