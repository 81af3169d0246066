"""An oracle taught a relation that it was not trained on, from renders."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import torch

from rbctl.errors import InputError
from rbctl.menagerie.examples import Examples, draw_examples
from rbctl.menagerie.oracle import Oracle, by_side, grown
from rbctl.menagerie.oracle_training import Truth, free_roles, mirrored, oracle_loss, ordered, spoil
from rbctl.progress import progress
from rbctl.relations import Relation, load_relation

_STEPS, _BATCH, _LEARNING_RATE, _WARMUP = 150, 32, 5e-4, 20
_HEAD_RATE = 5e-3  # of the relation's layer: the longer its rows and the smaller its features, the less a step says
_NEW = 8  # of a batch; with 16 it saw the new relation in 2 % of renders that show others
_EACH = 60  # renders of a relation; of the new one eight times as many


def extend(oracle: Oracle, relation: Relation, steps: int = _STEPS, each: int = _EACH) -> Oracle:
    """An oracle that also tells a relation it was not trained on; of pictures of others it says what it said.

    A copy of it is trained on renders of the new relation and, lest it forget, of those that it knows. The copy tells
    the new relation and reads the pictures that show it: where bodies meet in a new way, an oracle that never saw it
    does not even part them.

    Raises:
        InputError: it knows the relation already, or the relation cannot be drawn.
    """
    if relation.name in oracle.relations:
        raise InputError(f"relation {relation.name!r}: the oracle knows it already")
    known = [load_relation(name) for name in oracle.relations]
    examples = draw_examples([*[relation] * 8, *known], each)
    symmetric = (*oracle.config.symmetric, *((relation.name,) if relation.symmetric else ()))
    last_roles = oracle.config.added_roles or (oracle.config.roles,) * len(oracle.config.added)
    config = dataclasses.replace(
        oracle.config,
        added=(*oracle.config.added, relation.name),
        added_roles=(*last_roles, max(*last_roles, oracle.config.roles, len(relation.roles))),
        symmetric=symmetric,
    )
    extended = Oracle(config).to(oracle.position.device)
    extended.load_state_dict(oracle.state_dict(), strict=False)
    taught, last = extended.extensions[-1], oracle.extensions[-1] if oracle.config.added else oracle
    assert isinstance(taught, Oracle)
    assert isinstance(last, Oracle)
    taught.load_state_dict(grown(last, taught.config).state_dict())
    _teach(taught, examples, steps, free_roles([*known, relation], taught.config.roles))
    return extended.requires_grad_(False).eval()


def _teach(oracle: Oracle, examples: Examples, steps: int, free: torch.Tensor) -> None:
    """Train on examples, ``_NEW`` of every batch of the oracle's last relation."""
    device, generator = oracle.position.device, torch.Generator().manual_seed(0)
    labels = torch.tensor([oracle.relations.index(name) for name in examples.relations])
    keypoints, masks, looks = by_side(examples.keypoints), examples.masks, examples.looks
    if lacking := oracle.config.roles - masks.shape[1]:
        keypoints, masks, looks = (
            torch.cat((x, x.new_zeros(len(x), lacking, *x.shape[2:])), dim=1) for x in (keypoints, masks, looks)
        )
    new = labels == len(oracle.relations) - 1
    lots = [(torch.nonzero(new)[:, 0], _NEW), (torch.nonzero(~new)[:, 0], _BATCH - _NEW)]
    oracle.train()
    head = list(oracle.relation.parameters())
    rest = [parameter for name, parameter in oracle.named_parameters() if not name.startswith("relation.")]
    groups: list[dict[str, Any]] = [{"params": rest}, {"params": head, "lr": _HEAD_RATE}]
    optimizer = torch.optim.AdamW(groups, lr=_LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1, (step + 1) / _WARMUP) * (0.5 + 0.5 * math.cos(math.pi * step / steps))
    )
    with progress(steps, f"teaching the oracle {oracle.relations[-1]!r}") as bar:
        for _ in range(steps):
            rows = torch.cat([lot[torch.randint(len(lot), (count,), generator=generator)] for lot, count in lots])
            turned, spoilt = (torch.rand(_BATCH, generator=generator) < 0.5 for _ in range(2))
            pixels = examples.pictures[rows].float() / 127.5 - 1
            truth = Truth(labels[rows], masks[rows], keypoints[rows], looks[rows])
            pixels, truth = mirrored(pixels, truth, turned)
            truth = ordered(truth, free[truth.relation])
            # Half as they are, half spoilt: generated pictures are never as clean as renders.
            pixels = torch.where(spoilt[:, None, None, None], spoil(pixels, generator), pixels)
            loss, _parts = oracle_loss(oracle.raw(pixels.to(device)), truth.to(device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            bar.update()
