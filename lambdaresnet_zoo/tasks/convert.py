"""Convert weights into a folder for timm, the Hub and transformers."""

from pathlib import Path

from ..conversion.convert import Options, convert
from ..errors import UserError
from . import predict

__all__ = ["read_labels", "run"]


def run(source: str, folder: Path, options: Options, verify: str | None = None, report: Path | None = None) -> int:
    """The command `convert`: what was recognised, counts, and every tensor that did not simply come over.

    Args:
        source: as ``conversion.convert.convert``.
        folder: as ``conversion.convert.convert``.
        options: as ``conversion.convert.convert``.
        verify: an image whose five most probable classes to print, by the folder that was written.
        report: a csv file for a row of every tensor.

    Returns:
        The exit status: 0, or 1 if the image could not be predicted.

    Raises:
        UserError: the weights cannot be converted; nothing is left behind.
    """
    if verify is not None and not Path(verify).is_file():
        raise UserError(f"{verify}: no such image")
    converted = convert(source, folder, options)
    if report is not None:
        try:
            converted.write(report)
        except OSError as error:
            raise UserError(f"{report} cannot be written: {error.strerror}") from error
    print(converted.summary())
    if not converted.is_model:
        print(f"wrote {folder}: lambdaresnet_zoo.conversion.single_layer.load_layer({str(folder)!r})")
        return 0
    print(f"wrote {folder}: timm.create_model({f'local-dir:{folder}'!r}, pretrained=True)")
    return predict.run([verify], f"local-dir:{folder}") if verify else 0


def read_labels(path: str) -> tuple[str, ...]:
    """Names of classes from a text file, one a line.

    Raises:
        UserError: the file cannot be read, or has an empty line between others.
    """
    try:
        names = Path(path).read_text(encoding="utf-8").strip().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as text: {error}") from error
    if not all(name.strip() for name in names) or not names:
        raise UserError(f"{path}: give the name of one class a line, and no empty lines")
    return tuple(name.strip() for name in names)
