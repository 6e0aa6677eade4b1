"""The closed forms against autograd, torch's optimizers, and simulations of their assumptions."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from coupled_adam import CoupledAdamW, geometry, theory

few = settings(max_examples=25, deadline=None)


# --- frequencies -----------------------------------------------------------------------------


@few
@given(st.integers(1, 500), st.floats(0, 3))
def test_zipf_is_a_power_law_that_sums_to_one(size, exponent):
    f = theory.zipf_frequencies(size, exponent)
    assert f.sum() == pytest.approx(1)
    ranks = np.arange(1, size + 1)
    np.testing.assert_allclose(f / f[0], ranks**-exponent, rtol=1e-12)


def test_zipf_of_no_words_is_refused():
    with pytest.raises(ValueError, match="at least 1, not 0"):
        theory.zipf_frequencies(0)


def test_absence_agrees_with_draws():
    f, n, draws = theory.zipf_frequencies(20), 15, 20_000
    counts = np.random.default_rng(0).multinomial(n, f, size=draws)
    expected = theory.absence(f, n)
    error = np.sqrt(expected * (1 - expected) / draws)
    assert np.all(np.abs((counts == 0).mean(0) - expected) < 5 * error + 1e-12)


# --- gradients -------------------------------------------------------------------------------


@few
@given(
    positions=st.integers(1, 12),
    size=st.integers(2, 30),
    width=st.integers(1, 8),
    scale=st.floats(0, 300),
    seed=st.integers(0, 2**32),
)
def test_output_gradients_are_autograd_s_and_sum_to_zero(positions, size, width, scale, seed):
    random = np.random.default_rng(seed)
    hidden = random.normal(size=(positions, width))
    embedding = torch.tensor(scale * random.normal(size=(size, width)), requires_grad=True)
    targets = random.integers(size, size=positions)
    logits = torch.tensor(hidden) @ embedding.T
    F.cross_entropy(logits, torch.tensor(targets)).backward()
    ours = theory.output_gradients(logits.detach(), hidden, targets)
    np.testing.assert_allclose(ours, embedding.grad, atol=1e-12)
    np.testing.assert_allclose(ours.sum(0), 0, atol=1e-12)


# --- Adam's moments --------------------------------------------------------------------------


def gradient_series(steps=12, shape=(3, 2), seed=0):
    return np.random.default_rng(seed).normal(size=(steps, *shape)) * [[1.0, 1e-3]]


@pytest.mark.parametrize("betas", [(0.9, 0.999), (0.0, 0.95), (0.9, 0.0)])
@pytest.mark.parametrize("eps", [1e-8, 1e-2])
def test_moments_give_the_steps_of_torch_adam(betas, eps):
    series, weight = gradient_series(), torch.zeros(3, 2, dtype=torch.float64)
    optimizer = torch.optim.Adam([weight], lr=1.0, betas=betas, eps=eps)
    ours = theory.moments(series, betas, eps)
    for t, gradient in enumerate(series, start=1):
        before, weight.grad = weight.clone(), torch.tensor(gradient)
        optimizer.step()
        np.testing.assert_allclose(before - weight, ours.step[t - 1], rtol=1e-9)
        state = optimizer.state[weight]
        first = state["exp_avg"] / (1 - betas[0] ** t)
        second = state["exp_avg_sq"] / (1 - betas[1] ** t)
        np.testing.assert_allclose(first, ours.first[t - 1], rtol=1e-9)
        np.testing.assert_allclose(second, ours.second[t - 1], rtol=1e-9)


@few
@given(st.floats(1e-3, 1e6), st.integers(0, 2**32))
def test_steps_do_not_depend_on_the_scale_of_the_gradients(scale, seed):
    series = gradient_series(seed=seed)
    small, large = theory.moments(series, eps=0), theory.moments(scale * series, eps=0)
    np.testing.assert_allclose(large.step, small.step, rtol=1e-9)
    np.testing.assert_allclose(large.second, scale**2 * small.second, rtol=1e-9)


def test_the_first_step_is_the_sign_and_a_constant_gradient_keeps_it():
    series = np.full((30, 2), [1e-3, -7.0])
    np.testing.assert_allclose(theory.moments(series, eps=0).step, np.sign(series), rtol=1e-12)


# --- the second moment and frequency ---------------------------------------------------------


def simulated_second_moment(f, p, n, mean, std, steps=20_000):
    """Squared gradients of a model that gives token i the probability p_i everywhere."""
    random, total = np.random.default_rng(0), np.zeros(len(f))
    for _ in range(20):
        targets = random.choice(len(f), p=f, size=(steps // 20, n))
        hidden = random.normal(mean, std, size=(steps // 20, n, len(mean)))
        errors = p - np.eye(len(f))[targets]
        gradients = np.einsum("snv,snh->svh", errors, hidden) / n
        total += (gradients**2).mean(2).sum(0)
    return total / steps


@pytest.mark.parametrize("learnt", ["nothing", "frequencies", "the wrong way round"])
def test_expected_second_moment_agrees_with_its_assumptions_simulated(learnt):
    f, n = theory.zipf_frequencies(8), 6
    p = {"nothing": np.full(8, 1 / 8), "frequencies": f, "the wrong way round": f[::-1]}[learnt]
    mean, std = np.array([0.5, -1.0, 0.0]), np.array([0.3, 1.0, 0.7])
    expected = theory.expected_second_moment(f, p, n, mean, mean**2 + std**2)
    measured = simulated_second_moment(f, p, n, mean, std)
    np.testing.assert_allclose(measured, expected, rtol=0.06)


@few
@given(st.integers(2, 200), st.floats(0, 2), st.integers(1, 1000), st.floats(-2, 2))
def test_of_learnt_frequencies_it_is_a_bernoulli_variance(size, exponent, n, mean):
    f, mean_square = theory.zipf_frequencies(size, exponent), [mean**2 + 1.0]
    ours = theory.expected_second_moment(f, f, n, [mean], mean_square)
    np.testing.assert_allclose(ours, f * (1 - f) * mean_square / n, rtol=1e-9)


# --- the drift -------------------------------------------------------------------------------

WORDS, TOKENS, WIDTH = 400, 64, 12


def hidden_states(seed=1):
    mean = np.random.default_rng(seed).normal(size=WIDTH)
    return mean, np.full(WIDTH, 1.5)


def test_first_step_of_the_mean_is_what_the_simulation_does_first():
    f, (mean, std) = theory.zipf_frequencies(WORDS), hidden_states()
    expected = theory.first_step_of_the_mean(f, TOKENS, mean)
    np.testing.assert_array_equal(np.sign(expected), -np.sign(mean))
    draws = [
        theory.simulate_drift(f, TOKENS, [1e-3], mean, std, eps=0, seed=seed)[0] / 1e-3
        for seed in range(100)
    ]
    # The coin tosses of the present tokens are not quite fair: their hidden states share a mean.
    np.testing.assert_allclose(np.mean(draws, axis=0), expected, atol=0.1)
    assert np.abs(expected).min() > 0.8


def test_with_every_token_present_nothing_remains_of_the_first_step():
    assert np.abs(theory.first_step_of_the_mean(np.full(5, 0.2), 500, np.ones(3))).max() < 1e-12


def optimized_drift(gradients_of, rates, coupled, betas, eps):
    """The mean's path when torch's optimizer, or ours, follows the gradients."""
    kind = CoupledAdamW if coupled else torch.optim.AdamW
    weight = torch.zeros(5, 2, dtype=torch.float64)
    options = {"coupled": True} if coupled else {}
    optimizer = kind([weight], betas=betas, eps=eps, weight_decay=0.0, **options)
    path = []
    for t, rate in enumerate(rates):
        optimizer.param_groups[0]["lr"] = rate
        weight.grad = gradients_of(t, weight)
        optimizer.step()
        path.append(weight.mean(0).tolist())
    return np.array(path)


@pytest.mark.parametrize("coupled", [False, True])
@pytest.mark.parametrize("learn", [False, True])
def test_the_simulation_takes_the_steps_of_the_real_optimizers(coupled, learn):
    """One word has all the mass and hidden states do not vary: nothing is left to chance."""
    f, rates = np.array([0.0, 0, 1, 0, 0]), [0.05, 0.1, 0.02] * 5
    means = np.random.default_rng(0).normal(size=(len(rates), 2))

    def gradients_of(t, weight):
        mean = torch.tensor(means[t])
        p = (weight @ mean).softmax(0) if learn else torch.full((5,), 0.2, dtype=torch.float64)
        return torch.outer(p - torch.tensor(f), mean)

    betas, eps = (0.8, 0.9), 1e-3
    path = theory.simulate_drift(
        f,
        7,
        rates,
        means,
        np.zeros(2),
        betas=betas,
        eps=eps,
        coupled=coupled,
        learn_probabilities=learn,
    )
    expected = optimized_drift(gradients_of, rates, coupled, betas, eps)
    np.testing.assert_allclose(path, expected, atol=2e-6)


@pytest.mark.parametrize(("coupled", "expected"), [(False, 1 / 25), (True, 1 / 5)])
def test_the_simulation_couples_by_the_mean_over_the_vocabulary(coupled, expected):
    """Only one of 25 words has a gradient x; its step is x / |x|, or x / sqrt(x^2 / 25)."""
    f = np.eye(25)[3]
    path = theory.simulate_drift(
        f, 4, [1.0], np.zeros(3), np.ones(3), betas=(0, 0), eps=1e-12, coupled=coupled
    )
    np.testing.assert_allclose(np.abs(path), expected, rtol=1e-5)


def test_the_simulated_noise_is_that_of_the_tokens_that_occur():
    """beta1 = beta2 = 0, coupled: a step is the gradient over the root of its mean square."""
    f, n, std = theory.zipf_frequencies(6), 10, np.array([0.5, 2.0])
    first = np.array(
        [
            theory.simulate_drift(
                f, n, [1.0], np.zeros(2), std, betas=(0, 0), eps=1e6, coupled=True, seed=seed
            )[0]
            for seed in range(2000)
        ]
    )
    # With eps far above the root, the mean's step is the mean gradient over eps: minus the sum of
    # n independent hidden states over n, over 6 words.
    expected = std / np.sqrt(n) / 6 / 1e6
    np.testing.assert_allclose(first.std(0), expected, rtol=0.08)
    np.testing.assert_allclose(first.mean(0), 0, atol=5 * expected.max() / np.sqrt(2000))


def test_adam_drifts_and_coupled_adam_does_not():
    f, (mean, std) = theory.zipf_frequencies(WORDS), hidden_states()
    rates = np.full(40, 1e-3)
    adam, coupled = (
        theory.simulate_drift(f, TOKENS, rates, mean, std, coupled=c) for c in (False, True)
    )
    np.testing.assert_array_equal(np.sign(adam[-1]), -np.sign(mean))
    # The noise does not sum to zero in the simulation, the mean part does.
    assert np.linalg.norm(coupled[-1]) < 0.02 * np.linalg.norm(adam[-1])
    without_noise = theory.simulate_drift(f, TOKENS, rates, mean, 0 * std, coupled=True)
    assert np.linalg.norm(without_noise[-1]) < 1e-5 * np.linalg.norm(adam[-1])


def test_the_simulation_is_repeatable_and_starts_where_it_is_told():
    f, (mean, std) = theory.zipf_frequencies(WORDS), hidden_states()
    start = np.random.default_rng(0).normal(0, 0.02, size=(WORDS, WIDTH)) + 1
    arguments = (f, TOKENS, np.full(5, 1e-3), mean, std)
    once, again, other = (
        theory.simulate_drift(*arguments, start=start, seed=seed) for seed in (3, 3, 4)
    )
    np.testing.assert_array_equal(once, again)
    assert once.shape == (5, WIDTH)
    assert not np.array_equal(once, other)
    assert np.abs(once).max() < 5.1e-3  # a displacement, not a place


# --- the shifted cloud -----------------------------------------------------------------------


@pytest.mark.parametrize("shift", [0.0, 0.5, 1.0, 3.0])
def test_mean_cosine_of_a_shifted_gaussian_cloud(shift):
    generator = torch.Generator().manual_seed(0)
    width = 256
    cloud = torch.randn(1000, width, generator=generator)
    direction = torch.randn(width, generator=generator)
    cloud += shift * np.sqrt(width) * direction / direction.norm()
    expected = theory.mean_cosine_of_shifted_cloud(shift)
    assert geometry.mean_cosine(cloud) == pytest.approx(float(expected), abs=0.01)
