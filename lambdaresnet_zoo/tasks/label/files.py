"""The folder of pseudo-labels: what the teacher said of every image, in parts, and what was kept of it.

    run.json          teacher, digest of its weights, classes, data, preprocessing: equal in all jobs of a folder
    parts/*.parquet   what the teacher said, in parts of consecutive images; which job makes which does not matter
    labels.parquet    what was kept, to train on; its metadata holds run.json and how it was kept
    classes.csv       for each class: images, those sure enough, rows kept

A row of labels.parquet: ``index`` (int64, place of the image in the data), ``path`` (string, within the data),
``label`` (int32), ``confidence`` (float32, of that label); of soft labels also ``classes`` and ``probabilities``
(lists of int32 and float32, best first; what they leave of 1 is of all other classes alike). An image that is to
be repeated has several rows.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import UserError, first_line
from ...weights.files import write_rows, write_whole
from ..outputs import writing

__all__ = ["LABELS", "Choice", "LabelStore", "Labels", "Said", "read_labels"]

LABELS = "labels.parquet"
RUN = "run.json"
ROOT_KEY = b"lambdaresnet_zoo"
LARGEST, SMALLEST, PARTS = 10_000, 32, 64


@dataclass(frozen=True)
class Said:
    """What a teacher says of an image."""

    index: int
    path: str
    classes: list[int]
    """Best first."""
    probabilities: list[float]


@dataclass(frozen=True)
class Choice:
    """What is kept."""

    hard: bool = False
    threshold: float = 0.0
    """Least probability of the most probable class."""
    per_class: int | None = None
    """Images of a class at most, the surest."""
    repeat: bool = False
    """Up to ``per_class``, where a class has fewer."""


@dataclass(frozen=True)
class Labels:
    """The rows of labels.parquet."""

    run: dict[str, Any]
    """What run.json holds."""
    indices: np.ndarray
    """[N] int64."""
    labels: np.ndarray
    """[N] int32."""
    classes: np.ndarray | None
    """[N, K] int32, None of hard labels."""
    probabilities: np.ndarray | None
    """[N, K] float32, None of hard labels."""
    paths: Sequence[str]


class LabelStore:
    """The folder.

    Args:
        folder: it need not exist.
        count: images of the data.

    Raises:
        UserError: pyarrow is missing.
    """

    def __init__(self, folder: Path, count: int):
        self.arrow, self.parquet = _pyarrow()
        self.folder = folder
        self.count = count
        self.size = min(LARGEST, max(SMALLEST, -(-count // PARTS)))
        """Images of a part; it depends on their number alone, so that jobs may be shared out anew."""

    @property
    def parts(self) -> range:
        """Numbers of all parts."""
        return range(-(-self.count // self.size))

    def missing(self) -> list[int]:
        """Numbers of the parts that are not there."""
        return [part for part in self.parts if not self._part(part).is_file()]

    def images(self, part: int) -> range:
        """Places of the images of a part."""
        return range(part * self.size, min(self.count, (part + 1) * self.size))

    def begin(self, run: Mapping[str, Any]) -> None:
        """Write run.json, or check that it is of this run.

        Raises:
            UserError: the folder holds labels of another teacher, data or preprocessing, or cannot be written.
        """
        path = self.folder / RUN
        try:
            if not path.exists():
                text = json.dumps(run, indent=2, ensure_ascii=False) + "\n"
                with self._writing():
                    write_whole(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))
            there = json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise UserError(f"--out {self.folder} cannot be read: {error.strerror or first_line(error)}") from error
        except ValueError as error:
            raise UserError(f"{path} is damaged ({first_line(error)}); give another --out") from error
        other = [
            f"{key} {_short(there.get(key))} there, {_short(run[key])} here"
            for key in run
            if there.get(key) != run[key]
        ]
        if other:
            raise UserError(f"{self.folder} holds labels of another run: {'; '.join(other)}; give another --out")

    def write_part(self, part: int, rows: Sequence[Said], bad: Sequence[tuple[str, str]]) -> None:
        """Write what was said of the images of a part, whole.

        Raises:
            UserError: it cannot be written.
        """
        arrow = self.arrow
        fields = [("index", arrow.int64()), ("path", arrow.string()), ("classes", arrow.list_(arrow.int32()))]
        schema = arrow.schema([*fields, ("probabilities", arrow.list_(arrow.float32()))])
        table = arrow.Table.from_pylist([vars(row) for row in rows], schema=schema)
        table = table.replace_schema_metadata({ROOT_KEY: json.dumps(list(bad)).encode()})
        with self._writing():
            write_whole(self._part(part), partial(self.parquet.write_table, table))

    def bad(self) -> list[tuple[str, str]]:
        """Images of all parts that were left out as damaged, and why."""
        found = []
        for part in self.parts:
            metadata = self._read(part, []).schema.metadata or {}
            found += [(name, problem) for name, problem in json.loads(metadata.get(ROOT_KEY, b"[]"))]
        return found

    def finish(self, run: Mapping[str, Any], choice: Choice) -> list[dict[str, Any]]:
        """Choose among what was said of all images, and write labels.parquet and classes.csv.

        Returns:
            The rows of classes.csv.

        Raises:
            UserError: a part is damaged, or the folder cannot be written.
        """
        labels, confidence = self._first()
        times = choose(labels, confidence, choice)
        names = run["classes"] or [str(number) for number in range(run["num_classes"])]
        sure = confidence >= choice.threshold
        rows = [
            {
                "class": number,
                "name": name,
                "images": int((labels == number).sum()),
                "sure": int((sure & (labels == number)).sum()),
                "kept": int(times[labels == number].sum()),
            }
            for number, name in enumerate(names)
        ]
        with self._writing():
            write_whole(self.folder / LABELS, partial(self._write_labels, run, choice, times))
            write_rows(self.folder / "classes.csv", rows)
        return rows

    def _writing(self) -> AbstractContextManager[None]:
        return writing("--out", self.folder, "folder")

    def _part(self, part: int) -> Path:
        return self.folder / "parts" / f"{part:06d}.parquet"

    def _read(self, part: int, columns: list[str] | None = None) -> Any:
        path = self._part(part)
        try:
            return self.parquet.read_table(path, columns=columns)
        except (OSError, self.arrow.ArrowException) as error:
            raise UserError(f"{path} is damaged ({first_line(error)}); remove it, and run the command again") from error

    def _first(self) -> tuple[np.ndarray, np.ndarray]:
        """Of each image, in their order: the most probable class [N] int32, and its probability [N] float32."""
        labels, confidence = [np.zeros(0, np.int32)], [np.zeros(0, np.float32)]
        for part in self.parts:
            table = self._read(part, ["classes", "probabilities"])
            labels.append(_matrix(table.column("classes"), np.int32)[:, 0])
            confidence.append(_matrix(table.column("probabilities"), np.float32)[:, 0])
        return np.concatenate(labels), np.concatenate(confidence)

    def _write_labels(self, run: Mapping[str, Any], choice: Choice, times: np.ndarray, path: Path) -> None:
        """Part by part: all of them may be more than the memory holds."""
        arrow = self.arrow
        fields = [("index", arrow.int64()), ("path", arrow.string()), ("label", arrow.int32())]
        fields.append(("confidence", arrow.float32()))
        if not choice.hard:
            fields += [("classes", arrow.list_(arrow.int32())), ("probabilities", arrow.list_(arrow.float32()))]
        metadata = {ROOT_KEY: json.dumps({**run, "choice": vars(choice)}).encode()}
        schema = arrow.schema(fields, metadata=metadata)
        place = 0
        with self.parquet.ParquetWriter(path, schema) as writer:
            for part in self.parts:
                table = self._read(part)
                own = times[place : place + len(table)]
                place += len(table)
                table = table.take(np.repeat(np.arange(len(table)), own))
                first = {
                    "label": _matrix(table.column("classes"), np.int32)[:, 0],
                    "confidence": _matrix(table.column("probabilities"), np.float32)[:, 0],
                }
                columns = [first[name] if name in first else table.column(name) for name, _ in fields]
                writer.write_table(
                    arrow.Table.from_arrays([_array(arrow, column) for column in columns], schema=schema)
                )


def choose(labels: np.ndarray, confidence: np.ndarray, choice: Choice) -> np.ndarray:
    """How many times each image is kept.

    With ``per_class`` the surest of each class are kept, and with ``repeat`` those of a class that has fewer are
    repeated, the surest once more than the others, as in Noisy Student (Xie et al., arXiv 1911.04252).

    Args:
        labels: [N] int, most probable class.
        confidence: [N] float, its probability.
        choice: what to keep.

    Returns:
        [N] int64.
    """
    times = (confidence >= choice.threshold).astype(np.int64)
    if choice.per_class is None:
        return times
    for label in np.unique(labels[times > 0]):
        own = np.flatnonzero((labels == label) & (times > 0))
        own = own[np.argsort(-confidence[own], kind="stable")]
        if len(own) >= choice.per_class:
            times[own[choice.per_class :]] = 0
        elif choice.repeat:
            each, more = divmod(choice.per_class, len(own))
            times[own] = each
            times[own[:more]] += 1
    return times


def read_labels(path: str | Path) -> Labels:
    """Read what ``finish`` wrote.

    Args:
        path: labels.parquet, or the folder that it is in.

    Raises:
        UserError: it is not there, is not such a file, or pyarrow is missing.
    """
    _, parquet = _pyarrow()
    path = Path(path)
    path = path / LABELS if path.is_dir() else path
    if not path.is_file():
        raise UserError(f"{path}: no such file; give the folder that lambdaresnet-zoo label has finished")
    try:
        table = parquet.read_table(path)
        run = json.loads(table.schema.metadata[ROOT_KEY])
        soft = "classes" in table.column_names
        return Labels(
            run,
            table.column("index").to_numpy(),
            table.column("label").to_numpy(),
            _matrix(table.column("classes"), np.int32) if soft else None,
            _matrix(table.column("probabilities"), np.float32) if soft else None,
            _Texts(table.column("path")),
        )
    except (OSError, ValueError, KeyError, TypeError) as error:  # pyarrow's own are such too
        raise UserError(f"{path} is not what lambdaresnet-zoo label writes: {first_line(error)}") from error


class _Texts(Sequence[str]):
    """A column of texts, kept as pyarrow has it: as Python's they would take several times the memory."""

    def __init__(self, column: Any):
        self.column = column.combine_chunks()

    def __len__(self) -> int:
        return len(self.column)

    def __getitem__(self, index: Any) -> Any:
        return self.column[index].as_py()

    def __iter__(self) -> Iterator[str]:
        return (self.column[index].as_py() for index in range(len(self)))


def _matrix(column: Any, dtype: type) -> np.ndarray:
    """A column of lists of one length as [N, K]; of none, [0, 1]."""
    rows = len(column)
    if not rows:
        return np.zeros((0, 1), dtype)
    return column.combine_chunks().flatten().to_numpy(zero_copy_only=False).astype(dtype).reshape(rows, -1)


def _array(arrow: Any, column: Any) -> Any:
    return arrow.array(column) if isinstance(column, np.ndarray) else column


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False) if isinstance(value, (list, dict)) else str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _pyarrow() -> tuple[Any, Any]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise UserError('pseudo-labels need pyarrow: pip install "lambdaresnet-zoo[train]"') from error
    return pyarrow, pyarrow.parquet
