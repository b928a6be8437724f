"""Train CIFAR-10 in eight epochs by the fastest known recipe, whose author reports 94 %.

    python examples/speedrun_cifar10.py                    # two cores suffice
    python examples/speedrun_cifar10.py --device cuda      # the same on a GPU
    python examples/speedrun_cifar10.py --resume           # resume the last run

Keller Jordan's recipe (arXiv 2404.00498) with Muon: a small network whose first layer whitens the
image, trained with batches of 2000 images.

    filters              Muon, learning rate 0.24
    biases, last layer   SGD with Nesterov momentum 0.85
    whitening bias       the same, for the first three epochs only

All rates fall linearly to 0.  Labels are smoothed by 0.2, images shifted by up to two pixels and
mirrored in every other epoch.  The result is tested with one view and with six views of each image.
"""

import sys

from gpucnn import data, models, nn, optim, train
from gpucnn.arguments import non_negative_float
from gpucnn.errors import DataError
from gpucnn.train.script import RECIPE, Job, Script

MODEL = "speedrun_cifar10"
DECAY = 2e-6  # of a step, for each image in its batch
WHITENING_EPOCHS = 3


def command_line() -> Script:
    script = Script(
        "speedrun_cifar10",
        "Train CIFAR-10 in eight epochs, by Keller Jordan's recipe with Muon.",
        epochs=8,
        batch_size=2000,
        lr=None,
        augment="shifts by up to two pixels, and mirror images in every other epoch",
        without=("--optimizer", "--lr", "--schedule", "--weight-decay"),
    )
    rate = {"group": RECIPE, "type": non_negative_float, "metavar": "X"}
    script.add("--filter-lr", "first learning rate of the filters", 0.24, **rate)
    script.add("--bias-lr", "that of the biases, for the sum of a batch's losses", 0.053, **rate)
    script.add("--head-lr", "that of the last layer, for this sum", 0.67, **rate)
    text = "the images; synthetic: ten classes of drawn shapes"
    script.add("--dataset", text, "cifar10", choices=("cifar10", "synthetic"))
    script.add_data()
    return script


def load_data(job: Job) -> tuple[data.Dataset, data.Dataset]:
    """Training and test set, limited to --limit images each."""
    s = job.settings
    if s.dataset == "synthetic":
        pair = data.Synthetic(train=True), data.Synthetic(train=False)
    else:
        found, reason = data.find_cifar10(s.data, quiet=s.quiet)
        if found is None:
            raise DataError(f"CIFAR-10 was not found: {reason}")
        pair = found
    training, test = pair if s.limit is None else [part.take(s.limit) for part in pair]
    job.say(f"data: {training}, {test}")
    return training, test


def build_optimizer(
    model: nn.Module, batch: int, filter_lr: float, bias_lr: float, head_lr: float
) -> optim.MultiOptimizer:
    """Four groups: the whitening layer's bias, the other biases, the last layer, the filters.

    The recipe's loss is the sum over a batch, ours is the mean: SGD's rates are `batch` times the
    recipe's.  Muon's do not depend on the loss's scale.
    """
    trained = [p for p in model.parameters() if p.requires_grad]
    whitening, *biases = [p for p in trained if p.ndim == 1]
    head = [p for p in trained if p.ndim == 2]
    rates = [([whitening], bias_lr), (biases, bias_lr), (head, head_lr)]
    groups = [
        {"params": params, "lr": lr * batch, "weight_decay": DECAY / lr if lr else 0.0}
        for params, lr in rates
    ]
    return optim.MultiOptimizer(
        optim.SGD(groups, momentum=0.85, nesterov=True),
        optim.Muon([p for p in trained if p.ndim == 4], filter_lr, momentum=0.6),
    )


def linear_to_zero(
    optimizer: optim.Optimizer, steps: int, whitening_steps: int
) -> optim.lr_scheduler.LambdaLR:
    """Straight lines to 0: after `steps`, for the first group after `whitening_steps`.

    The first group is then frozen: the whitening layer needs no backward pass any more.
    """
    ends = [whitening_steps, *[steps] * (len(optimizer.param_groups) - 1)]
    return optim.lr_scheduler.LambdaLR(
        optimizer,
        [lambda step, end=end: max(1 - step / end, 0.0) for end in ends],
        freeze_at_zero=True,
    )


def run(job: Job) -> None:
    s, device = job.settings, job.device
    s.model = MODEL
    training, test = load_data(job)
    batch = min(s.batch_size, len(training))
    normalize = data.Normalize(*data.channel_statistics(training.images))
    model = models.speedrun_cifar10()
    model.whiten(normalize(training.images[:5000]))
    model = model.to(device)
    shift_and_flip = (data.RandomCrop(32, padding=2), data.AlternatingFlip())
    loader = data.DataLoader(
        training,
        batch,
        shuffle=True,
        drop_last=True,
        transform=data.Compose([*(shift_and_flip if s.augment else ()), normalize]),
        seed=s.seed,
        device=device,
    )
    test_loader = data.DataLoader(test, 500, transform=normalize, device=device)
    job.train(
        model,
        loader,
        test_loader,
        optimizer=build_optimizer(model, batch, s.filter_lr, s.bias_lr, s.head_lr),
        scheduler=lambda optimizer, steps: linear_to_zero(
            optimizer, steps, WHITENING_EPOCHS * len(loader)
        ),
        loss=nn.CrossEntropyLoss(label_smoothing=0.2),
        classes=training.classes,
        normalize=normalize,
    )
    if job.rank == 0:
        six = train.evaluate(models.SixViews(model), test_loader)
        print(f"test accuracy with six views {six.accuracy:.2%}")


def main(argv: list[str] | None = None) -> int:
    return command_line().main(run, argv)


if __name__ == "__main__":
    sys.exit(main())
