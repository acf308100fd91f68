"""Pictures of a run: that they show what the rows and counts hold."""

import sys

import numpy as np
import pytest
from PIL import Image

from lambdaresnet_zoo.errors import UserError
from lambdaresnet_zoo.tasks.train import curves
from lambdaresnet_zoo.tasks.train.curves import confused, draw_confusion, draw_curves

ROWS = [
    {"epoch": str(epoch), "train_loss": f"{2 / epoch}", "val_loss": "" if epoch % 2 else f"{3 / epoch}",
     "top1": f"{10 * epoch}", "top5": "", "lr": "0.1", "seconds": "3", "stopped": "1"}
    for epoch in range(1, 6)
]  # fmt: skip


@pytest.fixture
def figures(monkeypatch):
    """The figures that are drawn."""
    drawn, new = [], curves.new_figure

    def figure(*arguments):
        drawn.append(new(*arguments))
        return drawn[-1]

    monkeypatch.setattr(curves, "new_figure", figure)
    return drawn


def test_curves_show_the_columns_of_a_run(tmp_path, figures):
    draw_curves(ROWS, tmp_path / "curves.png")
    panels = {
        axes.get_ylabel(): {line.get_label(): line.get_xydata() for line in axes.lines} for axes in figures[0].axes
    }
    assert {label: list(lines) for label, lines in panels.items()} == {
        "loss": ["train loss", "val loss"],
        "accuracy, %": ["top1"],
        "learning rate": ["lr"],
    }
    assert panels["loss"]["val loss"].tolist() == [[2, 1.5], [4, 0.75]]
    assert panels["accuracy, %"]["top1"].tolist() == [[epoch, 10 * epoch] for epoch in range(1, 6)]
    assert Image.open(tmp_path / "curves.png").width > 3 * Image.open(tmp_path / "curves.png").height


def test_equal_rows_give_equal_files(tmp_path):
    draw_curves(ROWS, tmp_path / "a.png")
    draw_curves(ROWS, tmp_path / "b.png")
    draw_curves(ROWS[:3], tmp_path / "c.png")
    a, b, c = ((tmp_path / f"{name}.png").read_bytes() for name in "abc")
    assert a == b != c


def test_a_run_without_a_row_has_a_picture(tmp_path):
    draw_curves([], tmp_path / "curves.png")
    assert Image.open(tmp_path / "curves.png").format == "PNG"


def test_confusion_is_drawn_by_the_share_of_the_true_class(tmp_path, figures):
    counts = np.array([[8, 2, 0], [0, 4, 0], [0, 0, 0]])
    draw_confusion(counts, ["ant", "bee", "cat"], tmp_path / "confusion.png")
    axes = figures[0].axes[0]
    np.testing.assert_allclose(axes.images[0].get_array(), [[0.8, 0.2, 0], [0, 1, 0], [0, 0, 0]])
    assert [label.get_text() for label in axes.get_xticklabels()] == ["ant", "bee", "cat"]
    assert sorted(text.get_text() for text in axes.texts) == ["2", "4", "8"]
    assert axes.get_title() == "12 of 14 right"
    assert Image.open(tmp_path / "confusion.png").format == "PNG"


def test_many_classes_are_drawn_without_their_names(tmp_path, figures):
    draw_confusion(np.eye(100, dtype=int), [str(number) for number in range(100)], tmp_path / "confusion.png")
    axes = figures[0].axes[0]
    assert not axes.texts and len(axes.get_xticks()) < 100
    assert max(Image.open(tmp_path / "confusion.png").size) < 2000


def test_a_matrix_of_other_classes_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"has the shape \(2, 2\), and there are 3 names"):
        draw_confusion(np.eye(2), ["a", "b", "c"], tmp_path / "confusion.png")


def test_what_is_taken_for_what():
    counts = np.array([[8, 2, 0], [5, 4, 1], [0, 0, 9]])
    names = ["ant", "bee", "cat"]
    assert confused(counts, names) == [("bee", "ant", 5), ("ant", "bee", 2), ("bee", "cat", 1)]
    assert confused(counts, names, 1) == [("bee", "ant", 5)]
    assert counts[0, 0] == 8


def test_what_cannot_be_drawn_is_one_line(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"curves.png cannot be written"):
        draw_curves(ROWS, tmp_path / "file" / "curves.png")
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(UserError, match=r'pip install "lambdaresnet-zoo\[train\]"'):
        draw_curves(ROWS, tmp_path / "curves.png")
