"""The table of a corpus in Parquet, with the result for each file. This and ``data.parquet`` import pyarrow.

Every batch of work adds a separate part, so that no result is lost with a process and no two processes write to the
same file. A batch may be repeated, so a file may have several rows, of which reading keeps one. The parts are merged
into the table at the start and the end of a run.
"""

import io
from base64 import b64decode
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from hashlib import blake2b
from typing import Any

from twostage.corpus.storage import Store, require
from twostage.utils.errors import DataError, first_line

TABLE, PARTS = "results.parquet", "results.parts"
RESTORED, FAILED = "restored", "failed"


@dataclass(frozen=True)
class Result:
    """The result for the file at ``path``: its ``output``, relative to the table, unless ``status`` is "failed".

    ``seconds`` of audio, ``sample_rate`` of the output; ``model`` is the digest of its weights; ``finished`` in seconds
    since 1970.
    """

    path: str
    output: str
    status: str
    seconds: float = 0.0
    sample_rate: int = 0
    realtime_factor: float = 0.0
    model: str = ""
    error: str = ""
    warnings: str = ""
    finished: float = 0.0


class Table:
    """The results in the folder ``store``."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def add(self, results: Sequence[Result]) -> None:
        """Write a part, with a name that depends only on the paths of the files."""
        if results:
            name = blake2b("\n".join(result.path for result in results).encode(), digest_size=12).hexdigest()
            self._store.write(f"{PARTS}/{name}.parquet", encode(results))

    def read(self) -> dict[str, Result]:
        """One result for each file, by its path."""
        return distinct(row for _, content in self._contents() for row in content)

    def fold(self) -> dict[str, Result]:
        """Merge all parts into the table and return its contents. A kill at any moment loses nothing."""
        contents = self._contents()
        results = distinct(row for _, content in contents for row in content)
        if parts := [name for name, _ in contents if name != TABLE]:
            self._store.write(TABLE, encode(list(results.values())))
            self._store.remove(parts)
        return results

    def clear(self) -> None:
        self._store.remove(self._names())

    def _contents(self) -> list[tuple[str, list[Result]]]:
        names = self._names()
        return [
            (name, decode(content, self._store.path(name)))
            for name, content in zip(names, self._store.read(names), strict=True)
        ]

    def _names(self) -> list[str]:
        parts = [name for name in self._store.names(PARTS) if name.endswith(".parquet")]
        return [name for name in self._store.names() if name == TABLE] + parts


def distinct(results: Iterable[Result]) -> dict[str, Result]:
    """One result for each file, by its path: restored ones take precedence over failed ones, then later ones."""
    kept: dict[str, Result] = {}
    for result in results:
        current = kept.get(result.path)
        if current is None or _rank(result) >= _rank(current):
            kept[result.path] = result
    return kept


def encode(results: Sequence[Result]) -> bytes:
    """Results as a Parquet file."""
    import pyarrow.parquet

    file = io.BytesIO()
    pyarrow.parquet.write_table(to_arrow(results), file)
    return file.getvalue()


def decode(content: bytes, name: str) -> list[Result]:
    """The results in a Parquet file; ``name`` is for messages. Raises DataError."""
    require("pyarrow")
    import pyarrow.parquet

    try:
        _check_plain(content)
        # a file object, because pyarrow would infer a column from the name of a folder
        return [Result(**row) for row in pyarrow.parquet.ParquetFile(io.BytesIO(content)).read().to_pylist()]
    except (pyarrow.ArrowException, OSError, TypeError, ValueError) as error:
        raise DataError(f"not a table of results, or damaged ({first_line(error)})", subject=name) from None


def _check_plain(content: bytes) -> None:
    """Raise ValueError for a file with extension types, because those of Ray unpickle their content."""
    import pyarrow.parquet

    metadata = pyarrow.parquet.read_metadata(io.BytesIO(content)).metadata or {}
    if b"ARROW:extension" in b64decode(metadata.get(b"ARROW:schema", b"")):
        raise ValueError("it has columns that are neither text nor numbers")


def to_arrow(results: Sequence[Result]) -> Any:
    """Results as a pyarrow table."""
    import pyarrow

    kinds = {str: pyarrow.string(), float: pyarrow.float64(), int: pyarrow.int64()}
    schema = pyarrow.schema([(field.name, kinds[field.type]) for field in fields(Result)])  # type: ignore[index]
    return pyarrow.Table.from_pylist([asdict(result) for result in results], schema)


def _rank(result: Result) -> tuple[bool, float]:
    return result.status == RESTORED, result.finished
