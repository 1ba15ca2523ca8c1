# SPDX-License-Identifier: Apache-2.0
"""Training a classifier: one loop, from the first step or from a checkpoint, to the last step or an order to stop."""

from __future__ import annotations

import math
from time import monotonic

import torch
from shoestring_core.results import SCORING

from shoestring_trainer.training.checkpoint.state import restore
from shoestring_trainer.training.checkpoint.warm_start import warm_start
from shoestring_trainer.training.data.images import DataSet
from shoestring_trainer.training.distributed.shared_batch import share_batch
from shoestring_trainer.training.errors import NotANumber
from shoestring_trainer.training.optim.schedules import Plan
from shoestring_trainer.training.orders import Orders
from shoestring_trainer.training.precision import Precision
from shoestring_trainer.training.results.artifacts import make_artifacts
from shoestring_trainer.training.results.evaluation import evaluate
from shoestring_trainer.training.results.exports import require_onnx
from shoestring_trainer.training.results.record import Record
from shoestring_trainer.training.results.sample_log import SampleLog
from shoestring_trainer.training.results.throughput import speed
from shoestring_trainer.training.setup import Setup, set_up
from shoestring_trainer.training.step import Learner
from shoestring_trainer.training.task import Goal, Outcome, Standing, Task


def train(task: Task, orders: Orders, standing: Standing) -> Outcome:
    """Carry out `task` as one rank of its gang.

    A step of `task.skip` counts as a step, and its line is written, but nothing is learned from its batch.
    Raises TrainerError for faults with a remedy; whatever else is raised is classified by the caller.
    """
    if task.onnx:
        require_onnx()
    setup = set_up(task)
    gang, settings, plan, feed, model = setup.gang, setup.settings, setup.plan, setup.feed, setup.model
    warmed = warm_start(model, task.init) if task.init else None
    learner = Learner(setup, task.skip, lambda: orders.stop_asked)
    hooks, run, state = learner.hooks, learner.run, learner.state
    if task.resume:
        standing.start_step = standing.step = restore(state, task.resume)
        feed.turn_to(plan.phase(standing.step).view)
    step = run.step = standing.step

    order = setup.order()
    log = SampleLog(
        task.folder, generation=task.generation, rank=gang.rank, world=gang.world, start=step,
        epoch_samples=plan.epoch_samples,
    )  # fmt: skip
    with Record(task, state, plan.steps, rank=gang.rank) as record:
        record.event("started", step=step, steps_total=plan.steps, world=gang.world, precision=setup.precision.value)
        if warmed:
            record.event("warm_start", step=step, message=warmed)
        orders.training_began()
        hooks.call("on_start", run)
        began, scoring_s = monotonic(), 0.0

        sound, done = step, step >= plan.steps
        while not done:
            phase = plan.phase(step)
            if phase is not feed.phase:
                record.flush()
                feed.enter(phase)
                share_batch(model, phase.batch, gang.rank, gang.world, norms=settings.sync_norm)
            skip = step + 1 in state.skip
            picked = order.pick(plan.sample(step), phase.batch)
            log.take_up(step + 1, picked.spans, skip=skip)
            pace = plan.pace(step)
            lesson = learner.pass_over() if skip else learner.learn(picked, phase.batch, pace)
            step = standing.step = run.step = step + 1
            if learner.average:
                learner.average.follow(step, plan.steps)

            if skip:
                record.event("skipped", step=step, samples=phase.batch)
            if lesson.overflowed:
                record.event("overflow", step=step, scale=learner.scaler.get_scale())
            if not (lesson.overflowed or lesson.broken):
                sound = step
            values = {"train/loss": lesson.loss, "train/lr": settings.lr * pace.rate, "train/momentum": pace.momentum}
            if lesson.noise_scale is not None:
                values["train/noise_scale"] = lesson.noise_scale
            run.values = values
            hooks.call("on_step", run)

            done = step == plan.steps
            if not done and not lesson.broken and plan.ends_epoch(step, settings.eval_every):
                views = settings.views if task.goal and task.goal.metric == "val/acc_tta" else 1
                record.flush()
                scores = evaluate(model, feed.data, gang, setup.precision, views)
                scoring_s += scores.seconds
                values |= {**scores.metrics, SCORING: scores.seconds}
                hooks.call("on_scored", run)
                done = reached(task.goal, scores.metrics)
            if done and not lesson.broken:
                break  # its line waits for the final scores
            record.step(step, plan.epoch(step), values)
            if lesson.broken:
                record.finish_writing()  # it is from before, and good to go back to
                raise NotANumber(describe_nan(step, lesson.loss, setup.precision), since=sound + 1)
            if lesson.told:
                record.save_on_order(step)
                gang.leave()
                return "drained"
            record.save_if_due(step)

        trained_s = monotonic() - began - scoring_s
        finish(task, setup, learner, record, standing, trained_s)
        gang.leave()
        return "finished"


def finish(task: Task, setup: Setup, learner: Learner, record: Record, standing: Standing, trained_s: float) -> None:
    """Score the network as it is in the end, in fp32, write the last step's line, and save it all.

    trained_s  seconds that this process trained, scoring left out
    """
    gang, plan, data, step = setup.gang, setup.plan, setup.feed.data, standing.step
    values = learner.run.values
    if learner.average and step == plan.steps:
        learner.average.finish()
    scores = evaluate(setup.model, data, gang, Precision.FP32, setup.settings.views)
    learner.run.values = values | scores.metrics
    learner.hooks.call("on_end", learner.run)
    at_the_end = {SCORING: values.get(SCORING, 0.0) + scores.seconds}
    record.last_step(step, plan.epoch(step), {**values, **scores.metrics, **at_the_end}, scores.metrics)
    if not record.kept:
        return
    about = {
        "recipe": setup.recipe.reference, "architecture": setup.recipe.model, "params": setup.params,
        "seed": setup.seed, "step": step, "precision": setup.precision.value,
        "pictures": {"train": len(data.train), "held_out": len(data.held_out), "unreadable": data.skipped},
    }  # fmt: skip
    figures = speed(
        setup.model, shapes_seen(plan, step, data), setup.precision, gang.device,
        devices=gang.world, seconds=trained_s, input_s=setup.feed.waited_s,
        pictures=plan.sample(step) - plan.sample(standing.start_step), whole=plan.sample(step),
    )  # fmt: skip
    result = {
        **scores.metrics, "goal_reached": reached(task.goal, scores.metrics),
        "precision": setup.precision.value, "world": gang.world, **figures,
        "steps_skipped": sum(skipped <= step for skipped in learner.state.skip),
        "framework": f"PyTorch {torch.__version__.partition('+')[0]}",
    }  # fmt: skip
    record.save_final(step, make_artifacts(setup.model, data, scores, about, onnx=task.onnx), result)


def shapes_seen(plan: Plan, step: int, data: DataSet) -> dict[tuple[int, ...], int]:
    """Shapes of the pictures trained on before `step`, and how many of each there were."""
    channels, side = data.held_out.bytes_NCHW.shape[1:3]
    seen: dict[tuple[int, ...], int] = {}
    for phase in plan.phases:
        shape = (channels, phase.size or side, phase.size or side)
        seen[shape] = seen.get(shape, 0) + max(0, min(step, phase.end_step) - phase.first_step) * phase.batch
    return seen


def reached(goal: Goal | None, measured: dict[str, float]) -> bool:
    """Whether the goal is met by what was measured."""
    return goal is not None and measured.get(goal.metric, -math.inf) >= goal.reach


def describe_nan(step: int, loss: float, precision: Precision) -> str:
    """What the user is told when the numbers broke."""
    if precision is Precision.FP16:
        return f"no finite gradient in fp16 up to step {step}, however small the loss scale; try bf16, or lower lr"
    return f"the loss of step {step} is {loss}; lower lr, or look for broken pictures or labels"
