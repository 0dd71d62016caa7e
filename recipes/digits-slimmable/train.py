"""Train the digits-slimmable recipe: all widths at once, by the sandwich rule.

    python recipes/digits-slimmable/train.py [--output DIR]

Writes `digits.safetensors` and `training.json`. Runs on one CPU thread: on one machine, every run
writes the same weights.
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
from safetensors.torch import save
from torch import Tensor, nn

from edgekit.models.slimmable import sandwich_step, set_width, slimmed

SEED = 7
EPOCHS = 24
BATCH = 32
PEAK_RATE = 4e-3
WEIGHT_DECAY = 1e-2
TEMPERATURE = 1.0

# Augmentation, each drawn uniformly from plus or minus this much.
ROTATION = math.radians(12)
ZOOM = 0.12
SHIFT = 0.14  # of half the image: a little over 2 of 32 pixels


def augment(images: Tensor, generator: torch.Generator) -> Tensor:
    """Rotate, zoom and shift each of float32 [batch, 1, 32, 32], black being 0, at random."""
    draws = torch.rand(len(images), 4, generator=generator) * 2 - 1
    angle, zoom = draws[:, 0] * ROTATION, 1 + draws[:, 1] * ZOOM
    cos, sin = torch.cos(angle) * zoom, torch.sin(angle) * zoom
    right, down = (draws[:, 2:] * SHIFT).unbind(1)
    rows = torch.stack([cos, -sin, right, sin, cos, down], dim=1).view(-1, 2, 3)
    grid = F.affine_grid(rows, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, align_corners=False)


def fit() -> nn.Module:
    """Build the net from the fixed seed, train it on `train` and `calibration`, set it to eval."""
    torch.manual_seed(SEED)
    generator = torch.Generator().manual_seed(SEED)
    net = model.slimmable()
    splits = [data.load("train"), data.load("calibration")]
    pixels = torch.from_numpy(np.concatenate([images for images, _ in splits]))
    images = pixels.unsqueeze(1).float() / 255
    labels = torch.from_numpy(np.concatenate([labels for _, labels in splits]))

    optimizer = torch.optim.AdamW(net.parameters(), lr=PEAK_RATE, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer,
        max_lr=PEAK_RATE,
        epochs=EPOCHS,
        steps_per_epoch=math.ceil(len(images) / BATCH),
    )
    start = time.perf_counter()
    net.train()
    for epoch in range(1, EPOCHS + 1):
        total = 0.0
        for batch in torch.randperm(len(images), generator=generator).split(BATCH):
            inputs = (augment(images[batch], generator) - data.MEAN) / data.STD
            optimizer.zero_grad()
            # Two widths between: of four that is all of them.
            loss = sandwich_step(
                net, inputs, labels[batch], between=2, temperature=TEMPERATURE, generator=generator
            )
            optimizer.step()
            schedule.step()
            total += loss.item() * len(batch)
        seconds = time.perf_counter() - start
        mean = total / len(images)
        print(f"epoch {epoch}/{EPOCHS}, loss {mean:.4f}, {seconds:.0f} s", flush=True)
    return net.eval()


@torch.inference_mode()
def accuracies(net: nn.Module, width: float, split: str) -> list[float]:
    """Return the accuracy of each exit at a width on a split."""
    images, labels = data.load(split)
    set_width(net, width)
    logits = torch.stack(net(torch.from_numpy(data.normalize(images))))
    correct = logits.argmax(dim=2) == torch.from_numpy(labels)
    return [round(value, 5) for value in correct.double().mean(dim=1).tolist()]


def main() -> None:
    """Train the net and write what came of it."""
    parser = argparse.ArgumentParser(description="Train the network of the recipe.")
    parser.add_argument("--output", type=Path, default=Path(__file__).resolve().parent)
    output: Path = parser.parse_args().output
    output.mkdir(parents=True, exist_ok=True)
    # How a sum is split over threads decides how it rounds.
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)

    start = time.perf_counter()
    net = fit()
    report = {
        "seed": SEED,
        "torch": torch.__version__,
        "epochs": EPOCHS,
        "seconds": round(time.perf_counter() - start, 1),
        "parameters": sum(one.numel() for one in net.parameters()),
        "widths": {
            str(width): {
                "parameters": sum(one.numel() for one in slimmed(net, width).parameters()),
                "tuning_accuracy": accuracies(net, width, "tuning"),
                "test_accuracy": accuracies(net, width, "test"),
            }
            for width in model.WIDTHS
        },
    }
    (output / "digits.safetensors").write_bytes(save(net.state_dict()))
    (output / "training.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
