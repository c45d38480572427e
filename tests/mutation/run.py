"""Applies one small change at a time to a copy of the tree and says whether the named tests notice it."""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
LEFT_OUT = shutil.ignore_patterns(".git", "runs", "venv", "__pycache__", "*.egg-info", ".*_cache")


def verdict(change: dict[str, object], seconds: float) -> str:
    """`killed`, `survived` or `timed out`, for one entry of changes.json."""
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "tree"
        shutil.copytree(ROOT, tree, ignore=LEFT_OUT)
        path = tree / str(change["file"])
        text = path.read_text()
        if text.count(str(change["old"])) != 1:
            raise SystemExit(f"{change['file']}: the old text is not found exactly once: {change['old']!r}")
        path.write_text(text.replace(str(change["old"]), str(change["new"])))
        command = [sys.executable, "-m", "pytest", "-n", "0", "-x", "-q", *change["tests"]]  # type: ignore[misc]
        try:
            code = subprocess.run(
                command, cwd=tree, env={**os.environ, "PYTHONPATH": str(tree)}, timeout=seconds, capture_output=True
            ).returncode
        except subprocess.TimeoutExpired:
            return "timed out"
    if code not in (0, 1):  # pytest's 2 to 5: no test ran to its end, which says nothing about the change
        raise SystemExit(f"{change['file']}: pytest ended with {code}")
    return "survived" if code == 0 else "killed"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("changes", type=Path, help="a JSON list of file, old, new, tests, reason")
    parser.add_argument("--results", type=Path, default=Path("mutation-results.json"))
    parser.add_argument("--only", default="", help="part of a file's name")
    parser.add_argument("--limit", type=int)
    parser.add_argument("--timeout", type=float, default=300)
    inputs = parser.parse_args()
    results = json.loads(inputs.results.read_text()) if inputs.results.exists() else {}
    changes = [entry for entry in json.loads(inputs.changes.read_text()) if inputs.only in entry["file"]]
    todo = [entry for entry in changes if json.dumps(entry, sort_keys=True) not in results][: inputs.limit]
    for number, entry in enumerate(todo, 1):
        outcome = results[json.dumps(entry, sort_keys=True)] = verdict(entry, inputs.timeout)
        temporary = inputs.results.with_suffix(".part")
        temporary.write_text(json.dumps(results, indent=1))
        temporary.replace(inputs.results)
        print(f"{number}/{len(todo)} {outcome}: {entry['file']}: {entry['reason']}", flush=True)


if __name__ == "__main__":
    main()
