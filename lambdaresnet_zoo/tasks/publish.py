"""Publish a model on the Hugging Face Hub."""

import shutil
import tempfile
from pathlib import Path

from ..conversion.convert import Options, convert
from ..errors import UserError
from ..weights import hub
from ..weights.cards import PLACE
from ..weights.folder import CARD, CONFIG, FILES, check_folder

__all__ = ["run"]


def run(source: str, repository: str, options: Options, private: bool = False, dry_run: bool = False) -> int:
    """The command `publish`: upload a folder that `convert` wrote, or convert and upload.

    Args:
        source: such a folder, or anything that ``conversion.convert.convert`` takes.
        repository: ``organisation/model``; it is created if need be.
        options: of the conversion; a folder takes none.
        private: create the repository private.
        dry_run: say what would be uploaded; no connection is made.

    Returns:
        The exit status, 0.

    Raises:
        UserError: the folder is not fit to be published, or the Hub refuses; nothing is uploaded then.
    """
    hub.check_name(repository)
    with tempfile.TemporaryDirectory() as scratch:
        staged = Path(scratch) / repository.split("/")[-1]
        folder = Path(source.removeprefix("local-dir:"))
        if (folder / CONFIG).is_file():
            if options != Options():
                raise UserError(f"{source} is converted already: give options of the conversion to convert")
            others = _stage(folder, staged)
        else:
            convert(source, staged, options)
            others = []
        try:
            card = check_folder(staged)
        except UserError as error:
            raise UserError(str(error).replace(str(staged), source)) from error
        (staged / CARD).write_text(card.replace(PLACE, repository))
        print(f"{'would upload' if dry_run else 'uploading'} to {repository}{' (private)' if private else ''}:")
        for path in sorted(staged.iterdir()):
            print(f"  {path.name}  {path.stat().st_size:,} bytes")
        for name in others:
            print(f"  not uploaded: {name}")
        if not dry_run:
            with hub.quiet():
                print(hub.upload(staged, repository, private, message="Upload with lambdaresnet-zoo"))
    return 0


def _stage(folder: Path, staged: Path) -> list[str]:
    """Copy what is published of a folder; returns the names of what is not."""
    staged.mkdir()
    for path in folder.iterdir():
        if path.name in FILES and path.is_file():
            shutil.copyfile(path, staged / path.name)
    return sorted(path.name for path in folder.iterdir() if path.name not in FILES)
