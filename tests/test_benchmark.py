"""What an optimizer step costs: the closed forms, and that it is steps that are measured."""

from __future__ import annotations

import json
import os
from functools import partial

import pandas as pd
import pytest
import torch

from coupled_adam import benchmark
from coupled_adam.optim import CoupledAdamW, native, openmp

FLOAT32, BFLOAT16 = torch.float32, torch.bfloat16
QUICK = {"rounds": 1, "seconds": 1e-6, "threads": 1}
COUNTER = 4  # bytes


@pytest.fixture(scope="module")
def table():
    return benchmark.compare_steps([(40, 6), (3000, 4)], dtypes=[FLOAT32, BFLOAT16], **QUICK)


def row(table, rows, dtype, candidate):
    chosen = (table.rows == rows) & (table.dtype == dtype) & (table.candidate == candidate)
    (found,) = table[chosen].itertuples()
    return found


@pytest.mark.parametrize(("dtype", "item"), [(FLOAT32, 4), (BFLOAT16, 2)])
def test_bytes_moved_are_seven_passes_for_adamw_and_six_for_a_coupled_step(dtype, item):
    elements = 50304 * 768
    assert benchmark.bytes_moved((50304, 768), dtype, coupled=False) == 7 * item * elements
    assert benchmark.bytes_moved((50304, 768), dtype, coupled=True) == 6 * item * elements


def test_the_table_has_a_row_for_each_shape_type_and_candidate_and_for_a_copy(table):
    assert len(table) == 2 * 2 * (len(benchmark.CANDIDATES) + 1)
    assert not table.duplicated(["rows", "width", "dtype", "candidate"]).any()
    assert set(table.candidate) == {"copy", *benchmark.CANDIDATES}
    assert (table.device == "cpu").all() and (table.threads == 1).all()
    assert (table.milliseconds > 0).all() and not table.isna().any(axis=None)
    assert (table[table.candidate == benchmark.BASELINE].ratio_median == 1).all()


@pytest.mark.parametrize(("dtype", "item"), [("float32", 4), ("bfloat16", 2)])
def test_the_state_is_two_matrices_for_adamw_and_one_and_a_float32_vector_if_coupled(
    table, dtype, item
):
    matrix = 3000 * 4 * item
    for name in benchmark.CANDIDATES:
        measured = row(table, 3000, dtype, name)
        second = 4 * 4 if name in (benchmark.COUPLED, benchmark.UNFUSED) else matrix
        assert measured.state_bytes == matrix + second + COUNTER
        assert measured.resident_bytes == 2 * matrix + measured.state_bytes
    assert row(table, 3000, dtype, "copy").state_bytes == 0


def test_bandwidth_is_the_unavoidable_traffic_over_the_time(table):
    for name, passes in {"copy": 2, "AdamW for-loop": 7, benchmark.COUPLED: 6}.items():
        measured = row(table, 40, "float32", name)
        traffic = passes * 40 * 6 * 4
        rate = traffic / (measured.milliseconds / 1e3) / 1e9
        assert measured.gigabytes_per_second == pytest.approx(rate)


def test_extra_memory_tells_full_size_temporaries_from_blocks(table):
    matrix = 3000 * 4 * 4
    assert row(table, 3000, "float32", "AdamW foreach").extra_bytes >= matrix
    assert row(table, 3000, "float32", benchmark.BASELINE).extra_bytes < 100
    # 3,000 rows are more than two blocks.
    for name in (benchmark.COUPLED, benchmark.UNFUSED):
        assert 0 < row(table, 3000, "float32", name).extra_bytes < matrix / 2


def test_at_the_size_of_gpt2_a_coupled_step_needs_next_to_nothing_extra():
    candidates = {
        name: benchmark.CANDIDATES[name]
        for name in (benchmark.BASELINE, benchmark.COUPLED, benchmark.UNFUSED)
    }
    table = benchmark.compare_steps([(50304, 768)], candidates=candidates, **QUICK)
    matrix = 50304 * 768 * 4
    for name in (benchmark.COUPLED, benchmark.UNFUSED):
        measured = row(table, 50304, "float32", name)
        assert measured.extra_bytes < 0.05 * matrix
        assert measured.state_bytes < 0.51 * 2 * matrix


def test_what_does_not_fit_into_memory_is_refused_before_it_is_tried():
    with pytest.raises(ValueError, match=r"takes about \d+ GiB of memory, and cpu has \d+"):
        benchmark.compare_steps([(1 << 30, 1 << 10)])


def test_extra_memory_is_the_peak_and_not_the_sum_or_what_is_left():
    block = torch.ones(256 * 1024)  # 1 MiB

    def work():
        first = block + 1
        second = first + 1
        del first, second
        third = block + 1
        del third

    assert benchmark.extra_memory(work) == pytest.approx(2 * block.nbytes, rel=0.01)
    assert benchmark.extra_memory(lambda: block.add_(1)) < 1000


def test_extra_memory_sees_what_an_operation_needs_for_itself():
    a, b = torch.ones(1000, 100, dtype=BFLOAT16), torch.ones(1000, 100)
    mixed = partial(torch.add, a, b, out=a)  # on a CPU, a is converted as a whole
    assert benchmark.extra_memory(mixed) >= b.nbytes


def test_extra_memory_lets_nothing_reach_standard_error(capfd):
    benchmark.extra_memory(lambda: torch.ones(3))
    os.write(2, b"afterwards")
    assert capfd.readouterr().err == "afterwards"


def test_every_candidate_really_steps_and_one_gradient_serves_all():
    seen = {}

    def spy(name, make):
        def watched(parameters):
            (parameter,) = parameters
            before, gradient = parameter.detach().clone(), parameter.grad.clone()
            optimizer = make(parameters)
            seen[name] = (parameter, before, gradient, optimizer)
            return optimizer

        return watched

    candidates = {name: spy(name, make) for name, make in benchmark.CANDIDATES.items()}
    benchmark.compare_steps([(30, 5)], candidates=candidates, **QUICK)
    assert list(seen) == list(benchmark.CANDIDATES)
    for parameter, before, gradient, optimizer in seen.values():
        # One to set up, one to count the calls, one before the clock, one timed, one for memory.
        assert optimizer.state[parameter]["step"].item() >= 5
        assert (parameter != before).all()
        torch.testing.assert_close(parameter.grad, gradient, rtol=0, atol=0)
    assert isinstance(seen[benchmark.COUPLED][3], CoupledAdamW)
    assert seen[benchmark.COUPLED][3].param_groups[0]["coupled"]
    parameter, *_ = seen[benchmark.COUPLED]
    assert seen[benchmark.COUPLED][3].state[parameter]["exp_avg_sq"].shape == (5,)


def test_functions_take_turns_in_changing_order():
    calls = []
    functions = {name: partial(calls.append, name) for name in "abc"}
    times = benchmark.time_in_turns(functions, rounds=20, seconds=0)
    assert times.shape == (20, 3) and list(times) == ["a", "b", "c"] and (times >= 0).all(axis=None)
    rounds = ["".join(calls[i : i + 6 : 2]) for i in range(6, len(calls), 6)]
    assert len(rounds) == 20 and all(sorted(one) == ["a", "b", "c"] for one in rounds)
    assert len(set(rounds)) > 3
    # Each has a call just before its timed one.
    assert calls[6::2] == calls[7::2]


def test_what_comes_before_is_called_before_each_timed_call_outside_the_clock(monkeypatch):
    calls, clock = [], [0.0]

    def taking(seconds, name):
        calls.append(name)
        clock[0] += seconds

    monkeypatch.setattr(benchmark.time, "perf_counter", lambda: clock[0])
    functions = {name: partial(taking, 0.25, name) for name in "ab"}
    before = partial(taking, 4.0, "before")
    # Two calls fill a turn of 8.5 s; 34 would if the 4 s before each were not counted.
    times = benchmark.time_in_turns(functions, rounds=2, seconds=8.5, before=before)
    assert (times == 0.25).all(axis=None)
    turns = calls[6:]  # after the first calls, and those that count how many fill a turn
    for turn in (turns[i : i + 5] for i in range(0, len(turns), 5)):
        name = turn[0]
        assert turn == [name, "before", name, "before", name]
    assert len(turns) == 2 * 2 * 5


def test_steps_are_timed_right_after_a_matrix_product(monkeypatch):
    seen = []
    time_in_turns = benchmark.time_in_turns

    def watched(*arguments, before, **options):
        seen.append(before())
        return time_in_turns(*arguments, before=before, **options)

    monkeypatch.setattr(benchmark, "time_in_turns", watched)
    benchmark.compare_steps([(10, 2)], **QUICK)
    assert seen[0].dim() == 2


def test_the_table_says_what_ran_and_why_not_something_faster(table, monkeypatch):
    ran = table.set_index("candidate").implementation
    assert set(ran[benchmark.BASELINE]) == {"PyTorch's AdamW, fused"}
    assert set(ran["AdamW for-loop"]) == {"PyTorch's AdamW, for-loop"}
    assert set(ran[benchmark.UNFUSED]) == {"PyTorch's operations"}
    if not native.unavailable(FLOAT32):
        assert set(ran[benchmark.COUPLED]) == {"C, on one thread"}
    double = benchmark.compare_steps([(10, 2)], dtypes=[torch.float64], **QUICK)
    (said,) = double[double.candidate == benchmark.COUPLED].implementation
    assert said == "PyTorch's operations (no C: the sweeps in C are for float32 and bfloat16)"
    monkeypatch.setattr(native, "_compiled", lambda _: (None, "there is no C compiler"))
    without = benchmark.compare_steps([(10, 2)], **QUICK)
    (said,) = without[without.candidate == benchmark.COUPLED].implementation
    assert said == "PyTorch's operations (no C: there is no C compiler)"


def test_the_table_says_in_which_threads(monkeypatch):
    if native.unavailable(FLOAT32):
        pytest.skip(native.unavailable(FLOAT32))
    monkeypatch.setattr(native, "_WORTH_SHARING", 0)
    names = (benchmark.BASELINE, benchmark.COUPLED)
    candidates = {name: benchmark.CANDIDATES[name] for name in names}
    expected = [] if openmp.team()[0] is None else ["C, in torch's OpenMP team of 2 threads"]
    settings = QUICK | {"threads": 2, "candidates": candidates}
    found = benchmark.compare_steps([(40, 2)], **settings).implementation.iloc[-1:]
    assert not expected or list(found) == expected
    monkeypatch.setattr(openmp, "team", lambda: (None, "as a test asks"))
    found = benchmark.compare_steps([(40, 2)], **settings).implementation.iloc[-1]
    assert found == "C, on 2 threads of its own (as a test asks)"


def test_ratios_are_taken_within_a_round():
    # The machine slows down tenfold; one function always takes twice as long as the other.
    times = pd.DataFrame({"AdamW fused": [1.0, 5.0, 10.0], "other": [2.0, 10.0, 20.0]})
    assert benchmark.ratios(times).loc["other"].tolist() == [2, 2, 2]
    times["other"] = [1.0, 10.0, 30.0]
    assert benchmark.ratios(times).loc["other"].tolist() == [1.5, 2, 2.5]
    assert benchmark.ratios(times, "other").loc["other"].tolist() == [1, 1, 1]


def test_threads_are_set_and_restored():
    before = torch.get_num_threads()
    inside = []

    def make(parameters):
        inside.append(torch.get_num_threads())
        return benchmark.CANDIDATES[benchmark.BASELINE](parameters)

    settings = QUICK | {"threads": before + 1}
    table = benchmark.compare_steps([(4, 3)], candidates={benchmark.BASELINE: make}, **settings)
    assert inside == [before + 1] and set(table.threads) == {before + 1}
    assert torch.get_num_threads() == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"shapes": [(10,)]}, r"shape \(10,\) is not that of an embedding matrix"),
        ({"shapes": [(1, 8)]}, r"shape \(1, 8\)"),
        ({"dtypes": [torch.int32]}, "torch.int32 is no type of parameters"),
        ({"candidates": {}}, "candidates lack 'AdamW fused'"),
        ({"rounds": 0}, "nothing to time: got 6 functions and 0 rounds"),
    ],
)
def test_what_cannot_be_measured_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        benchmark.compare_steps(**{"shapes": [(10, 2)], **QUICK, **arguments})


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_missing_gpu_is_named():
    with pytest.raises(ValueError, match=r"device='cuda', but PyTorch sees no GPU"):
        benchmark.compare_steps([(10, 2)], device="cuda", **QUICK)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_is_measured_too():
    table = benchmark.compare_steps([(5000, 64)], device="cuda", **QUICK)
    assert row(table, 5000, "float32", "AdamW foreach").extra_bytes >= 5000 * 64 * 4
    assert row(table, 5000, "float32", benchmark.COUPLED).extra_bytes < 5000 * 64 * 4
    assert (table.milliseconds > 0).all()


def test_a_missing_baseline_is_named():
    with pytest.raises(ValueError, match="'AdamW fused' was not timed; there are"):
        benchmark.ratios(pd.DataFrame({"a": [1.0]}))


def test_a_record_holds_the_measurements_and_what_they_depend_on(table, tmp_path):
    path = tmp_path / "record.json"
    benchmark.write_results(table, path)
    record = json.loads(path.read_text(encoding="utf-8"))
    assert {"device", "python", "torch", "written", "commit"} <= set(record["environment"])
    assert record["environment"]["torch"] == torch.__version__
    assert [one["state_bytes"] for one in record["results"]] == table.state_bytes.tolist()
    assert {one["threads"] for one in record["results"]} == {1}


def test_a_record_is_of_one_device(table, tmp_path):
    both = pd.concat([table, table.assign(device="cuda")])
    with pytest.raises(ValueError, match="a record is of one device, this table has 2"):
        benchmark.write_results(both, tmp_path / "record.json")
