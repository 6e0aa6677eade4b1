"""What the small GPT promises: its arithmetic, its shape, and what it refuses."""

import math

import pytest
import torch

from coupled_adam.gpt import GPT, GPTConfig

VOCABULARY, CONTEXT, LAYERS, HEADS, WIDTH = 101, 12, 2, 4, 16


def make_model(seed=0, scale=1.0, **changes):
    """With scale > 1 the weights are large enough that attention is far from uniform."""
    shape = {"context": CONTEXT, "layers": LAYERS, "heads": HEADS, "width": WIDTH, **changes}
    torch.manual_seed(seed)
    model = GPT(GPTConfig(VOCABULARY, **shape))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(scale if parameter.dim() == 2 else 1 + 0.3 * torch.randn(WIDTH))
    return model


def make_tokens(batch=3, length=CONTEXT, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(VOCABULARY, (batch, length), generator=generator)


def norm(x, weight):
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight


def attention(x, query_key_value, out, heads):
    """Position by position, head by head, with the softmax written out."""
    query, key, value = (x @ query_key_value.T).split(x.shape[1], dim=1)
    size = x.shape[1] // heads
    mixed = torch.zeros_like(x)
    for part in (slice(h * size, (h + 1) * size) for h in range(heads)):
        for t in range(len(x)):
            weights = (key[: t + 1, part] @ query[t, part] / math.sqrt(size)).exp()
            mixed[t, part] = (weights / weights.sum()) @ value[: t + 1, part]
    return mixed @ out.T


def straight_line_logits(model, tokens):
    """GPT-2's equations for one sequence, from the weights by name."""
    w = {name: p.detach().double() for name, p in model.named_parameters(remove_duplicate=False)}
    x = w["token_embedding.weight"][tokens] + w["position_embedding.weight"][: len(tokens)]
    for layer in range(model.config.layers):
        b = {k.removeprefix(f"blocks.{layer}."): v for k, v in w.items()}
        into = norm(x, b["attention_norm.weight"])
        heads = model.config.heads
        x = x + attention(into, b["query_key_value.weight"], b["attention_out.weight"], heads)
        inner = norm(x, b["network_norm.weight"]) @ b["network_in.weight"].T
        gelu = inner * 0.5 * (1 + torch.erf(inner / math.sqrt(2)))
        x = x + gelu @ b["network_out.weight"].T
    return norm(x, w["final_norm.weight"]) @ w["head.weight"].T


@pytest.mark.parametrize("tied", [True, False])
def test_logits_are_those_of_the_equations_written_out(tied):
    model, tokens = make_model(scale=15, tied=tied).double(), make_tokens(batch=2)
    expected = torch.stack([straight_line_logits(model, row) for row in tokens])
    torch.testing.assert_close(model(tokens).detach(), expected)


def test_the_loss_is_the_mean_cross_entropy_in_nats():
    model, tokens, targets = make_model(scale=10), make_tokens(), make_tokens(seed=1)
    log_probabilities = model(tokens).log_softmax(-1)
    picked = log_probabilities.gather(2, targets[..., None])
    torch.testing.assert_close(model(tokens, targets), -picked.mean())


@pytest.mark.parametrize("position", [1, 5, CONTEXT - 1])
def test_a_later_token_never_changes_earlier_logits(position):
    model, tokens = make_model(scale=10), make_tokens()
    changed = tokens.clone()
    changed[:, position] = (changed[:, position] + 1) % VOCABULARY
    before, after = model(tokens), model(changed)
    assert torch.equal(before[:, :position], after[:, :position])
    assert not torch.equal(before[:, position:], after[:, position:])


def test_an_earlier_token_reaches_the_last_logits():
    model, tokens = make_model(scale=10), make_tokens()
    changed = tokens.clone()
    changed[:, 0] = (changed[:, 0] + 1) % VOCABULARY
    assert (model(tokens)[:, -1] - model(changed)[:, -1]).abs().max() > 1e-3


def test_a_shorter_input_is_a_prefix():
    model, tokens = make_model(scale=10), make_tokens()
    torch.testing.assert_close(model(tokens[:, :5]), model(tokens)[:, :5])


def test_tied_means_one_matrix_and_one_parameter():
    model = make_model(tied=True)
    assert model.embedding is model.output_embedding
    assert sum(p.shape == (VOCABULARY, WIDTH) for p in model.parameters()) == 1
    with torch.no_grad():
        model.embedding[3] += 1
    assert torch.equal(model.output_embedding[3], model.embedding[3])


def test_untied_means_two_matrices_that_differ():
    model = make_model(tied=False)
    assert sum(p.shape == (VOCABULARY, WIDTH) for p in model.parameters()) == 2
    assert model.embedding.data_ptr() != model.output_embedding.data_ptr()
    assert not torch.equal(model.embedding, model.output_embedding)


def test_a_tied_model_stays_tied_when_its_state_is_loaded():
    source, model = make_model(seed=1), make_model(seed=2)
    model.load_state_dict(source.state_dict())
    assert model.embedding is model.output_embedding
    assert torch.equal(model(make_tokens()), source(make_tokens()))


@pytest.mark.parametrize(("tied", "matrices"), [(True, 1), (False, 2)])
def test_number_of_parameters(tied, matrices):
    block = 12 * WIDTH**2 + 2 * WIDTH  # 3 + 1 for attention, 4 + 4 for the network; two norms
    expected = matrices * VOCABULARY * WIDTH + CONTEXT * WIDTH + LAYERS * block + WIDTH
    model = make_model(tied=tied)
    assert sum(p.numel() for p in model.parameters()) == expected


def test_there_are_no_biases_and_nothing_is_dropped_out():
    model = make_model(scale=10)
    assert all(name.endswith("weight") for name, _ in model.named_parameters())
    assert not any(isinstance(module, torch.nn.Dropout) for module in model.modules())
    assert torch.equal(model.train()(make_tokens()), model.eval()(make_tokens()))


def test_the_loss_of_an_untrained_model_is_that_of_guessing():
    torch.manual_seed(0)
    model = GPT(GPTConfig(VOCABULARY, CONTEXT, LAYERS, HEADS, WIDTH))
    assert model(make_tokens(64), make_tokens(64, seed=1)).item() == pytest.approx(
        math.log(VOCABULARY), abs=0.02
    )


def test_initial_weights_have_the_spread_of_gpt2():
    torch.manual_seed(0)
    model = GPT(GPTConfig(VOCABULARY, layers=8, width=64, tied=False))
    for name, weight in model.named_parameters():
        if weight.dim() == 1:
            assert torch.equal(weight, torch.ones_like(weight)), name
            continue
        residual = "attention_out" in name or "network_out" in name
        expected = 0.02 / math.sqrt(16) if residual else 0.02
        # Six standard errors of an estimate from numel() draws.
        assert weight.std().item() == pytest.approx(
            expected, rel=6 / math.sqrt(2 * weight.numel())
        ), name
        assert abs(weight.mean().item()) < 6 * expected / math.sqrt(weight.numel()), name


@pytest.mark.parametrize("tied", [True, False])
def test_hidden_states_are_what_meets_the_output_embeddings(tied):
    model, tokens = make_model(scale=10, tied=tied), make_tokens()
    hidden = model.hidden_states(tokens)
    assert hidden.shape == (*tokens.shape, WIDTH)
    torch.testing.assert_close(hidden @ model.output_embedding.T, model(tokens))


def test_gradients_of_the_output_embeddings_sum_to_zero():
    model = make_model(scale=10, tied=False)
    model(make_tokens(), make_tokens(seed=1)).backward()
    gradient = model.output_embedding.grad
    assert gradient.sum(0).abs().max() < 1e-5 * gradient.abs().max()
    assert model.embedding.grad.sum(0).abs().max() > 1e-2 * model.embedding.grad.abs().max()


def test_a_batch_that_it_has_seen_often_is_learnt():
    model, tokens, targets = make_model(), make_tokens(), make_tokens(seed=1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        loss = model(tokens, targets)
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.2 * math.log(VOCABULARY)


@pytest.mark.parametrize("name", ["vocabulary_size", "context", "layers", "heads", "width"])
@pytest.mark.parametrize("value", [0, -1, 2.0, "4"])
def test_impossible_sizes_are_refused_by_name(name, value):
    with pytest.raises(ValueError, match=rf"GPTConfig\.{name} .* not {value!r}"):
        GPTConfig(**{"vocabulary_size": VOCABULARY, name: value})


def test_a_width_that_heads_do_not_divide_is_refused():
    with pytest.raises(ValueError, match=r"width \(18\) must be a multiple of heads \(4\)"):
        GPTConfig(VOCABULARY, width=18, heads=4)


def test_an_input_longer_than_the_context_is_refused():
    with pytest.raises(ValueError, match=f"got {CONTEXT + 1} tokens.*context is {CONTEXT}"):
        make_model()(make_tokens(length=CONTEXT + 1))
