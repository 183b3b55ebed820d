"""From a config to the objects that it describes: data, network, blocks, rule."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import math
import typing
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NoReturn

import torch
from torch import nn

from layerwise import data
from layerwise.arguments import alternatives
from layerwise.blocks import Blocks, cut
from layerwise.data import Augment, Curriculum, Loader, Splits, Text, read_scores
from layerwise.data.load import split
from layerwise.data.sources.given import parts_of
from layerwise.data.transform import pixel_scale
from layerwise.errors import InputError, reason
from layerwise.experiment import own
from layerwise.experiment.config import config_of
from layerwise.experiment.initial import freeze, initialise, lora, tensors_of
from layerwise.experiment.registry import KINDS, find, make
from layerwise.labels import IGNORED
from layerwise.models.building_blocks import Window
from layerwise.models.weights import take
from layerwise.models.zoo import PRETRAINED
from layerwise.objectives import cross_entropy
from layerwise.objectives.classify import Criterion, is_cross_entropy
from layerwise.objectives.normalization import Normalization
from layerwise.rules.base import Rule
from layerwise.runs.run import Run
from layerwise.trainer import Settings

FITTED = 512  # training images that a network with `fit_to` gets
SETTINGS = tuple(field.name for field in dataclasses.fields(Settings))


@dataclass(frozen=True)
class Experiment:
    """The objects that a config describes.

    Attributes:
        config: the config.
        settings: the settings in it.
        splits: the data.
        network: the model, which a cut leaves unchanged.
        rule: the learning rule over its blocks.
    """

    config: Mapping[str, Any]
    settings: Settings
    splits: Splits
    network: nn.Module
    rule: Rule

    @functools.cached_property
    def initialised(self) -> list[str]:
        """Gives the network, once, the weights that its training starts from; a line about each."""
        splits, seed = self.splits, self.settings.seed
        fit_to: Any = getattr(self.network, "fit_to", None)
        if fit_to is not None:
            fit_to(_some(splits, self.config, seed), seed)
        return initialise(self.network, self.config, splits.shape, splits.num_classes)

    @property
    def example_labels(self) -> torch.Tensor | None:
        """Labels of a few samples, for costs; None for the default criterion."""
        return None if self.rule.check.default_criterion else self.splits.example_labels(128)

    def loaders(
        self, device: torch.device, evaluation: bool = False, part: tuple[int, int] = (0, 1)
    ) -> dict[str, Loader | None]:
        """A loader for each split; None for a split that the data lacks.

        Args:
            device: where batches are made.
            evaluation: load the training split like the others: in order, without augmentation.
            part: the part of every batch that this process loads, as in `Loader`.
        """
        settings = self.settings
        augment = Augment(**tuples(self.config["augment"]))
        curriculum = _curriculum(self.config, self.splits) if not evaluation else None

        def loader(split: Any, train: bool) -> Loader | None:
            if split is None:
                return None
            return Loader(
                split,
                settings.batch_size if train else settings.eval_batch_size,
                augment=augment,
                train=train,
                device=device,
                seed=settings.seed,
                channels_last=settings.channels_last is True,
                part=part,
                views=settings.views,
                curriculum=curriculum if train else None,
            )

        return {
            "train": loader(self.splits.train, not evaluation),
            "validation": loader(self.splits.validation, False),
            "test": loader(self.splits.test, False),
        }


def build(config: Mapping[str, Any], *, to_train: bool = True) -> Experiment:
    """Build what a config describes. The same config gives the same weights.

    Args:
        config: a complete config (`config.complete`), as a run's `config.yaml` holds it.
        to_train: if not, a teacher that cannot be read is refused when it is asked for scores.

    Raises:
        InputError: something in it does not exist, or does not go together.
    """
    settings = Settings(**{key: config[key] for key in SETTINGS if key in config})
    splits = load_data(config, settings.seed)
    torch.manual_seed(settings.seed)
    _check_input(config, splits)
    network = _network(config, splits)
    frozen = config.get("freeze") or []
    kept_in_eval = freeze(network, frozen)
    tokens = isinstance(splits.train, Text)
    example = torch.zeros(2, *splits.shape, dtype=torch.long if tokens else None)
    blocks = cut_network(network, example, config["blocks"], config["at"], config["balance"])
    criterion = _criterion(config, splits, settings)
    rule = make(
        "rule",
        _with_teachers(config["rule"], config, splits, to_train),
        blocks=blocks,
        criterion=criterion,
        normalization=_normalization(config, splits),
    )
    rule.kept_in_eval = kept_in_eval
    if frozen and not any(p.requires_grad for p in rule.parameters()):
        raise InputError(
            f"--freeze {' '.join(frozen)}: no parameter is left to train, and the rule has no "
            "heads; freeze less, or take a rule with heads: DeepSupervision"
        )
    _check_carried(config, splits)
    _check_labels(config, splits, rule, criterion)
    rule.check.views(settings.views)
    rule.phases(settings.epochs)  # refuses too few epochs
    _check_curriculum(config, splits)
    if settings.views > 1 and not Augment(**tuples(config["augment"])).random:
        raise InputError(
            f"--views {settings.views}: without augmentation all views of an image are the same; "
            "turn on an augmentation, such as --augment.resized_crop true"
        )
    return Experiment(config, settings, splits, network, rule)


def _network(config: Mapping[str, Any], splits: Splits) -> nn.Module:
    """The network of a config, with its adapters; `Experiment.initialised` gives the weights."""
    model = dict(config["model"])
    if model["name"] in PRETRAINED:
        model["pretrained"] = False
    network = make("model", model, shape=splits.shape, num_classes=splits.num_classes)
    if (rank := config.get("lora")) is not None:
        lora(network, rank)
    return network


def _criterion(config: Mapping[str, Any], splits: Splits, settings: Settings) -> Criterion:
    """The loss of class scores and labels that a config asks for."""
    named = config.get("criterion", {"name": "cross_entropy"})
    criterion, smoothing = make("criterion", named), settings.label_smoothing
    if is_cross_entropy(criterion):
        if splits.real:
            raise InputError(
                f"--data {splits.name}: its labels are real numbers, for which cross-entropy is no "
                "loss; give --criterion MSELoss, or BCEWithLogitsLoss for several classes at once"
            )
        return functools.partial(cross_entropy, label_smoothing=smoothing)
    if smoothing:
        raise InputError(
            f"--criterion {named['name']} contradicts --label_smoothing {smoothing}: only "
            "cross_entropy has it; leave one out"
        )
    return criterion


def _check_labels(
    config: Mapping[str, Any], splits: Splits, rule: Rule, criterion: Criterion
) -> None:
    """Refuse a criterion that does not take the labels, and what needs classes without them."""
    if splits.real and config.get("outcomes"):
        raise InputError(
            f"--outcomes true --data {splits.name}: labels that are real numbers are neither right "
            "nor wrong; leave it out"
        )
    if rule.check.default_criterion or rule.blocks.shapes is None:
        return
    labels, shape = splits.example_labels(3), rule.blocks.shapes[-1]
    name = config["criterion"]["name"]
    if (said := _refusal(criterion, shape, labels)) is not None:
        raise InputError(f"--criterion {name}: {said}")
    if isinstance(splits.train, Text) or splits.real or not (splits.train.labels == IGNORED).any():
        return
    try:
        found = float(criterion(torch.zeros(3, *shape), torch.full_like(labels, IGNORED)))
    except Exception as error:
        found = f"{type(error).__name__}: {reason(error)}"
    if isinstance(found, str) or not math.isfinite(found):
        raise InputError(
            f"--criterion {name}: of a batch whose labels are all missing ({IGNORED}) it gives "
            f"{found}; give cross_entropy, which leaves them out, or --data.unlabelled false"
        )


def _refusal(criterion: Criterion, shape: Sequence[int], labels: torch.Tensor) -> str | None:
    """What a criterion does instead of giving the loss of scores of a shape and labels; None if it
    gives one."""
    scores = torch.zeros(len(labels), *shape, requires_grad=True)
    asked = f"of scores {tuple(scores.shape)} and {labels.dtype} labels {tuple(labels.shape)}"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # PyTorch warns of shapes that it stretches
            loss = criterion(scores, labels)
    except Exception as error:
        return f"{asked} it gives {type(error).__name__}: {reason(error)}"
    if not isinstance(loss, torch.Tensor) or loss.dim() or not loss.requires_grad:
        return f"{asked} it gives no single number that can be differentiated"
    return None


def criterion_and_labels(
    named: Mapping[str, Any], network: nn.Module, x: torch.Tensor, classes: torch.Tensor
) -> tuple[Criterion, torch.Tensor]:
    """The criterion of a command that has no data, and labels that it takes: the class numbers, or
    else a real number for each class score.

    Args:
        named: the criterion and its options.
        network: the network.
        x: random inputs, (B, ...).
        classes: random class numbers of them.

    Raises:
        InputError: it takes neither.
    """
    criterion = make("criterion", named)
    if is_cross_entropy(criterion):
        return criterion, classes
    shapes = cut(network, blocks=1, example=x[:2]).shapes
    assert shapes is not None
    real = torch.rand(len(x), *shapes[-1])
    said = [_refusal(criterion, shapes[-1], labels[:3].cpu()) for labels in (classes, real)]
    if None not in said:
        raise InputError(
            f"--criterion {named['name']}: {said[0]}, and {said[1]}; give one that takes such "
            "labels: this command has no data, and so no others"
        )
    return criterion, classes if said[0] is None else real.to(classes.device)


def _with_teachers(
    options: Mapping[str, Any], config: Mapping[str, Any], splits: Splits, to_train: bool
) -> dict[str, Any]:
    """The options of a rule, with networks for the runs that are named as teachers."""
    found = dict(options)
    for key, value in options.items():
        if isinstance(value, Mapping):
            found[key] = _with_teachers(value, config, splits, to_train)
        elif key == "teacher" and value is not None:
            try:
                found[key] = _teacher(value, config, splits)
            except InputError as error:
                if to_train:
                    raise
                found[key] = _Unreadable(error)
    return found


class _Unreadable(nn.Module):
    """A teacher that cannot be read; only a training step asks for its scores."""

    def __init__(self, error: InputError):
        super().__init__()
        self.error = error

    def forward(self, x: Any) -> NoReturn:
        raise self.error


def _teacher(path: str, config: Mapping[str, Any], splits: Splits) -> nn.Module:
    """The trained network of a complete run, which gets the inputs of this config's network."""
    try:
        run = Run.open(path)
    except InputError as error:
        raise InputError(
            f"teacher {path}: {error}; what trains its student reads it there, too"
        ) from error
    with run.readable():
        own = config_of(run)
        network = _network(own, splits)
    for key in ("normalize", "mean", "std"):
        if own["augment"][key] != config["augment"][key]:
            raise InputError(
                f"teacher {path}: it was trained with --augment.{key} {own['augment'][key]}, and "
                f"now it is {config['augment'][key]}; give the teacher's"
            )
    take(network, tensors_of(path, "teacher"), f"teacher {path}", whole=True)
    return network


def _some(splits: Splits, config: Mapping[str, Any], seed: int) -> torch.Tensor:
    """Training images for a network that is partly made of them, normalised, in random order."""
    augment = Augment(**tuples(config["augment"]))
    only = Augment(normalize=augment.normalize, mean=augment.mean, std=augment.std)
    count = min(FITTED, len(splits.train))
    images, _ = next(Loader(splits.train, count, augment=only, train=True, seed=seed).epoch(0))
    return images


def _check_input(config: Mapping[str, Any], splits: Splits) -> None:
    """Refuse text for a network that takes images."""
    name, _ = find("model", config["model"].get("name", ""))
    models = KINDS["model"].items()
    of_text = [key for key, thing in models if Window in alternatives(_shape_of(thing))]
    if isinstance(splits.train, Text) and name not in of_text and not own.is_path(name):
        raise InputError(
            f"--model {name} --data {splits.name}: the network takes images, not text; give "
            f"--model {' or '.join(of_text)}"
        )


def _check_carried(config: Mapping[str, Any], splits: Splits) -> None:
    """Refuse a rule that carries a state from batch to batch on data that do not continue."""
    if not config["rule"].get("carry"):
        return
    if not splits.train.contiguous:
        raise InputError(
            f"--rule.carry true --data {splits.name}: batches are drawn in random order and do not "
            "continue those before; give a text with --data.contiguous true, or leave carry out"
        )
    if config.get("replicas", 1) > 1:
        raise InputError(
            f"--rule.carry true --replicas {config['replicas']}: a checkpoint holds the state of "
            "one process; train in one process"
        )


def _shape_of(network: Callable[..., Any]) -> Any:
    """The type of a network's parameter `shape`, which tells images from text."""
    return typing.get_type_hints(network).get("shape")


def _normalization(config: Mapping[str, Any], splits: Splits) -> Normalization | None:
    """How a run's images are normalised; None for a text."""
    if isinstance(splits.train, Text):
        return None
    scale = pixel_scale(Augment(**tuples(config["augment"])), splits.train)
    mean, std = (tuple(value / 255 for value in values) for values in scale)
    return Normalization(mean, std)


def _curriculum(config: Mapping[str, Any], splits: Splits) -> Curriculum | None:
    options = dict(config.get("curriculum") or {})
    path = options.pop("scores", None)
    if path is None:
        return None
    return Curriculum(read_scores(path, splits), **options)


def _check_curriculum(config: Mapping[str, Any], splits: Splits) -> None:
    """Refuse options of a curriculum that has no scores, or scores of images without a label, whose
    loss of 0 would make them the easiest."""
    options = config.get("curriculum") or {}
    if options.get("scores") is not None:
        if not isinstance(splits.train, Text) and (splits.train.labels == IGNORED).any():
            raise InputError(
                f"--curriculum.scores {options['scores']} contradicts --data.labels: images "
                "without a label are neither easy nor hard; leave one out"
            )
        return
    defaults = inspect.signature(Curriculum).parameters
    for key, value in options.items():
        if key != "scores" and value != defaults[key].default:
            raise InputError(
                f"--curriculum.{key} {value}: nothing says which samples are easy; also "
                "give --curriculum.scores: the file that `layerwise evaluate RUN --split train "
                "--losses true` writes"
            )


def load_data(config: Mapping[str, Any], seed: int) -> Splits:
    """Load the data set of a config."""
    options = tuples(config["data"])
    name = options.pop("name")
    if not own.is_path(name):
        return data.load(name, **options, seed=seed)
    made, cuts = own.of_data(name), inspect.signature(split).parameters
    options["seed"] = seed
    given = {k: v for k, v in options.items() if k in made.__annotations__}
    for key, hint in inspect.signature(data.load).parameters.items():
        if key not in (*given, *cuts) and options.get(key, hint.default) not in (
            hint.default,
            str(hint.default),
        ):
            raise InputError(
                f"--data.{key} {options[key]}: {name} has no such parameter; leave it out"
            )
    with own.named("data", name, made):
        found = made(**given)
    try:
        parts = parts_of(found)
    except InputError as error:
        raise InputError(f"data {name}: {reason(error)}") from error
    return split(
        parts,
        name,
        **{k: v for k, v in options.items() if (k in cuts and k not in given) or k == "seed"},
    )


def cut_network(
    network: nn.Module,
    example: torch.Tensor,
    blocks: int | Literal["all"] | None,
    at: list[str] | None,
    balance: Literal["flops", "memory"],
) -> Blocks:
    """Cut a network as a config asks: into a number of blocks, or at named modules."""
    if at:
        if blocks is not None:
            raise InputError(
                f"--blocks {blocks} contradicts --at {at}: the names give the number of blocks; "
                "leave one out"
            )
        return cut(network, at=at, example=example)
    return cut(network, blocks=blocks, example=example, balance=balance)


def tuples(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options as read from a file, with tuples for lists, as signatures have them."""
    return {k: tuple(v) if isinstance(v, list) else v for k, v in options.items()}
