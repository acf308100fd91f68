"""What is written from the registry and the results: tables of the README, and the cards of the Hub.

A test holds the files against this; `scripts/documents.py` writes them anew.
"""

import sys
from pathlib import Path
from string import Template

import timm

from ..registry import list_models
from .files import read_rows
from .shipped import digest, shipped_file, shipped_names

__all__ = ["documents", "main"]

ROOT = Path(__file__).resolve().parents[2]
RESULTS = Path(__file__).parent / "results" / "cifar10.csv"

CARD = Template("""\
---
license: apache-2.0
library_name: timm
pipeline_tag: image-classification
tags: [image-classification, timm, lambda-networks]
---
# $name

A LambdaResNet for 32x32 images (LambdaNetworks, I. Bello, ICLR 2021, https://arxiv.org/abs/2102.08602),
trained on CIFAR-10 by `scripts/train_cifar10.py` of lambdaresnet-zoo. It ships inside the package:
loading it needs no network.

```python
import timm, lambdaresnet_zoo  # importing registers the model
model = timm.create_model("$name", pretrained=True).eval()
```

## Figures

$table

- *top-1 JPEG*: the 10,000 test images, in the JPEG re-encoding (about 30.5 dB PSNR against the original
  pixels) that the network was also trained on, so not comparable to the digit with published figures.
- *top-1 lossless*: 1,017 of the test images with their original pixels.
- The convolutional network is the same one with 3x3 convolutions for its lambda layers, trained by the
  same recipe, seed and machine. The machine was shared with other work: its times are rough.

## Training

SGD with Nesterov momentum 0.9, batch 128, learning rate 0.1 with warm-up and cosine, weight decay 5e-4,
label smoothing 0.1, random crop with padding 4 and flip, weight averaging 0.998; the last average is
evaluated, nothing is selected on the test split. With a GPU, the same command with more epochs:

    python scripts/train_cifar10.py --data FOLDER --output runs/lambda --epochs 200

## File

| file | sha256 |
|---|---|
| $file | `$sha256` |
""")


def documents() -> dict[Path, str]:
    """Every generated file of the repository, by path, as it should read."""
    readme = ROOT / "README.md"
    text = readme.read_text()
    for name, table in (("models", models_table()), ("cifar10", results_table())):
        begin, end = f"<!-- begin {name} -->\n", f"<!-- end {name} -->\n"
        head, rest = text.split(begin)
        text = head + begin + table + "\n" + end + rest.split(end)[1]
    pages = {readme: text}
    for name in shipped_names():
        pages[ROOT / "hub" / name / "README.md"] = card(name)
    return pages


def card(name: str) -> str:
    """The model card of weights that ship."""
    file = Path(shipped_file(name))
    return CARD.substitute(name=name, table=results_table(), file=file.name, sha256=digest(file))


def results_table() -> str:
    """The two networks for 32x32 images, as Markdown."""
    lines = [
        "| network | params (M) | epochs | top-1 JPEG (%) | top-1 lossless (%) | training (s) |",
        "|---|---|---|---|---|---|",
    ]
    rows = read_rows(RESULTS)
    for row in rows:
        params = f"{int(row['params']) / 1e6:.2f}"
        cells = [f"`{row['model']}`", params, row["epochs"], row["top1"], row["top1_lossless"], row["train_seconds"]]
        lines.append(f"| {' | '.join(cells)} |")
    first = rows[0]
    where = f"Trained on {first['device']}, {first['threads']} thread(s), torch {first['torch']}, timm {first['timm']}."
    if not first["device"].startswith("NVIDIA"):
        where += " Not measured on a GPU: there, more epochs of the same recipe are affordable."
    return "\n".join([*lines, "", where])


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
    return 0
