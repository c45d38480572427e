"""Reads rows of Parquet files in small batches: sound and text of a corpus in the format of Hugging Face."""

from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from twostage.utils.errors import ConfigError, DataError, first_line

BATCH = 16  # rows in memory at once


class ParquetRows:
    """The rows of a Parquet file. Raises DataError if it is damaged or another format, ConfigError without pyarrow."""

    def __init__(self, path: Path) -> None:
        if find_spec("pyarrow") is None:
            raise ConfigError("reading Parquet needs pyarrow: pip install 'twostage[corpora]'")
        import pyarrow
        import pyarrow.parquet

        self.path, self._errors = path, (pyarrow.ArrowException, OSError)
        try:
            self._file = pyarrow.parquet.ParquetFile(path, memory_map=True)
        except self._errors as error:
            raise self._error(error) from None
        self.length: int = self._file.metadata.num_rows
        self.columns = _names(self._file.schema_arrow)

    def read(self, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
        """Yield rows with ``columns``; "audio.throat" may be a column of that name or a field of the struct "audio".

        At most the data of these columns in one row group is in memory at once.
        """
        try:
            for batch in self._file.iter_batches(batch_size=BATCH, columns=list(columns)):
                yield from ({name: _value(row, name) for name in columns} for row in batch.to_pylist())
        except self._errors as error:
            raise self._error(error) from None

    def close(self) -> None:
        self._file.close()

    def _error(self, error: Exception) -> DataError:
        return DataError(f"not a Parquet file that can be read ({first_line(error)})", subject=self.path)


def _names(fields: Any) -> list[str]:
    """Column names, and those of the fields of structs as "column.field"."""
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
    struct, _, field = name.partition(".")
    value = row.get(struct)
    return value.get(field) if isinstance(value, dict) else None
