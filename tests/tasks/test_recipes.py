"""Recipes as data: the paper's printed values, the shipped network's, and what a user's own file may hold."""

from dataclasses import fields

import pytest
import timm
from timm.data import create_transform
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2

from lambdaresnet_zoo.errors import UserError
from lambdaresnet_zoo.tasks.recipes import KINDS, OF_A_RUN, apply_set, load_recipe, recipe_names, recipe_sizes
from lambdaresnet_zoo.tasks.train.options import TrainOptions, resolve, write_args
from lambdaresnet_zoo.weights.cards import CIFAR10, known_card
from lambdaresnet_zoo.weights.files import read_rows

# RandAugment's magnitude, drop-out, stochastic depth: as the paper prints them.
PRINTED = {
    ("lambdaresnet50", 128): (10, 0.2, 0), ("lambdaresnet50", 160): (10, 0.2, 0),
    ("lambdaresnet101", 160): (10, 0.3, 0), ("lambdaresnet101", 192): (15, 0.2, 0),
    ("lambdaresnet152", 192): (15, 0.3, 0), ("lambdaresnet152", 224): (15, 0.3, 0.1),
    ("lambdaresnet152", 256): (15, 0.3, 0.1), ("lambdaresnet152", 288): (15, 0.3, 0.1),
    ("lambdaresnet270", 256): (15, 0.3, 0.1), ("lambdaresnet350", 256): (15, 0.3, 0.2),
    ("lambdaresnet350", 288): (15, 0.3, 0.2), ("lambdaresnet350", 320): (15, 0.3, 0.2),
    ("lambdaresnet420", 320): (15, 0.3, 0.2),
}  # fmt: skip


def test_the_papers_table_is_in_the_recipe():
    sizes = recipe_sizes("paper-350ep")
    assert {(model, size) for model, of_model in sizes.items() for size in of_model} == PRINTED.keys()


@pytest.mark.parametrize(("model", "size"), PRINTED)
def test_values_of_the_papers_table(model, size):
    recipe = load_recipe("paper-350ep", model, size)
    magnitude, dropout, depth = PRINTED[model, size]
    assert (recipe["img_size"], recipe["drop"], recipe["drop_path"]) == (size, dropout, depth)
    assert "model" not in recipe["notes"]
    # What timm makes of it: it clips magnitudes at 10 where it is not told otherwise.
    transform = create_transform(size, is_training=True, auto_augment=recipe["aa"])
    augment = next(stage for stage in transform.transforms if type(stage).__name__ == "RandAugment")
    assert augment.num_layers == 2
    assert {operation.magnitude for operation in augment.ops} == {magnitude}
    assert all((operation.magnitude_max or 10) >= magnitude for operation in augment.ops)


def test_both_recipes_of_the_paper_hold_what_it_says_of_them():
    long, short = load_recipe("paper-350ep"), load_recipe("paper-90ep", "lambdaresnet50_llll.in1k")
    assert (long["epochs"], long["weight_decay"]) == (350, 4e-5)
    assert (short["epochs"], short["weight_decay"], short["aa"], short["img_size"]) == (90, 1e-4, None, 224)
    for recipe in (long, short):
        assert (recipe["momentum"], recipe["smoothing"], recipe["model_ema_decay"]) == (0.9, 0.1, 0.9999)
        assert (recipe["lr_base"], recipe["lr_base_size"], recipe["warmup_lr"], recipe["warmup_epochs"]) == (
            0.1, 256, 0, 5,
        )  # fmt: skip


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_is_whole(name):
    recipe = load_recipe(name)
    notes = recipe.pop("notes")
    assert recipe.keys() <= KINDS.keys() and notes["source"]
    assert notes.keys() <= {*recipe, "source", "img_size"}
    for model in recipe_sizes(name):
        assert timm.is_model(model) and "model" not in load_recipe(name, model)["notes"]
    model = timm.create_model("test_lambdaresnet")
    optimizer = create_optimizer_v2(
        model, recipe["opt"], 0.1, recipe["weight_decay"], layer_decay=recipe.get("layer_decay")
    )
    names = ("sched", "min_lr", "warmup_lr", "warmup_epochs", "warmup_prefix", "cooldown_epochs")
    schedule, epochs = create_scheduler_v2(
        optimizer,
        num_epochs=recipe["epochs"],
        step_on_epochs=not recipe["sched_on_updates"],
        updates_per_epoch=10,
        **{key: recipe[key] for key in names},
    )
    assert epochs == recipe["epochs"]
    rates = [max(schedule._get_lr(step)) for step in range(10 * epochs)]
    assert max(rates) <= 0.1 and 0 <= rates[-1] < 0.001 and rates.index(max(rates)) <= 10 * recipe["warmup_epochs"] + 1


def test_the_shipped_networks_recipe():
    (row,) = read_rows(CIFAR10)
    recipe = load_recipe(row["recipe"], row["model"])
    assert (recipe["opt"], recipe["sched"], recipe["epochs"], recipe["img_size"]) == ("sgd", "cosine", 28, 32)
    assert (recipe["batch_size"], recipe["lr"], recipe["weight_decay"], recipe["smoothing"]) == (128, 0.1, 5e-4, 0)
    shorter = load_recipe("cifar10", row["model"])
    assert {key for key in shorter if recipe[key] != shorter[key]} - {"notes"} == {
        "epochs", "warmup_epochs", "smoothing",
    }  # fmt: skip
    assert recipe["model_ema"] and recipe["model_ema_decay"] == 0.998 and recipe["model_ema_warmup"]
    assert recipe["warmup_epochs"] == pytest.approx(0.05 * recipe["epochs"])
    told = known_card("lambdaresnet32px", "cifar10").recipe
    for part in (
        f"{recipe['epochs']} epochs",
        f"batch {recipe['batch_size']}",
        f"momentum {recipe['momentum']}",
        f"learning rate {recipe['lr']}",
        "no label smoothing",
        f"padding {recipe['train_crop_padding']}",
        f"averaging {recipe['model_ema_decay']}",
        "weight decay 5e-4",
    ):
        assert part in told


@pytest.mark.parametrize(
    ("model", "size", "values", "note"),
    [
        ("lambdaresnet152_c4", None, (320, 0.3, 0.1), "those of lambdaresnet152 at 288"),
        ("lambdaresnet200", None, (256, 0.3, 0.1), "those of lambdaresnet270 at 256"),
        ("lambdaresnet50", 200, (200, 0.2, 0), "those of lambdaresnet50 at 160"),
        ("lambdaresnet101", None, (192, 0.2, 0), None),
        ("resnet50", 224, (224, 0.2, 0), "no values for resnet50"),
    ],
)
def test_where_the_paper_has_no_values_the_recipe_says_what_was_chosen(model, size, values, note):
    recipe = load_recipe("paper-350ep", model, size)
    assert (recipe["img_size"], recipe["drop"], recipe["drop_path"]) == values
    assert note in recipe["notes"]["model"] if note else "model" not in recipe["notes"]


def test_values_are_set_by_their_types():
    before = {"lr": 0.1, "aa": "rand-m9"}
    words = ["lr=1e-3", "opt-betas=0.9,0.95", "scale=[0.5, 1]", "amp=yes", "model_ema=False", "aa=none", "opt=lamb"]
    assert apply_set(before, [*words, "epochs=7"]) == {
        "lr": 0.001, "opt_betas": [0.9, 0.95], "scale": [0.5, 1.0], "amp": True, "model_ema": False, "aa": None,
        "opt": "lamb", "epochs": 7,
    }  # fmt: skip
    assert before == {"lr": 0.1, "aa": "rand-m9"}


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("lrr=1", "--set lrr=1: no option 'lrr'; is lr meant?"),
        ("xyzzy=1", "no option 'xyzzy'; there are aa, amp"),
        ("lr=fast", "lr is a number, and 'fast' is not"),
        ("lr=nan", "lr is a number, and 'nan' is not"),
        ("epochs=1.5", "epochs is a whole number, and '1.5' is not"),
        ("amp=2", "amp is true or false, and '2' is not"),
        ("scale=0.1,big", "scale is a number, and 'big' is not"),
        ("smoothing=none", "--set smoothing=none: smoothing cannot be none; give a number, or leave it out"),
        ("hflip=", "--set hflip=: hflip cannot be none"),
        ("amp=null", "amp cannot be none; give true or false"),
        ("opt=none", "opt cannot be none; give a word"),
        ("decay_milestones=~", "decay_milestones cannot be none; give a whole number"),
        ("lr", "--set lr: not KEY=VALUE"),
        ("=3", "--set =3: not KEY=VALUE"),
    ],
)
def test_a_wrong_assignment_is_one_line(assignment, message):
    with pytest.raises(UserError) as error:
        apply_set({}, [assignment])
    assert message in str(error.value) and "\n" not in str(error.value)


def test_what_may_be_none_is():
    options = resolve({}, ["sched=none", "freeze=none", "gp=none", "aa=none", "layer_decay=none", "crop_mode="])
    assert (options.sched, options.freeze, options.gp, options.aa) == ("none", [], "", None)
    assert options.layer_decay is None and options.crop_mode == ""


def test_a_run_is_a_recipe_for_another_one(tmp_path):
    given = {"model": "lambdaresnet152", "recipe": "paper-350ep", "img_size": 224, "data": "somewhere", "amp": True}
    first = resolve(given, ["lr=0.3", "scale=0.2,1"])
    write_args(tmp_path, first)
    second = resolve({"model": "lambdaresnet50", "recipe": str(tmp_path / "args.yaml"), "data": "elsewhere"})
    for name in KINDS:
        assert getattr(second, name) == getattr(first, name)
    assert (second.model, second.data, second.drop_path, second.scale) == ("lambdaresnet50", "elsewhere", 0.1, [0.2, 1])


def test_every_option_that_a_run_learns_by_can_be_set():
    names = {entry.name for entry in fields(TrainOptions)}
    assert KINDS.keys() < names and {*OF_A_RUN} == names - KINDS.keys()
    assert KINDS["epochs"] == (int, False) and KINDS["lr"] == (float, False) and KINDS["amp"] == (bool, False)
    assert KINDS["opt_betas"] == (float, True) and KINDS["freeze"] == (str, True) and KINDS["aa"] == (str, False)


def test_a_users_file_changes_a_recipe_that_ships(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("base: paper-350ep\noptions:\n  epochs: 100\n  weight_decay: 1e-5\n  drop: 0.5\n")
    recipe = load_recipe(path, "lambdaresnet350", 288)
    assert (recipe["epochs"], recipe["weight_decay"], recipe["drop"]) == (100, 1e-5, 0.5)
    assert (recipe["aa"], recipe["drop_path"], recipe["img_size"]) == ("rand-m15-n2-mmax15", 0.2, 288)
    assert load_recipe("paper-350ep", "lambdaresnet350", 288)["drop"] == 0.3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("options: {lrate: 1}", "no option 'lrate'; is lr_base meant"),
        ("options: {epochs: many}", "epochs is a whole number, and 'many' is not"),
        ("options: {drop: {a: 1}}", "drop is a number"),
        ("option: {lr: 1}", "it has no 'options'"),
        ("options: {lr: 1}\nother: 2", "a recipe has no 'other'"),
        ("options: [1, 2]", "'options' is not a mapping"),
        ("models: {resnet50: 3}", "each network has sizes in pixels"),
        ("base: nothing", "unknown recipe 'nothing'; there are cifar10, cifar10-28ep, finetune"),
        ("options: {lr: [}", "cannot be read"),
        ("!!python/object/apply:os.getcwd []", "cannot be read"),
        ("", "it has no 'options'"),
    ],
)
def test_a_wrong_file_is_one_line(tmp_path, text, message):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(UserError) as error:
        load_recipe(path)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_a_recipe_that_is_not_there_is_one_line(tmp_path):
    names = ", ".join(recipe_names())
    with pytest.raises(UserError, match=f"unknown recipe 'paper'; there are {names}, or give a .yaml file"):
        load_recipe("paper")
    with pytest.raises(UserError, match="no such file"):
        load_recipe(tmp_path / "none.yaml")
    own = tmp_path / "own.yaml"
    own.write_text(f"base: {own}\n")
    with pytest.raises(UserError, match="based on itself"):
        load_recipe(own)
