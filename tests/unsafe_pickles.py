"""Objects whose unpickling runs code that leaves a trace."""

from pathlib import Path


class TouchesFile:
    """Creates a file, by default ``marker`` in the working folder, when it is unpickled."""

    def __init__(self, path: Path = Path("marker")) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.path,)
