"""Train the glyphs recipe.

    python recipes/glyphs/train.py [--output DIR] [--epochs N]

Writes `glyphs.safetensors`, `training.json` and a few test images under `samples/`. Every image is
drawn once; what varies from epoch to epoch is a shift by a pixel or two.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path

import data
import model
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save
from torch import Tensor, nn

SEED = 7
EPOCHS = 8
BATCH = 96
PEAK_RATE = 4e-3
WEIGHT_DECAY = 1e-2
SHIFT = 2  # pixels, at most

EXIT_WEIGHTS = (0.7, 0.8, 0.9, 1.0)
DISTILLATION = 0.5
TEMPERATURE = 3.0

SAMPLES = 8


def loss_of(logits: list[Tensor], labels: Tensor) -> Tensor:
    """Weighted cross-entropy of every exit, plus what each early exit can learn from the last."""
    teacher = F.log_softmax(logits[-1].detach() / TEMPERATURE, dim=1)
    loss = torch.zeros(())
    for index, (one, weight) in enumerate(zip(logits, EXIT_WEIGHTS, strict=True)):
        loss = loss + weight * F.cross_entropy(one, labels)
        if index < len(logits) - 1:
            student = F.log_softmax(one / TEMPERATURE, dim=1)
            divergence = F.kl_div(student, teacher, reduction="batchmean", log_target=True)
            loss = loss + weight * DISTILLATION * TEMPERATURE**2 * divergence
    return loss


def fit(epochs: int) -> nn.Module:
    """Build the net from the fixed seed, train it on `train`, set it to eval."""
    torch.manual_seed(SEED)
    net = model.glyphs()
    pixels, classes = data.load("train")
    images, labels = torch.from_numpy(data.normalize(pixels)), torch.from_numpy(classes)
    padded = F.pad(images, (SHIFT,) * 4, value=-1)
    optimizer = torch.optim.AdamW(net.parameters(), lr=PEAK_RATE, weight_decay=WEIGHT_DECAY)
    steps = math.ceil(len(images) / BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=PEAK_RATE, epochs=epochs, steps_per_epoch=steps
    )
    start = time.perf_counter()
    net.train()
    for epoch in range(1, epochs + 1):
        total = 0.0
        for batch in torch.randperm(len(images)).split(BATCH):
            right, down = torch.randint(0, 2 * SHIFT + 1, (2,)).tolist()
            shifted = padded[batch, :, down : down + data.SIZE, right : right + data.SIZE]
            loss = loss_of(net(shifted), labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item() * len(batch)
        seconds = time.perf_counter() - start
        print(
            f"epoch {epoch}/{epochs}, loss {total / len(images):.4f}, {seconds:.0f} s", flush=True
        )
    return net.eval()


@torch.inference_mode()
def accuracies(net: nn.Module, split: str) -> list[float]:
    """Return the accuracy of each exit on a split."""
    images, labels = data.load(split)
    batches = torch.from_numpy(data.normalize(images)).split(500)
    logits = torch.cat([torch.stack(net(batch)) for batch in batches], dim=1)
    correct = logits.argmax(dim=2) == torch.from_numpy(labels)
    return [round(value, 5) for value in correct.double().mean(dim=1).tolist()]


def write_samples(folder: Path) -> None:
    """Write SAMPLES test images as PNG, from the easiest to the most difficult."""
    images, labels, difficulty = data.graded("test")
    order = np.argsort(difficulty)
    folder.mkdir(parents=True, exist_ok=True)
    for index in order[np.linspace(0, len(order) - 1, SAMPLES).astype(int)]:
        name = data.CLASSES[labels[index]]
        Image.fromarray(images[index]).save(folder / f"test-{index:04d}-label-{name}.png")


def main() -> None:
    """Train the net and write what came of it."""
    parser = argparse.ArgumentParser(description="Train the network of the glyphs recipe.")
    parser.add_argument("--output", type=Path, default=Path(__file__).resolve().parent)
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    options = parser.parse_args()
    output: Path = options.output
    output.mkdir(parents=True, exist_ok=True)
    # How a sum is split over threads decides how it rounds.
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    start = time.perf_counter()
    net = fit(options.epochs)
    report = {
        "seed": SEED,
        "torch": torch.__version__,
        "epochs": options.epochs,
        "seconds": round(time.perf_counter() - start, 1),
        "parameters": sum(parameter.numel() for parameter in net.parameters()),
        "tuning_accuracy": accuracies(net, "tuning"),
        "test_accuracy": accuracies(net, "test"),
    }
    (output / "glyphs.safetensors").write_bytes(save(net.state_dict()))
    write_samples(output / "samples")
    (output / "training.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
