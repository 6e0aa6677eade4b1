"""Which parameters end up coupled."""

import pytest
import torch
from torch import nn

from coupled_adam import CoupledAdamW, param_groups


class NanoGPTLike(nn.Module):
    """Tied, with a table of positions, a norm and a bias: the names of nanoGPT."""

    def __init__(self, tied=True):
        super().__init__()
        self.wte, self.wpe = nn.Embedding(11, 4), nn.Embedding(8, 4)
        self.mlp, self.norm = nn.Linear(4, 4), nn.LayerNorm(4)
        self.lm_head = nn.Linear(4, 11, bias=False)
        if tied:
            self.lm_head.weight = self.wte.weight


class HuggingFaceLike(nn.Module):
    def __init__(self):
        super().__init__()
        self.tokens, self.segments = nn.Embedding(11, 4), nn.Embedding(2, 4)
        self.head = nn.Linear(4, 11, bias=False)

    def get_input_embeddings(self):
        return self.tokens

    def get_output_embeddings(self):
        return self.head


def by_name(model, **options):
    names = {id(p): name for name, p in model.named_parameters()}
    return {
        group["name"]: {names[id(p)] for p in group["params"]}
        for group in param_groups(model, **options)
    }


def test_tied_matrix_is_coupled_once_and_positions_are_not():
    assert by_name(NanoGPTLike()) == {
        "embeddings": {"wte.weight"},
        "matrices": {"wpe.weight", "mlp.weight"},
        "vectors": {"mlp.bias", "norm.weight", "norm.bias"},
    }


def test_untied_head_is_coupled_too():
    groups = by_name(NanoGPTLike(tied=False))
    assert groups["embeddings"] == {"wte.weight", "lm_head.weight"}


class Bytes(NanoGPTLike):
    """As many tokens as coordinates: the projection has the shape of the token embeddings."""

    def __init__(self, tied=True):
        super().__init__(tied)
        self.projection = nn.Linear(4, 11, bias=False)


def test_a_projection_of_the_same_shape_is_not_taken_for_the_head():
    assert by_name(Bytes())["embeddings"] == {"wte.weight"}
    assert "projection.weight" in by_name(Bytes())["matrices"]
    with pytest.raises(ValueError, match=r"which of \['lm_head', 'projection'\] is the output"):
        param_groups(Bytes(tied=False))
    groups = by_name(Bytes(tied=False), embeddings=["wte", "lm_head"])
    assert groups["embeddings"] == {"wte.weight", "lm_head.weight"}


def test_hugging_face_accessors_decide():
    groups = by_name(HuggingFaceLike())
    assert groups["embeddings"] == {"tokens.weight", "head.weight"}
    assert groups["matrices"] == {"segments.weight"}


def test_decay_only_on_matrices_and_every_parameter_once():
    model = NanoGPTLike()
    groups = param_groups(model, weight_decay=0.3)
    assert [(g["name"], g["weight_decay"], g["coupled"]) for g in groups] == [
        ("embeddings", 0.0, True),
        ("matrices", 0.3, False),
        ("vectors", 0.0, False),
    ]
    placed = [id(p) for g in groups for p in g["params"]]
    assert sorted(placed) == sorted(id(p) for p in model.parameters())
    assert CoupledAdamW(groups).param_groups[0]["coupled"] is True


@pytest.mark.parametrize("way", ["module", "weight", "name", "module name", "single"])
def test_embeddings_can_be_given(way):
    model = NanoGPTLike()
    given = {
        "module": [model.wpe],
        "weight": [model.wpe.weight],
        "name": ["wpe.weight"],
        "module name": ["wpe"],
        "single": "wpe",
    }[way]
    assert by_name(model, embeddings=given)["embeddings"] == {"wpe.weight"}


def test_a_tied_weight_can_be_given_by_either_name():
    assert by_name(NanoGPTLike(), embeddings=["lm_head"])["embeddings"] == {"wte.weight"}


def test_two_tables_are_ambiguous():
    model = nn.ModuleDict({"words": nn.Embedding(9, 4), "places": nn.Embedding(5, 4)})
    with pytest.raises(ValueError, match=r"2 candidates.*places.*words"):
        param_groups(model)


def test_no_table_is_an_error():
    with pytest.raises(ValueError, match=r"no nn\.Embedding"):
        param_groups(nn.Linear(3, 3))


def test_frozen_parameters_are_left_out():
    model = NanoGPTLike()
    model.mlp.requires_grad_(False)
    assert "mlp.weight" not in by_name(model)["matrices"]
    model.wte.weight.requires_grad_(False)
    with pytest.raises(ValueError, match="frozen"):
        param_groups(model)


@pytest.mark.parametrize("given", ["nothing", nn.Embedding(3, 3), torch.zeros(3, 3), nn.ReLU()])
def test_foreign_embeddings_are_refused(given):
    with pytest.raises(ValueError, match="embeddings="):
        param_groups(NanoGPTLike(), embeddings=[given])
