"""The recipe of examples/speedrun_cifar10.py in PyTorch, written independently: a yardstick.

    python benchmarks/speedrun_peer.py --data DIR                    # float32
    python benchmarks/speedrun_peer.py --data DIR --bf16             # under bfloat16 autocast
    python benchmarks/speedrun_peer.py --data DIR --limit 2000 --batch-size 500 --epochs 1

It reads CIFAR-10 with gpucnn's reader, prints each epoch's loss, seconds of training and accuracy
on the test images, then the seconds of training alone, and the accuracy with six views of each.
"""

import argparse
import math
import time
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from gpucnn import data

DECAY, SMOOTHING, WHITENING_EPOCHS = 2e-6, 0.2, 3
Prediction = Callable[[torch.Tensor], torch.Tensor]


class Block(nn.Module):
    """Convolution, pooling, normalisation, GELU; then the same without pooling."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(before, after, 3, padding=1, bias=False)
        self.second = nn.Conv2d(after, after, 3, padding=1, bias=False)
        self.norms = nn.ModuleList(nn.BatchNorm2d(after, 1e-12, 0.4) for _ in range(2))
        for conv, norm in zip((self.first, self.second), self.norms, strict=True):
            nn.init.dirac_(conv.weight.data[: conv.in_channels])
            norm.weight.requires_grad = False

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.gelu(self.norms[0](F.max_pool2d(self.first(x), 2)))
        return F.gelu(self.norms[1](self.second(x)))


class Network(nn.Module):
    def __init__(self, whitening: torch.Tensor, classes: int) -> None:
        super().__init__()
        self.whiten = nn.Conv2d(3, len(whitening), 2)
        self.whiten.weight.data.copy_(whitening)
        self.whiten.weight.requires_grad = False
        self.blocks = nn.Sequential(Block(len(whitening), 64), Block(64, 256), Block(256, 256))
        self.head = nn.Linear(256, classes, bias=False)
        self.head.weight.data /= self.head.weight.data.std()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.blocks(F.gelu(self.whiten(x)))
        return self.head(F.max_pool2d(x, 3).flatten(1)) / 256


def whitening_filters(images: torch.Tensor, eps: float = 5e-4) -> torch.Tensor:
    """(24, 3, 2, 2): eigenvectors of the covariance of 2x2 patches, over their deviations."""
    patches = F.unfold(images, 2).transpose(1, 2).reshape(-1, 12).double()
    values, vectors = torch.linalg.eigh(patches.T @ patches / len(patches))
    filters = (vectors / (values + eps).sqrt()).T.flip(0).reshape(12, 3, 2, 2)
    return torch.cat([filters, -filters]).float()


class Muon(torch.optim.Optimizer):
    def __init__(self, params: list[nn.Parameter], lr: float, momentum: float) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                state = self.state[p]
                if not state:
                    state["velocity"] = torch.zeros_like(p)
                velocity = state["velocity"].mul_(group["momentum"]).add_(p.grad)
                d = p.grad + group["momentum"] * velocity
                p.mul_(math.sqrt(len(p)) / p.norm())
                p.sub_(orthogonal(d.flatten(1)).view_as(p), alpha=group["lr"])


def orthogonal(d: torch.Tensor, steps: int = 3) -> torch.Tensor:
    """d (rows, columns), its singular values moved towards 1; rows are at most columns here."""
    x = d / (d.norm() + 1e-7)
    for _ in range(steps):
        square = x @ x.T
        x = 3.4445 * x + (-4.7750 * square + 2.0315 * square @ square) @ x
    return x


def optimizers(model: Network, batch: int) -> tuple[torch.optim.SGD, Muon]:
    """For biases and the last layer, and for the filters; the loss is the sum over a batch."""
    trained = [p for p in model.parameters() if p.requires_grad]
    biases = [p for p in trained if p.ndim == 1 and p is not model.whiten.bias]
    rates = [([model.whiten.bias], 0.053), (biases, 0.053), ([model.head.weight], 0.67)]
    groups = [
        {"params": params, "lr": lr, "weight_decay": DECAY * batch / lr} for params, lr in rates
    ]
    sgd = torch.optim.SGD(groups, momentum=0.85, nesterov=True)
    return sgd, Muon([p for p in trained if p.ndim == 4], 0.24, 0.6)


def augmented(images: torch.Tensor, order: torch.Tensor, rng: torch.Generator) -> torch.Tensor:
    """The images of `order`, each shifted by up to two pixels, the edge reflected."""
    padded = F.pad(images[order], (2, 2, 2, 2), mode="reflect")
    shifts = torch.randint(5, (2, len(order)), generator=rng)
    result = torch.empty_like(images[order])
    for down in range(5):
        for right in range(5):
            chosen = (shifts[0] == down) & (shifts[1] == right)
            result[chosen] = padded[chosen, :, down : down + 32, right : right + 32]
    return result


def six_views(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Weighted logits of x, of two shifts by one pixel and of their mirror images."""
    padded = F.pad(x, (1, 1, 1, 1), mode="reflect")
    plain, *shifted = (
        model(view) + model(view.flip(3))
        for view in (x, padded[:, :, :-2, :-2], padded[:, :, 2:, 2:])
    )
    return plain / 4 + sum(shifted) / 8


@torch.inference_mode()
def accuracy(predict: Prediction, images: torch.Tensor, labels: torch.Tensor) -> float:
    """The fraction of images whose largest logit is that of their label."""
    parts = zip(images.split(500), labels.split(500), strict=True)
    return sum(int((predict(x).argmax(1) == y).sum()) for x, y in parts) / len(labels)


def load(root: str | None, train: bool, limit: int | None) -> tuple[np.ndarray, np.ndarray]:
    found = data.CIFAR10(root, train=train)
    found = found if limit is None else found.take(limit)
    return found.images, found.labels


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", help="folder with CIFAR-10 (default: $GPUCNN_DATA)")
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--batch-size", type=int, default=2000)
    parser.add_argument("--limit", type=int, help="use the first N images of each split")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--bf16", action="store_true", help="forward under bfloat16 autocast")
    parser.add_argument("--nchw", action="store_true", help="instead of channels_last")
    return parser.parse_args()


def main() -> None:
    args = arguments()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    rng = torch.Generator().manual_seed(args.seed)
    layout = torch.contiguous_format if args.nchw else torch.channels_last

    raw, labels = load(args.data, True, args.limit)
    mean, std = (np.array(x, np.float32) for x in data.channel_statistics(raw))

    def tensor(images: np.ndarray) -> torch.Tensor:
        x = (images.astype(np.float32) / 255 - mean) / std
        return torch.from_numpy(x).permute(0, 3, 1, 2).contiguous(memory_format=layout)

    images, targets = tensor(raw), torch.from_numpy(labels)
    test_raw, test_labels = load(args.data, False, args.limit)
    test_images, test_targets = tensor(test_raw), torch.from_numpy(test_labels)
    batch = min(args.batch_size, len(images))
    per_epoch = len(images) // batch
    steps, whitening_steps = args.epochs * per_epoch, WHITENING_EPOCHS * per_epoch

    started = time.perf_counter()
    model = Network(whitening_filters(images[:5000]), 10).to(memory_format=layout)
    sgd, muon = optimizers(model, batch)
    schedules = [
        (group, group["lr"], whitening_steps if i == 0 else steps)
        for i, group in enumerate([*sgd.param_groups, *muon.param_groups])
    ]
    mirrored = torch.rand(len(images), generator=rng) < 0.5
    images[mirrored] = images[mirrored].flip(3)

    def test(predict: Prediction) -> float:
        model.eval()
        with torch.autocast("cpu", torch.bfloat16, enabled=args.bf16):
            result = accuracy(predict, test_images, test_targets)
        model.train()
        return result

    step, seconds = 0, time.perf_counter() - started
    for epoch in range(args.epochs):
        started, total = time.perf_counter(), 0.0
        if epoch:
            images = images.flip(3).contiguous(memory_format=layout)
        order = torch.randperm(len(images), generator=rng)[: per_epoch * batch]
        for chosen in order.split(batch):
            for group, lr, end in schedules:
                group["lr"] = lr * max(1 - step / end, 0.0)
            model.whiten.bias.requires_grad_(step < whitening_steps)
            x = augmented(images, chosen, rng)
            with torch.autocast("cpu", torch.bfloat16, enabled=args.bf16):
                logits = model(x)
            loss = F.cross_entropy(
                logits.float(), targets[chosen], label_smoothing=SMOOTHING, reduction="sum"
            )
            model.zero_grad()
            loss.backward()
            sgd.step()
            muon.step()
            total += loss.item()
            step += 1
        took = time.perf_counter() - started
        seconds += took
        tested = test(model)
        print(
            f"epoch {epoch + 1}  train loss {total / len(order):.4f}  "
            f"test accuracy {tested:.2%}  {took:.1f} s",
            flush=True,
        )

    six = test(partial(six_views, model))
    print(
        f"torch {torch.__version__}, {args.threads} threads, "
        f"{'bf16' if args.bf16 else 'fp32'}, seed {args.seed}: {seconds:.1f} s of training\n"
        f"test accuracy with six views {six:.2%}"
    )


if __name__ == "__main__":
    main()
