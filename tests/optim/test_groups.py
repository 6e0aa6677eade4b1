"""Which parameters end up coupled."""

import copy
import logging

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune, spectral_norm, weight_norm

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


class Parts(nn.Module):
    """A model of the given modules and parameters; ties and methods can be added."""

    def __init__(self, **parts):
        super().__init__()
        for name, part in parts.items():
            setattr(self, name, part)


def embedding(rows=50, width=8):
    return nn.Embedding(rows, width)


def linear(into=8, out=50):
    return nn.Linear(into, out, bias=False)


def matrix(*shape):
    return nn.Parameter(torch.randn(shape))


class Block(nn.Module):
    def __init__(self, width=8, inner=32):
        super().__init__()
        self.attention = nn.Linear(width, 3 * width)
        self.up, self.down = nn.Linear(width, inner), nn.Linear(inner, width)


def blocks(number=2):
    return nn.ModuleList(Block() for _ in range(number))


class Transposed(nn.Module):
    """A layer that stores its weight as [in, out], as modded-nanogpt's head does."""

    def __init__(self, into, out):
        super().__init__()
        self.in_features, self.out_features = into, out
        self.weight = matrix(into, out)


class OwnEmbedding(nn.Module):
    """As students of a course write it."""

    def __init__(self, rows, width):
        super().__init__()
        self.weight = matrix(rows, width)


class SinusoidalPositions(nn.Embedding):
    pass


def tied(**parts):
    model = Parts(**parts)
    model.head.weight = model.table.weight
    return model


def answering(answer, **parts):
    """A model whose get_input_embeddings returns the part of this name, or raises."""

    class Model(Parts):
        def get_input_embeddings(self):
            if isinstance(answer, Exception):
                raise answer
            return getattr(self, answer)

    return Model(**parts)


def shared_by_many():
    model = Parts(encoder=Parts(words=embedding()), decoder=Parts(t=embedding()), out=linear())
    model.decoder.t.weight = model.encoder.words.weight
    return model


def adaptive():
    """The layout of Transformer-XL: a table and a layer of the head for each range of tokens."""
    tables = nn.ModuleList([embedding(10, 8), embedding(40, 4)])
    layers = nn.ModuleList([linear(8, 10), linear(4, 40)])
    for table, layer in zip(tables, layers, strict=True):
        layer.weight = table.weight
    return Parts(a=Parts(layers=tables), crit=Parts(layers=layers))


# What holds the words, and what only looks so: model, expected names, those of [width, tokens].
STRUCTURES = {
    "tied": (tied(table=embedding(), pos=embedding(6), head=linear()), {"table.weight"}, set()),
    "tied, named like positions": (
        Parts(inner=tied(table=embedding(), head=linear()), position_embedding=embedding(6)),
        {"inner.table.weight"},
        set(),
    ),
    "tied, another as long": (
        tied(table=embedding(), other=embedding(), head=linear()),
        {"table.weight"},
        set(),
    ),
    "tied, a projection of the shape": (
        tied(table=embedding(), projection=linear(), head=linear()),
        {"table.weight"},
        set(),
    ),
    "by the shape of the head": (
        Parts(a=embedding(6), b=embedding(), out=linear()),
        {"b.weight", "out.weight"},
        set(),
    ),
    "longer context than vocabulary": (
        Parts(a=embedding(50), b=embedding(64), blocks=blocks(), out=linear()),
        {"a.weight", "out.weight"},
        set(),
    ),
    "context of the blocks' inner size": (
        Parts(a=embedding(50), b=embedding(32), blocks=blocks(1), out=linear()),
        {"a.weight", "out.weight"},
        set(),
    ),
    "vocabulary of the blocks' inner size": (
        Parts(a=embedding(32), blocks=blocks(), out=linear(8, 32)),
        {"a.weight", "out.weight"},
        set(),
    ),
    "vocabulary of three widths, no head": (
        Parts(a=embedding(24), blocks=blocks(1)),
        {"a.weight"},
        set(),
    ),
    "bytes, recurrent": (
        Parts(a=embedding(32), rnn=nn.LSTM(8, 8), out=linear(8, 32)),
        {"a.weight", "out.weight"},
        set(),
    ),
    "head of another width": (
        Parts(a=embedding(50, 4), up=linear(4, 8), out=linear(8, 50)),
        {"a.weight", "out.weight"},
        set(),
    ),
    "bare head, transposed": (Parts(a=embedding(), out=matrix(8, 50)), {"a.weight"}, {"out"}),
    "layer that stores [in, out]": (
        Parts(p=embedding(6), a=embedding(), out=Transposed(8, 50)),
        {"a.weight"},
        {"out.weight"},
    ),
    "linear layer used backwards": (
        Parts(a=embedding(), out=linear(50, 8)),
        {"a.weight"},
        {"out.weight"},
    ),
    "square, of a known layer": (
        Parts(a=embedding(8), out=Transposed(8, 8)),
        {"a.weight", "out.weight"},
        set(),
    ),
    "no modules, sizes stated": (
        Parts(vocab_size=50, wte=matrix(50, 8), lm_head=matrix(8, 50), w=matrix(8, 8)),
        {"wte"},
        {"lm_head"},
    ),
    "own classes": (
        Parts(a=OwnEmbedding(50, 8), blocks=blocks(), out=linear()),
        {"a.weight", "out.weight"},
        set(),
    ),
    "bag": (Parts(a=nn.EmbeddingBag(50, 8), out=linear(8, 3)), {"a.weight"}, set()),
    "shared by many": (shared_by_many(), {"encoder.words.weight", "out.weight"}, set()),
    "adaptive, tied": (adaptive(), {"a.layers.0.weight", "a.layers.1.weight"}, set()),
    "adaptive head": (
        Parts(a=embedding(), crit=nn.AdaptiveLogSoftmaxWithLoss(8, 50, [10, 20], 2)),
        {"a.weight", "crit.head.weight", "crit.tail.0.1.weight", "crit.tail.1.1.weight"},
        set(),
    ),
    "encoder and decoder": (
        Parts(
            encoder=Parts(embedding=embedding(60), layers=blocks()),
            decoder=Parts(embedding=embedding(50), layers=blocks()),
            out=linear(),
        ),
        {"encoder.embedding.weight", "decoder.embedding.weight", "out.weight"},
        set(),
    ),
    "source and target": (
        Parts(src_emb=embedding(60), tgt_emb=embedding(), pos=embedding(9), out=linear()),
        {"src_emb.weight", "tgt_emb.weight", "out.weight"},
        set(),
    ),
    "answer": (
        answering("a", a=embedding(), b=embedding(6), out=linear(8, 6)),
        {"a.weight"},
        set(),
    ),
    "answer that is a patch projection": (
        answering("patches", a=embedding(), patches=nn.Conv2d(3, 8, 2)),
        {"a.weight"},
        set(),
    ),
    "answer that is a flat patch projection": (
        answering("patches", a=embedding(), patches=linear(12, 8)),
        {"a.weight"},
        set(),
    ),
    "answer that is queries": (
        answering("queries", a=embedding(), queries=embedding(7), latents=matrix(50, 8)),
        {"a.weight"},
        set(),
    ),
    "answer that is a parameter": (
        answering("latents", a=embedding(), latents=matrix(50, 8)),
        {"a.weight"},
        set(),
    ),
    "answer against the head": (
        answering("b", a=embedding(), b=embedding(6), out=linear()),
        {"a.weight", "out.weight"},
        set(),
    ),
    "raises": (
        answering(NotImplementedError(), a=embedding(), b=SinusoidalPositions(6, 8)),
        {"a.weight"},
        set(),
    ),
    "wants arguments": (
        answering(TypeError(), a=embedding(), token_type_embeddings=embedding(2)),
        {"a.weight"},
        set(),
    ),
    "answer of an inner model": (
        Parts(tower=embedding(20), text=answering("a", a=embedding(), b=embedding(6))),
        {"text.a.weight"},
        set(),
    ),
    "sounds, by their head": (
        Parts(codebook=embedding(), speaker=embedding(9), out=linear()),
        {"codebook.weight", "out.weight"},
        set(),
    ),
    "sounds, without a head": (Parts(codebook=embedding(), w=linear(8, 8)), set(), set()),
    "names last": (
        Parts(
            a=embedding(),
            pos_emb=Parts(emb=embedding(50)),
            query_embed=embedding(9),
            blocks=nn.ModuleList([Parts(relative=embedding(32, 2), w=linear(8, 8))]),
        ),
        {"a.weight"},
        set(),
    ),
    "copy that is trained": (
        Parts(tok=Parts(original_module=embedding(), modules_to_save=embedding()), out=linear()),
        {"tok.original_module.weight", "tok.modules_to_save.weight", "out.weight"},
        set(),
    ),
    "last stage of a pipeline": (
        Parts(vocab_size=50, blocks=blocks(), output=linear()),
        {"output.weight"},
        set(),
    ),
    "last stage of a pipeline, by name": (
        Parts(blocks=blocks(), lm_head=linear()),
        {"lm_head.weight"},
        set(),
    ),
    # Public models, by the names and proportions of their modules.
    "minGPT": (
        Parts(
            transformer=nn.ModuleDict(
                {
                    "wte": embedding(),
                    "wpe": embedding(16),
                    "h": nn.ModuleList([Block(), Block()]),
                    "ln_f": nn.LayerNorm(8),
                }
            ),
            lm_head=linear(),
        ),
        {"transformer.wte.weight", "lm_head.weight"},
        set(),
    ),
    "nanochat": (
        Parts(
            transformer=nn.ModuleDict({"wte": embedding(), "h": blocks()}),
            value_embeds=nn.ModuleDict({"0": embedding(), "1": embedding()}),
            resid_lambdas=nn.Parameter(torch.ones(2)),
            lm_head=linear(),
        ),
        {
            "transformer.wte.weight",
            "value_embeds.0.weight",
            "value_embeds.1.weight",
            "lm_head.weight",
        },
        set(),
    ),
    "x-transformers": (
        Parts(
            token_emb=Parts(emb=embedding()),
            pos_emb=Parts(emb=embedding(50)),
            memory_tokens=matrix(50, 8),
            attn_layers=Parts(
                layers=nn.ModuleList([Block()]),
                rel_pos=Parts(relative_attention_bias=embedding(32, 2)),
            ),
            to_logits=linear(),
        ),
        {"token_emb.emb.weight", "to_logits.weight"},
        set(),
    ),
    "x-transformers, tied": (
        Parts(
            token_emb=Parts(emb=embedding()),
            pos_emb=Parts(emb=embedding(16)),
            attn_layers=Parts(layers=nn.ModuleList([Block()])),
        ),
        {"token_emb.emb.weight"},
        set(),
    ),
}


def llama2c():
    model = Parts(
        tok_embeddings=embedding(), layers=blocks(), norm=nn.LayerNorm(8), output=linear()
    )
    model.tok_embeddings.weight = model.output.weight
    return model


STRUCTURES["llama2.c"] = (llama2c(), {"tok_embeddings.weight"}, set())


@pytest.mark.parametrize("name", STRUCTURES)
def test_structure_decides_and_names_come_last(name):
    model, rows, columns = STRUCTURES[name]
    groups = by_name(model)
    assert groups.get("embeddings", set()) == rows
    assert groups.get("transposed embeddings", set()) == columns
    placed = [parameter for names in groups.values() for parameter in names]
    assert sorted(placed) == sorted(name for name, _ in model.named_parameters())


def test_a_transposed_head_gets_a_group_that_the_optimizer_understands():
    model = Parts(table=embedding(), head=matrix(8, 50))
    groups = param_groups(model)
    assert [(group["name"], group.get("vocabulary_dim", 0)) for group in groups] == [
        ("embeddings", 0),
        ("transposed embeddings", 1),
    ]
    optimizer = CoupledAdamW(groups)
    model.head.grad = torch.randn(8, 50)
    optimizer.step()
    assert optimizer.state[model.head]["exp_avg_sq"].shape == (8,)
    (coupled,) = param_groups(model, embeddings=["head"])[:1]
    assert coupled["params"] == [model.head] and coupled["vocabulary_dim"] == 1


def test_bare_square_head_is_refused():
    with pytest.raises(ValueError, match=r"rows or the columns of 'head'.*vocabulary_dim=1"):
        param_groups(Parts(table=embedding(8), head=matrix(8, 8)))


class Half(nn.Module):
    def forward(self, weight):
        return weight / 2


class LowRank(nn.Module):
    def forward(self, left, right):
        return left @ right

    def right_inverse(self, weight):
        return weight[:, :2].clone(), weight[:2].clone()


def with_half(module):
    return parametrize.register_parametrization(module, "weight", Half())


COMPUTED = {
    "parametrization": with_half,
    "two parametrizations": lambda module: with_half(with_half(module)),
    "spectral norm": parametrizations.spectral_norm,
    "old spectral norm": spectral_norm,
    "pruning": lambda module: prune.l1_unstructured(module, "weight", 0.3),
}


@pytest.mark.parametrize("of", ["table", "head"])
@pytest.mark.parametrize("how", COMPUTED)
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_computed_weight_stands_for_what_it_is_computed_from(how, of):
    model = Parts(table=embedding(), head=linear(), w=linear(8, 8))
    COMPUTED[how](getattr(model, of))
    before = copy.deepcopy(model.state_dict())
    found = by_name(model)
    assert found["matrices"] == {"w.weight"}
    assert len(found["embeddings"]) == 2
    # Computing a weight moves the vectors of spectral_norm.
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert by_name(model, embeddings=[of])["embeddings"] < found["embeddings"]


def test_a_tie_is_seen_through_a_parametrization():
    model = tied(table=embedding(), pos=embedding(6), head=linear())
    with_half(model.table)
    groups = by_name(model)
    assert groups["embeddings"] == {"table.parametrizations.weight.original"}
    assert groups["matrices"] == {"pos.weight"}


@pytest.mark.parametrize("of", ["table", "head"])
@pytest.mark.parametrize(
    ("how", "said"),
    [
        (parametrizations.weight_norm, "WeightNorm.*original0.*original1"),
        (weight_norm, "weight_norm.*weight_g.*weight_v"),
        (
            lambda module: parametrize.register_parametrization(module, "weight", LowRank()),
            "LowRank.*original0.*original1",
        ),
    ],
)
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_weight_computed_from_several_is_refused_by_what_it_is(how, said, of):
    model = Parts(table=embedding(), head=linear())
    how(getattr(model, of))
    with pytest.raises(ValueError, match=f"'{of}' is computed by .*{said}"):
        param_groups(model)
    with pytest.raises(ValueError, match=f"'{of}' is computed by .*{said}"):
        param_groups(model, embeddings=[of])
    direction = max(getattr(model, of).parameters(), key=torch.numel)
    coupled = param_groups(model, embeddings=[direction])[0]
    assert coupled["params"] == [direction] and coupled["coupled"]


def test_weight_norm_elsewhere_is_nobodys_business():
    model = Parts(table=embedding(), w=linear(8, 8))
    parametrizations.weight_norm(model.w)
    assert by_name(model)["embeddings"] == {"table.weight"}


@pytest.mark.parametrize(
    "stage",
    [
        Parts(blocks=blocks(), norm=nn.LayerNorm(8)),
        Parts(patches=nn.Conv2d(3, 8, 2), position_embedding=embedding(9), classifier=linear(8, 9)),
        Parts(blocks=nn.ModuleList([Parts(r=embedding(32, 2), w=linear(8, 8))])),
        Parts(queries=embedding(7), head=linear(8, 7)),
        nn.Linear(3, 3),
    ],
    ids=["middle stage", "vision", "distances", "queries", "layer"],
)
def test_a_model_without_words_gets_plain_groups_and_says_so(stage, caplog):
    groups = param_groups(stage)
    assert not any(group["coupled"] for group in groups)
    assert "stage of a pipeline" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.DEBUG):
        assert by_name(stage, embeddings=[]) == by_name(stage)
        caplog.clear()
        param_groups(stage, embeddings=[])
    assert not caplog.text


def test_no_embeddings_on_purpose():
    groups = param_groups(NanoGPTLike(), embeddings=[])
    assert not any(group["coupled"] for group in groups)
    assert groups[0]["name"] == "matrices" and groups[0]["weight_decay"] == 0.1


def test_a_bare_matrix_that_looks_like_an_embedding_is_not_passed_over():
    with pytest.raises(ValueError, match=r"no nn\.Embedding, but 1 candidates: \['wte'\]"):
        param_groups(Parts(wte=matrix(50, 8), blocks=blocks()))


def test_flattened_tables_are_refused():
    table = embedding()
    del table.weight  # as FSDP1 does
    table.flat = nn.Parameter(torch.zeros(400))
    with pytest.raises(ValueError, match=r"\['table'\] are not matrices.*fully_shard"):
        param_groups(Parts(table=table, blocks=blocks()))


def test_frozen_parameters_are_left_out():
    model = NanoGPTLike()
    model.mlp.requires_grad_(False)
    assert "mlp.weight" not in by_name(model)["matrices"]
    model.wte.weight.requires_grad_(False)
    with pytest.raises(ValueError, match=r"\['wte'\].*frozen.*embeddings=\[\]"):
        param_groups(model)
    with pytest.raises(ValueError, match="frozen"):
        param_groups(model, embeddings=["wte"])
    assert "embeddings" not in by_name(model, embeddings=[])
    model.requires_grad_(False)
    with pytest.raises(ValueError, match="no parameter of the model is trainable"):
        param_groups(model, embeddings=[])


def test_a_frozen_table_leaves_its_head_coupled():
    model = NanoGPTLike(tied=False)
    model.wte.weight.requires_grad_(False)
    assert by_name(model)["embeddings"] == {"lm_head.weight"}


@pytest.mark.parametrize(
    "wrapped",
    [
        torch.compile,
        nn.DataParallel,
        lambda model: nn.Sequential(model),
        lambda model: Parts(_orig_mod=Parts(module=model)),
    ],
    ids=["compiled", "data parallel", "in a sequence", "twice"],
)
@pytest.mark.parametrize("tied", [True, False])
def test_wrappers_do_not_hide_the_embeddings(wrapped, tied):
    model = wrapped(NanoGPTLike(tied))
    expected = {"wte.weight"} if tied else {"wte.weight", "lm_head.weight"}
    found = by_name(model)["embeddings"]
    assert {".".join(name.split(".")[-2:]) for name in found} == expected


@pytest.mark.parametrize("name", ["wte", "wte.weight", "module.wte", "_orig_mod.module.wte.weight"])
def test_names_with_and_without_wrappers(name):
    model = torch.compile(nn.DataParallel(NanoGPTLike(tied=False)))
    assert by_name(model, embeddings=[name])["embeddings"] == {"_orig_mod.module.wte.weight"}


def test_a_module_that_holds_the_table_can_be_given():
    model = Parts(token_emb=Parts(emb=embedding()), both=Parts(a=embedding(6), b=embedding(7)))
    assert by_name(model, embeddings=[model.token_emb])["embeddings"] == {"token_emb.emb.weight"}
    with pytest.raises(ValueError, match=r"several matrices, \['both.a', 'both.b'\]"):
        param_groups(model, embeddings=["both"])


def test_models_on_meta_are_enough():
    with torch.device("meta"):
        assert by_name(NanoGPTLike(tied=False))["embeddings"] == {"wte.weight", "lm_head.weight"}


@pytest.mark.parametrize("given", ["nothing", nn.Embedding(3, 3), torch.zeros(3, 3), nn.ReLU()])
def test_foreign_embeddings_are_refused(given):
    with pytest.raises(ValueError, match="embeddings="):
        param_groups(NanoGPTLike(), embeddings=[given])


def test_what_is_no_matrix_cannot_be_given():
    model = NanoGPTLike()
    with pytest.raises(ValueError, match=r"shape \(4,\): only matrices"):
        param_groups(model, embeddings=["mlp.bias"])
    with pytest.raises(ValueError, match="which is computed from parameters"):
        param_groups(model, embeddings=[model.wte.weight * 2])
