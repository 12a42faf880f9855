"""The one training loop: miniature, SD v1.5 and SDXL, autoencoder, base and adapter differ by their `Parts` only.

Exact resume: what a step does depends on the weights, the optimiser, the average and the step's number alone. The data
position is the step, and the random numbers of a step are seeded by (seed, step, pass, process), so a run that was
killed and resumed equals one that was not, bit for bit, on the same machine with the same number of processes.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import nn

from .average import WeightAverage
from .checkpoints import list_checkpoints, load_checkpoint, save_checkpoint
from .config import Feed, Parts, TrainConfig
from .logs import JsonLines, save_picture
from .optimizers import adamw
from .signals import StopRequest, stop_requests
from .state import assign_tensors, gather_tensors, optimizer_tensors, restore_optimizer
from .wrapping import Trainee, compile_networks, enable_checkpointing, shard, whole_weights

logger = logging.getLogger(__name__)


@dataclass
class Window:
    """Sums since the last log line; saved with the checkpoint, so that interruptions leave no trace in the curve."""

    sums: dict[str, torch.Tensor] = field(default_factory=dict)
    count: int = 0

    def add(self, values: dict[str, torch.Tensor]) -> None:
        for name, value in values.items():
            value = value.detach().double()
            self.sums[name] = self.sums[name] + value if name in self.sums else value
        self.count += 1

    def means(self) -> dict[str, float]:
        return {name: float(value) / self.count for name, value in self.sums.items()}


@dataclass
class Run:
    """The live objects of a training; the only place where its state is."""

    config: TrainConfig
    accelerator: Accelerator
    parts: Parts
    model: nn.Module
    optimizer: Any
    average: WeightAverage | None
    log: JsonLines
    step: int = 0
    window: Window = field(default_factory=Window)
    seconds: float = 0.0
    waited: float = 0.0
    used: float = 0.0
    began: float = 0.0

    @property
    def time_share(self) -> float:
        """How much of the time budget is used, 0 to 1; 0 without one."""
        return 0.0 if self.config.minutes is None else min(1.0, self.used / (60 * self.config.minutes))

    @property
    def named_parameters(self) -> dict[str, nn.Parameter]:
        """Trained parameters by "network.name"."""
        return {
            f"{network}.{name}": parameter
            for network, module in self.parts.trained.items()
            for name, parameter in module.named_parameters()
            if parameter.requires_grad
        }

    @property
    def modules(self) -> dict[str, nn.Module]:
        return {**self.parts.frozen, **self.parts.trained}


def train(config: TrainConfig, *, resume: bool = False) -> Path:
    """Train to the last step, or until Ctrl-C or SIGTERM, and export.

    Args:
        config: the run.
        resume: go on from the newest checkpoint in `config.out`; with none there, start.

    Returns:
        The last checkpoint's folder.

    Raises:
        ValueError: `config.out` holds checkpoints and resume is False, or they are of other networks; or a time budget
            is given to several processes, whose clocks differ.
        FloatingPointError: the loss is no longer finite; names the last good checkpoint.
    """
    checkpoints = list_checkpoints(config.out / "checkpoints")
    if checkpoints and not resume:
        raise ValueError(f"{config.out} holds checkpoints of a run: resume it, or choose another output folder.")
    with _own_accelerate_state():
        run = _prepare(config)
        try:
            if checkpoints:
                _restore(run, checkpoints[-1])
            with stop_requests() as stop:
                last = _loop(run, stop)
            if run.parts.export is not None:
                with _averaged(run):
                    if run.accelerator.is_main_process:
                        run.parts.export(run.modules, config.out / "export")
            run.accelerator.wait_for_everyone()
        finally:
            if run.parts.close is not None:
                run.parts.close()
            run.accelerator.end_training()
    return last


@contextmanager
def _own_accelerate_state() -> Iterator[None]:
    """accelerate's state is global: left behind, even by a run that never began, it forces its precision on others."""
    try:
        yield
    finally:
        AcceleratorState._reset_state()


def _prepare(config: TrainConfig) -> Run:
    """Networks, optimiser, average, log and trackers of a run that has not begun."""
    began = time.monotonic()
    torch.manual_seed(config.seed)
    accelerator = Accelerator(
        cpu=not torch.accelerator.is_available(),  # else accelerate ignores torchrun's processes
        mixed_precision=config.precision,
        log_with=list(config.trackers) or None,
        project_dir=str(config.out),
    )
    if config.minutes is not None and accelerator.num_processes > 1:
        raise ValueError("A time budget is for a single process: give steps, and no minutes, to several.")
    if accelerator.is_main_process:
        config.out.mkdir(parents=True, exist_ok=True)
    parts = config.build()
    trainee = Trainee(parts).to(accelerator.device)
    if config.gradient_checkpointing:
        enable_checkpointing(parts)
    compile_networks(parts, config.compile)
    sharded = config.shard and accelerator.num_processes > 1
    if sharded:
        shard(trainee, accelerator)
    parameters = {name: tensor for name, tensor in trainee.trained.named_parameters() if tensor.requires_grad}
    optimizer = (config.optimizer.build or adamw)(parameters, config.optimizer)
    model = trainee if sharded else accelerator.prepare(trainee)
    average = None if config.ema_decay is None else WeightAverage(list(parameters.values()), config.ema_decay)
    if config.trackers:
        accelerator.init_trackers(config.name)
    log = JsonLines(config.out / "log.jsonl", enabled=accelerator.is_main_process)
    optimizer = accelerator.prepare(optimizer)
    return Run(config, accelerator, parts, model, optimizer, average, log, began=began)


def _loop(run: Run, stop: StopRequest) -> Path:
    config, checkpoint = run.config, run.config.checkpoint
    batches = run.parts.data(_feed(run))
    saved, last = time.monotonic(), None
    started = run.began - run.used
    run.log.start(run.step)
    while run.step < config.steps and run.time_share < 1:
        began = time.monotonic()
        _step(run, batches)
        run.step += 1
        run.seconds += time.monotonic() - began
        run.used = time.monotonic() - started
        if run.step % config.log_every == 0 or run.time_share == 1:
            _log(run)
        if config.sample_every and run.step % config.sample_every == 0:
            _sample(run)
        minutes = (time.monotonic() - saved) / 60
        due = checkpoint.every_steps is not None and run.step % checkpoint.every_steps == 0
        due = due or (checkpoint.every_minutes is not None and minutes >= checkpoint.every_minutes)
        due, stopping = _agree(run.accelerator, due, stop.requested)
        if due or stopping or run.step == config.steps or run.time_share == 1:
            last = _save(run)
            saved = time.monotonic()
        if stopping:
            logger.warning("Stopped at step %d and saved %s.", run.step, last)
            break
    return last or list_checkpoints(config.out / "checkpoints")[-1]


def _feed(run: Run) -> Feed:
    return Feed(
        start=run.step * run.config.accumulate,
        batch_size=run.config.batch_size,
        seed=run.config.seed,
        rank=run.accelerator.process_index,
        world=run.accelerator.num_processes,
    )


def _step(run: Run, batches: Iterator) -> None:
    """One optimiser step: forward and backward passes, clipping, update, average."""
    config, accelerator = run.config, run.accelerator
    run.model.train()
    for number in range(config.accumulate):
        began = time.monotonic()
        batch = {
            name: value.to(accelerator.device, non_blocking=True) if isinstance(value, torch.Tensor) else value
            for name, value in next(batches).items()
        }
        run.waited += time.monotonic() - began
        generator = _generator(run, number)
        with accelerator.no_sync(run.model) if number < config.accumulate - 1 else nullcontext():
            with accelerator.autocast():
                loss, metrics = run.model(batch, generator)
            accelerator.backward(loss / config.accumulate)
        run.window.add({"loss": loss, **metrics})
    for group in run.optimizer.param_groups:
        group["lr"] = config.optimizer.learning_rate * config.optimizer.schedule(_place(run), config.steps)
    if config.optimizer.max_grad_norm is not None:
        accelerator.unscale_gradients(run.optimizer)
        parameters = [parameter for group in run.optimizer.param_groups for parameter in group["params"]]
        torch.nn.utils.clip_grad_norm_(parameters, config.optimizer.max_grad_norm)
    run.optimizer.step()
    run.optimizer.zero_grad()
    if run.average is not None:
        run.average.update(run.step)


def _place(run: Run) -> int:
    """The step at which the learning-rate schedule stands: the clock's where that is ahead."""
    return max(run.step, int(run.time_share * run.config.steps))


def _generator(run: Run, number: int) -> torch.Generator:
    """The random numbers of one forward pass; dropout layers draw from torch's own generator, seeded alike."""
    place = (run.config.seed, run.step, number, run.accelerator.process_index)
    seed = int(np.random.SeedSequence(place).generate_state(1, np.uint64)[0] >> 1)
    torch.manual_seed(seed)
    return torch.Generator(run.accelerator.device).manual_seed(seed)


def _log(run: Run) -> None:
    _check_finite(run)
    samples = run.window.count * run.config.batch_size * run.accelerator.num_processes
    values = {
        **run.window.means(),
        "learning_rate": run.optimizer.param_groups[0]["lr"],
        "samples": run.step * run.config.accumulate * run.config.batch_size * run.accelerator.num_processes,
        "samples_per_second": round(samples / max(run.seconds, 1e-9), 2),
        "waiting_share": round(run.waited / max(run.seconds, 1e-9), 4),
    }
    run.log.write(run.step, values)
    if run.config.trackers:
        run.accelerator.log(values, step=run.step)
    run.window, run.seconds, run.waited = Window(), 0.0, 0.0


def _check_finite(run: Run) -> None:
    """Stop before weights that no longer mean anything are saved."""
    if all(math.isfinite(float(value)) for value in run.window.sums.values()):
        return
    good = list_checkpoints(run.config.out / "checkpoints")
    where = f"the last good checkpoint is {good[-1]}" if good else "no checkpoint was written before"
    raise FloatingPointError(
        f"The loss is not finite within the {run.window.count} passes before step {run.step}; {where}: resume from it "
        "with a lower learning rate or in bf16 or fp32."
    )


def _agree(accelerator: Accelerator, due: bool, stopping: bool) -> tuple[bool, bool]:
    """The main process's clock decides about saving, any process's signal about stopping."""
    if accelerator.num_processes == 1:
        return due, stopping
    flags = torch.tensor([float(due and accelerator.is_main_process), float(stopping)], device=accelerator.device)
    flags = accelerator.reduce(flags, reduction="sum")
    return bool(flags[0]), bool(flags[1])


def _save(run: Run) -> Path:
    _check_finite(run)
    named = run.named_parameters
    tensors = {f"trained.{name}": gather_tensors(module.state_dict()) for name, module in run.parts.trained.items()}
    tensors["optimizer"], counters = optimizer_tensors(run.optimizer.optimizer, named)
    if run.average is not None:
        tensors["average"] = gather_tensors(dict(zip(named, run.average.tensors, strict=True)))
    scaler = run.accelerator.scaler
    state = {
        "step": run.step,
        "optimizer": counters,
        "window": {"count": run.window.count, "sums": {name: float(value) for name, value in run.window.sums.items()}},
        "scaler": None if scaler is None else scaler.state_dict(),
        "processes": run.accelerator.num_processes,
        "config": run.config.describe(),
    }
    if run.config.minutes is not None:
        state["seconds_used"] = run.used
    folder = run.config.out / "checkpoints"
    if run.accelerator.is_main_process:
        save_checkpoint(folder, run.step, tensors, state, run.config.checkpoint.keep)
    run.accelerator.wait_for_everyone()
    return folder / f"step-{run.step:08d}"


def _restore(run: Run, path: Path) -> None:
    tensors, state = load_checkpoint(path)
    for name, module in run.parts.trained.items():
        if f"trained.{name}" not in tensors:
            raise ValueError(f'The checkpoint {path} has no network "{name}": it belongs to another recipe.')
        assign_tensors(module.state_dict(), tensors[f"trained.{name}"], f'the network "{name}" of {path}')
    parameters = run.named_parameters
    restore_optimizer(run.optimizer.optimizer, parameters, tensors["optimizer"], state["optimizer"])
    if run.average is not None:
        if "average" not in tensors:
            raise ValueError(f"The checkpoint {path} has no weight average: resume with ema_decay=None.")
        own = dict(zip(parameters, run.average.tensors, strict=True))
        assign_tensors(own, tensors["average"], f"the weight average of {path}")
    if run.accelerator.scaler is not None and state["scaler"]:
        run.accelerator.scaler.load_state_dict(state["scaler"])
    device = run.accelerator.device
    window = state["window"]
    sums = {name: torch.tensor(value, dtype=torch.float64, device=device) for name, value in window["sums"].items()}
    run.step, run.window = state["step"], Window(sums, window["count"])
    run.used = state.get("seconds_used", 0.0)


def _sample(run: Run) -> None:
    """A picture of what the averaged weights can do; drawn by every process, since shards cannot be used alone."""
    if run.parts.sample is None:
        return
    with _averaged(run), torch.no_grad():
        picture = run.parts.sample(run.modules, run.step)
    if run.accelerator.is_main_process:
        save_picture(run.config.out / "samples" / f"{run.step:08d}.png", picture)


@contextmanager
def _averaged(run: Run) -> Iterator[None]:
    """The networks as they are used: averaged weights, whole, not compiled for what a training never calls again."""
    average = nullcontext() if run.average is None else run.average.applied()
    with average, whole_weights(run.parts.trained), torch.compiler.set_stance("force_eager"):
        run.model.eval()
        yield
