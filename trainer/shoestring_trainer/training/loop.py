# SPDX-License-Identifier: Apache-2.0
"""Train an image classifier: one loop, from the first step or a checkpoint to the last step or a request to stop."""

from __future__ import annotations

import math
from contextlib import nullcontext
from time import monotonic, time

import torch
from shoestring_core.results import EVALUATION_S
from shoestring_core.task import TaskGoal

from shoestring_trainer.run_files import Outcome
from shoestring_trainer.training.checkpoint.state import restore_checkpoint
from shoestring_trainer.training.checkpoint.warm_start import warm_start
from shoestring_trainer.training.data.dataset import ImageDataset
from shoestring_trainer.training.distributed.global_batch_layers import use_global_batch
from shoestring_trainer.training.hyperparam_schedule import HyperparamSchedule
from shoestring_trainer.training.precision import Precision
from shoestring_trainer.training.results.artifacts import build_artifacts
from shoestring_trainer.training.results.evaluation import evaluate
from shoestring_trainer.training.results.exports import require_onnx
from shoestring_trainer.training.results.run_recorder import RunRecorder
from shoestring_trainer.training.results.sample_log import SampleLog
from shoestring_trainer.training.results.throughput import measure_clocks, measure_throughput
from shoestring_trainer.training.setup import Setup, set_up
from shoestring_trainer.training.step import Trainer
from shoestring_trainer.training.step_results import CompletedStep, StepResults, result_lag, seconds_to_stop
from shoestring_trainer.training.stop_listener import StopListener, StopOrdered
from shoestring_trainer.training.task import LocalTask, StepCounter


def train(task: LocalTask, stop_listener: StopListener, counter: StepCounter) -> Outcome:
    """Train `task` as one rank of its generation.

    A step of `task.skipped_steps` counts and is reported as a step, but its batch is not trained on.
    Raises TrainerError for errors with a remedy; the caller classifies whatever else is raised.
    """
    if "onnx" in task.export:
        require_onnx()
    setup = set_up(task, lambda: stop_listener.stop_requested)
    try:
        return run(task, setup, stop_listener, counter)
    finally:
        setup.close()


def run(task: LocalTask, setup: Setup, stop_listener: StopListener, counter: StepCounter) -> Outcome:
    """Train a run that is set up."""
    distributed, settings, model = setup.distributed, setup.settings, setup.model
    schedule, loader = setup.schedule, setup.loader
    warm_started = warm_start(model, task.initial_weights) if task.initial_weights else None
    trainer = Trainer(setup, task.skipped_steps, distributed.stop_requested)
    hooks, hook_context, state = trainer.hooks, trainer.hook_context, trainer.state
    if task.resume:
        counter.start_step = counter.step = restore_checkpoint(state, task.resume)
        trained = counter.step - 1 if state.unevaluated else counter.step  # an evaluation has the images of its step
        loader.set_image_format(schedule.phase_at(trained).image_format)
    step = hook_context.step = counter.step
    trainer.compile_ahead([phase for phase in schedule.phases if phase.end_step > step])

    sampler = setup.build_sampler()
    log = SampleLog(
        task.folder, generation=task.generation, rank=distributed.rank, world_size=distributed.world_size,
        start=step, samples_per_epoch=schedule.samples_per_epoch,
    )  # fmt: skip
    with RunRecorder(task, state, schedule.total_steps, rank=distributed.rank) as logger:
        logger.log_event(
            "started", step=step - bool(state.unevaluated), steps_total=schedule.total_steps,
            world_size=distributed.world_size, precision=setup.precision.value,
        )  # fmt: skip
        if warm_started:
            logger.log_event("warm_start", step=step, message=warm_started)
        stop_listener.training_started()
        hooks.call("on_train_begin", hook_context)
        began, evaluation_s, evaluation_batch_s, longest_s = monotonic(), 0.0, 0.0, 0.0

        results = StepResults(logger, setup.precision, step)
        lag = result_lag(distributed.device, hooks=bool(hooks))

        def stop_s() -> float:
            return seconds_to_stop(
                lag, steps=step - counter.start_step, seconds=monotonic() - began - evaluation_s, longest_s=longest_s,
                evaluation_batch_s=evaluation_batch_s,
            )  # fmt: skip

        def evaluate_step(metrics: dict[str, float]) -> bool:
            """Add an evaluation to the metrics of the latest step; return whether the goal is met."""
            nonlocal evaluation_s, evaluation_batch_s
            state.unevaluated.update(metrics)
            hook_context.metrics = metrics
            views = settings.tta_views if task.goal and task.goal.metric == "val/acc_tta" else 1
            logger.flush()
            with trainer.average.scored() if trainer.average else nullcontext():
                eval_result = evaluate(model, loader.dataset, distributed, setup.precision, views)
            evaluation_s += eval_result.seconds
            evaluation_batch_s = eval_result.seconds / eval_result.batches
            metrics |= {**eval_result.metrics, EVALUATION_S: eval_result.seconds, **loader.stalls.since_last_report()}
            hooks.call("on_evaluate", hook_context)
            goal_reached = reached(task.goal, eval_result.metrics)
            if not goal_reached:  # else the final evaluation, of the same step, comes first
                state.unevaluated.clear()
            return goal_reached

        def stop() -> Outcome:
            """Save what has been done since the start; a step whose evaluation was left out is not reported."""
            if not state.unevaluated:
                results.settle(0)
            if step > counter.start_step:
                logger.save_and_wait(step, stop_s=stop_s())
            counter.step = step - bool(state.unevaluated)
            distributed.shutdown()
            return "drained"

        try:
            done = step >= schedule.total_steps
            if state.unevaluated:
                metrics = dict(state.unevaluated)
                if done:
                    hook_context.metrics = metrics
                elif not (done := evaluate_step(metrics)):
                    logger.log_step(step, schedule.epochs_before(step), metrics, at=time())
            while not done:
                phase = schedule.phase_at(step)
                if phase is not loader.phase:
                    results.settle(0)
                    logger.flush()
                    ahead = (number for number in range(step, phase.end_step) if number + 1 not in state.skip)
                    loader.start_phase(
                        phase, (sampler.peek(schedule.samples_before(number), phase.batch_size) for number in ahead)
                    )
                    use_global_batch(
                        model, phase.batch_size, distributed.rank, distributed.world_size,
                        norms=settings.sync_batch_norm,
                    )  # fmt: skip
                step_began = monotonic()
                skip = step + 1 in state.skip
                loader.await_input(schedule.samples_before(step), phase.batch_size)
                samples = sampler.batch(schedule.samples_before(step), phase.batch_size)
                log.log_step(step + 1, samples.spans, skip=skip)
                hyperparams = schedule.step_hyperparams(step)
                queued = trainer.skip_step() if skip else trainer.train_step(samples, phase.batch_size, hyperparams)
                step = counter.step = hook_context.step = step + 1
                if trainer.average:
                    trainer.average.update(step, schedule.total_steps)

                metrics = {"train/lr": settings.lr * hyperparams.lr_factor, "train/momentum": hyperparams.momentum}
                if queued.noise_scale is not None:
                    metrics["train/noise_scale"] = queued.noise_scale
                if loader.stalls.report_is_due:
                    metrics |= loader.stalls.since_last_report()
                completed = CompletedStep(
                    step, schedule.epochs_before(step), phase.batch_size, queued.numbers, skip, at=time(),
                    metrics=metrics,
                )  # fmt: skip
                results.add(completed)
                done = step == schedule.total_steps
                evaluates = not done and schedule.completes_epoch(step, settings.eval_every_epochs)
                if hooks or done or evaluates:
                    results.settle(1)
                    diverged = completed.read().diverged
                    hook_context.metrics = completed.metrics
                    hooks.call("on_step_end", hook_context)
                    if evaluates and not diverged:
                        results.log_events(completed)
                        done = evaluate_step(completed.metrics)
                        completed.at = time()  # the time to the line before it has the evaluation in it
                    if done and not diverged:
                        results.log_events(completed)
                        break  # finish() reports this step, with the final evaluation
                    results.settle(0)
                results.settle(lag)
                if results.stop_requested:
                    return stop()
                if not evaluates and step - 1 > max(phase.first_step, counter.start_step):  # these warm up
                    longest_s = max(longest_s, monotonic() - step_began)
                if logger.save_is_due(step) and results.report_before_save():
                    logger.save(step, stop_s=stop_s())
                    longest_s = 0.0

            train_s = monotonic() - began - evaluation_s
            if step > counter.start_step:
                state.unevaluated.update({} if state.unevaluated else hook_context.metrics)
                logger.hold(step)
            finish(task, setup, trainer, logger, counter, train_s=train_s)
        except StopOrdered:
            return stop()
        distributed.shutdown()
        return "finished"


def finish(
    task: LocalTask, setup: Setup, trainer: Trainer, logger: RunRecorder, counter: StepCounter, *, train_s: float
) -> None:  # fmt: skip
    """Convert the final model to fp32, evaluate it so, report the last step, and save checkpoint, artifacts and result.

    train_s  seconds that this process trained, without evaluation
    raises   StopOrdered, if a rank is asked to stop before the model is evaluated
    """
    distributed, schedule, data, step = setup.distributed, setup.schedule, setup.loader.dataset, counter.step
    metrics = trainer.hook_context.metrics
    if trainer.average:
        trainer.average.finish(completed=step == schedule.total_steps)
    setup.model.float()
    eval_result = evaluate(setup.model, data, distributed, Precision.FP32, setup.settings.tta_views)
    trainer.state.unevaluated.clear()
    trainer.hook_context.metrics = metrics | eval_result.metrics
    trainer.hooks.call("on_train_end", trainer.hook_context)
    evaluation_s = metrics.get(EVALUATION_S, 0.0) + eval_result.seconds
    logger.log_last_step(
        step,
        schedule.epochs_before(step),
        {**metrics, **eval_result.metrics, EVALUATION_S: evaluation_s, **setup.loader.stalls.since_last_report()},
        eval_result.metrics,
        at=time(),
    )
    if not logger.enabled:
        return
    about = {
        "recipe": setup.recipe.reference, "architecture": setup.recipe.model, "params": setup.params,
        "seed": setup.seed, "step": step, "precision": setup.precision.value,
        "images": {"train": len(data.train), "val": len(data.val), "skipped": data.skipped},
    }  # fmt: skip
    figures = measure_throughput(
        setup.model, shapes_seen(schedule, step, data), setup.precision, distributed.device,
        devices=distributed.world_size, seconds=train_s, data_wait_s=setup.loader.wait_s,
        images=schedule.samples_before(step) - schedule.samples_before(counter.start_step),
        total_images=schedule.samples_before(step),
    )  # fmt: skip
    clocks = {} if counter.start_step else measure_clocks(train_s, setup.init_s + eval_result.seconds)
    result = {
        **eval_result.metrics, "goal_reached": reached(task.goal, eval_result.metrics),
        "precision": setup.precision.value, "world_size": distributed.world_size, **clocks, **figures,
        **setup.loader.stalls.seconds,
        "steps_skipped": sum(skipped <= step for skipped in trainer.state.skip),
        "framework": f"PyTorch {torch.__version__.partition('+')[0]}",
    }  # fmt: skip
    logger.log_event("exporting", step=step)
    logger.save_final(step, build_artifacts(setup.model, data, eval_result, about, onnx="onnx" in task.export), result)


def shapes_seen(schedule: HyperparamSchedule, step: int, data: ImageDataset) -> dict[tuple[int, ...], int]:
    """Return the image shapes trained on before `step`, and how many images of each."""
    channels, side = data.val.images_NCHW.shape[1:3]
    seen: dict[tuple[int, ...], int] = {}
    for phase in schedule.phases:
        shape = (channels, phase.image_size or side, phase.image_size or side)
        seen[shape] = seen.get(shape, 0) + max(0, min(step, phase.end_step) - phase.first_step) * phase.batch_size
    return seen


def reached(goal: TaskGoal | None, metrics: dict[str, float]) -> bool:
    """Return whether `metrics` meet the goal."""
    return goal is not None and metrics.get(goal.metric, -math.inf) >= goal.reach
