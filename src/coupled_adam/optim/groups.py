"""From a model to the parameter groups of CoupledAdamW."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn

from coupled_adam.optim.vocabulary import Found, Vocabulary, Weight, names_without_wrappers


def param_groups(
    model: nn.Module,
    weight_decay: float = 0.1,
    *,
    embeddings: Iterable[nn.Module | Tensor | str] | nn.Module | Tensor | str | None = None,
) -> list[dict[str, Any]]:
    """Split a model's trainable parameters into the groups of the paper's recipe.

    Coupled without weight decay: the token embeddings, input and output (one matrix if tied).
    Not coupled, with weight decay: all other tensors of two or more dimensions, positional
    embeddings included. Not coupled, without: vectors and scalars. (Stollenwerk and Stollenwerk,
    2025: nanoGPT's rule, with the embeddings taken out.)

    Without ``embeddings`` the token embeddings are found by the model's structure; whatever comes
    first decides:

    1. a table (``nn.Embedding`` or the like) whose weight is also a head's, under any name;
    2. the table that has the shape of an output head;
    3. the table that ``get_input_embeddings()`` returns, of the model or of models inside it;
    4. the one table whose name is not one of positions, segments, relative biases, queries.

    To these come the tables that the model's methods, the same number of tokens or a name such as
    ``src_embedding`` show to be of tokens too, as in an encoder and a decoder of their own; and the
    output heads: by identity, by ``get_output_embeddings()``, or the one matrix that has the number
    of tokens as a size and is no layer of a stack of blocks. A head may be stored as [width,
    tokens]; where the sizes allow no other reading its group says ``vocabulary_dim=1``. A weight
    that is computed (parametrizations, pruning, spectral norm) stands for the parameter of the same
    shape that it is computed from. A model without any table, as a middle stage of a pipeline, gets
    groups that are not coupled, and a line in the log that says so.

    Args:
        model: the model; parameters with ``requires_grad=False`` are left out.
        weight_decay: for tensors of two or more dimensions, at least 0.
        embeddings: modules, weights or names of either, to couple instead of what the rule above
            finds; an empty list couples nothing. In a matrix the tokens are the rows, unless only
            the number of its columns is that of the rows of a table.

    Returns:
        Up to four groups, for ``CoupledAdamW(param_groups(model), lr=...)``. Each has a ``name``:
        "embeddings", "transposed embeddings" (with ``vocabulary_dim=1``), "matrices" or "vectors".

    Raises:
        ValueError: if it cannot be told which matrices are the token embeddings, if these are
            computed from several parameters or all frozen, if nothing is trainable, or if
            ``embeddings`` names something that the model does not have.
    """
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if not named:
        raise ValueError(
            "no parameter of the model is trainable (requires_grad=False for all of them): "
            "unfreeze what is to be trained before the groups are made"
        )
    vocabulary = Vocabulary(model)
    found = vocabulary.find() if embeddings is None else _given(model, vocabulary, embeddings)
    if not found and embeddings is None:
        logging.getLogger(__name__).warning(
            "param_groups found no table of tokens and no output head in this %s, so nothing is "
            "coupled. For a stage of a pipeline without embeddings that is right; embeddings=[] "
            "says that it is meant, embeddings=[...] names what was not found",
            type(model).__name__,
        )
    axes = {id(one.weight.parameter): one.vocabulary_dim for one in found}
    if axes and axes.keys().isdisjoint(map(id, named.values())):
        raise ValueError(
            f"all token embeddings of the model, {sorted({one.weight.path for one in found})}, are "
            "frozen (requires_grad=False), so there is nothing to couple: unfreeze them before the "
            "groups are made, or pass embeddings=[] to train the rest as with AdamW"
        )
    rest = [p for p in named.values() if id(p) not in axes]
    groups = [
        {
            "name": "embeddings",
            "params": [p for p in named.values() if axes.get(id(p)) == 0],
            "weight_decay": 0.0,
            "coupled": True,
            "vocabulary_dim": 0,
        },
        {
            "name": "transposed embeddings",
            "params": [p for p in named.values() if axes.get(id(p)) == 1],
            "weight_decay": 0.0,
            "coupled": True,
            "vocabulary_dim": 1,
        },
        {
            "name": "matrices",
            "params": [p for p in rest if p.dim() >= 2],
            "weight_decay": weight_decay,
            "coupled": False,
        },
        {
            "name": "vectors",
            "params": [p for p in rest if p.dim() < 2],
            "weight_decay": 0.0,
            "coupled": False,
        },
    ]
    return [group for group in groups if group["params"]]


def _given(
    model: nn.Module,
    vocabulary: Vocabulary,
    embeddings: Iterable[nn.Module | Tensor | str] | nn.Module | Tensor | str,
) -> list[Found]:
    if isinstance(embeddings, str | nn.Module | Tensor):
        embeddings = [embeddings]
    weights = [_one_given(model, vocabulary, entry) for entry in embeddings]
    return [Found(weight, vocabulary.axis(weight)) for weight in weights]


def _one_given(model: nn.Module, vocabulary: Vocabulary, entry: nn.Module | Tensor | str) -> Weight:
    what = repr(entry) if isinstance(entry, str) else type(entry).__name__
    named: Any = entry
    if isinstance(entry, str):
        named = _by_name(model, entry)
    if isinstance(named, nn.Module):
        weights = {weight.key: weight for weight in vocabulary.of(named)}
        if len(weights) > 1:
            raise ValueError(
                f"embeddings= holds {what}, in which there are several matrices, "
                f"{sorted(weight.path for weight in weights.values())}: name those to couple"
            )
    else:
        weights = {
            id(p): Weight(name, model, tuple(p.shape), {name: p}, "", False)
            for name, p in model.named_parameters()
            if p is named
        }
        weights.update((w.key, w) for w in vocabulary.weights if w.key in weights)
    if not weights:
        kind = "the model has no parameter or module of that name"
        if not isinstance(entry, str):
            kind = "of which no matrix is a parameter of the model"
            if isinstance(entry, Tensor) and entry.grad_fn is not None:
                kind = "which is computed from parameters of the model"
        matrices = [name for name, p in model.named_parameters() if p.dim() == 2]
        raise ValueError(
            f"embeddings= holds {what}, but {kind}: pass the model's own embedding modules, their "
            f"weights, or names; its matrices are {matrices}"
        )
    (weight,) = weights.values()
    if len(weight.shape) != 2:
        raise ValueError(
            f"embeddings= holds {what}, of shape {weight.shape}: only matrices of one vector for "
            "each token can be coupled"
        )
    return weight


def _by_name(model: nn.Module, name: str) -> nn.Module | Tensor | None:
    for known in (
        dict(model.named_parameters(remove_duplicate=False)),
        dict(model.named_modules()),
    ):
        bare = {names_without_wrappers(own): value for own, value in known.items()}
        value = known.get(name, bare.get(names_without_wrappers(name)))
        if value is not None:
            return value
    attribute = name.removesuffix(".weight")  # of a weight that is computed
    return _by_name(model, attribute) if attribute != name else None
