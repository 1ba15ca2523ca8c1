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
from shoestring_trainer.training.hyperparam_schedule import HyperparamSchedule, Phase
from shoestring_trainer.training.precision import Precision
from shoestring_trainer.training.results.artifacts import build_artifacts
from shoestring_trainer.training.results.evaluation import evaluate
from shoestring_trainer.training.results.exports import require_onnx
from shoestring_trainer.training.results.run_recorder import RunRecorder
from shoestring_trainer.training.results.sample_log import SampleLog
from shoestring_trainer.training.results.throughput import measure_clocks, measure_throughput
from shoestring_trainer.training.setup import Setup, set_up
from shoestring_trainer.training.step import Trainer
from shoestring_trainer.training.step_results import CompletedStep, Pace, StepResults, result_lag
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
    schedule, model = setup.schedule, setup.model
    warm_started = warm_start(model, task.initial_weights) if task.initial_weights else None
    trainer = Trainer(setup, task.skipped_steps, setup.distributed.stop_requested)
    state = trainer.state
    if task.resume:
        counter.start_step = counter.step = restore_checkpoint(state, task.resume)
        trained = counter.step - 1 if state.unevaluated else counter.step  # an evaluation has the images of its step
        setup.loader.set_image_format(schedule.phase_at(trained).image_format)
    trainer.hook_context.step = counter.step
    trainer.compile_ahead([phase for phase in schedule.phases if phase.end_step > counter.step])
    with RunRecorder(task, state, schedule.total_steps, rank=setup.distributed.rank) as logger:
        logger.log_event(
            "started", step=counter.step - bool(state.unevaluated), steps_total=schedule.total_steps,
            world_size=setup.distributed.world_size, precision=setup.precision.value,
        )  # fmt: skip
        if warm_started:
            logger.log_event("warm_start", step=counter.step, message=warm_started)
        stop_listener.training_started()
        trainer.hooks.call("on_train_begin", trainer.hook_context)
        return TrainingLoop(task, setup, trainer, logger, counter).run()


class TrainingLoop:
    """The steps of a run, from where it is. `counter.step`: the last that was completed."""

    def __init__(
        self, task: LocalTask, setup: Setup, trainer: Trainer, logger: RunRecorder, counter: StepCounter
    ) -> None:  # fmt: skip
        self.task, self.setup, self.trainer, self.logger, self.counter = task, setup, trainer, logger, counter
        self.distributed, self.settings, self.schedule = setup.distributed, setup.settings, setup.schedule
        self.loader, self.state = setup.loader, trainer.state
        self.hooks, self.hook_context = trainer.hooks, trainer.hook_context
        self.sampler = setup.build_sampler()
        self.sample_log = SampleLog(
            task.folder, generation=task.generation, rank=self.distributed.rank, world_size=self.distributed.world_size,
            start=counter.step, samples_per_epoch=self.schedule.samples_per_epoch,
        )  # fmt: skip
        self.results = StepResults(logger, setup.precision, counter.step)
        self.lag = result_lag(self.distributed.device, hooks=bool(self.hooks))
        self.pace = Pace(self.lag, counter)

    def run(self) -> Outcome:
        """Train to the end, or to a request to stop. All ranks return the same."""
        try:
            self.train()
            train_s = self.pace.train_s
            if self.counter.step > self.counter.start_step:
                if not self.state.unevaluated:
                    self.state.unevaluated.update(self.hook_context.metrics)
                self.logger.hold(self.counter.step)
            finish(self.task, self.setup, self.trainer, self.logger, self.counter, train_s=train_s)
        except StopOrdered:
            self.save_for_stop()
            return "drained"
        self.distributed.shutdown()
        return "finished"

    def train(self) -> None:
        """Train the steps that are left, or until the goal is reached. Raises StopOrdered, NonFiniteError."""
        schedule, loader, logger, results = self.schedule, self.loader, self.logger, self.results
        done = self.evaluate_restored_step() if self.state.unevaluated else self.counter.step >= schedule.total_steps
        while not done:
            phase = schedule.phase_at(self.counter.step)
            if phase is not loader.phase:
                self.start_phase(phase)
            began = monotonic()
            completed = self.train_step(phase)
            results.add(completed)
            step = completed.step
            done = step == schedule.total_steps
            evaluates = not done and schedule.completes_epoch(step, self.settings.eval_every_epochs)
            if self.hooks or done or evaluates:
                results.settle(1)
                diverged = completed.read().diverged
                self.hook_context.metrics = completed.metrics
                self.hooks.call("on_step_end", self.hook_context)
                if evaluates and not diverged:
                    results.log_events(completed)
                    done = self.evaluate(completed.metrics)
                    completed.at = time()  # the time to the line before it has the evaluation in it
                if done and not diverged:
                    results.log_events(completed)
                    return  # finish() reports this step, with the final evaluation
                results.settle(0)
            results.settle(self.lag)
            if results.stop_requested:
                raise StopOrdered
            warms_up = step - 1 <= max(phase.first_step, self.counter.start_step)
            if not (evaluates or warms_up):
                self.pace.add_step(monotonic() - began)
            if logger.save_is_due(step) and results.report_before_save():
                logger.save(step, stop_s=self.pace.stop_s())
                self.pace.forget_longest()

    def start_phase(self, phase: Phase) -> None:
        """Get images of the phase's size, and a batch norm for its batches."""
        self.results.settle(0)
        self.logger.flush()
        ahead = (step for step in range(self.counter.step, phase.end_step) if step + 1 not in self.state.skip)
        self.loader.start_phase(
            phase, (self.sampler.peek(self.schedule.samples_before(step), phase.batch_size) for step in ahead)
        )
        use_global_batch(
            self.setup.model, phase.batch_size, self.distributed.rank, self.distributed.world_size,
            norms=self.settings.sync_batch_norm,
        )  # fmt: skip

    def train_step(self, phase: Phase) -> CompletedStep:
        """Train one step; its result may be on the device yet."""
        step, schedule, loader, trainer = self.counter.step, self.schedule, self.loader, self.trainer
        skip, before = step + 1 in self.state.skip, schedule.samples_before(step)
        loader.await_input(before, phase.batch_size)
        samples = self.sampler.batch(before, phase.batch_size)
        self.sample_log.log_step(step + 1, samples.spans, skip=skip)
        hyperparams = schedule.step_hyperparams(step)
        queued = trainer.skip_step() if skip else trainer.train_step(samples, phase.batch_size, hyperparams)
        step = self.counter.step = self.hook_context.step = step + 1
        if trainer.average:
            trainer.average.update(step, schedule.total_steps)

        metrics = {"train/lr": self.settings.lr * hyperparams.lr_factor, "train/momentum": hyperparams.momentum}
        if queued.noise_scale is not None:
            metrics["train/noise_scale"] = queued.noise_scale
        if loader.stalls.report_is_due:
            metrics |= loader.stalls.since_last_report()
        return CompletedStep(
            step, schedule.epochs_before(step), phase.batch_size, queued.numbers, skip, at=time(), metrics=metrics
        )

    def evaluate(self, metrics: dict[str, float]) -> bool:
        """Add an evaluation to the metrics of the last step; return whether the goal is reached.

        Raises StopOrdered; the checkpoint then has the metrics, and the run that resumes from it evaluates the step.
        """
        self.state.unevaluated.update(metrics)
        self.hook_context.metrics = metrics
        goal, average = self.task.goal, self.trainer.average
        views = self.settings.tta_views if goal and goal.metric == "val/acc_tta" else 1
        self.logger.flush()
        with average.scored() if average else nullcontext():
            evaluated = evaluate(self.setup.model, self.loader.dataset, self.distributed, self.setup.precision, views)
        self.pace.add_evaluation(evaluated.seconds, evaluated.batches)
        metrics |= {**evaluated.metrics, EVALUATION_S: evaluated.seconds, **self.loader.stalls.since_last_report()}
        self.hooks.call("on_evaluate", self.hook_context)
        goal_reached = reached(goal, evaluated.metrics)
        if not goal_reached:  # else the final evaluation, of the same step, comes first
            self.state.unevaluated.clear()
        return goal_reached

    def evaluate_restored_step(self) -> bool:
        """Do the evaluation that the checkpoint is without; return whether no step is left, or the goal is reached."""
        step, metrics = self.counter.step, dict(self.state.unevaluated)
        if step >= self.schedule.total_steps:
            self.hook_context.metrics = metrics  # the final evaluation follows
            return True
        if self.evaluate(metrics):
            return True
        self.logger.log_step(step, self.schedule.epochs_before(step), metrics, at=time())
        return False

    def save_for_stop(self) -> None:
        """Save what has been done since the start. A step whose evaluation was left out is not reported."""
        step, unevaluated = self.counter.step, bool(self.state.unevaluated)
        if not unevaluated:
            self.results.settle(0)
        if step > self.counter.start_step:
            self.logger.save_and_wait(step, stop_s=self.pace.stop_s())
        self.counter.step = step - unevaluated
        self.distributed.shutdown()


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
