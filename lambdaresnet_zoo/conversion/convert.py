"""Conversion: weights of any known format into a folder that timm and transformers load."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import UserError
from ..layers import LambdaLayer
from ..registry import list_models
from ..weights.cards import UNKNOWN_LICENSE, Card, known_card
from ..weights.files import write_rows
from ..weights.folder import write_folder, write_model
from ..weights.reading import Checkpoint, check_values, read_checkpoint
from .formats import Translation, translate
from .matching import Row, fill, find_model, model_arguments
from .single_layer import write_layer
from .sources import Source, find_source
from .warm_start import PAIRS, warm_start

__all__ = ["Options", "Report", "convert"]

SHOWN = 10  # of each kind, in the summary
STATUSES = ("mapped", "folded", "filled", "initialised", "left")

# Of a source's pretrained_cfg: how its weights want their images.
PREPROCESSING = (
    "input_size",
    "test_input_size",
    "interpolation",
    "crop_pct",
    "test_crop_pct",
    "crop_mode",
    "mean",
    "std",
)


@dataclass(frozen=True)
class Options:
    """What a user may ask of a conversion."""

    model: str = ""
    """A registered model; by default the one whose tensors these are."""
    model_kwargs: Mapping[str, Any] = field(default_factory=dict)
    """Arguments of ``timm.create_model`` that the weights were trained with."""
    use_ema: bool = True
    """Take the moving average of the weights where the checkpoint has one."""
    drop: Sequence[str] = ()
    """Patterns of keys to leave behind."""
    dtype: torch.dtype = torch.float32
    label_names: Sequence[str] = ()
    license: str = ""
    data: str = ""
    recipe: str = ""
    warm_start: bool = False
    """The source is a ResNet-RS for a LambdaResNet to start from."""


@dataclass(frozen=True)
class Report:
    """What became of a source, tensor by tensor."""

    source: str
    format: str
    entry: str
    """Of the checkpoint, that held the weights."""
    model: str
    """The registered model, or the layer."""
    arguments: Mapping[str, Any]
    rows: Sequence[Row]
    is_model: bool = True
    """Not so for a single layer."""

    def summary(self) -> str:
        """Counts, and the tensors that did not simply come over."""
        entry = f", its {self.entry}" if self.entry else ""
        arguments = "".join(f", {key}={value}" for key, value in self.arguments.items())
        counts = Counter(row.status for row in self.rows)
        told = ", ".join(f"{counts[status]} {status}" for status in STATUSES if counts[status])
        lines = [f"{self.source}: {self.format}{entry}", f"model: {self.model}{arguments}", f"tensors: {told}"]
        for status in STATUSES[1:]:
            rows = [row for row in self.rows if row.status == status]
            for row in rows[:SHOWN]:
                lines.append(f"  {status}: {f'{row.source}, ' if row.source else ''}{row.key} {row.shape}")
            if len(rows) > SHOWN:
                lines.append(f"  {status}: {len(rows) - SHOWN} more; --report FILE writes a row for each")
        return "\n".join(lines)

    def write(self, path: Path) -> None:
        """Every row as csv."""
        columns = [
            {"status": r.status, "source": r.source, "key": r.key, "shape": "x".join(map(str, r.shape))}
            for r in self.rows
        ]
        write_rows(path, columns)


def convert(source: str, folder: Path, options: Options = Options()) -> Report:
    """Convert weights into a folder for timm, the Hub and transformers; or a single layer into a folder of its own.

    Args:
        source: as ``find_source``.
        folder: to write; it must not exist, or be empty.
        options: what to do.

    Returns:
        The report. Nothing is written if anything of it is wrong.

    Raises:
        UserError: the source cannot be had, read or recognised, its weights do not fit or are not
            finite, or the folder cannot be written; one line, that names it.
    """
    found = find_source(source)
    checkpoint = read_checkpoint(found.file, options.use_ema)
    check_values(source, checkpoint.state)
    try:
        if options.warm_start:
            return _warm_start(found, checkpoint, folder, options)
        return _convert(found, checkpoint, folder, options)
    except UserError as error:
        if str(error).startswith((source, str(folder))):
            raise
        raise UserError(f"{source}: {error}") from error


def _convert(found: Source, checkpoint: Checkpoint, folder: Path, options: Options) -> Report:
    state, rows = _dropped(checkpoint.state, options.drop)
    translation = translate(state)
    rows += [Row("folded", key, how, tuple(state[key].shape)) for key, how in translation.folded.items()]
    origin = _origin(found, checkpoint, translation.format, options.dtype)
    if translation.layer is not None:
        return _layer(found, checkpoint, translation, rows, folder, options, origin)

    name = options.model or _noted(found, checkpoint) or find_model(translation.state, translation.candidates)
    arguments = {
        **model_arguments(name, translation.state),
        **found.config.get("model_args", {}),
        **options.model_kwargs,
    }
    arguments.pop("global_pool", None) if arguments.get("global_pool") == "avg" else None
    model, filled = fill(name, translation.state, translation.sources, arguments)
    # A tag in a config alone proves nothing: fine-tuned weights keep the one that they were started from.
    card = _stated(known_card(*found.known.split(".")) if found.known else Card(name, name), found, options)
    _write(folder, found, model, replace(card, origin=card.origin or origin), options)
    return Report(found.title, translation.format, checkpoint.entry, name, arguments, filled + rows)


def _warm_start(found: Source, checkpoint: Checkpoint, folder: Path, options: Options) -> Report:
    name = options.model or folder.name
    if name not in list_models():
        raise UserError(
            f"'{name}' is no model to start: name the folder after one of {', '.join(PAIRS)}, or use --model"
        )
    state, dropped = _dropped(checkpoint.state, options.drop)
    model, rows = warm_start(name, state)
    known = PAIRS[name]
    card = Card(
        f"{name}, started from {known}",
        name,
        summary=f"Weights to fine-tune or train from: what {name} shares with the ResNet-RS of its depth is "
        "trained, its lambda layers are newly initialised.",
        warning="This is no trained LambdaResNet: as it is, it classifies nothing.",
        origin=_origin(found, checkpoint, f"timm's {known}", options.dtype)
        + f" {sum(row.status == 'mapped' for row in rows)} tensors came over, "
        f"{sum(row.status == 'initialised' for row in rows)} are initialised.",
        base_model=found.repository.split("@")[0],
    )
    _write(folder, found, model, _stated(card, found, options), options)
    return Report(found.title, f"warm start from {known}", checkpoint.entry, name, {}, rows + dropped)


def _layer(
    found: Source,
    checkpoint: Checkpoint,
    translation: Translation,
    rows: list[Row],
    folder: Path,
    options: Options,
    origin: str,
) -> Report:
    assert translation.layer is not None
    layer = LambdaLayer(**translation.layer)
    own = layer.state_dict()
    state = dict(translation.state)
    for key, value in own.items():
        if key not in state and key.endswith("num_batches_tracked"):
            state[key] = torch.zeros_like(value)
            rows.append(Row("filled", "", key, ()))
    try:
        layer.load_state_dict(state)
    except RuntimeError as error:
        raise UserError(f"these weights do not fit a LambdaLayer: {' '.join(str(error).split())[:300]}") from error
    mapped = [
        Row("mapped", translation.sources.get(key, key), key, tuple(value.shape))
        for key, value in own.items()
        if key in translation.state
    ]
    write_folder(folder, lambda path: write_layer(path, layer, translation.layer or {}, origin, options.dtype))
    return Report(
        found.title,
        translation.format,
        checkpoint.entry,
        f"LambdaLayer({layer.extra_repr()})",
        {},
        mapped + rows,
        False,
    )


def _write(folder: Path, found: Source, model: torch.nn.Module, card: Card, options: Options) -> None:
    cfg = found.config.get("pretrained_cfg", {})
    classes: Any = model.num_classes
    names = list(options.label_names) or found.config.get("label_names") or cfg.get("label_names") or ()
    if len(names) != classes:
        if options.label_names:
            raise UserError(f"--labels names {len(names)} classes, and the model has {classes}")
        names = ()
    preprocessing = {} if options.warm_start else {key: cfg[key] for key in PREPROCESSING if cfg.get(key) is not None}
    tag = found.known.partition(".")[2] or None
    write = partial(
        write_model,
        model=model,
        card=card,
        dtype=options.dtype,
        label_names=list(names),
        pretrained_cfg={**preprocessing, "tag": tag},
    )
    write_folder(folder, write)


def _dropped(state: dict[str, Tensor], patterns: Sequence[str]) -> tuple[dict[str, Tensor], list[Row]]:
    rows, kept = [], {}
    used = set()
    for key, value in state.items():
        matches = {pattern for pattern in patterns if fnmatchcase(key, pattern)}
        used |= matches
        if matches:
            rows.append(Row("left", key, "dropped as asked", tuple(value.shape)))
        else:
            kept[key] = value
    if unused := [pattern for pattern in patterns if pattern not in used]:
        raise UserError(f"--drop {unused[0]} matches no key")
    return kept, rows


def _noted(found: Source, checkpoint: Checkpoint) -> str:
    """The model that the source says it is of, where that is one of this package."""
    own = list_models()
    noted = (found.config.get("architecture", ""), checkpoint.model)
    return next((name for name in noted if name in own), "")


def _origin(found: Source, checkpoint: Checkpoint, kind: str, dtype: torch.dtype) -> str:
    from .. import __version__

    what = f"the Hub's {found.repository}" if found.repository else f"`{Path(found.title).name}`"
    entry = f", its `{checkpoint.entry}`" if checkpoint.entry else ""
    cast = "" if dtype == torch.float32 else f" Stored in {str(dtype).removeprefix('torch.')}."
    return f"Converted by lambdaresnet-zoo {__version__} from {what} ({kind}{entry}).{cast}"


def _stated(card: Card, found: Source, options: Options) -> Card:
    """The card with what the user states, and the licence that came with the source."""
    license = card.license if card.license != UNKNOWN_LICENSE else found.config.get("pretrained_cfg", {}).get("license")
    return replace(
        card,
        license=options.license or license or UNKNOWN_LICENSE,
        data=options.data or card.data,
        recipe=options.recipe or card.recipe,
    )
