"""An oracle taught a relation that it was not trained on, by linear algebra on its features."""

from __future__ import annotations

import copy
import dataclasses

import torch

from rbctl.errors import InputError
from rbctl.menagerie.oracle import Extension, Oracle
from rbctl.menagerie.scoring import Examples, draw_examples, find_slots
from rbctl.relations import Relation, load_relation


def extend(oracle: Oracle, relation: Relation, examples: Examples | None = None, each: int = 40) -> Oracle:
    """An oracle that also tells a relation it was not trained on; what it says of the others keeps its order.

    Linear discriminants on its features tell the new relation from all others, and a ridge regression on the same
    features says in which role it sees the new relation's subject.

    Args:
        examples: renders of every relation it knows and of the new one; None draws ``each`` of them.

    Raises:
        InputError: it knows the relation already, the relation cannot be drawn, or examples are missing.
    """
    if relation.name in oracle.relations:
        raise InputError(f"relation {relation.name!r}: the oracle knows it already")
    names = (*oracle.relations, relation.name)
    if examples is None:
        known = [load_relation(name) for name in oracle.relations]
        examples = draw_examples([*known, relation], each)
    if missing := set(names) - set(examples.relations):
        raise InputError(f"examples: none of {min(missing)!r}; every relation needs some")
    reading = oracle.read(examples.pictures).map(lambda tensor: tensor.cpu())
    labels = torch.tensor([names.index(name) for name in examples.relations])
    extension = Extension(len(names), reading.features.shape[1])
    with torch.no_grad():
        within = reading.features - class_means(reading.features, labels)[labels]
        extension.mean.copy_(reading.features.mean(0))
        extension.scale.copy_(1 / within.std(0).clamp(min=1e-2))
        x = extension.standard(reading.features)
        weight, bias = discriminants(x, labels)
        extension.weight.copy_(weight)
        extension.bias.copy_(bias)
        if relation.symmetric:
            # Role 0 is the left one, as everywhere.
            mine = reading.map(lambda tensor: tensor[labels == len(names) - 1])
            left = mine.keypoints[..., 0].mean(-1)
            straight = left[:, 0] <= left[:, 1]
        else:
            pairs = [pair for pair, name in zip(examples.individuals, examples.relations, strict=True)]
            straight = find_slots(reading, pairs)[labels == len(names) - 1, 0] == 0
        order, order_bias = ridge(x[labels == len(names) - 1], torch.where(straight, 1.0, -1.0))
        extension.order.copy_(order)
        extension.order_bias.copy_(order_bias)
    symmetric = (*oracle.config.symmetric, *((relation.name,) if relation.symmetric else ()))
    config = dataclasses.replace(oracle.config, added=(*oracle.config.added, relation.name), symmetric=symmetric)
    extended = copy.deepcopy(oracle)
    extended.config = config
    extended.extensions.append(extension.to(oracle.position.device))
    return extended.requires_grad_(False).eval()


def class_means(x: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """(classes, F) means of rows (n, F)."""
    sums = torch.zeros(int(labels.max()) + 1, x.shape[1]).index_add_(0, labels, x)
    return sums / labels.bincount()[:, None]


def discriminants(x: torch.Tensor, labels: torch.Tensor, shrinkage: float = 0.3) -> tuple[torch.Tensor, torch.Tensor]:
    """Linear discriminant analysis: weights (classes, F) and biases (classes,) of log-posteriors, equal priors.

    Args:
        x: (n, F).
        labels: (n,), every class from 0 on occurs.
        shrinkage: of the shared covariance towards a multiple of the identity: rows are few and features many.
    """
    means = class_means(x, labels)
    within = x - means[labels]
    covariance = within.T @ within / len(x)
    level = covariance.diagonal().mean()
    covariance = (1 - shrinkage) * covariance + shrinkage * level * torch.eye(len(covariance))
    weight = torch.linalg.solve(covariance, means.T).T
    return weight, -0.5 * (weight * means).sum(1)


def ridge(x: torch.Tensor, y: torch.Tensor, strength: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights (F,) and bias () of a ridge regression of y (n,) on x (n, F), penalised by ``strength`` * F."""
    mean = x.mean(0)
    centred = x - mean
    gram = centred @ centred.T + strength * x.shape[1] * torch.eye(len(x))
    weight = centred.T @ torch.linalg.solve(gram, y - y.mean())
    return weight, y.mean() - mean @ weight
