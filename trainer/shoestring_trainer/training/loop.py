# SPDX-License-Identifier: Apache-2.0
"""Training a classifier: one loop, from the first step or from a checkpoint, to the last step or an order to stop."""

from __future__ import annotations

import math
from time import monotonic

import torch
import torch.nn.functional as F
from shoestring_core import recipes
from torch import Tensor, nn

from shoestring_trainer.training.artifacts import make_artifacts
from shoestring_trainer.training.augment import RandomCrop, augment, draws_needed
from shoestring_trainer.training.average import build_average
from shoestring_trainer.training.data.pictures import DataSet, Pictures
from shoestring_trainer.training.data.sources import open_source
from shoestring_trainer.training.evaluation import evaluate
from shoestring_trainer.training.exports import require_onnx
from shoestring_trainer.training.faults import NotANumber, UserError
from shoestring_trainer.training.figures import speed
from shoestring_trainer.training.gang import Gang, join_gang
from shoestring_trainer.training.hooks import Run, load_hooks
from shoestring_trainer.training.lazy_compiler import compiled, defer_compiler
from shoestring_trainer.training.models import build_model, learn_from_pictures
from shoestring_trainer.training.noise import NoiseScale
from shoestring_trainer.training.optimizers import build_optimizer, set_pace
from shoestring_trainer.training.orders import Orders
from shoestring_trainer.training.precision import Precision, choose_precision
from shoestring_trainer.training.progress import Progress
from shoestring_trainer.training.randomness import SampleOrder, key, seed_dropout
from shoestring_trainer.training.reports import Reports
from shoestring_trainer.training.samples import SampleLog
from shoestring_trainer.training.schedules import Phase, Plan, first_view
from shoestring_trainer.training.settings import Settings
from shoestring_trainer.training.shared_batch import share_batch
from shoestring_trainer.training.state import Saver, State, restore
from shoestring_trainer.training.task import Goal, Outcome, Standing, Task
from shoestring_trainer.training.warm_start import warm_start

SCORING = "time/scoring_s"
"""Seconds of a step's line that went into scoring on held-out pictures, so that training can be timed without them."""
LOWEST_SCALE = 2.0**-14
"""A loss scale below this has been halved thirty times without one finite gradient: the loss itself is broken."""


def train(task: Task, orders: Orders, standing: Standing) -> Outcome:
    """Carry out `task` as one rank of its gang.

    A step skipped for overflow (fp16) counts as a step: its samples are not shown again and its line is written. So
    does one of `task.skip`, whose batch broke the numbers before: nothing is learned from it.
    Raises TrainerError for faults with a remedy; whatever else is raised is classified by the caller.
    """
    defer_compiler()
    if task.onnx:
        require_onnx()
    gang = join_gang()
    recipe = recipes.load(task.recipe)
    params = recipes.resolve(task.recipe, task.params)
    settings = Settings.of(params)
    seed = int(params["seed"] or 0) if task.seed is None else task.seed
    precision = choose_precision(task.precision or str(params["precision"]), gang.device)

    source, view = open_source(recipe.data.kind, task, seed, settings, gang), first_view(settings)
    data = source(*view)
    plan = Plan.of(settings, len(data.train))
    check_shares(plan, gang)

    torch.manual_seed(key(seed, "weights"))
    model = build_model(**recipe.model, settings=settings, classes=len(data.classes), mean=data.mean, std=data.std)
    learn_from_pictures(model, data.train.bytes_NCHW, data.white)
    model.to(gang.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    warmed = warm_start(model, task.init) if task.init else None
    scaler = build_scaler(gang, precision, settings)
    optimizer = build_optimizer(model, settings, scaled=scaler.is_enabled())
    identity = {"recipe": recipe.reference, "params": params, "seed": seed, "data": data.fingerprint}
    distributed = settle(gang, model, data, settings)
    optimizer.zero_grad()
    forward = compiled(distributed, settings.compile)
    average = build_average(model, settings)
    state = State(model, optimizer, scaler, identity, average, set(task.skip))
    if task.resume:
        standing.start_step = standing.step = restore(state, task.resume)
        if plan.phase(standing.step).view != view:
            view = plan.phase(standing.step).view
            del data  # its copy leaves the disk before the next takes its place
            data = source(*view)

    step, total = standing.step, plan.steps
    order = SampleOrder(
        seed, len(data.train), gang.rank, gang.world,
        epoch_samples=plan.epoch_samples, alternating_flip=settings.alternating_flip, draws=draws_needed(settings),
    )  # fmt: skip
    log = SampleLog(
        task.folder, generation=task.generation, rank=gang.rank, world=gang.world, start=step,
        epoch_samples=plan.epoch_samples,
    )  # fmt: skip
    report = Reports(task.folder, go_on=task.resume is not None) if gang.rank == 0 else None
    saver = Saver(task, state, report) if report else None
    progress = Progress(total) if report else None
    if report:
        report.event("started", step=step, steps_total=total, world=gang.world, precision=precision.value)
        if warmed:
            report.event("warm_start", step=step, message=warmed)
    orders.training_began()
    hooks, run = load_hooks(settings.hooks), Run(model, optimizer, settings, gang.rank, step)
    noise = NoiseScale(model, gang)
    hooks.call("on_start", run)
    began, scoring_s = monotonic(), 0.0

    values: dict[str, float] = {}
    phase, done, sound = None, step >= total, step
    pictures = data.train.bytes_NCHW
    while not done:
        if phase is not plan.phase(step):
            phase = plan.phase(step)
            if phase.view != view:
                view = phase.view
                del data, pictures
                data = source(*view)
            pictures, labels = place(data.train.bytes_NCHW, gang.device), data.train.labels_N.to(gang.device)
            share_batch(model, phase.batch, gang.rank, gang.world, norms=settings.sync_norm)
        picked = order.pick(plan.sample(step), phase.batch)
        skip = step + 1 in state.skip
        log.take_up(step + 1, picked.spans, skip=skip)
        pace = plan.pace(step)
        set_pace(optimizer, pace)
        seed_dropout(seed, step, gang.device)

        batch_loss = torch.zeros((), dtype=torch.float64, device=gang.device)
        measuring = (
            settings.noise_every and step % settings.noise_every == 0 and phase.batch >= 2 * gang.world and not skip
        )
        parts = picked.split(max(gang.parts(phase.batch, settings.micro_batch), 2 if measuring else 1))
        if skip:
            parts, news = [], torch.stack([batch_loss.fill_(math.nan), batch_loss.new_tensor(orders.stop_asked)])
            arriving = gang.start_sum(news)
        # what a mean gradient is multiplied by
        unit = scaler.get_scale() * (phase.batch if settings.sum_loss else 1) if measuring else 1.0
        for part in parts:
            samples_N, draws_NK = (tensor.to(gang.device) for tensor in part)
            pictures_NCHW = augment(
                pictures[samples_N.to(pictures.device)].to(gang.device), draws_NK, settings, data.mean, data.white,
                random_crop(samples_N, phase, settings, data.train),
            )  # fmt: skip
            pictures_NCHW, labels_N = hooks.batch(run, pictures_NCHW, labels[samples_N])
            with gang.exchange(distributed, when=part is parts[-1]):
                with precision.autocast(gang.device):
                    logits_NK = forward(pictures_NCHW.contiguous(memory_format=torch.channels_last))
                loss = F.cross_entropy(
                    logits_NK.float(), labels_N, label_smoothing=settings.label_smoothing, reduction="sum"
                )
                batch_loss += loss.detach().double() / phase.batch
                if part is parts[-1]:
                    # Summed over the gang beside the backward pass: the loss, and whether anyone was told to stop.
                    news = torch.stack([batch_loss, batch_loss.new_tensor(orders.stop_asked)])
                    arriving = gang.start_sum(news)
                # DDP takes the mean over ranks; × world makes it the batch's sum, however the batch was shared out.
                scaler.scale(loss * (gang.world / (1 if settings.sum_loss else phase.batch))).backward()
            if measuring and part is parts[0]:
                noise.see_part(len(samples_N), unit * gang.world * len(samples_N) / phase.batch)
        noise_scale = noise.see_batch(phase.batch, unit) if measuring else None
        scale = scaler.get_scale()
        if not skip:
            if "on_gradients" in hooks:
                scaler.unscale_(optimizer)
                hooks.call("on_gradients", run)
            scaler.step(optimizer)  # skipped on overflow, by all ranks alike: DDP has spread the infinities
            scaler.update()
            optimizer.zero_grad()
        if arriving:
            arriving.wait()
        mean_loss, told = news.tolist()
        step = standing.step = run.step = step + 1
        if average:
            average.follow(step, total)

        overflowed = scaler.get_scale() < scale
        if overflowed and report:
            report.event("overflow", step=step, scale=scaler.get_scale())
        values = {"train/loss": mean_loss, "train/lr": settings.lr * pace.rate, "train/momentum": pace.momentum}
        if noise_scale is not None:
            values["train/noise_scale"] = noise_scale
        run.values = values
        hooks.call("on_step", run)
        if skip and report:
            report.event("skipped", step=step, samples=phase.batch)
        broken = scaler.get_scale() < LOWEST_SCALE if scaler.is_enabled() else not (skip or math.isfinite(mean_loss))
        if skip or not (broken or overflowed):
            sound = step
        done = step == total
        if not done and not broken and plan.ends_epoch(step, settings.eval_every):
            views = settings.views if task.goal and task.goal.metric == "val/acc_tta" else 1
            measured = evaluate(model, data, gang, precision, views)
            scoring_s += measured.seconds
            values |= {**measured.metrics, SCORING: measured.seconds}
            hooks.call("on_scored", run)
            done = reached(task.goal, measured.metrics)
        if done and not broken:
            break  # its line waits for the final measurement
        if report and progress:
            report.metrics(step, plan.epoch(step), values)
            progress.show(step, plan.epoch(step), values)
        if broken:
            if saver:
                saver.finish_writing()  # it is from before, and good to go back to
            raise NotANumber(describe_nan(step, mean_loss, precision), since=sound + 1)
        if told:
            if saver:
                saver.save_on_order(step)
            gang.leave()
            return "drained"
        if saver:
            saver.save_if_due(step)

    trained_s = monotonic() - began - scoring_s
    if average and step == total:
        average.finish()
    scores = evaluate(model, data, gang, Precision.FP32, settings.views)
    run.values = values | scores.metrics
    hooks.call("on_end", run)
    if report and progress and saver:
        at_the_end = {SCORING: values.get(SCORING, 0.0) + scores.seconds}
        report.metrics(step, plan.epoch(step), {**values, **scores.metrics, **at_the_end})
        progress.finish(step, plan.epoch(step), scores.metrics)
        about = {
            "recipe": recipe.reference, "architecture": recipe.model, "params": params, "seed": seed,
            "step": step, "precision": precision.value,
            "pictures": {"train": len(data.train), "held_out": len(data.held_out), "unreadable": data.skipped},
        }  # fmt: skip
        figures = speed(
            model, shapes_seen(plan, step, data), precision, gang.device,
            devices=gang.world, seconds=trained_s,
            pictures=plan.sample(step) - plan.sample(standing.start_step), whole=plan.sample(step),
        )  # fmt: skip
        result = {
            **scores.metrics, "goal_reached": reached(task.goal, scores.metrics),
            "precision": precision.value, "world": gang.world, **figures,
            "steps_skipped": sum(skipped <= step for skipped in state.skip),
            "framework": f"PyTorch {torch.__version__.partition('+')[0]}",
        }  # fmt: skip
        saver.save_final(step, make_artifacts(model, data, scores, about, onnx=task.onnx), result)
    gang.leave()
    return "finished"


def random_crop(samples_N: Tensor, phase: Phase, settings: Settings, pictures: Pictures) -> RandomCrop | None:
    """What a phase crops at random from the pictures `samples_N`, if it does."""
    if not phase.crop_scale:
        return None
    aspects_N = None if pictures.aspects_N is None else pictures.aspects_N[samples_N.cpu()].to(samples_N.device)
    return RandomCrop(phase.size or settings.size, phase.crop_scale, aspects_N)


def place(bytes_NCHW: Tensor, device: torch.device) -> Tensor:
    """The pictures on the device, if they leave it half of its free memory; else where they are."""
    if device.type == "cuda" and 2 * bytes_NCHW.nbytes > torch.cuda.mem_get_info(device)[0]:
        return bytes_NCHW
    return bytes_NCHW.to(device)


def shapes_seen(plan: Plan, step: int, data: DataSet) -> dict[tuple[int, ...], int]:
    """Shapes of the pictures trained on before `step`, and how many of each there were."""
    channels, side = data.held_out.bytes_NCHW.shape[1:3]
    seen: dict[tuple[int, ...], int] = {}
    for phase in plan.phases:
        shape = (channels, phase.size or side, phase.size or side)
        seen[shape] = seen.get(shape, 0) + max(0, min(step, phase.end_step) - phase.first_step) * phase.batch
    return seen


def check_shares(plan: Plan, gang: Gang) -> None:
    """Raises UserError if a batch is too small for every rank to have a share."""
    smallest = min(phase.batch for phase in plan.phases)
    if smallest < gang.world:
        raise UserError(f"batch_size is {smallest}, less than the {gang.world} processes that share it; raise it")


def build_scaler(gang: Gang, precision: Precision, settings: Settings) -> torch.amp.GradScaler:
    """The loss scale of fp16. It starts where PyTorch's does for a mean loss, lower by the batch for a sum."""
    head_start = round(math.log2(settings.batch_size)) if settings.sum_loss else 0
    return torch.amp.GradScaler(
        gang.device.type, init_scale=2.0 ** (16 - head_start), enabled=precision is Precision.FP16
    )


def settle(gang: Gang, model: nn.Module, data: DataSet, settings: Settings) -> nn.Module:
    """The model spread over the gang, with gradient buckets in their last layout.

    DDP lays its buckets out anew after the first backward pass, and with more than two ranks the layout decides
    in which order gradients are summed. One throwaway pass here gives a resumed run the layout from its first step on.
    """
    distributed = gang.distribute(model, settings)
    if gang.world > 1:
        kept = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        sample = data.train.bytes_NCHW[:2].to(gang.device).float()
        distributed(sample).sum().backward()
        model.load_state_dict(kept)
        model.zero_grad()
    return distributed


def reached(goal: Goal | None, measured: dict[str, float]) -> bool:
    """Whether the goal is met by what was measured."""
    return goal is not None and measured.get(goal.metric, -math.inf) >= goal.reach


def describe_nan(step: int, loss: float, precision: Precision) -> str:
    """What the user is told when the numbers broke."""
    if precision is Precision.FP16:
        return f"no finite gradient in fp16 up to step {step}, however small the loss scale; try bf16, or lower lr"
    return f"the loss of step {step} is {loss}; lower lr, or look for broken pictures or labels"
