# SPDX-License-Identifier: Apache-2.0
"""From text or a tree to a JobSpec. `parse` collects all problems before it raises; no input is ever ignored."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from shoestring_core import document, recipes
from shoestring_core.document import format_value
from shoestring_core.errors import InvalidSpec, Problem
from shoestring_core.spec.field_types import S3_SCHEME, disk_bytes, is_disk_size, is_number, parse_node_range
from shoestring_core.spec.messages import problems_of, suggest_field
from shoestring_core.spec.model import MAX_PARAMS, JobSpec
from shoestring_core.spec.schedules import schedule_problems


def parse(source: str | bytes | Mapping[str, Any]) -> JobSpec:
    """Return the job spec in YAML or JSON text, or in a tree of plain values, with every default filled in.

    In a tree money must be text, int or Decimal: a float may not be exactly what was written. Raises InvalidSpec with
    all problems.
    """
    tree, problems = document.read(source)
    if not isinstance(tree, dict):
        message = f"A job spec is a mapping such as `recipe: digits/quickstart`, not {format_value(tree)}."
        raise InvalidSpec([Problem("", message, "invalid-type")])
    tree = {key: value for key, value in tree.items() if value is not None or key not in JobSpec.model_fields}
    recipe = _load_recipe(tree, problems)
    if recipe is not None:
        tree = _apply_recipe(tree, recipe, problems)
    spec = None
    try:
        spec = JobSpec.model_validate(tree)
    except ValidationError as error:
        problems += problems_of(error, JobSpec)
    problems += _contradictions(tree, recipe)
    if spec is not None and not problems:
        problems += schedule_problems(spec)
    if spec is None or problems:
        raise InvalidSpec(_first_per_pointer(problems))
    return spec


def _load_recipe(tree: Mapping[str, Any], problems: list[Problem]) -> recipes.Recipe | None:
    if not isinstance(tree.get("recipe"), str) or not tree["recipe"]:
        return None
    try:
        return recipes.load(tree["recipe"])
    except InvalidSpec as unknown:
        problems += unknown.problems
        return None


def _apply_recipe(tree: dict[str, Any], recipe: recipes.Recipe, problems: list[Problem]) -> dict[str, Any]:
    """Return the tree with the recipe's defaults for what it leaves out."""
    filled = tree | {"recipe": recipe.reference}
    if tree.get("name") is None:
        filled["name"] = recipe.name.replace("/", "-")
    given = tree.get("params", {})
    if isinstance(given, dict) and len(given) <= MAX_PARAMS:
        nested = {name: value for name, value in given.items() if isinstance(value, list | dict)}
        values, faults = recipe.resolve({name: value for name, value in given.items() if name not in nested})
        problems += [suggest_field(fault, JobSpec) for fault in faults]
        filled["params"] = values | nested
    if isinstance(resources := tree.get("resources", {}), dict):
        filled["resources"] = recipe.defaults.model_dump(exclude_unset=True) | resources
    return filled


def _contradictions(tree: Mapping[str, Any], recipe: recipes.Recipe | None) -> list[Problem]:
    """Check fields against each other. Fields of a wrong type are skipped: validation has reported them."""
    problems: list[Problem] = []
    has_recipe, has_run = tree.get("recipe") is not None, tree.get("run") is not None
    if not has_recipe and not has_run:
        names = ", ".join(known.name for known in recipes.all())
        problems.append(Problem("/recipe", f"Name a recipe to train: {names}.", "missing"))
    if has_recipe and has_run:
        problems.append(Problem("/run", "Give recipe or run, not both.", "contradiction"))
    if recipe is not None:
        problems += _data_problems(tree.get("data"), recipe)
        problems += _precision_problems(_section(tree, "params")) + _image_size_problems(_section(tree, "params"))
    if isinstance(goal := tree.get("goal"), dict):
        problems += _goal_problems(goal, recipe)
    if isinstance(resources := tree.get("resources"), dict):
        problems += _node_problems(resources)
        problems += _disk_problems(resources.get("disk"), tree.get("data"))
    limits = tree.get("limits")
    if isinstance(limits, dict) and limits.get("deadline") is not None:
        problems += _deadline_problems(tree)
    if tree.get("on_budget") == "finish" and not (isinstance(limits, dict) and limits.get("time") is not None):
        message = "To finish, a job reserves the cost of its longest run. Set limits.time, or use pause or stop."
        problems.append(Problem("/on_budget", message, "missing"))
    return problems


def _deadline_problems(tree: Mapping[str, Any]) -> list[Problem]:
    """What keeps a job from a promise to be in time."""
    problems: list[Problem] = []
    resources, retry = _section(tree, "resources"), _section(tree, "retry")
    if resources.get("spot") == "only":
        message = "Only on-demand machines can be relied on for a deadline. Leave spot out, or limits.deadline."
        problems.append(Problem("/resources/spot", message, "contradiction"))
    if resources.get("min") is not None or parse_node_range(resources) is not None:
        message = (
            "How long it takes with fewer nodes isn't known, so it can't have a deadline. Give one number of nodes."
        )
        problems.append(Problem("/resources/min", message, "contradiction"))
    if isinstance(causes := retry.get("on"), list | str) and {"interruption", "capacity"} - set(
        [causes] if isinstance(causes, str) else map(str, causes)
    ):
        message = "With a deadline it goes on after interruptions and refusals. Leave retry.on out."
        problems.append(Problem("/retry/on", message, "contradiction"))
    return problems


def _precision_problems(params: Mapping[str, Any]) -> list[Problem]:
    """What the trainer would refuse on a machine that is paid for."""
    if params.get("precision") != "fp16-true":
        return []
    if params.get("sum_loss") is not True:
        message = (
            "fp16-true has no loss scale, and gradients of a mean loss are too small for it. "
            "Use a recipe whose sum_loss is true, or fp16."
        )
        return [Problem("/params/precision", message, "contradiction")]
    if params.get("optimizer") in ("shampoo", "kfac", "lars") or params.get("noise_scale_every_steps"):
        message = (
            "fp16-true is too coarse for sums of squared gradients, of this optimizer or of the noise scale. Use fp16."
        )
        return [Problem("/params/precision", message, "contradiction")]
    return []


def _image_size_problems(params: Mapping[str, Any]) -> list[Problem]:
    """As `_precision_problems`: what is seen only after an epoch."""
    side = params.get("eval_image_size")
    if type(side) is not int or side == 0 or side >= 16:
        return []
    return [Problem("/params/eval_image_size", f"must be 0 or at least 16, not {side}.", "invalid-value")]


def _section(tree: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """Empty if it is missing, or isn't one."""
    found = tree.get(name)
    return found if isinstance(found, dict) else {}


def _node_problems(resources: Mapping[str, Any]) -> list[Problem]:
    nodes, minimum = resources.get("nodes", 1), resources.get("min")
    if minimum is not None and parse_node_range(resources) is not None:
        return [Problem("/resources/min", f"nodes: {nodes} sets min already. Leave min out.", "contradiction")]
    if isinstance(minimum, int) and isinstance(nodes, int) and minimum > nodes:
        message = f"min is {minimum}, but nodes is {nodes}. Set min to at most {nodes}."
        return [Problem("/resources/min", message, "contradiction")]
    return []


def _disk_problems(disk: Any, data: Any) -> list[Problem]:
    """That the cache of streamed data doesn't fit on the disk."""
    size = disk.get("size") if isinstance(disk, dict) else None
    cache = data.get("cache") if isinstance(data, dict) else None
    if not (is_disk_size(size) and is_disk_size(cache)) or disk_bytes(cache) < disk_bytes(size):
        return []
    message = f"A cache of {cache} doesn't fit on a disk of {size}. Raise resources.disk.size, or lower data.cache."
    return [Problem("/resources/disk/size", message, "contradiction")]


def _data_problems(data: Any, recipe: recipes.Recipe) -> list[Problem]:
    if recipe.data.kind == "digits" and data is not None:
        return [Problem("/data", f"{recipe.name} has its own data. Leave data out.", "contradiction")]
    if recipe.data.kind != "digits" and data is None:
        what = "one sub-folder per class" if recipe.data.kind == "imagefolder" else "the files of CIFAR-10"
        message = f"{recipe.name} needs images: data: {{train: /path/to/folder}}, with {what}."
        return [Problem("/data", message, "missing")]
    return _stream_problems(data) if isinstance(data, dict) else []


def _stream_problems(data: Mapping[str, Any]) -> list[Problem]:
    source, data_format = data.get("train"), data.get("format", "imagefolder")
    if data.get("stream") is not True:
        message = "Only streamed data have a cache. Add stream: true, or leave cache out."
        return [Problem("/data/cache", message, "contradiction")] if data.get("cache") is not None else []
    is_folder = isinstance(source, str) and source.startswith(S3_SCHEME) and not source.endswith(".tar")
    if isinstance(source, str) and not is_folder:
        message = f"Only a folder of prepared shards in S3 can be streamed, not {format_value(source)}."
        return [Problem("/data/stream", f"{message} Leave stream out.", "contradiction")]
    if isinstance(data_format, str) and data_format not in ("imagefolder", "webdataset"):
        message = f"Data in the format {data_format} can't be streamed. Leave stream out."
        return [Problem("/data/stream", message, "contradiction")]
    return []


_ACCURACY = re.compile(r"/acc(_\w+)?$")


def _goal_problems(goal: Mapping[str, Any], recipe: recipes.Recipe | None) -> list[Problem]:
    problems: list[Problem] = []
    metric, reach = goal.get("metric"), goal.get("reach")
    if reach is None and goal.get("best") is None:
        problems.append(Problem("/goal/reach", "Give the value to reach, such as reach: 0.97.", "missing"))
    if reach is not None and goal.get("best") is not None:
        problems.append(Problem("/goal/best", "Give reach or best, not both.", "contradiction"))
    if recipe is not None and isinstance(metric, str) and metric != recipe.metric:
        message = f"{recipe.name} can't stop at {format_value(metric)}. Use {recipe.metric}."
        problems.append(Problem("/goal/metric", message, "invalid-value", recipe.metric))
    if is_number(reach) and _ACCURACY.search(str(metric)) and not 0 < reach <= 1:
        message = f"An accuracy is between 0 and 1, such as 0.97, not {format_value(reach)}."
        problems.append(Problem("/goal/reach", message, "invalid-value"))
    return problems


def _first_per_pointer(problems: list[Problem]) -> list[Problem]:
    """Keep the first problem of each place: the later ones are consequences of it."""
    first: dict[str, Problem] = {}
    for problem in problems:
        first.setdefault(problem.pointer, problem)
    return list(first.values())
