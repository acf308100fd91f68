"""Publish a model on the Hugging Face Hub."""

import shutil
import sys
import tempfile
from pathlib import Path

from huggingface_hub import ModelCard

from ..conversion.check import check_folder
from ..conversion.convert import Options, convert
from ..errors import UserError
from ..weights import hub
from ..weights.cards import PLACE
from ..weights.folder import CARD, CODE, FILES
from ..weights.licenses import doubt

__all__ = ["run"]


def run(source: str, repository: str, options: Options, private: bool = False, dry_run: bool = False) -> int:
    """The command `publish`: upload a folder that `convert` wrote, or convert and upload.

    Args:
        source: such a folder, or anything that ``conversion.convert.convert`` takes.
        repository: ``organisation/model``; it is created if need be.
        options: of the conversion; given any, such a folder is converted anew, its card too.
        private: create the repository private.
        dry_run: say what would be uploaded; nothing is.

    Returns:
        The exit status, 0.

    Raises:
        UserError: the folder is not fit to be published, or the Hub refuses; nothing is uploaded then.
    """
    hub.check_name(repository)
    with tempfile.TemporaryDirectory() as scratch:
        staged = Path(scratch) / repository.split("/")[-1]
        others: list[str] = []
        try:
            folder = Path(source.removeprefix("local-dir:"))
            if options == Options() and (folder / CODE).exists():
                others = _stage(folder, staged)
            elif not convert(source, staged, options).is_model:
                raise UserError(f"{source} holds a single lambda layer: only models are published")
            card = check_folder(staged)
        except UserError as error:
            raise UserError(str(error).replace(str(staged), source)) from error
        except OSError as error:
            raise UserError(f"{source} cannot be read: {error.strerror}") from error
        if warning := doubt(str(ModelCard(card).data.to_dict()["license"])):
            print(f"warning: {warning}", file=sys.stderr)  # first: the Hub may refuse it
        (staged / CARD).write_text(card.replace(PLACE, repository), encoding="utf-8")
        commit = ""
        if not dry_run:
            with hub.quiet():
                commit = hub.upload(staged, repository, private, message="Upload with lambdaresnet-zoo")
        done = "uploaded" if commit else "would upload"
        print(f"{done} to {hub.address(repository)}{' (private)' if private else ''}:")
        for path in sorted(staged.iterdir()):
            print(f"  {path.name}  {path.stat().st_size:,} bytes")
        for name in others:
            print(f"  not uploaded: {name}")
    print(f"commit: {commit}" if commit else "a dry run: nothing was uploaded; run it again without --dry-run to do so")
    load = f"timm.create_model({f'hf-hub:{repository}'!r}, pretrained=True)"
    print(f"to load it{'' if commit else ' then'}: import lambdaresnet_zoo, timm; {load}")
    return 0


def _stage(folder: Path, staged: Path) -> list[str]:
    """Copy what is published of a folder; returns the names of what is not."""
    staged.mkdir()
    for path in folder.iterdir():
        if path.name in FILES and path.is_file():
            shutil.copyfile(path, staged / path.name)
    return sorted(path.name for path in folder.iterdir() if path.name not in FILES)
