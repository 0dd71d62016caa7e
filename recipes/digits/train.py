"""Train the digits recipe: the multi-exit net, and the smallest static net that equals it.

    python recipes/digits/train.py [--output DIR]

Writes `digits.safetensors`, `static.safetensors`, `training.json` and a few test images under
`samples/`. Runs on one CPU thread: on one machine, every run writes the same weights.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import data
import model
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save
from torch import Tensor, nn

SEED = 7
EPOCHS = 45
BATCH = 64
PEAK_RATE = 4e-3
WEIGHT_DECAY = 1e-2

# Augmentation, each drawn uniformly from plus or minus this much.
ROTATION = math.radians(12)
ZOOM = 0.12
SHIFT = 0.14  # of half the image: a little over 2 of 32 pixels

EXIT_WEIGHTS = (0.7, 0.8, 0.9, 1.0)
DISTILLATION = 0.5
TEMPERATURE = 3.0

# (width, depth) of the static nets tried, by number of parameters.
LADDER = ((2, 2), (4, 2), (4, 3), (8, 2), (8, 3), (16, 2), (16, 3), (16, 4), (24, 4), (32, 4))

# Far more would leave at the first exit without harm; the surest three quarters are enough to be
# fast, and leave a sample for every exit to show what it does.
LEAVING = 0.75
THRESHOLD_RULE = (
    f"per early exit, in order: the surest {LEAVING:.0%} of the tuning images that get this far"
    " leave, less those that are no surer than one that this exit gets wrong and the last exit"
    " right; midway between two confidences"
)
SAMPLES = 8


def augment(images: Tensor, generator: torch.Generator) -> Tensor:
    """Rotate, zoom and shift each of float32 [batch, 1, 32, 32], black being 0, at random."""
    draws = torch.rand(len(images), 4, generator=generator) * 2 - 1
    angle, zoom = draws[:, 0] * ROTATION, 1 + draws[:, 1] * ZOOM
    cos, sin = torch.cos(angle) * zoom, torch.sin(angle) * zoom
    shift_x, shift_y = (draws[:, 2:] * SHIFT).unbind(1)
    rows = torch.stack([cos, -sin, shift_x, sin, cos, shift_y], dim=1)
    grid = F.affine_grid(rows.view(-1, 2, 3), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, align_corners=False)


def multi_exit_loss(logits: list[Tensor], labels: Tensor) -> Tensor:
    """Weighted cross-entropy of every exit, plus what each early exit can learn from the last."""
    loss = torch.zeros(())
    teacher = F.log_softmax(logits[-1].detach() / TEMPERATURE, dim=1)
    for exit_logits, weight in zip(logits, EXIT_WEIGHTS, strict=True):
        loss = loss + weight * F.cross_entropy(exit_logits, labels)
        if exit_logits is not logits[-1]:
            student = F.log_softmax(exit_logits / TEMPERATURE, dim=1)
            divergence = F.kl_div(student, teacher, reduction="batchmean", log_target=True)
            loss = loss + weight * DISTILLATION * TEMPERATURE**2 * divergence
    return loss


def fit(name: str, build: Callable[[], nn.Module], loss_of: Callable[..., Tensor]) -> nn.Module:
    """Build a net from the fixed seed, train it on `train` and `calibration`, set it to eval."""
    torch.manual_seed(SEED)
    generator = torch.Generator().manual_seed(SEED)
    net = build()
    splits = [data.load("train"), data.load("calibration")]
    pixels = torch.from_numpy(np.concatenate([images for images, _ in splits]))
    images = pixels.unsqueeze(1).float() / 255
    labels = torch.from_numpy(np.concatenate([labels for _, labels in splits]))

    optimizer = torch.optim.AdamW(net.parameters(), lr=PEAK_RATE, weight_decay=WEIGHT_DECAY)
    steps = math.ceil(len(images) / BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=PEAK_RATE, epochs=EPOCHS, steps_per_epoch=steps
    )
    start = time.perf_counter()
    net.train()
    for epoch in range(1, EPOCHS + 1):
        total = 0.0
        for batch in torch.randperm(len(images), generator=generator).split(BATCH):
            inputs = (augment(images[batch], generator) - data.MEAN) / data.STD
            loss = loss_of(net(inputs), labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item() * len(batch)
        if epoch % 5 == 0 or epoch == EPOCHS:
            seconds = time.perf_counter() - start
            mean = total / len(images)
            print(f"{name}: epoch {epoch}/{EPOCHS}, loss {mean:.4f}, {seconds:.0f} s", flush=True)
    return net.eval()


@torch.inference_mode()
def probabilities(net: nn.Module, split: str) -> tuple[Tensor, Tensor]:
    """Return a net's softmax on a split, float64 [exits, N, 10], and the labels, int64 [N]."""
    images, labels = data.load(split)
    logits = net(torch.from_numpy(data.normalize(images)))
    stacked = torch.stack(logits if isinstance(logits, list) else [logits])
    return stacked.double().softmax(dim=2), torch.from_numpy(labels)


def accuracies(probs: Tensor, labels: Tensor) -> list[float]:
    """Return the accuracy of each exit from its softmax, [exits, N, 10]."""
    correct = (probs.argmax(dim=2) == labels).double().mean(dim=1)
    return [round(value, 5) for value in correct.tolist()]


def choose_thresholds(probs: Tensor, labels: Tensor) -> list[float]:
    """Apply THRESHOLD_RULE to the softmax on the tuning split, [exits, N, 10]."""
    confidence, predicted = probs.max(dim=2)
    correct = predicted == labels
    waiting = torch.ones(len(labels), dtype=torch.bool)
    thresholds = []
    for early in range(len(probs) - 1):
        harmed = waiting & ~correct[early] & correct[-1]
        worst = confidence[early][harmed].max().item() if harmed.any() else 0.0
        ranked = confidence[early][waiting].sort(descending=True).values.tolist()
        leaving = min(round(LEAVING * len(ranked)), sum(value > worst for value in ranked))
        below = ranked[leaving] if leaving < len(ranked) else 0.0
        above = ranked[leaving - 1] if leaving else 1.0
        threshold = (above + below) / 2
        thresholds.append(threshold)
        waiting &= confidence[early] < threshold
    return thresholds


def exits_taken(probs: Tensor, thresholds: list[float]) -> Tensor:
    """Return the first exit whose top softmax reaches its threshold, else the last, int64 [N]."""
    limits = torch.tensor([*thresholds, 0.0], dtype=torch.float64)
    confident = probs.amax(dim=2) >= limits.unsqueeze(1)
    return confident.int().argmax(dim=0)


def chain_report(probs: Tensor, labels: Tensor, thresholds: list[float]) -> dict[str, Any]:
    """Return the accuracy and the share of images leaving at each exit under early stopping."""
    taken = exits_taken(probs, thresholds)
    predicted = probs.argmax(dim=2)[taken, torch.arange(len(labels))]
    counts = torch.bincount(taken, minlength=len(probs))
    return {
        "accuracy": round((predicted == labels).double().mean().item(), 5),
        "exit_counts": counts.tolist(),
        "exit_rates": [round(count / len(labels), 5) for count in counts.tolist()],
    }


def write_samples(probs: Tensor, labels: Tensor, thresholds: list[float], folder: Path) -> None:
    """Write SAMPLES test images as PNG, as evenly as possible from those leaving at each exit.

    Of the images leaving at an exit, those that it gets right come first.
    """
    images, _ = data.load("test")
    taken = exits_taken(probs, thresholds)
    wrong = probs.argmax(dim=2)[taken, torch.arange(len(labels))] != labels
    order = torch.argsort(wrong.int(), stable=True)
    queues = [order[taken[order] == k].tolist() for k in range(len(probs))]
    chosen: list[int] = []
    while len(chosen) < SAMPLES:
        chosen += [queue.pop(0) for queue in queues if queue]
    folder.mkdir(parents=True, exist_ok=True)
    for stale in folder.glob("test-*-label-*.png"):
        stale.unlink()
    for index in chosen[:SAMPLES]:
        path = folder / f"test-{index:03d}-label-{labels[index]}.png"
        Image.fromarray(images[index]).save(path)


def parameter_count(net: nn.Module) -> int:
    """Return how many numbers training sets; batch norm's running statistics come on top."""
    return sum(parameter.numel() for parameter in net.parameters())


def save_weights(net: nn.Module, path: Path) -> None:
    """Write a net's state dict as safetensors."""
    path.write_bytes(save(net.state_dict()))


def main() -> None:
    """Train both nets and write what came of it."""
    parser = argparse.ArgumentParser(description="Train the networks of the digits recipe.")
    parser.add_argument("--output", type=Path, default=Path(__file__).resolve().parent)
    output: Path = parser.parse_args().output
    output.mkdir(parents=True, exist_ok=True)
    # How a sum is split over threads decides how it rounds.
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)

    start = time.perf_counter()
    chain = fit("multi-exit", model.multi_exit, multi_exit_loss)
    tuning, tuning_labels = probabilities(chain, "tuning")
    test, test_labels = probabilities(chain, "test")
    thresholds = choose_thresholds(tuning, tuning_labels)
    chain_tuning = chain_report(tuning, tuning_labels, thresholds)
    chain_test = chain_report(test, test_labels, thresholds)
    multi_exit_seconds = time.perf_counter() - start
    print(f"thresholds {thresholds}, tuning {chain_tuning}, test {chain_test}", flush=True)

    ladder: list[dict[str, Any]] = []
    for width, depth in LADDER:
        name = f"static {width}x{depth}"
        static = fit(name, partial(model.static, width, depth), F.cross_entropy)
        [tuning_accuracy] = accuracies(*probabilities(static, "tuning"))
        [test_accuracy] = accuracies(*probabilities(static, "test"))
        rung = {
            "width": width,
            "depth": depth,
            "parameters": parameter_count(static),
            "tuning_accuracy": tuning_accuracy,
            "test_accuracy": test_accuracy,
        }
        ladder.append(rung)
        print(rung, flush=True)
        if tuning_accuracy >= chain_tuning["accuracy"]:
            break
    else:
        print("no static net reaches the chain's tuning accuracy: keeping the largest")

    seconds = time.perf_counter() - start
    report = {
        "seed": SEED,
        "torch": torch.__version__,
        "epochs": EPOCHS,
        "seconds": {
            "multi_exit": round(multi_exit_seconds, 1),
            "total": round(seconds, 1),
        },
        "multi_exit": {
            "parameters": parameter_count(chain),
            "tuning_accuracy": accuracies(tuning, tuning_labels),
            "test_accuracy": accuracies(test, test_labels),
            "thresholds": thresholds,
            "threshold_rule": THRESHOLD_RULE,
            "chain": {"tuning": chain_tuning, "test": chain_test},
        },
        "static": {"arguments": {"width": width, "depth": depth}, "ladder": ladder},
    }
    save_weights(chain, output / "digits.safetensors")
    save_weights(static, output / "static.safetensors")
    write_samples(test, test_labels, thresholds, output / "samples")
    (output / "training.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print(f"wrote {output} in {seconds:.0f} s")


if __name__ == "__main__":
    main()
