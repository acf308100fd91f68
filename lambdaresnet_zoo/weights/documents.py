"""What is written from the registry and the results: tables of the README, and the folders of the Hub.

A test holds the files against this; `scripts/documents.py` writes them anew.
"""

import json
import sys
from dataclasses import replace
from pathlib import Path

import timm

from ..registry import list_models
from .benchmark_plot import draw, growth_plots, is_current
from .benchmarks import GROWTH, benchmark_tables, is_gpu
from .cards import CIFAR10, STUDY, cifar10_recipe, known_card
from .files import read_rows
from .folder import CARD, CODE, CONFIG, REMOTE_CODE, WEIGHTS, config_json, with_facts
from .published import public_weights
from .shipped import digest, shipped_file, shipped_names

__all__ = ["documents", "main"]

ROOT = Path(__file__).resolve().parents[2]


def documents() -> dict[Path, str]:
    """Every generated file of the repository, by path, as it should read."""
    readme = ROOT / "README.md"
    text = readme.read_text()
    tables = {"models": models_table(), "weights": weights_table(), "cifar10": results_table(), "study": study_table()}
    tables |= benchmark_tables()
    for name, table in tables.items():
        begin, end = f"<!-- begin {name} -->\n", f"<!-- end {name} -->\n"
        head, rest = text.split(begin)
        text = head + begin + table + "\n" + end + rest.split(end)[1]
    pages = {readme: text}
    converted = [figure.name for figure in public_weights() if figure.tag]
    for name in (*shipped_names(), *converted):
        pages |= {ROOT / "hub" / name / file: text for file, text in repository(name).items()}
    return pages


def repository(name: str) -> dict[str, str]:
    """The files, but for the weights, of the Hub repository of a model and tag that this project would publish."""
    architecture, tag = name.split(".")
    sha256 = {WEIGHTS: digest(Path(shipped_file(name)))} if name in shipped_names() else {}
    model = timm.create_model(name)
    card = known_card(architecture, tag)
    labels = model.pretrained_cfg.get("label_names") or ()
    config = config_json(model, card, labels, sha256=sha256)
    if card.base_model:
        command = f"lambdaresnet-zoo publish {card.base_model} OWNER/NAME"
        card = replace(card, origin=f"Converted from the Hub's {card.base_model}, by `{command}`.")
    return {
        CONFIG: config,
        CARD: with_facts(card, model, json.loads(config), sha256).render(),
        CODE: REMOTE_CODE.read_text(),
    }


def weights_table() -> str:
    """The weights that there are, ImageNet's first, as Markdown."""
    lines = [
        "| weights | published top-1 (%) | size | crop | params (M) | licence | from | checked here |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for figure in public_weights():
        numbers = [str(number) for number in (figure.top1, figure.size, figure.crop_pct, figure.params_m)]
        cells = [f"`{figure.name}`", *numbers, figure.license, figure.weights, figure.checked]
        lines.append(f"| {' | '.join(cells)} |")
    for name in shipped_names():
        row = next(row for row in read_rows(CIFAR10) if row["model"] == name.split(".")[0])
        cfg = timm.models.get_pretrained_cfg(name).to_dict()
        cells = [f"`{name}`", "none", str(cfg["input_size"][-1]), str(cfg["crop_pct"])]
        cells += [f"{int(row['params']) / 1e6:.2f}", cfg["license"], "this package"]
        cells.append(f"top-1 {row['top1']} % on CIFAR-10, re-encoded as JPEG")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def results_table() -> str:
    """The network for 32x32 images whose weights ship, as Markdown."""
    lines = [
        "| network | params (M) | epochs | top-1 JPEG (%) | top-1 of 1,017 lossless images (%) | training (s) |",
        "|---|---|---|---|---|---|",
    ]
    (row,) = read_rows(CIFAR10)
    params = f"{int(row['params']) / 1e6:.2f}"
    cells = [
        f"`{row['model']}`",
        params,
        row["epochs"],
        row["top1"],
        row["top1_lossless"],
        f"{float(row['train_seconds']):.0f}",
    ]
    lines.append(f"| {' | '.join(cells)} |")
    told = f"Trained by {cifar10_recipe(row)}, seed {row['seed']}, {_machine(row)}."
    return "\n".join([*lines, "", told])


def study_table() -> str:
    """Lambda layers and convolutions over several seeds, as Markdown."""
    runs = read_rows(STUDY)
    table = {(row["recipe"], row["model"]): row for row in read_rows(STUDY.with_name(f"{STUDY.stem}_summary.csv"))}
    lines = [
        "| recipe | network | params (M) | epochs | seeds | mean top-1 JPEG (%) | 95 % interval "
        "| farthest from the table above | training (s) |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    told = []
    for (recipe, model), row in table.items():
        if model == "difference":
            own, other = (each for key, each in table.items() if key[0] == recipe and key[1] != model)
            less, low, high = (float(row[f"top1_{which}"]) for which in ("mean", "low", "high"))
            told.append(
                f"By `{recipe}` lambda has {int(own['params']) / int(other['params']):.2f} times the parameters of the "
                f"convolutions, and {abs(less):.1f} points {'less' if less < 0 else 'more'} top-1: seed by seed "
                f"{less:+.2f}, with a 95 % interval from {low:+.2f} to {high:+.2f}."
            )
            continue
        own_runs = [run for run in runs if (run["recipe"], run["model"]) == (recipe, model)]
        seconds = " / ".join(f"{float(run['train_seconds']):.0f}" for run in own_runs)
        cells = [f"`{recipe}`", f"`{model}`", f"{int(row['params']) / 1e6:.2f}", row["epochs"], row["seeds"]]
        cells += [row["top1_mean"], f"{row['top1_low']} to {row['top1_high']}", row["difference"] or "-", seconds]
        lines.append(f"| {' | '.join(cells)} |")
    machines = dict.fromkeys((run["recipe"], _machine(run)) for run in runs)
    told += [f"`{recipe}` was trained {machine}." for recipe, machine in machines]
    return "\n".join([*lines, "", " ".join(told)])


def _machine(row: dict[str, str]) -> str:
    kind = "a GPU" if is_gpu(row) else "a CPU"
    return f"on {kind}: {row['device']}, {row['threads']} thread(s), torch {row['torch']}, timm {row['timm']}"


def models_table() -> str:
    """Every registered model with its parameters and default input size, as Markdown."""
    lines = ["| model | params (M) | input | what |", "|---|---|---|---|"]
    for name in list_models():
        model = timm.create_model(name, device="meta")
        params = sum(parameter.numel() for parameter in model.parameters()) / 1e6
        what = (timm.models.model_entrypoint(name).__doc__ or "").strip().splitlines()[0].rstrip(".")
        lines.append(f"| `{name}` | {params:.2f} | {model.pretrained_cfg['input_size'][-1]} | {what} |")
    return "\n".join(lines)


def main() -> int:
    """Write the files anew; from a checkout."""
    for path, text in documents().items():
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists() or path.read_text() != text:
            path.write_text(text)
            print(f"wrote {path.relative_to(ROOT)}", file=sys.stderr)
    for path, rows in (growth_plots(GROWTH) if GROWTH.exists() else {}).items():
        if not is_current(path, rows):
            draw(rows, path)
            print(f"wrote {path.relative_to(ROOT)}", file=sys.stderr)
    return 0
