# SPDX-License-Identifier: Apache-2.0
"""Every shipped recipe is sound, and parameters are held to it."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from decimal import Decimal
from pathlib import Path

import pytest
from shoestring_core import recipes
from shoestring_core.errors import InvalidSpec

from tests.servers import PATIENCE_S

CORE = Path(__file__).parents[2] / "core"


def test_these_recipes_are_shipped():
    cifar10 = [
        "airbench94", "airbench94-muon", "airbench95", "airbench96", "dawnbench-bkj-resnet18", "dawnbench-fastai-wrn",
        "page-resnet18-baseline", "page-resnet9", "page-resnet9-tricks", "superconv-preact18", "superconv-resnet50",
    ]  # fmt: skip
    imagenet = [
        "alibaba-1", "cheap", "fastai-2018", "imagenet18", "rn50-16", "tencent-alexnet-bn", "tencent-resnet50",
    ]  # fmt: skip
    assert [recipe.name for recipe in recipes.all()] == [
        *(f"cifar10/{name}" for name in cifar10), "digits/quickstart", "imagefolder/any", "imagefolder/resnet9",
        *(f"imagenet/{name}" for name in imagenet),
    ]  # fmt: skip


@pytest.mark.parametrize("recipe", recipes.all(), ids=lambda recipe: recipe.name)
def test_a_recipe_loads_by_name_and_version_and_resolves_to_its_defaults(recipe):
    assert recipes.load(recipe.name) is recipes.load(recipe.reference) is recipe
    values = recipes.resolve(recipe.name, {})
    assert list(values) == list(recipe.params)
    assert recipes.resolve(recipe.name, values) == values


def test_given_values_replace_defaults_and_take_the_parameters_type():
    values = recipes.resolve("digits/quickstart", {"epochs": Decimal("3.0"), "lr": 1, "precision": "fp32"})
    assert (values["epochs"], values["lr"], values["precision"]) == (3, 1.0, "fp32")
    assert isinstance(values["epochs"], int)
    assert isinstance(values["lr"], float)


def test_a_variant_changes_defaults_and_claims_and_never_what_was_given():
    name = "cifar10/page-resnet18-baseline"
    first, last = recipes.resolve(name, {}), recipes.resolve(name, {"step": "batch-768"})
    assert (first["epochs"], first["batch_size"], first["cutout"]) == (35, 128, 0)
    assert (last["epochs"], last["batch_size"], last["cutout"]) == (30, 768, 8)
    assert recipes.resolve(name, {"step": "batch-768", "cutout": 4})["cutout"] == 4
    assert recipes.resolve(name, last) == last
    claim = recipes.load(name).claim_with_variants()
    assert claim is not None
    assert claim.time == "356 s"
    assert [(one.when["step"], one.time) for one in claim.variants][-1] == ("batch-768", "154 s")


def test_where_an_optimizer_can_be_chosen_each_can_and_has_its_parameters():
    of_optimizer = {
        "muon_lr", "muon_momentum", "preconditioner_every_steps", "preconditioner_damping", "kfac_fisher",
    }  # fmt: skip
    choices = {
        recipe.name: recipe.params["optimizer"].choices for recipe in recipes.all() if "optimizer" in recipe.params
    }
    assert len(choices) == 4
    assert set(choices.values()) == {("sgd", "muon", "lars", "shampoo", "kfac")}
    assert {recipe.name for recipe in recipes.all() if recipe.params.keys() & of_optimizer} == choices.keys()
    for name in choices:
        chosen = {
            "optimizer": "kfac",
            "preconditioner_damping": 0.1,
            "preconditioner_every_steps": 3,
            "kfac_fisher": "sampled",
        }
        assert recipes.resolve(name, chosen).items() >= chosen.items()


@pytest.mark.parametrize("recipe", recipes.all(), ids=lambda recipe: recipe.name)
def test_every_recipe_has_the_common_parameters(recipe):
    common = {
        "micro_batch_size": 0, "noise_scale_every_steps": 0, "hooks_file": "", "bucket_cap_mb": 25.0,
        "fp16_allreduce": False, "static_graph": False,
    }  # fmt: skip
    assert {name: recipe.params[name].default for name in common} == common


@pytest.mark.parametrize("recipe", recipes.all(), ids=lambda recipe: recipe.name)
def test_recipes_for_folders_of_images_say_who_decodes_them(recipe):
    decode = recipe.params.get("decode_device")
    assert (decode is not None) == (recipe.data.kind == "imagefolder")
    assert decode is None or (decode.default, decode.choices) == ("cpu", ("cpu", "gpu"))


@pytest.mark.parametrize(
    ("name", "value", "message_part"),
    [
        ("epochs", 0, "at least 1"),
        ("epochs", 1.5, "whole number"),
        ("epochs", "3", "whole number"),
        ("epochs", True, "whole number"),
        ("epochs", None, "whole number"),
        ("epochs", 10**12, "at most"),
        ("lr", "fast", "a number"),
        ("lr", -0.1, "at least 0"),
        ("lr", float("nan"), "a number"),
        ("flip", 1, "true or false"),
        ("flip", "yes", "true or false"),
        ("precision", "fp8", "auto, fp16, fp16-true, bf16, fp32"),
        ("precision", 16, "text"),
        ("seed", [1, 2], "whole number"),
        ("epoch", 3, "Did you mean epochs?"),
        ("wieght_decay", 0, "Did you mean weight_decay?"),
        ("zzz", 0, "It has: epochs"),
    ],
)
def test_a_wrong_parameter_is_refused_with_what_to_write(name, value, message_part):
    with pytest.raises(InvalidSpec) as refused:
        recipes.resolve("imagefolder/resnet9", {name: value, "lr ": 1})
    first, second = refused.value.problems
    assert first.pointer == f"/params/{name}"
    assert message_part in first.message
    assert second.suggestion == "lr"


@pytest.mark.parametrize(
    ("name", "suggestion"),
    [
        ("digits/quikstart", "digits/quickstart"),
        ("digits", "digits/quickstart"),
        ("imagefolder/resnet", "imagefolder/resnet9"),
        ("digits/quickstart@7", "digits/quickstart@1"),
        ("zzz", None),
        ("../../../etc/passwd", None),
    ],
)
def test_an_unknown_recipe_names_the_nearest_and_lists_all(name, suggestion):
    with pytest.raises(InvalidSpec) as refused:
        recipes.load(name)
    (problem,) = refused.value.problems
    assert (problem.code, problem.suggestion) == ("unknown-recipe", suggestion)
    assert suggestion or all(recipe.name in problem.message for recipe in recipes.all())


@pytest.mark.parametrize(
    "broken",
    [
        {"params": {}},
        {
            "params": {
                "seed": {"type": "int", "default": 0.5, "help": ""},
                "precision": {"type": "str", "default": "auto", "help": ""},
            }
        },
        {"unknown": 1},
        {"data": {"kind": "tape"}},
        {"variants": [{"when": {"size_of_the_moon": 1}}]},
        {"variants": [{"when": {"epochs": 2}, "params": {"lr": "fast"}}]},
    ],
)
def test_a_recipe_file_with_a_mistake_is_refused(broken):
    sound = recipes.load("digits/quickstart").model_dump()
    assert recipes.Recipe.model_validate(sound)
    with pytest.raises(ValueError, match="validation error"):
        recipes.Recipe.model_validate(sound | broken)


def test_the_wheel_carries_every_recipe(tmp_path):
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(command, cwd=CORE, check=True, capture_output=True, timeout=PATIENCE_S)
    (wheel,) = tmp_path.glob("*.whl")
    packed = set(zipfile.ZipFile(wheel).namelist())
    names = [*(recipe.name for recipe in recipes.all()), "parameters"]
    assert {f"shoestring_core/recipes/{name}.yaml" for name in names} <= packed
