"""Convert weights into a folder for timm, the Hub and transformers."""

import os
import shutil
import sys
from pathlib import Path

from ..conversion.convert import Options, convert
from ..conversion.matching import MisfitError
from ..conversion.report import write_report
from ..errors import UserError
from ..weights.licenses import doubt
from . import predict
from .images import image_problem, open_image
from .outputs import check_writable, writing

__all__ = ["read_labels", "run"]


def run(source: str, folder: Path, options: Options, verify: str | None = None, report: Path | None = None) -> int:
    """The command `convert`: what was recognised, counts, and the tensors that did not simply come over.

    Args:
        source: as ``conversion.convert.convert``.
        folder: as ``conversion.convert.convert``.
        options: as ``conversion.convert.convert``.
        verify: an image whose five most probable classes to print, by the folder that was written.
        report: a csv file to write, with a row for every tensor; or, of weights that fit no model, for
            every one that speaks against it.

    Returns:
        The exit status, 0.

    Raises:
        UserError: the weights cannot be converted, the report cannot be written, or the image cannot be
            predicted; nothing is left behind.
    """
    if verify is not None:
        _check_image(verify)
    if report is not None and (os.path.lexists(report) or not report.absolute().parent.is_dir()):
        raise UserError(f"{report}: name a file for the report that does not exist, in a folder that does")
    check_writable("--report", report or "")
    try:
        converted = convert(source, folder, options)
    except MisfitError as error:
        if report is not None:
            with writing("--report", report):
                write_report(report, error.rows)
        raise
    try:
        if verify is not None and not converted.is_model:
            raise UserError(f"{source} holds a single lambda layer: --verify cannot predict with it")
        if report is not None:
            with writing("--report", report):
                write_report(report, converted.rows)
        print(converted.summary())
        if options.license and (warning := doubt(options.license)):
            print(f"warning: {warning}", file=sys.stderr)
        if verify is not None and predict.run([verify], f"local-dir:{folder}"):
            raise UserError(f"{verify}: cannot be predicted by {source}")
    except (UserError, OSError):
        shutil.rmtree(folder, ignore_errors=True)
        raise
    if converted.is_model:
        print(f"wrote {folder}: timm.create_model({f'local-dir:{folder}'!r}, pretrained=True)")
    else:
        print(f"wrote {folder}: lambdaresnet_zoo.conversion.single_layer.load_layer({str(folder)!r})")
    return 0


def _check_image(path: str) -> None:
    if not Path(path).is_file():
        raise UserError(f"{path}: no such image")
    try:
        open_image(path)
    except Exception as error:  # a decoder may raise anything on a damaged file
        raise UserError(f"{path}: {image_problem(error)}") from error


def read_labels(path: str) -> tuple[str, ...]:
    """Names of classes from a text file in UTF-8, one a line.

    Raises:
        UserError: the file cannot be read, has an empty line between others, or a name twice.
    """
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as text in UTF-8: {error}") from error
    names = tuple(line.strip() for line in text.strip().split("\n"))
    if not all(names):
        raise UserError(f"{path}: give the name of one class a line, and no empty lines")
    if twice := [name for name in names if names.count(name) > 1]:
        raise UserError(f"{path}: the class {twice[0]} is named twice")
    return names
