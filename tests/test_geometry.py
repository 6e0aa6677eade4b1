"""What the measures of the cloud promise: formulas in plain loops, closed forms, invariances."""

import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn.neighbors import NearestNeighbors

from coupled_adam import geometry

SCALARS = [
    geometry.isotropy,
    geometry.mean_norm,
    geometry.relative_mean_norm,
    geometry.condition_ratio,
    geometry.mean_cosine,
    geometry.isoscore,
    geometry.effective_rank,
]
SCALE_FREE = [
    geometry.relative_mean_norm,
    geometry.condition_ratio,
    geometry.mean_cosine,
    geometry.isoscore,
    geometry.effective_rank,
]
SUMMARY = [measure.__name__ for measure in SCALARS]


def cloud(rows=60, width=7, shift=0.5, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(rows, width, generator=generator, dtype=torch.float64)
    centre = torch.randn(width, generator=generator, dtype=torch.float64)
    return (noise + shift * centre).to(dtype)


def rotation(width, seed):
    generator = torch.Generator().manual_seed(seed)
    square = torch.randn(width, width, generator=generator, dtype=torch.float64)
    return torch.linalg.qr(square)[0]


clouds = st.builds(
    cloud,
    rows=st.integers(2, 40),
    width=st.integers(2, 9),
    shift=st.floats(0, 3),
    seed=st.integers(0, 2**32),
)
few = settings(max_examples=30, deadline=None)


# --- the formulas, written out ---------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
def test_isotropy_is_the_ratio_of_the_partition_function_over_the_eigenvectors(seed):
    matrix = cloud(seed=seed).numpy()
    _, directions = np.linalg.eigh(matrix.T @ matrix)
    z = []
    for k in range(matrix.shape[1]):
        forth = back = 0.0
        for row in matrix:
            product = sum(row[j] * directions[j, k] for j in range(len(row)))
            forth, back = forth + math.exp(product), back + math.exp(-product)
        z.append(max(forth, back))
    assert geometry.isotropy(torch.tensor(matrix)) == pytest.approx(min(z) / max(z), abs=1e-10)


@pytest.mark.parametrize("seed", range(4))
def test_the_other_measures_of_the_paper_are_their_formulas(seed):
    matrix = cloud(seed=seed)
    rows = matrix.numpy()
    mean = [sum(column) / len(rows) for column in rows.T]
    length_of_mean = math.sqrt(sum(x * x for x in mean))
    lengths = [math.sqrt(sum(x * x for x in row)) for row in rows]
    spectrum = np.linalg.svd(rows, compute_uv=False)

    assert geometry.mean_norm(matrix) == pytest.approx(length_of_mean, abs=1e-10)
    assert geometry.relative_mean_norm(matrix) == pytest.approx(
        length_of_mean / (sum(lengths) / len(rows)), abs=1e-10
    )
    assert geometry.condition_ratio(matrix) == pytest.approx(
        100 * min(spectrum) / max(spectrum), abs=1e-10
    )

    counts = np.random.default_rng(seed).integers(1, 20, size=len(rows))  # with ties
    log_probability = [math.log(count / counts.sum()) for count in counts]
    rho = geometry.length_frequency_correlation(matrix, counts)
    assert rho.pearson == pytest.approx(
        stats.pearsonr(lengths, log_probability).statistic, abs=1e-10
    )
    assert rho.spearman == pytest.approx(
        stats.spearmanr(lengths, log_probability).statistic, abs=1e-10
    )
    assert rho.left_out == 0


@given(matrix=clouds)
@few
def test_isoscore_is_the_procedure_of_its_paper(matrix):
    rows = matrix.numpy()
    width = rows.shape[1]
    centred = rows - rows.mean(axis=0)
    axes = np.linalg.svd(centred)[2]
    variances = (centred @ axes.T).var(axis=0, ddof=1)
    scaled = math.sqrt(width) * variances / np.linalg.norm(variances)
    defect = np.linalg.norm(scaled - 1) / math.sqrt(2 * (width - math.sqrt(width)))
    used = (width - defect**2 * (width - math.sqrt(width))) ** 2 / width**2
    expected = (width * used - 1) / (width - 1)
    assert geometry.isoscore(matrix) == pytest.approx(expected, abs=1e-10)


@given(matrix=clouds)
@few
def test_mean_cosine_is_the_mean_over_all_pairs(matrix):
    rows = matrix.numpy()
    cosines = [
        a @ b / (np.linalg.norm(a) * np.linalg.norm(b))
        for i, a in enumerate(rows)
        for j, b in enumerate(rows)
        if i != j
    ]
    assert geometry.mean_cosine(matrix) == pytest.approx(np.mean(cosines), abs=1e-10)


def test_effective_rank_is_the_exponential_of_the_entropy():
    matrix = torch.diag(torch.tensor([3.0, 2.0, 1.0]))
    expected = math.exp(-sum(p * math.log(p) for p in (3 / 6, 2 / 6, 1 / 6)))
    assert geometry.effective_rank(matrix) == pytest.approx(expected, abs=1e-10)


@given(matrix=clouds, data=st.data())
@few
def test_hubness_and_neighbours_agree_with_brute_force(matrix, data):
    k = data.draw(st.integers(1, len(matrix) - 1))
    finder = NearestNeighbors(n_neighbors=k, metric="cosine", algorithm="brute")
    expected = finder.fit(matrix.numpy()).kneighbors(return_distance=False)  # without itself
    found = geometry.nearest_neighbours(matrix, range(len(matrix)), neighbours=k)
    assert found.dtype == torch.int64
    # In two dimensions cosines can be equal up to rounding; then compare them, not the names.
    unit = torch.nn.functional.normalize(matrix)
    cosines = unit @ unit.T
    torch.testing.assert_close(cosines.gather(1, found), cosines.gather(1, torch.tensor(expected)))
    assert not (found == torch.arange(len(matrix))[:, None]).any()

    occurrences = np.bincount(found.flatten().numpy(), minlength=len(matrix))
    skewness = 0.0 if occurrences.std() == 0 else stats.skew(occurrences)
    assert geometry.hubness(matrix, neighbours=k) == pytest.approx(skewness, abs=1e-10)


def test_a_search_in_many_blocks_is_the_search_in_one(monkeypatch):
    matrix = cloud(rows=101)
    whole = geometry.nearest_neighbours(matrix, range(101)), geometry.hubness(matrix)
    monkeypatch.setattr(geometry, "_BLOCK_ELEMENTS", 7 * 101)
    assert torch.equal(geometry.nearest_neighbours(matrix, range(101)), whole[0])
    assert geometry.hubness(matrix) == whole[1]


# --- closed forms ----------------------------------------------------------------------------


def test_a_round_cloud_is_isotropic_by_every_measure():
    rows, width = 20_000, 16
    matrix = cloud(rows, width, shift=0) / math.sqrt(width)
    measures = geometry.summary(matrix)
    assert measures["isotropy"] > 0.98
    assert measures["isoscore"] > 0.99
    assert measures["effective_rank"] > 0.999 * width
    assert measures["condition_ratio"] > 95
    assert measures["relative_mean_norm"] < 0.02
    assert abs(measures["mean_cosine"]) < 0.001


@pytest.mark.parametrize("shift", [0.3, 1.0, 2.0])
def test_a_shifted_cloud_has_the_measures_that_its_shift_predicts(shift):
    rows, width = 20_000, 64
    matrix = cloud(rows, width, shift=0) / math.sqrt(width)  # rows of length about 1
    matrix[:, 0] += shift
    length = math.hypot(shift, 1)
    assert geometry.mean_norm(matrix) == pytest.approx(shift, rel=0.02)
    assert geometry.relative_mean_norm(matrix) == pytest.approx(shift / length, rel=0.02)
    assert geometry.mean_cosine(matrix) == pytest.approx(shift**2 / length**2, rel=0.02)
    # Z along the shift is e^shift times Z across it.
    assert geometry.isotropy(matrix) == pytest.approx(math.exp(-shift), rel=0.02)
    assert geometry.isoscore(matrix) > 0.98  # blind to the shift


def test_pairs_about_a_centre_come_out_exactly():
    # mu +- s along each of n axes at right angles to mu, so that nothing is left to chance.
    n, shift, spread = 5, 2.0, 0.7
    across = torch.cat([torch.eye(n), -torch.eye(n)]).double() * spread
    matrix = torch.cat([torch.full((2 * n, 1), shift, dtype=torch.float64), across], dim=1)
    share = shift**2 / (shift**2 + spread**2)
    assert geometry.mean_norm(matrix) == pytest.approx(shift)
    assert geometry.relative_mean_norm(matrix) == pytest.approx(math.sqrt(share))
    assert geometry.mean_cosine(matrix) == pytest.approx((2 * n * share - 1) / (2 * n - 1))
    # n directions of equal variance out of n + 1, and none along mu
    assert geometry.isoscore(matrix) == pytest.approx((n - 1) / n)
    assert geometry.condition_ratio(matrix) == pytest.approx(100 * spread / shift / math.sqrt(n))


def test_rank_one():
    matrix = torch.outer(torch.linspace(-1, 2, 9), torch.tensor([1.0, -2.0, 0.5]))
    matrix = matrix[matrix.norm(dim=1) > 0]
    assert geometry.isoscore(matrix) == pytest.approx(0, abs=1e-10)
    assert geometry.condition_ratio(matrix) == pytest.approx(0, abs=1e-4)  # float32 products
    assert geometry.effective_rank(matrix) == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("width", [2, 6])
def test_orthonormal_rows(width):
    for matrix in (torch.eye(width), rotation(width, seed=1)):
        assert geometry.condition_ratio(matrix) == pytest.approx(100)
        assert geometry.effective_rank(matrix) == pytest.approx(width)
        assert geometry.mean_cosine(matrix) == pytest.approx(0, abs=1e-10)
        assert geometry.relative_mean_norm(matrix) == pytest.approx(1 / math.sqrt(width))
        # about their mean, orthonormal rows span one dimension fewer
        assert geometry.isoscore(matrix) == pytest.approx((width - 2) / (width - 1), abs=1e-10)


def test_a_row_in_the_middle_of_a_star_is_a_hub():
    # The rays are at right angles to each other and at an acute angle to the hub.
    rays = torch.eye(20)
    star = torch.cat([torch.ones(1, 20), rays])
    assert geometry.nearest_neighbours(star, range(1, 21), neighbours=1).eq(0).all()
    assert geometry.hubness(star, neighbours=1) > 4
    assert geometry.hubness(torch.eye(4), neighbours=3) == 0.0  # all are everyone's neighbours


# --- invariances -----------------------------------------------------------------------------


@given(matrix=clouds, seed=st.integers(0, 2**32))
@few
def test_rotating_the_cloud_or_permuting_its_rows_changes_nothing(matrix, seed):
    order = torch.randperm(len(matrix), generator=torch.Generator().manual_seed(seed))
    turned = matrix[order] @ rotation(matrix.shape[1], seed)
    for measure in SCALARS:
        assert measure(turned) == pytest.approx(measure(matrix), abs=1e-7), measure.__name__


@given(matrix=clouds, scale=st.floats(1e-3, 1e3))
@few
def test_scaling_the_cloud_changes_lengths_and_isotropy_only(matrix, scale):
    for measure in SCALE_FREE:
        assert measure(scale * matrix) == pytest.approx(measure(matrix), abs=1e-9), measure
    assert geometry.mean_norm(scale * matrix) == pytest.approx(scale * geometry.mean_norm(matrix))


def test_isotropy_falls_with_scale_and_survives_long_embeddings():
    matrix = cloud()
    assert geometry.isotropy(3 * matrix) < geometry.isotropy(matrix)
    assert 0 <= geometry.isotropy(1000 * matrix) < 1e-10  # exp(1000) alone would be infinite


@given(matrix=clouds)
@few
def test_every_measure_keeps_to_its_range(matrix):
    measures = geometry.summary(matrix)
    rows, width = matrix.shape
    slack = 1e-12
    assert 0 < measures["isotropy"] <= 1
    assert 0 <= measures["relative_mean_norm"] <= 1 + slack
    assert 0 <= measures["condition_ratio"] <= 100
    assert -1 / (rows - 1) - slack <= measures["mean_cosine"] <= 1 + slack
    assert 0 <= measures["isoscore"] <= 1 + slack
    assert 1 - slack <= measures["effective_rank"] <= min(rows, width) + slack


# --- the sign of an eigenvector ----------------------------------------------------------------


@given(matrix=clouds, seed=st.integers(0, 2**32))
@few
def test_isotropy_does_not_depend_on_the_signs_that_the_solver_picks(matrix, seed):
    expected = geometry.isotropy(matrix)
    solver = torch.linalg.eigh

    def with_random_signs(square):
        values, vectors = solver(square)
        generator = torch.Generator().manual_seed(seed)
        signs = torch.randint(0, 2, (len(values),), generator=generator) * 2 - 1
        return values, vectors * signs

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.linalg, "eigh", with_random_signs)
        assert geometry.isotropy(matrix) == expected


def test_isotropy_of_a_centred_cloud_does_not_depend_on_rounding():
    # A sign taken from the mean would be drawn by lot here: the mean is rounding error.
    skewed = torch.exp(cloud(rows=300, width=4))
    matrix = skewed - skewed.mean(dim=0)
    for nudge in (1e-12, -1e-12):
        assert geometry.isotropy(matrix + nudge) == pytest.approx(geometry.isotropy(matrix))


def test_the_sign_hardly_matters_for_a_symmetric_cloud_and_much_for_a_skewed_one():
    def by_sign(matrix):
        """The ratio for both signs of the longest direction, the others as the solver gives."""
        _, directions = torch.linalg.eigh(matrix.T @ matrix)
        ratios = []
        for sign in (1, -1):
            directions[:, -1] *= sign
            z = torch.exp(matrix @ directions).sum(dim=0)
            ratios.append((z.min() / z.max()).item())
        return sorted(ratios)

    rows, width = 4096, 64
    symmetric = cloud(rows, width, shift=0) / math.sqrt(width)
    skewed = symmetric.clone()
    symmetric[:, 0] += 0.5
    shifts = torch.linspace(0.5 / rows, 1 - 0.5 / rows, rows, dtype=torch.float64)
    skewed[:, 0] += -0.6 * torch.log(shifts)  # exponentially distributed, mean 0.6
    low, high = by_sign(symmetric)
    assert high - low < 0.01
    assert geometry.isotropy(symmetric) == pytest.approx(low, abs=0.01)
    low, high = by_sign(skewed)
    assert high - low > 0.15
    assert geometry.isotropy(skewed) == pytest.approx(low, abs=0.01)


# --- frequency -------------------------------------------------------------------------------


def test_tokens_that_never_occur_are_left_out_and_counted():
    matrix = cloud(rows=12)
    counts = torch.arange(12)
    counts[5] = 0
    seen = counts > 0
    rho = geometry.length_frequency_correlation(matrix, counts)
    assert rho.left_out == 2
    assert rho[:2] == geometry.length_frequency_correlation(matrix[seen], counts[seen])[:2]


def test_lengths_that_grow_with_log_probability_correlate_perfectly():
    counts = [1, 10, 100, 1000]
    matrix = torch.tensor([[1.0, 0.0], [0.0, 2.0], [-3.0, 0.0], [0.0, -4.0]])
    rho = geometry.length_frequency_correlation(matrix, counts)
    assert rho.pearson == pytest.approx(1, abs=1e-12)
    assert rho.spearman == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ([1, 2, 3], "shape"),
        ([1, 2, 3, -1], "negative"),
        ([1, 2, 3, math.nan], "NaN"),
        ([0, 0, 0, 0], "fewer than two"),
        ([2, 2, 2, 0], "fewer than two"),
    ],
)
def test_counts_without_a_correlation_are_refused(counts, message):
    with pytest.raises(ValueError, match=message):
        geometry.length_frequency_correlation(cloud(rows=4), counts)


# --- summary and repairs -----------------------------------------------------------------------


def test_summary_names_the_measures_and_agrees_with_them():
    matrix = cloud()
    measures = geometry.summary(matrix)
    assert list(measures) == SUMMARY
    assert measures == {measure.__name__: measure(matrix) for measure in SCALARS}

    counts = np.arange(len(matrix))
    rho = geometry.length_frequency_correlation(matrix, counts)
    with_counts = geometry.summary(matrix, counts)
    assert with_counts == measures | {"rho_pearson": rho.pearson, "rho_spearman": rho.spearman}
    assert all(type(value) is float for value in with_counts.values())


def test_centring_moves_the_cloud_to_the_origin_and_nothing_else():
    matrix = cloud(shift=3)
    moved = geometry.centred(matrix)
    assert geometry.mean_norm(moved) < 1e-12
    torch.testing.assert_close(moved - moved[0], matrix - matrix[0])


def test_all_but_the_top_removes_the_longest_directions_of_the_centred_cloud():
    matrix = cloud(shift=3) * torch.tensor([5.0, 4.0, 1.0, 1.0, 1.0, 1.0, 1.0])
    before = torch.linalg.svdvals(geometry.centred(matrix))
    for components in range(8):
        repaired = geometry.without_top_components(matrix, components)
        after = torch.linalg.svdvals(repaired)
        expected = torch.cat([before[components:], torch.zeros(components)])
        torch.testing.assert_close(after, expected)
        assert geometry.mean_norm(repaired) < 1e-12
    unchanged = geometry.without_top_components(matrix, 0)
    torch.testing.assert_close(unchanged, geometry.centred(matrix))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_short_dtypes_are_measured_in_float64_and_repaired_in_their_own(dtype):
    matrix = (100 * cloud(rows=200, width=5)).to(dtype)  # squares would overflow float16
    original = matrix.clone()
    assert geometry.summary(matrix) == geometry.summary(matrix.double())
    assert geometry.hubness(matrix) == geometry.hubness(matrix.double())
    for repair in (geometry.centred, lambda rows: geometry.without_top_components(rows, 2)):
        assert repair(matrix).dtype == dtype
        torch.testing.assert_close(repair(matrix), repair(matrix.double()).to(dtype))
    assert torch.equal(matrix, original)


def test_a_parameter_of_a_model_can_be_measured_without_touching_its_graph():
    weight = torch.nn.Parameter(cloud())
    geometry.summary(weight)
    assert not geometry.centred(weight).requires_grad


# --- errors ----------------------------------------------------------------------------------

EVERY = [
    *SCALARS,
    geometry.summary,
    geometry.hubness,
    geometry.centred,
    lambda rows: geometry.nearest_neighbours(rows, [0]),
    lambda rows: geometry.without_top_components(rows, 1),
    lambda rows: geometry.length_frequency_correlation(rows, [1, 2, 3]),
]
FAULTY = [
    (torch.ones(3), ValueError, r"shape \[3\].*tokens, dimensions"),
    (torch.ones(2, 3, 4), ValueError, r"shape \[2, 3, 4\]"),
    (torch.ones(0, 4), ValueError, "empty"),
    (torch.ones(4, 0), ValueError, "empty"),
    (torch.ones(3, 4, dtype=torch.int64), ValueError, "torch.int64"),
    (torch.tensor([[1.0, 2.0], [math.nan, 0.0], [1.0, 0.0]]), ValueError, "first is row 1"),
    (torch.tensor([[1.0, 2.0], [0.0, 3.0], [math.inf, 0.0]]), ValueError, "first is row 2"),
    (np.ones((3, 4)), TypeError, "torch.as_tensor"),
]


@pytest.mark.parametrize(("embedding", "error", "message"), FAULTY)
@pytest.mark.parametrize("function", EVERY)
def test_a_faulty_matrix_is_refused_with_what_is_wrong(function, embedding, error, message):
    with pytest.raises(error, match=message):
        function(embedding)


@pytest.mark.parametrize(
    "function",
    [
        geometry.mean_cosine,
        geometry.summary,
        geometry.hubness,
        lambda rows: geometry.nearest_neighbours(rows, [0]),
    ],
)
def test_a_zero_row_has_no_cosine_and_is_named(function):
    matrix = cloud(rows=20)
    matrix[13] = 0
    with pytest.raises(ValueError, match="first is row 13"):
        function(matrix)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: geometry.relative_mean_norm(torch.zeros(3, 4)), "all rows"),
        (lambda: geometry.condition_ratio(torch.zeros(3, 4)), "all rows"),
        (lambda: geometry.effective_rank(torch.zeros(3, 4)), "all rows"),
        (lambda: geometry.isoscore(torch.full((3, 4), 0.1)), "equal"),
        (lambda: geometry.isoscore(cloud(width=1)), "one column"),
        (lambda: geometry.mean_cosine(cloud(rows=1)), "one row"),
        (lambda: geometry.hubness(cloud(rows=5), neighbours=5), "from 1 to 4"),
        (lambda: geometry.hubness(cloud(rows=5), neighbours=0), "from 1 to 4"),
        (lambda: geometry.nearest_neighbours(cloud(rows=5), [0], neighbours=5), "from 1 to 4"),
        (lambda: geometry.nearest_neighbours(cloud(rows=5), [], neighbours=5), "from 1 to 4"),
        (lambda: geometry.nearest_neighbours(cloud(), [3, 60]), "no row 60"),
        (lambda: geometry.nearest_neighbours(cloud(), [-1]), "no row -1"),
        (lambda: geometry.nearest_neighbours(cloud(), [0.5]), "row numbers"),
        (lambda: geometry.nearest_neighbours(cloud(), torch.tensor(3)), "row numbers"),
        (lambda: geometry.without_top_components(cloud(), 8), "from 0 to 7"),
        (lambda: geometry.without_top_components(cloud(), -1), "from 0 to 7"),
    ],
)
def test_what_is_not_defined_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_no_rows_asked_is_no_rows_answered():
    assert geometry.nearest_neighbours(cloud(), [], neighbours=3).shape == (0, 3)


def test_importing_geometry_stays_light():
    # training imports it; scipy and scikit-learn belong to the book
    code = (
        "import sys, coupled_adam.geometry; "
        "print([m for m in ('scipy', 'sklearn', 'pandas') if m in sys.modules])"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert output.stdout.strip() == "[]", output.stderr
