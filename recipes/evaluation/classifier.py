"""Train a classifier on a labelled dataset once, and cache it; metrics compare its features.

Training takes about two minutes on two cores for MNIST at 32×32. A JSON record next to the weights states the accuracy
on unseen data. Fréchet distances of its features are comparable only for the same dataset and the same cached network:
they are not the FID, which uses an Inception network.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from modalities.base import Dataset, split
from multisagd.files import read_json
from multisagd.metrics.feature_network import ClassifierOutputs, FeatureNetwork, read_samples
from multisagd.seeds import derive, derive_many
from recipes.base.files import replace_file
from recipes.base.untrusted import read_tensors
from recipes.evaluation.sets import as_files

FORMAT_VERSION = 1
FINGERPRINT_EXAMPLES = 64
REPORTS = 4
"""Number of lines printed during training."""


@dataclass(frozen=True)
class Training:
    """Settings for training the classifier: AdamW with a one-cycle learning rate over `samples` examples.

    `widths` are the channels of the stages. Each stage halves the grid, and the last width is the number of features.
    Training images are shifted by up to `shift` samples along every axis.
    """

    samples: int = 120_000
    batch: int = 128
    learning_rate: float = 3e-3
    weight_decay: float = 1e-2
    widths: tuple[int, ...] = (32, 64, 64)
    shift: int = 2
    seed: int = 0


def read_dataset(
    network: FeatureNetwork, dataset: Dataset, indices: Sequence[int] | None = None, saved: bool = False
) -> ClassifierOutputs:
    """Return the classifier's outputs for examples of a labelled dataset (all by default), without augmentation.

    If `saved`, the examples are rounded as in decoded files, to be compared with samples that are rounded too.
    """
    order = range(len(dataset)) if indices is None else indices
    outputs = []
    for start in range(0, len(order), 500):
        x0, label = _labelled(dataset, order[start : start + 500])
        outputs.append(read_samples(network, as_files(dataset.modality, x0) if saved else x0, label))
    features, predictions, labels = zip(*outputs, strict=True)
    return ClassifierOutputs(torch.cat(features), torch.cat(predictions), torch.cat(labels))


def _labelled(dataset: Dataset, indices: Sequence[int], seeds: Sequence[int] | None = None) -> tuple[Tensor, Tensor]:
    """Return x0 and labels of examples. Raises ValueError if the dataset has no labels."""
    x0, labels = dataset.batch(indices, seeds)[:2]
    if labels is None or dataset.classes is None:
        raise ValueError(
            "the classifier features require a labelled dataset, but this one has no labels: for a folder of images, "
            "put each class into its own subfolder"
        )
    return x0, labels


def train_network(train: Dataset, training: Training, log: Callable[[str], None] = print) -> FeatureNetwork:
    """Train a classifier from scratch and return it; it depends only on the labelled dataset and `training`."""
    x0, _ = _labelled(train, [0])
    classes = len(train.classes or ())
    # The global generator is used only for the initial weights, and is then restored.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(training.seed, "features/weights"))
        network = FeatureNetwork(x0.shape[1], x0.ndim - 2, classes, training.widths)
    steps = max(2, training.samples // training.batch)
    optimizer = torch.optim.AdamW(network.parameters(), training.learning_rate, weight_decay=training.weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, training.learning_rate, total_steps=steps)
    order = _endless_order(len(train), training.seed)
    network.train()
    for step in range(steps):
        indices = [next(order) for _ in range(training.batch)]
        seeds = derive_many(training.seed, "features/augment", step, range(training.batch))
        x0, labels = _labelled(train, indices, seeds)
        _, logits = network(_shifted(x0, training.shift, derive(training.seed, "features/shift", step)))
        loss = F.cross_entropy(logits, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if (step + 1) % max(1, steps // REPORTS) == 0:
            log(f"  features: {(step + 1) * training.batch:,} of {steps * training.batch:,} samples, loss {loss:.3f}")
    return network.eval()


def _endless_order(count: int, seed: int) -> Iterator[int]:
    """Yield the indices of `count` examples in random order, endlessly, with a new order for each epoch."""
    epoch = 0
    while True:
        generator = torch.Generator().manual_seed(derive(seed, "features/order", epoch))
        yield from torch.randperm(count, generator=generator).tolist()
        epoch += 1


def _shifted(x0: Tensor, shift: int, seed: int) -> Tensor:
    """Return a batch shifted at random by up to `shift` samples along every axis, with repeated borders."""
    if not shift:
        return x0
    generator = torch.Generator().manual_seed(seed)
    padded = F.pad(x0, [shift] * (2 * (x0.ndim - 2)), mode="replicate")
    for axis in range(2, x0.ndim):
        start = int(torch.randint(2 * shift + 1, (), generator=generator))
        padded = padded.narrow(axis, start, x0.shape[axis])
    return padded


def fingerprint(train: Dataset, test: Dataset, training: Training) -> str:
    """Return a hash of what determines the classifier: settings, sizes, classes, and a few examples of each set.

    The data are hashed instead of their configuration, so the cached classifier remains valid if a folder is moved, but
    not if the image size or a hashed example changes. Other changes are not detected.
    """
    digest = hashlib.sha256(json.dumps([FORMAT_VERSION, asdict(training), train.classes]).encode())
    for dataset in (train, test):
        count = min(FINGERPRINT_EXAMPLES, len(dataset))
        x0, labels = _labelled(dataset, [index * len(dataset) // count for index in range(count)])
        digest.update(f"{len(dataset)} {tuple(x0.shape)}".encode())
        digest.update(x0.contiguous().numpy().tobytes() + labels.numpy().tobytes())
    return digest.hexdigest()[:16]


def cached_network(
    train: Dataset, test: Dataset | None, folder: Path | str = ".cache/features", training: Training | None = None,
    log: Callable[[str], None] = print,
) -> tuple[FeatureNetwork, dict[str, Any]]:  # fmt: skip
    """Return a dataset's classifier and its record from the cache `folder`, after training it if it is not cached.

    The record, saved as `features-<hash>.json`, contains the accuracy on `test`, the counts, the classes and the
    settings. If `test` is None, a tenth of the examples are excluded from the classifier's training and used for
    testing.

    Raises:
        ValueError: If a dataset has no labels or too few examples, or the cached files are unreadable.
    """
    training = training or Training()
    if test is None:
        train, test = split(train, 0.1, derive(training.seed, "features/test"))
    if test is None or not len(train) or not len(test):
        raise ValueError(
            "a classifier needs examples for training and others for testing, but this dataset has only "
            f"{len(train)} examples: remove this metric from metrics, or train on more examples of each class"
        )
    key = fingerprint(train, test, training)
    weights = Path(folder) / f"features-{key}.safetensors"
    notes = weights.with_suffix(".json")
    # The record is written last, so its presence means that the weights are complete.
    if notes.exists():
        return _load(weights, notes)
    log(f"training the feature classifier on {len(train):,} examples (once; cached as {weights})")
    network = train_network(train, training, log)
    x0, _ = _labelled(train, [0])
    record = {
        "format_version": FORMAT_VERSION,
        "accuracy": read_dataset(network, test).accuracy(),
        "test_count": len(test),
        "train_count": len(train),
        "classes": list(train.classes or ()),
        "channels": x0.shape[1],
        "grid": list(x0.shape[2:]),
        "features": training.widths[-1],
        "training": asdict(training),
        "torch": torch.__version__,
    }
    weights.parent.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.contiguous() for name, tensor in network.state_dict().items()}
    replace_file(weights, lambda path: save_file(tensors, path), shared=True)
    replace_file(notes, lambda path: path.write_text(json.dumps(record, indent=2) + "\n"), shared=True)
    log(f"  features: accuracy {record['accuracy']:.2%} on {len(test):,} held-out examples")
    return network, record


def _load(weights: Path, notes: Path) -> tuple[FeatureNetwork, dict[str, Any]]:
    try:
        record = read_json(notes)
        if record["format_version"] != FORMAT_VERSION:
            raise ValueError(f"format version {record['format_version']}, expected {FORMAT_VERSION}")
        widths = record["training"]["widths"]
        network = FeatureNetwork(record["channels"], len(record["grid"]), len(record["classes"]), widths)
        network.load_state_dict(read_tensors(weights))
    except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise ValueError(
            f"cannot read the cached classifier {weights} ({error}): delete it and {notes.name} to train it again"
        ) from error
    return network.eval(), record
