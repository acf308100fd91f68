"""Weights as files, checked against their digests before they are read; those that ship inside the package."""

import hashlib
import json
from pathlib import Path

__all__ = ["digest", "shipped_file", "shipped_names", "verify_folder", "verify_shipped", "write_digests"]

FOLDER = Path(__file__).parent / "files"
DIGESTS = FOLDER / "SHA256SUMS"
"""As `sha256sum` writes and checks it."""


def shipped_file(name: str) -> str:
    """The path of the weights of a model and tag, ``lambdaresnet32px.cifar10``."""
    return str(FOLDER / f"{name}.safetensors")


def shipped_names() -> list[str]:
    """The models and tags whose weights ship, sorted."""
    return sorted(path.stem for path in FOLDER.glob("*.safetensors"))


def verify_shipped(file: str | None) -> None:
    """Check a shipped file against its digest; a path outside the package is not this function's.

    Raises:
        RuntimeError: the file is missing, or its sha256 is not the known one; names both.
    """
    if not file or Path(file).parent != FOLDER:
        return
    path = Path(file)
    if not path.is_file():
        raise RuntimeError(f"{path} is missing: reinstall lambdaresnet-zoo")
    known = {name: sha256 for sha256, name in map(str.split, DIGESTS.read_text().splitlines())}
    found = digest(path)
    if found != known.get(path.name):
        raise RuntimeError(
            f"{path} is damaged: its sha256 is {found}, not {known.get(path.name)}: reinstall lambdaresnet-zoo"
        )


def verify_folder(folder: Path) -> None:
    """Check model.safetensors in a folder against the digest in its config.json, where one is recorded.

    Raises:
        RuntimeError: it is not the file that was written; names both digests.
    """
    path = folder / "model.safetensors"
    try:
        known = json.loads((folder / "config.json").read_text(encoding="utf-8"))["lambdaresnet_zoo"]["sha256"][
            path.name
        ]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return  # not written by this package
    if path.is_file() and (found := digest(path)) != known:
        raise RuntimeError(f"{path} is damaged, or another file: its sha256 is {found}, not {str(known)[:64]}")


def digest(path: Path, start: "hashlib._Hash | None" = None) -> str:
    """The digest of a file, in hexadecimal: sha256, or that of a hash that has been begun."""
    state = hashlib.sha256() if start is None else start
    with open(path, "rb") as stream:
        while chunk := stream.read(1 << 20):
            state.update(chunk)
    return state.hexdigest()


def write_digests() -> None:
    """Record the digests of the weights that lie in the package now."""
    lines = [f"{digest(path)}  {path.name}\n" for path in sorted(FOLDER.glob("*.safetensors"))]
    DIGESTS.write_text("".join(lines))
