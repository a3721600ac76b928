import json
import math
import random
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.data.batch import Batch
from models.training import (
    DivergedError,
    GradientNorms,
    Phase,
    Trainer,
    TrainingConfig,
    choose_precision,
    evaluate_batches,
    seed_everything,
    symmetric_divergence,
)

_CPU = torch.device("cpu")
_CONFIG = TrainingConfig(
    phases=(Phase(2, 8), Phase(2, 16)), batch_size=16, peak_lr=1e-2, ema_decay=0.9, label_smoothing=0.0, precision="fp32"
)


class _InterruptedError(Exception):
    """Stands for a crash or for Ctrl-C."""


@dataclass
class _Clusters:
    """Three clouds of points that a line between each two separates."""

    stop_in_epoch: int | None = None
    count: int = 104
    sizes: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        rng = np.random.default_rng(0)
        self.labels = rng.integers(0, 3, self.count)
        self.points = (4 * np.eye(3, 4)[self.labels] + rng.normal(size=(self.count, 4))).astype(np.float32)

    def __len__(self) -> int:
        return self.count

    def batches(self, epoch: int, batch_size: int, size: int, /) -> Iterator[Batch]:
        self.sizes.append(size)
        order = np.random.default_rng((7, epoch)).permutation(self.count)
        for i, start in enumerate(range(0, self.count - batch_size + 1, batch_size)):
            if epoch == self.stop_in_epoch and i == 2:
                raise _InterruptedError
            chosen = order[start : start + batch_size]
            yield (self.points[chosen],), self.labels[chosen]

    def selection_batches(self, batch_size: int, size: int, /) -> Iterator[Batch]:
        for start in range(0, self.count, batch_size):
            yield (self.points[start : start + batch_size],), self.labels[start : start + batch_size]


def _model(seed: int = 0) -> nn.Sequential:
    """Running moments and dropout: both are state that a resumed run must have."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, 3))


def _trainer(folder: Path, config: TrainingConfig = _CONFIG, *, stop_in_epoch: int | None = None, seed: int = 0) -> Trainer:
    return Trainer(_model(seed), _Clusters(stop_in_epoch), config, folder, _CPU)


def _metrics(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def _identical(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_a_separable_problem_is_learned(tmp_path: Path) -> None:
    """The loss falls epoch by epoch to a fraction, and the returned network tells the classes apart."""
    trainer = _trainer(tmp_path, replace(_CONFIG, phases=(Phase(8),)))
    network = trainer.run()
    losses = [record["loss"] for record in _metrics(tmp_path)]
    assert losses[-1] < 0.5 * losses[0]
    assert evaluate_batches(network, _Clusters().selection_batches(64, 0), _CPU).accuracy > 0.95


def test_a_loss_that_is_no_number_ends_the_training(tmp_path: Path) -> None:
    """In words that name the epoch; what the epochs before have learned stays."""
    trainer = _trainer(tmp_path)
    trainer.records.append(trainer._train_epoch())
    trainer.save()
    kept = trainer.checkpoint.read_bytes()
    with torch.no_grad():
        next(trainer.model.parameters()).fill_(math.nan)
    with pytest.raises(DivergedError, match="the loss became nan in epoch 2, step 1"):
        trainer.run()
    assert trainer.checkpoint.read_bytes() == kept


def test_metrics_have_a_line_for_each_epoch(tmp_path: Path) -> None:
    """Epoch, size, learning rate, losses, accuracies, seconds, and the gradient norm of every layer, finite and above 0."""
    _trainer(tmp_path).run()
    records = _metrics(tmp_path)
    assert [record["epoch"] for record in records] == [1, 2, 3, 4]
    assert [record["size"] for record in records] == [8, 8, 16, 16]
    for record in records:
        assert record.keys() >= {"loss", "accuracy", "selection_loss", "selection_accuracy", "learning_rate", "seconds"}
        assert record["gradient_norm"].keys() == {"0", "1", "4"}
        assert all(0 < norm < math.inf for norm in record["gradient_norm"].values())


def test_metrics_tell_the_learning_rate_of_the_schedule(tmp_path: Path) -> None:
    """What is written for an epoch is the rate of its last step, which is the optimizer's."""
    trainer = _trainer(tmp_path)
    trainer.run()
    steps = 104 // 16
    expected = [_CONFIG.learning_rate(epoch - 1 / steps) for epoch in (1, 2, 3, 4)]
    assert [record["learning_rate"] for record in _metrics(tmp_path)] == pytest.approx(expected)
    assert [group["lr"] for group in trainer.optimizer.param_groups] == pytest.approx([expected[-1]] * 2)


def test_data_is_asked_for_at_the_size_of_the_phase(tmp_path: Path) -> None:
    """Progressive resizing reaches the data set."""
    trainer = _trainer(tmp_path)
    trainer.run()
    assert isinstance(trainer.data, _Clusters)
    assert trainer.data.sizes == [8, 8, 16, 16]


@pytest.mark.parametrize("stop_in_epoch", [1, 2, 3])
def test_an_interrupted_run_ends_with_the_same_bits(tmp_path: Path, stop_in_epoch: int) -> None:
    """Broken off within an epoch and resumed by a fresh process, a run with dropout ends as if nothing had happened.

    Trained weights, averaged weights, running moments, metrics and the chosen network are those of the uninterrupted run.
    """
    whole = _trainer(tmp_path / "whole")
    chosen = whole.run()
    with pytest.raises(_InterruptedError):
        _trainer(tmp_path / "broken", stop_in_epoch=stop_in_epoch).run()
    resumed = _trainer(tmp_path / "broken", seed=99)  # other weights and another random state, as a fresh process has
    resumed.resume()
    assert resumed.epoch == stop_in_epoch
    chosen_again = resumed.run()
    assert _identical(whole.model.state_dict(), resumed.model.state_dict())
    assert _identical(whole.averaged.state_dict(), resumed.averaged.state_dict())
    assert _identical(chosen.state_dict(), chosen_again.state_dict())
    records, records_again = ([{**record, "seconds": 0} for record in _metrics(tmp_path / name)] for name in ("whole", "broken"))
    assert records == records_again


def test_the_random_state_is_part_of_a_run(tmp_path: Path) -> None:
    """The contrast that gives the test above its meaning: from the same weights, another random state ends elsewhere."""
    one, other = _trainer(tmp_path / "one"), _trainer(tmp_path / "other")
    one.run()
    torch.manual_seed(5)
    other.run()
    assert not _identical(one.model.state_dict(), other.model.state_dict())


def test_a_finished_run_is_only_chosen_from(tmp_path: Path) -> None:
    """Resuming after the last epoch trains no further: the same network and no new line."""
    chosen = _trainer(tmp_path).run()
    again = _trainer(tmp_path, seed=99)
    again.resume()
    assert _identical(again.run().state_dict(), chosen.state_dict())
    assert len(_metrics(tmp_path)) == 4


def test_resuming_under_other_settings_is_refused(tmp_path: Path) -> None:
    """The error names the checkpoint and the settings it was written with, and nothing is trained."""
    _trainer(tmp_path).run()
    other = _trainer(tmp_path, replace(_CONFIG, peak_lr=5e-3))
    with pytest.raises(ValueError, match=r"checkpoint.pt was written with other settings: .*\"peak_lr\": 0.01.*; use those"):
        other.resume()
    assert other.epoch == 0


def test_resuming_without_a_checkpoint_is_refused(tmp_path: Path) -> None:
    """The error says what to do instead."""
    with pytest.raises(FileNotFoundError, match=r"nothing to resume: .*does not exist; train without --resume"):
        _trainer(tmp_path / "new").resume()


def test_a_checkpoint_that_cannot_be_written_leaves_the_previous_one(tmp_path: Path) -> None:
    """It is written beside and then put in its place."""
    trainer = _trainer(tmp_path)
    trainer.save()
    before = trainer.checkpoint.read_bytes()
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint.pt", "metrics.jsonl"}
    (tmp_path / "checkpoint.part").mkdir()  # whatever is written there fails
    with pytest.raises((OSError, RuntimeError)):
        trainer.save()
    assert trainer.checkpoint.read_bytes() == before


def test_the_better_weights_are_returned(tmp_path: Path) -> None:
    """Trained or averaged, whichever does better on the selection data."""
    slow = _trainer(tmp_path / "slow", replace(_CONFIG, phases=(Phase(8),), ema_decay=0.9999))
    assert slow.run() is slow.model  # the average is still near the random weights
    trainer = _trainer(tmp_path)
    trainer.run()
    with torch.no_grad():
        for parameter in trainer.model.parameters():
            parameter.zero_()
    assert trainer.run() is trainer.averaged.module


def test_averaged_weights_are_an_exponential_moving_average(tmp_path: Path) -> None:
    """The first step's weights, then decay * average + (1 - decay) * weights after every step; running moments alike."""
    trainer = _trainer(tmp_path, replace(_CONFIG, phases=(Phase(1),)))
    expected: dict[str, Tensor] = {}

    def follow(*_: object) -> None:
        for name, value in trainer.model.state_dict().items():
            if value.is_floating_point():
                expected[name] = 0.9 * expected[name] + 0.1 * value if name in expected else value.clone()

    trainer.optimizer.register_step_post_hook(follow)
    trainer.run()
    averaged = trainer.averaged.module.state_dict()
    assert expected.keys() >= {"0.weight", "1.running_mean"}
    for name, value in expected.items():
        torch.testing.assert_close(averaged[name], value, atol=1e-5, rtol=1e-5)


def test_weight_decay_spares_vectors(tmp_path: Path) -> None:
    """Matrices decay; biases, gamma and beta do not."""
    trainer = _trainer(tmp_path)
    groups = {group["weight_decay"]: {id(p) for p in group["params"]} for group in trainer.optimizer.param_groups}
    parameters = dict(trainer.model.named_parameters())
    assert groups[_CONFIG.weight_decay] == {id(parameters[name]) for name in ("0.weight", "4.weight")}
    assert groups[0.0] == {id(parameters[name]) for name in ("0.bias", "1.weight", "1.bias", "4.bias")}


def test_gradient_norms_are_taken_before_clipping(tmp_path: Path) -> None:
    """Clipping hides no exploding gradient from the metrics."""
    _trainer(tmp_path, replace(_CONFIG, clip_norm=1e-4)).run()
    assert all(norm > 1e-3 for record in _metrics(tmp_path) for norm in record["gradient_norm"].values())


def test_bfloat16_trains_float32_weights(tmp_path: Path) -> None:
    """Under bf16 only the arithmetic is short: the loss falls and the weights stay float32."""
    network = _trainer(tmp_path, replace(_CONFIG, precision="bf16")).run()
    losses = [record["loss"] for record in _metrics(tmp_path)]
    assert losses[-1] < losses[0]
    assert {p.dtype for p in network.parameters()} == {torch.float32}


class _Pictures(_Clusters):
    """The points as images (N, 4, 6, 6)."""

    def batches(self, epoch: int, batch_size: int, size: int, /) -> Iterator[Batch]:
        for (points,), labels in super().batches(epoch, batch_size, size):
            yield (np.broadcast_to(points[:, :, None, None], (*points.shape, 6, 6)).copy(),), labels

    def selection_batches(self, batch_size: int, size: int, /) -> Iterator[Batch]:
        for (points,), labels in super().selection_batches(batch_size, size):
            yield (np.broadcast_to(points[:, :, None, None], (*points.shape, 6, 6)).copy(),), labels


def test_channels_last_changes_the_layout_and_not_the_result(tmp_path: Path) -> None:
    """The same losses within 1e-3 in both memory layouts; the weights lie in the chosen one."""
    losses = []
    for channels_last in (False, True):
        torch.manual_seed(0)
        network = nn.Sequential(
            nn.Conv2d(4, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3)
        )
        folder = tmp_path / str(channels_last)
        trainer = Trainer(network, _Pictures(), replace(_CONFIG, channels_last=channels_last), folder, _CPU)
        trainer.run()
        assert trainer.model.get_parameter("0.weight").is_contiguous(memory_format=torch.channels_last) == channels_last
        losses.append([record["loss"] for record in _metrics(folder)])
    assert losses[0] == pytest.approx(losses[1], abs=1e-3)


def test_divergence_is_the_mean_of_both_directions() -> None:
    """(KL(p || q) + KL(q || p)) / 2 averaged over the batch, as torch's kl_div says; 0 for equal logits, also at infinite odds."""
    torch.manual_seed(0)
    a, b = torch.randn(5, 4) * 3, torch.randn(5, 4) * 3
    log_p, log_q = a.log_softmax(-1), b.log_softmax(-1)
    both = [F.kl_div(x, y, reduction="batchmean", log_target=True) for x, y in ((log_q, log_p), (log_p, log_q))]
    torch.testing.assert_close(symmetric_divergence(a, b), torch.stack(both).mean(), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(symmetric_divergence(a, b), symmetric_divergence(b, a))
    assert symmetric_divergence(a, a + 7).item() == pytest.approx(0, abs=1e-6)
    extreme = torch.tensor([[1e4, 0.0]])
    assert symmetric_divergence(extreme, extreme).item() == 0


def test_consistency_changes_nothing_without_dropout(tmp_path: Path) -> None:
    """Two runs of a deterministic network agree: losses, accuracies and gradient norms are those of one run, within 1e-3."""
    records = []
    for consistency in (0.0, 2.0):
        torch.manual_seed(0)
        network = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 3))
        folder = tmp_path / str(consistency)
        Trainer(network, _Clusters(), replace(_CONFIG, consistency=consistency), folder, _CPU).run()
        records.append(_metrics(folder))
    for once, twice in zip(*records, strict=True):
        assert once["loss"] == pytest.approx(twice["loss"], abs=1e-3)
        assert once["accuracy"] == pytest.approx(twice["accuracy"], abs=1e-3)
        assert once["gradient_norm"] == pytest.approx(twice["gradient_norm"], rel=1e-2)


def test_consistency_draws_the_outcomes_under_dropout_together(tmp_path: Path) -> None:
    """After training with it, two passes under different dropout diverge less than after training without it."""
    divergences = []
    for consistency in (0.0, 4.0):
        trainer = _trainer(tmp_path / str(consistency), replace(_CONFIG, phases=(Phase(6),), consistency=consistency))
        trainer.run()
        network, points = trainer.model.train(), torch.from_numpy(_Clusters().points)
        torch.manual_seed(1)
        with torch.no_grad():
            divergences.append(sum(symmetric_divergence(network(points), network(points)).item() for _ in range(10)))
        assert _metrics(tmp_path / str(consistency))[-1]["selection_accuracy"] > 0.9
    assert divergences[1] < 0.7 * divergences[0]


def test_gradient_norm_of_a_layer_covers_its_parameters() -> None:
    """sqrt(sum of squares over weight and bias), averaged over the steps; 0 for a layer that got no gradient."""
    torch.manual_seed(0)
    model = nn.ModuleDict({"used": nn.Linear(3, 2), "idle": nn.Linear(3, 2)})
    norms, expected = GradientNorms.of(model), []
    for _ in range(3):
        model.zero_grad()
        model["used"](torch.randn(4, 3)).square().sum().backward()
        gradients = [p.grad for p in model["used"].parameters() if p.grad is not None]
        expected.append(torch.cat([g.flatten() for g in gradients]).norm().item())
        norms.add(list(model.parameters()))
    assert norms.mean() == {"used": pytest.approx(sum(expected) / 3, rel=1e-3), "idle": 0.0}


def test_gradient_norms_name_parameters_of_the_network_itself() -> None:
    """A parameter that belongs to no layer is listed under its own name; without steps every norm is 0."""
    model = nn.Linear(2, 1)
    assert GradientNorms.of(model).mean() == {"weight": 0.0, "bias": 0.0}


def test_the_learning_rate_goes_up_to_its_peak_and_down_to_zero() -> None:
    """4 % of the peak at the start, the peak at the end of the warm-up, 0 at the end; monotonic and without a jump."""
    config = replace(_CONFIG, phases=(Phase(1),), peak_lr=0.5, warmup=0.3)
    assert config.learning_rate(0) == pytest.approx(0.02)
    assert config.learning_rate(0.3) == pytest.approx(0.5)
    assert config.learning_rate(0.65) == pytest.approx(0.25)
    assert config.learning_rate(1) == pytest.approx(0)
    rates = np.array([config.learning_rate(epochs) for epochs in np.linspace(0, 1, 1001)])
    assert (np.diff(rates[:301]) > 0).all()
    assert (np.diff(rates[300:]) < 0).all()
    assert abs(np.diff(rates)).max() < 0.005
    assert rates.max() == pytest.approx(0.5)


def test_without_warm_up_the_learning_rate_begins_at_its_peak() -> None:
    """No division by zero."""
    config = replace(_CONFIG, phases=(Phase(1),), peak_lr=0.5, warmup=0.0)
    assert config.learning_rate(0) == pytest.approx(0.5)
    assert config.learning_rate(1) == pytest.approx(0)


def test_a_restart_begins_a_cycle_with_a_lower_peak() -> None:
    """Epochs before it and after it are a cycle each, with a warm-up of its own and zero at its end."""
    config = replace(_CONFIG, phases=(Phase(4), Phase(2)), peak_lr=0.5, warmup=0.5, restarts=(4,), restart_decay=0.6)
    assert config.learning_rate(2) == pytest.approx(0.5)
    assert config.learning_rate(4 - 1e-9) == pytest.approx(0)
    assert config.learning_rate(4) == pytest.approx(0.04 * 0.3)
    assert config.learning_rate(5) == pytest.approx(0.3)
    assert config.learning_rate(6) == pytest.approx(0)


def test_sizes_follow_the_phases() -> None:
    """Each epoch has the size of its phase; after the last epoch that of the last phase."""
    config = replace(_CONFIG, phases=(Phase(2, 48), Phase(1, 64), Phase(3, 96)))
    assert config.epochs == 6
    assert [config.size_at(epoch) for epoch in range(8)] == [48, 48, 64, 96, 96, 96, 96, 96]


def test_precision_is_what_was_asked_for() -> None:
    """`bf16` and `fp32` are taken as they are; `auto` decides between the two."""
    assert choose_precision("bf16", _CPU) is torch.bfloat16
    assert choose_precision("fp32", _CPU) is torch.float32
    assert choose_precision("auto", _CPU) in (torch.bfloat16, torch.float32)


def test_evaluation_runs_in_eval_mode_and_keeps_the_order() -> None:
    """Logits float32 as the network gives them without dropout and with running moments; loss and accuracy of all samples."""
    model, data = _model().train(), _Clusters()
    evaluation = evaluate_batches(model, data.selection_batches(10, 0), _CPU)
    labels = torch.from_numpy(data.labels)
    with torch.no_grad():
        expected = model.eval()(torch.from_numpy(data.points))
    torch.testing.assert_close(evaluation.logits, expected, atol=1e-5, rtol=1e-5)
    assert torch.equal(evaluation.labels, labels)
    assert evaluation.loss == pytest.approx(F.cross_entropy(expected, labels).item(), abs=1e-5)
    assert evaluation.accuracy == pytest.approx((expected.argmax(1).numpy() == data.labels).mean())


def test_seeding_covers_every_source_of_chance() -> None:
    """After the same seed Python, numpy and torch draw the same numbers."""

    def draw() -> tuple[float, float, float]:
        seed_everything(3)
        return random.random(), float(np.random.rand()), torch.rand(()).item()

    assert draw() == draw()
