"""Model cards: the README.md of a folder that goes to the Hub, and its front matter.

The body states what is known and says of the rest that it is not; figures that others published and
figures that were measured here stand apart.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from huggingface_hub import EvalResult, ModelCardData

from .files import read_rows
from .published import Figure, published_figure
from .shipped import shipped_names

__all__ = ["CIFAR10", "PLACE", "STUDY", "UNKNOWN_LICENSE", "Card", "cifar10_recipe", "known_card"]

CIFAR10 = Path(__file__).parent / "results" / "cifar10.csv"
"""What the weights that ship give, and how they were trained."""
STUDY = CIFAR10.with_name("study_lambda.csv")
"""The network beside one with convolutions, over several seeds."""

PLACE = "OWNER/NAME"
"""Stands for the repository's name in a card, until the card is published."""
UNKNOWN_LICENSE = "unknown"  # a value that the Hub knows

PAPER = "https://arxiv.org/abs/2102.08602"
CITATION = """\
@inproceedings{bello2021lambdanetworks,
  title     = {LambdaNetworks: Modeling long-range Interactions without Attention},
  author    = {Irwan Bello},
  booktitle = {International Conference on Learning Representations},
  year      = {2021},
}"""


@dataclass(frozen=True)
class Card:
    """What a model card states. Empty means not known, and the card says so."""

    name: str
    """Of the model with its tag, the card's title."""
    architecture: str
    """The registered model."""
    known: str = ""
    """The model and tag of this package that these weights are, where that is sure."""
    summary: str = ""
    warning: str = ""
    license: str = UNKNOWN_LICENSE
    """As the Hub spells licences: ``apache-2.0``."""
    datasets: tuple[str, ...] = ()
    """The Hub's names of the data."""
    data: str = ""
    recipe: str = ""
    origin: str = ""
    """Where the weights come from, and what was done to them."""
    base_model: str = ""
    """The Hub repository that they were made from."""
    published: Figure | None = None
    measured: Sequence[Mapping[str, str]] = ()
    """Figures of this project or its user: ``dataset``, ``metric``, ``value`` (per cent), ``count``, ``note``."""
    classes: int = 0
    labels: bool = False
    input_size: tuple[int, ...] = ()
    crop_pct: float | None = None
    params: int = 0
    sha256: Mapping[str, str] = field(default_factory=dict)
    """Digests by file name."""

    def render(self) -> str:
        """The card as Markdown with its front matter."""
        return f"---\n{self._front_matter()}\n---\n{self._body()}"

    def _front_matter(self) -> str:
        several = len({row["dataset"] for row in self.measured}) > 1  # the Hub's form tells them apart by configuration
        results = [
            EvalResult(
                task_type="image-classification",
                dataset_type=self.datasets[0] if self.datasets else "unknown",
                dataset_name=row["dataset"],
                dataset_config=row["dataset"] if several else None,
                metric_type="accuracy",
                metric_name=row["metric"],
                metric_value=float(row["value"]),
            )
            for row in self.measured
        ]
        return ModelCardData(
            license=self.license,
            library_name="timm",
            pipeline_tag=self._task(),
            tags=[self._task(), "timm", "transformers", "lambda-networks"],
            datasets=list(self.datasets) or None,
            base_model=self.base_model or None,
            model_name=self.name if results else None,
            eval_results=results or None,
        ).to_yaml()

    def _body(self) -> str:
        parts = [f"# {self.name}", self.summary, f"**{self.warning}**" if self.warning else "", self._usage()]
        parts += ["## Model", self._facts()]
        parts += ["## Data and recipe", f"- data: {self.data or 'not stated'}\n- recipe: {self.recipe or 'not stated'}"]
        parts += ["## Figures", self._published(), self._measured()]
        parts += ["## Origin", self.origin or "Not stated."]
        parts += ["## Files", self._files(), "## Licence", self._license()]
        parts += ["## Citation", f"```bibtex\n{CITATION}\n```"]
        return "\n\n".join(part for part in parts if part) + "\n"

    def _task(self) -> str:
        return "image-classification" if self.classes else "image-feature-extraction"

    def _usage(self) -> str:
        reader = f'pipeline("{self._task()}", "{PLACE}", trust_remote_code=True)'
        return f"""\
```python
import lambdaresnet_zoo  # registers the model with timm: pip install lambdaresnet-zoo
import timm

model = timm.create_model("hf-hub:{PLACE}", pretrained=True).eval()
```

With transformers, which then needs no import before (the package must be installed):

```python
from transformers import pipeline

model = {reader}
```"""

    def _facts(self) -> str:
        size = "x".join(map(str, self.input_size)) or "not stated"
        crop = f", centre crop of {self.crop_pct}" if self.crop_pct else ""
        imagenet = self.known and self.classes == 1000
        labels = "named in config.json" if self.labels else "ImageNet-1k's, in its order" if imagenet else "not named"
        lines = [
            f"- architecture: `{self.architecture}` of lambdaresnet-zoo, after LambdaNetworks (I. Bello, {PAPER})",
            f"- parameters: {self.params / 1e6:.2f} M" if self.params else "",
            f"- input: {size}{crop}",
            f"- classes: {self.classes}, {labels}" if self.classes else "- no classifier: features alone",
        ]
        return "\n".join(line for line in lines if line)

    def _published(self) -> str:
        figure = self.published
        if not figure:
            return "Published figures: none."
        return (
            f"Published figures, by others ({figure.source}):\n\n"
            "| data | size | crop | top-1 (%) | top-5 (%) |\n|---|---|---|---|---|\n"
            f"| {figure.dataset} | {figure.size} | {figure.crop_pct} | {figure.top1} | {figure.top5} |"
        )

    def _measured(self) -> str:
        if not self.measured:
            return "Measured by this project: none."
        lines = [
            "Measured by this project:",
            "",
            "| data | figure | value (%) | images | note |",
            "|---|---|---|---|---|",
        ]
        for row in self.measured:
            lines.append(f"| {row['dataset']} | {row['metric']} | {row['value']} | {row['count']} | {row['note']} |")
        return "\n".join(lines)

    def _files(self) -> str:
        if not self.sha256:
            return "The sha256 of the weights is written here when they are."
        return "| file | sha256 |\n|---|---|\n" + "\n".join(f"| {k} | `{v}` |" for k, v in self.sha256.items())

    def _license(self) -> str:
        if self.license == UNKNOWN_LICENSE:
            return "Not stated. Ask whoever made the weights before you use or pass them on."
        return f"The weights: {self.license}. The package that runs them: apache-2.0."


def known_card(model: str, tag: str) -> Card:
    """What this project knows of weights that have a name: data, recipe, licence, figures.

    Args:
        model: registered name, without its tag.
        tag: of the weights; unknown ones give a card that states nothing.
    """
    name = f"{model}.{tag}" if tag else model
    if name in shipped_names():
        return _cifar10(name, model)
    figure = published_figure(model, tag)
    if not figure or not tag:
        return Card(name, model)
    return Card(
        name,
        model,
        known=name,
        summary="One of the three lambda networks that R. Wightman trained for timm, on this package's lambda layer.",
        license=figure.license,
        datasets=(figure.dataset,),
        data="ImageNet-1k, the training split.",
        recipe=TIMM_RECIPES[tag] + f" As the card of {figure.weights} states.",
        base_model=figure.weights,
        published=figure,
    )


TIMM_RECIPES = {
    "c1_in1k": "The C recipes of ResNet Strikes Back (https://arxiv.org/abs/2110.00476): SGD with Nesterov momentum, "
    "adaptive gradient clipping, cosine schedule with warm-up.",
    "a1h_in1k": "The A1 recipe of ResNet Strikes Back (https://arxiv.org/abs/2110.00476), LAMB, with stronger dropout, "
    "stochastic depth and RandAugment, cosine schedule with warm-up.",
}


def _cifar10(name: str, model: str) -> Card:
    row = next(row for row in read_rows(CIFAR10) if row["model"] == model)
    figures = [
        ("CIFAR-10, JPEG re-encoding", row["top1"], "10000", "not comparable to the digit with published figures"),
        ("CIFAR-10, original pixels", row["top1_lossless"], "1017", "a tenth of the test split"),
    ]
    return Card(
        name,
        model,
        known=name,
        summary="A small LambdaResNet for 32x32 images. It ships inside lambdaresnet-zoo, where "
        f'`timm.create_model("{name}", pretrained=True)` needs no network.',
        license="apache-2.0",
        datasets=("cifar10",),
        data="CIFAR-10, the training split, in a JPEG re-encoding (about 30.5 dB PSNR against the original pixels).",
        recipe=f"{cifar10_recipe(row)}, seed {row['seed']}, on {row['device']}: "
        "SGD with Nesterov momentum 0.9, batch 128, learning rate 0.1 with warm-up and cosine, "
        "weight decay 5e-4, no label smoothing, random crop with padding 4 and flip, weight averaging 0.998; the "
        "last average is evaluated, nothing is selected on the test split.",
        origin="Trained from scratch by this project.",
        measured=[
            {"dataset": data, "metric": "top-1", "value": value, "count": count, "note": note}
            for data, value, count, note in figures
        ],
    )


def cifar10_recipe(row: Mapping[str, str]) -> str:
    """By what a network for 32x32 images was trained.

    Args:
        row: of a study, which says what it changed in the recipe.
    """
    recipe, how = row["recipe"], f" with {row['set']}" if row["set"] else ""
    return f"the recipe `{recipe}` (`lambdaresnet-zoo train --recipe {recipe}`){how}, {row['epochs']} epochs"
