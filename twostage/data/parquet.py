"""Reads rows of Parquet files, a few at a time: sound and texts of a corpus in the format of Hugging Face."""

from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from twostage.utils.errors import ConfigError, DataError, first_line

BATCH = 16  # rows held at once


class ParquetRows:
    """The rows of a Parquet file. Raises DataError for one that is damaged or none, ConfigError without pyarrow."""

    def __init__(self, path: Path) -> None:
        if find_spec("pyarrow") is None:
            raise ConfigError("reading Parquet needs pyarrow: pip install 'twostage[corpora]'")
        import pyarrow
        import pyarrow.parquet

        self.path, self._errors = path, (pyarrow.ArrowException, OSError)
        try:
            self._file = pyarrow.parquet.ParquetFile(path, memory_map=True)
        except self._errors as error:
            raise self._damaged(error) from None
        self.length: int = self._file.metadata.num_rows
        self.columns = _names(self._file.schema_arrow)

    def read(self, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
        """Yield rows with ``columns``, which may lie in a struct: "audio.throat" is the column or a field of "audio".

        No more than a row group's part of these columns is in memory at once.
        """
        try:
            for batch in self._file.iter_batches(batch_size=BATCH, columns=list(columns)):
                yield from ({name: _value(row, name) for name in columns} for row in batch.to_pylist())
        except self._errors as error:
            raise self._damaged(error) from None

    def close(self) -> None:
        self._file.close()

    def _damaged(self, error: Exception) -> DataError:
        return DataError(f"not a Parquet file that can be read ({first_line(error)})", subject=self.path)


def _names(fields: Any) -> list[str]:
    """Columns, and the fields of those that are structs, with dots between."""
    import pyarrow

    names = []
    for field in fields:
        names.append(field.name)
        if pyarrow.types.is_struct(field.type):
            names += [f"{field.name}.{inner.name}" for inner in field.type]
    return names


def _value(row: dict[str, Any], name: str) -> Any:
    if name in row:
        return row[name]
    outer, _, inner = name.partition(".")
    value = row.get(outer)
    return value.get(inner) if isinstance(value, dict) else None
