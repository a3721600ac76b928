"""One training loop for every model: data and a configuration in, a checkpoint and a metrics file out.

Each epoch adds one line to `metrics.jsonl`: loss, accuracy, learning rate and the gradient norm of every layer, the evidence
for or against vanishing gradients. The run continues exactly from `checkpoint.pt`: weights, averaged weights, optimizer, schedule,
random state.
"""

import bisect
import json
import math
import random
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm

from models.data.batch import Batch

Precision = Literal["auto", "bf16", "fp32"]


class TrainingData(Protocol):
    """What the loop asks of a data set; `size` is the image size of the phase (0 for text)."""

    def __len__(self) -> int: ...

    def batches(self, epoch: int, batch_size: int, size: int, /) -> Iterator[Batch]: ...

    def selection_batches(self, batch_size: int, size: int, /) -> Iterator[Batch]: ...


@dataclass(frozen=True)
class Phase:
    """So many epochs at one input size (progressive resizing: small images first)."""

    epochs: int
    size: int = 0


@dataclass(frozen=True)
class TrainingConfig:
    """Everything that, with the data and the seed, determines a run.

    With `consistency` above 0 every batch runs twice under different dropout, and the loss grows by that factor times the symmetric
    Kullback-Leibler divergence of both outcomes (R-Drop, Liang et al. 2021, arXiv:2106.14448, equations 1 to 4).

    The learning rate is Smith's one cycle (arXiv:1708.07120) with cosine flanks: up to `peak_lr` over `warmup` of all steps, then
    down to zero. After each of `restarts`, a number of epochs, another cycle begins whose peak is `restart_decay` times the last
    (warm restarts, Loshchilov and Hutter, arXiv:1608.03983). Weight decay is decoupled (AdamW, arXiv:1711.05101) and spares
    vectors (biases, gamma, beta).
    """

    phases: tuple[Phase, ...]
    batch_size: int = 64
    peak_lr: float = 3e-3
    weight_decay: float = 0.05
    warmup: float = 0.25
    restarts: tuple[int, ...] = ()
    restart_decay: float = 1.0
    label_smoothing: float = 0.1
    clip_norm: float = 0.0  # 0: no clipping
    consistency: float = 0.0  # 0: every batch runs once
    ema_decay: float = 0.998
    seed: int = 0
    precision: Precision = "auto"
    channels_last: bool = False

    @property
    def epochs(self) -> int:
        return sum(phase.epochs for phase in self.phases)

    def size_at(self, epoch: int) -> int:
        for phase in self.phases:
            if epoch < phase.epochs:
                return phase.size
            epoch -= phase.epochs
        return self.phases[-1].size

    def learning_rate(self, epochs: float) -> float:
        """The learning rate after so many `epochs`, 0 to all of them, whole or not."""
        cycle = bisect.bisect_right(self.restarts, epochs)
        start, end = (0, *self.restarts)[cycle], (*self.restarts, self.epochs)[cycle]
        progress, peak = (epochs - start) / (end - start), self.peak_lr * self.restart_decay**cycle
        if progress < self.warmup:
            return peak * (0.04 + 0.96 * (1 - math.cos(math.pi * progress / self.warmup)) / 2)
        return peak * (1 + math.cos(math.pi * (progress - self.warmup) / (1 - self.warmup))) / 2


def choose_precision(precision: Precision, device: torch.device) -> torch.dtype:
    """bfloat16 or float32. `auto` measures on a CPU: those without bfloat16 units emulate it, many times slower than float32."""
    if precision != "auto":
        return torch.bfloat16 if precision == "bf16" else torch.float32
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    seconds: dict[torch.dtype, float] = {}
    for dtype in (torch.float32, torch.bfloat16):
        a = torch.ones(256, 256, dtype=dtype)
        for _ in range(4):  # the first product chooses a kernel; the fastest was disturbed least
            start = time.perf_counter()
            (a @ a).sum().item()
            seconds[dtype] = min(seconds.get(dtype, math.inf), time.perf_counter() - start)
    return min(seconds, key=lambda dtype: seconds[dtype])


@dataclass
class GradientNorms:
    """L2 norm of the gradient of every layer (module with parameters), averaged over the steps of an epoch."""

    layers: dict[str, list[int]]  # module path -> positions of its parameters
    total: Tensor
    steps: int = 0

    @classmethod
    def of(cls, model: nn.Module) -> "GradientNorms":
        layers: dict[str, list[int]] = {}
        names = [name for name, _ in model.named_parameters()]
        for i, name in enumerate(names):
            layers.setdefault(name.rpartition(".")[0] or name, []).append(i)
        return cls(layers, torch.zeros(len(layers)))

    def add(self, parameters: list[nn.Parameter]) -> None:
        """Takes the gradients of one step."""
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        squares = torch.stack(torch._foreach_norm(gradients)).float().cpu().square()
        self.total += torch.stack([squares[positions].sum().sqrt() for positions in self.layers.values()])
        self.steps += 1

    def mean(self) -> dict[str, float]:
        average = self.total / max(self.steps, 1)
        return {name: float(f"{value:.4g}") for name, value in zip(self.layers, average.tolist(), strict=True)}


@dataclass
class Evaluation:
    """Logits float32 (n, classes) and labels int64 (n,) of a data set, in its order."""

    logits: Tensor
    labels: Tensor
    loss: float = field(init=False)
    accuracy: float = field(init=False)

    def __post_init__(self) -> None:
        self.loss = F.cross_entropy(self.logits, self.labels).item()
        self.accuracy = (self.logits.argmax(1) == self.labels).float().mean().item()


@torch.no_grad()
def evaluate_batches(model: nn.Module, batches: Iterator[Batch], device: torch.device) -> Evaluation:
    """Runs the model in float32 over the batches."""
    model.eval()
    logits, labels = [], []
    for inputs, target in batches:
        logits.append(model(*(torch.from_numpy(x).to(device) for x in inputs)).float().cpu())
        labels.append(torch.from_numpy(target))
    return Evaluation(torch.cat(logits), torch.cat(labels))


def symmetric_divergence(a: Tensor, b: Tensor) -> Tensor:
    """(KL(p || q) + KL(q || p)) / 2 of p = softmax(a), q = softmax(b), logits (B, classes), averaged over the batch."""
    log_p, log_q = a.log_softmax(-1), b.log_softmax(-1)
    return ((log_p.exp() - log_q.exp()) * (log_p - log_q)).sum(-1).mean() / 2


def seed_everything(seed: int) -> None:
    """Seeds every random state that training draws from."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def _parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim <= 1]
    return [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]


class DivergedError(ValueError):
    """Training cannot go on: its loss is infinite or no number."""


class Trainer:
    """Trains one model; `run()` goes on to the last epoch, from the start or from where `resume()` took it up.

    Raises:
        ValueError: the data does not fill one batch.
    """

    def __init__(self, model: nn.Module, data: TrainingData, config: TrainingConfig, folder: Path, device: torch.device) -> None:
        self.data, self.config, self.folder, self.device = data, config, folder, device
        self.dtype = choose_precision(config.precision, device)
        self.model = model.to(device)
        if config.channels_last:
            self.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stubs lack it
        average = get_ema_multi_avg_fn(config.ema_decay)  # type: ignore[no-untyped-call]  # torch leaves it untyped
        self.averaged = AveragedModel(self.model, multi_avg_fn=average, use_buffers=True)
        self.optimizer = torch.optim.AdamW(
            _parameter_groups(self.model, config.weight_decay), lr=config.peak_lr, betas=(0.9, 0.99), eps=1e-6, fused=True
        )
        self.records: list[dict[str, Any]] = []
        if len(data) < config.batch_size:
            raise ValueError(f"{len(data)} samples do not fill one batch of {config.batch_size}; choose a smaller batch_size")
        folder.mkdir(parents=True, exist_ok=True)

    @property
    def epoch(self) -> int:
        """Number of epochs that are done."""
        return len(self.records)

    @property
    def checkpoint(self) -> Path:
        return self.folder / "checkpoint.pt"

    def resume(self) -> None:
        """Continues from the checkpoint of the folder.

        Raises:
            FileNotFoundError: there is none.
            ValueError: it was written under another configuration.
        """
        if not self.checkpoint.exists():
            raise FileNotFoundError(f"nothing to resume: {self.checkpoint} does not exist; train without --resume")
        state = torch.load(self.checkpoint, map_location=self.device, weights_only=True)
        if state["config"] != json.dumps(asdict(self.config)):
            raise ValueError(f"{self.checkpoint} was written with other settings: {state['config']}; use those or another folder")
        self.model.load_state_dict(state["model"])
        self.averaged.load_state_dict(state["averaged"])
        self.optimizer.load_state_dict(state["optimizer"])
        torch.set_rng_state(state["random"].cpu())
        if state["random_cuda"]:
            torch.cuda.set_rng_state_all([each.cpu() for each in state["random_cuda"]])
        self.dtype = torch.bfloat16 if state["bf16"] else torch.float32
        self.records = json.loads(state["records"])

    def save(self) -> None:
        """Writes the checkpoint and, from the records in it, the metrics file; a crash in between leaves the previous one."""
        state = {
            "config": json.dumps(asdict(self.config)),
            "model": self.model.state_dict(),
            "averaged": self.averaged.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "random": torch.get_rng_state(),
            "random_cuda": torch.cuda.get_rng_state_all() if self.device.type == "cuda" else [],
            "bf16": self.dtype is torch.bfloat16,
            "records": json.dumps(self.records),
        }
        part = self.checkpoint.with_suffix(".part")
        torch.save(state, part)
        part.replace(self.checkpoint)
        (self.folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in self.records))

    def run(self) -> nn.Module:
        """Trains to the last epoch and returns the weights that do better on the selection data: trained or averaged.

        Raises:
            DivergedError: the loss is no number any more; the last checkpoint stays.
        """
        while self.epoch < self.config.epochs:
            self.records.append(self._train_epoch())
            self.save()
        size = self.config.size_at(self.config.epochs)
        scores = []
        for candidate in (self.model, self.averaged.module):
            evaluation = evaluate_batches(candidate, self.data.selection_batches(64, size), self.device)
            scores.append((evaluation.accuracy, -evaluation.loss))
        return self.averaged.module if scores[1] > scores[0] else self.model

    def _train_epoch(self) -> dict[str, Any]:
        config, size = self.config, self.config.size_at(self.epoch)
        steps = len(self.data) // config.batch_size
        parameters = list(self.model.parameters())
        norms = GradientNorms.of(self.model)
        seen, correct, loss_sum, start = 0, 0, 0.0, time.monotonic()
        self.model.train()
        bar = tqdm(
            self.data.batches(self.epoch, config.batch_size, size),
            total=steps,
            desc=f"epoch {self.epoch + 1}/{config.epochs}" + (f" at {size} px" if size else ""),
            mininterval=2,
        )
        for step, (inputs, labels) in enumerate(bar):
            rate = config.learning_rate(self.epoch + step / steps)
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            loss, hits = self._step(inputs, torch.from_numpy(labels).to(self.device), parameters, norms)
            if not math.isfinite(loss):  # every later one would be, too
                raise DivergedError(
                    f"the loss became {loss} in epoch {self.epoch + 1}, step {step + 1}, at learning rate {rate:.2g}; what it has "
                    f"learned before is in {self.checkpoint}; lower peak_lr in models/recipes.py, or train in float32"
                )
            seen, correct, loss_sum = seen + len(labels), correct + hits, loss_sum + loss * len(labels)
            bar.set_postfix(loss=f"{loss_sum / seen:.3f}", accuracy=f"{correct / seen:.3f}")
        selection = evaluate_batches(self.model, self.data.selection_batches(64, size), self.device)
        return {
            "epoch": self.epoch + 1,
            "size": size,
            "precision": str(self.dtype).removeprefix("torch."),
            "learning_rate": rate,
            "loss": round(loss_sum / seen, 5),
            "accuracy": round(correct / seen, 5),
            "selection_loss": round(selection.loss, 5),
            "selection_accuracy": round(selection.accuracy, 5),
            "seconds": round(time.monotonic() - start, 1),
            "gradient_norm": norms.mean(),
        }

    def _step(
        self, inputs: tuple[NDArray[Any], ...], labels: Tensor, parameters: list[nn.Parameter], norms: GradientNorms
    ) -> tuple[float, int]:
        tensors = [torch.from_numpy(x).to(self.device) for x in inputs]
        if self.config.channels_last:
            tensors = [x.contiguous(memory_format=torch.channels_last) for x in tensors]
        if self.config.consistency:
            tensors, labels = [torch.cat([x, x]) for x in tensors], torch.cat([labels, labels])
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype is not torch.float32):
            logits = self.model(*tensors).float()
        loss = F.cross_entropy(logits, labels, label_smoothing=self.config.label_smoothing)
        if self.config.consistency:
            loss = loss + self.config.consistency * symmetric_divergence(*logits.chunk(2))
        loss.backward()  # type: ignore[no-untyped-call]  # torch's stubs leave it untyped
        norms.add(parameters)
        if self.config.clip_norm:
            nn.utils.clip_grad_norm_(parameters, self.config.clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.averaged.update_parameters(self.model)
        hits = (logits.argmax(1) == labels).float().mean() * (len(labels) // (2 if self.config.consistency else 1))
        return loss.item(), round(hits.item())
