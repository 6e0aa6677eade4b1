"""From a model to the parameter groups of CoupledAdamW."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn

# Tables of positions and segments are embeddings too, but not of words: the paper leaves them
# alone. These are the names that the usual code bases give them.
_NOT_WORDS = (
    "wpe",
    "position_embedding",
    "position_embeddings",
    "positional_embedding",
    "pos_embedding",
    "pos_embed",
    "pos_emb",
    "embed_positions",
    "token_type_embeddings",
)


def param_groups(
    model: nn.Module,
    weight_decay: float = 0.1,
    *,
    embeddings: Iterable[nn.Module | Tensor | str] | None = None,
) -> list[dict[str, Any]]:
    """Split a model's trainable parameters into the groups of the paper's recipe.

    Coupled without weight decay: the token embeddings, input and output (one matrix if tied).
    Not coupled, with weight decay: all other tensors of two or more dimensions, positional
    embeddings included. Not coupled, without: vectors and scalars. (Stollenwerk and Stollenwerk,
    2025: nanoGPT's rule, with the embeddings taken out.)

    Without ``embeddings`` the token embeddings are found like this: what
    ``get_input_embeddings()`` and ``get_output_embeddings()`` return, as in Hugging Face models;
    else the one ``nn.Embedding`` that is not named like a table of positions, and the output
    head: the ``nn.Linear`` whose weight is the same matrix or, if none is, has the same shape.

    Args:
        model: the model; parameters with ``requires_grad=False`` are left out.
        weight_decay: for tensors of two or more dimensions, at least 0.
        embeddings: modules, weights or parameter names to couple, where the rule above does not
            fit the model.

    Returns:
        Up to three groups, for ``CoupledAdamW(param_groups(model), lr=...)``. Each has a
        ``name``: "embeddings", "matrices" or "vectors".

    Raises:
        ValueError: if no token embedding is found, if several could be meant, or if
            ``embeddings`` names something that the model does not have.
    """
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    weights = _given(model, embeddings) if embeddings is not None else _found(model)
    coupled = {id(weight) for weight in weights}
    trainable = {id(p) for p in named.values()}
    if not coupled & trainable:
        raise ValueError(
            "all token embeddings of the model are frozen (requires_grad=False), so there is "
            "nothing to couple: use torch.optim.AdamW, or unfreeze the embeddings"
        )
    rest = [p for p in named.values() if id(p) not in coupled]
    groups = [
        {
            "name": "embeddings",
            "params": [p for p in named.values() if id(p) in coupled],
            "weight_decay": 0.0,
            "coupled": True,
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


def _given(model: nn.Module, embeddings: Iterable[nn.Module | Tensor | str]) -> list[Tensor]:
    parameters = dict(model.named_parameters(remove_duplicate=False))
    known = {id(p) for p in parameters.values()}
    weights = []
    if isinstance(embeddings, str | nn.Module | Tensor):
        embeddings = [embeddings]
    for entry in embeddings:
        weight = entry
        if isinstance(entry, str):
            weight = parameters.get(entry, parameters.get(f"{entry}.weight"))
            if weight is None:
                raise ValueError(
                    f"embeddings= names {entry!r}, but the model has no such parameter; its "
                    f"matrices are {[n for n, p in parameters.items() if p.dim() == 2]}"
                )
        elif isinstance(entry, nn.Module):
            weight = getattr(entry, "weight", None)
        if id(weight) not in known:
            raise ValueError(
                f"embeddings= holds {type(entry).__name__}, whose weight is not a parameter of "
                "the model: pass the model's own embedding modules, their weights, or their names"
            )
        weights.append(weight)
    return weights


def _found(model: nn.Module) -> list[Tensor]:
    if hasattr(model, "get_input_embeddings"):
        heads = [model.get_input_embeddings()]
        if hasattr(model, "get_output_embeddings"):
            heads.append(model.get_output_embeddings())
        weights = [head.weight for head in heads if getattr(head, "weight", None) is not None]
        if weights:
            return weights
    tables = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Embedding) and name.rpartition(".")[2] not in _NOT_WORDS
    }
    if len({id(module.weight) for module in tables.values()}) != 1:
        found = f"{len(tables)} candidates: {sorted(tables)}" if tables else "no nn.Embedding"
        raise ValueError(
            f"cannot tell which parameters are the token embeddings ({found}): name them, as in "
            "param_groups(model, embeddings=[model.token_embedding, model.output_head])"
        )
    (table, *_) = tables.values()
    heads = {
        name: module.weight
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and module.weight.shape == table.weight.shape
    }
    if any(weight is table.weight for weight in heads.values()):
        return [table.weight]
    if len(heads) > 1:
        # With as many bytes as coordinates, say, every projection looks like an output head.
        raise ValueError(
            f"cannot tell which of {sorted(heads)} is the output head, since all have the shape "
            f"{tuple(table.weight.shape)} of the token embeddings: name the embeddings, as in "
            "param_groups(model, embeddings=[model.token_embedding, model.output_head])"
        )
    return [table.weight, *heads.values()]
