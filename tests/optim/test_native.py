"""The sweeps in C: right on any number of threads, and PyTorch's operations wherever they fail."""

from __future__ import annotations

import ast
import os
import signal
import stat
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from pathlib import Path

import backends
import forks
import pytest
import torch
from backends import BACKENDS, Trial

from coupled_adam.optim import compiler, native, openmp

needs_compiler = pytest.mark.skipif(
    bool(native.unavailable(torch.float32)), reason=native.unavailable(torch.float32) or "at hand"
)


@needs_compiler
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("team", [True, False])
def test_the_number_of_threads_does_not_show(team, dtype, monkeypatch):
    monkeypatch.setattr(native, "_WORTH_SHARING", 0)
    if not team:
        monkeypatch.setattr(openmp, "team", lambda: (None, "as a test asks"))
    generator = torch.Generator().manual_seed(0)
    matrices = [torch.randn(20_000, 33, generator=generator).to(dtype) for _ in range(3)]
    factor, results = torch.rand(33, generator=generator), []
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3, 5):
            torch.set_num_threads(threads)
            parameter, gradient, moment = (one.clone() for one in matrices)
            total = native.sum_of_squares(gradient)
            native.update(
                parameter, gradient, moment, factor, weight=0.1, decay=-0.01, maximize=False
            )
            assert ("own" in native.last_run) == (threads > 1 and not team)
            results.append((total, parameter, moment))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))
    expected = matrices[1].double().square().sum(0)
    torch.testing.assert_close(results[0][0].double(), expected, rtol=1e-6, atol=0)


@needs_compiler
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("columns", [1, 15, 16, 17, 300])
def test_rows_may_lie_apart_and_nothing_between_them_is_written(dtype, columns):
    wide = [torch.full((70, 301), float(n)).to(dtype) for n in (1, 2, 3)]
    parameter, gradient, moment = (one[3:64, :columns] for one in wide)
    torch.testing.assert_close(
        native.sum_of_squares(gradient), torch.full((columns,), 4.0 * 61), rtol=0, atol=0
    )
    factor = torch.full((columns,), -0.5)
    native.update(parameter, gradient, moment, factor, weight=0.5, decay=0.0, maximize=True)
    assert (moment == 0.5).all() and (parameter == 0.75).all() and (gradient == 2).all()
    for one, value in zip(wide, (1, 2, 3), strict=True):
        outside = one.clone()
        outside[3:64, :columns] = value
        assert (outside == value).all()


@needs_compiler
def test_bfloat16_is_rounded_as_by_torch():
    generator = torch.Generator().manual_seed(0)
    numbers = torch.randn(64, 1000, generator=generator) * torch.logspace(-40, 38, 1000)
    ties = torch.tensor([1 + 2**-8, 1 + 3 * 2**-8, -1 - 2**-8, 0.0, -0.0, torch.inf, -torch.inf])
    numbers[0, :7], numbers[0, 7] = ties, torch.nan
    parameter = torch.zeros(64, 1000, dtype=torch.bfloat16)
    gradient, moment = numbers.bfloat16(), torch.zeros_like(parameter)
    native.update(
        parameter, gradient, moment, torch.full((1000,), 1 / 3), weight=1.0, decay=0.0,
        maximize=False,
    )  # fmt: skip
    third = torch.full((), 1 / 3)
    torch.testing.assert_close(
        parameter, (gradient.float() * third).bfloat16(), rtol=0, atol=0, equal_nan=True
    )
    torch.testing.assert_close(moment, gradient, rtol=0, atol=0, equal_nan=True)


@needs_compiler
@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda x: x, True),
        (lambda x: x.bfloat16(), False),  # one of three
        (lambda x: x.T.contiguous().T, False),
        (lambda x: x.to_sparse(1), False),
        (lambda x: x.to("meta"), False),
        (lambda x: torch._neg_view(x), False),
        (lambda x: x[0], False),
        (lambda x: x.as_subclass(type("Wrapped", (torch.Tensor,), {})), False),
    ],
)
def test_what_fits(change, expected):
    matrices = [torch.ones(8, 4) for _ in range(3)]
    for place in range(3):
        changed = [change(one) if n == place else one for n, one in enumerate(matrices)]
        assert native.fits(*changed) == expected
    assert not native.fits(*(one.double() for one in matrices))
    assert native.fits(*(one.bfloat16() for one in matrices))


def matrices(shape=(8, 4), dtype=torch.float32):
    return [torch.ones(shape, dtype=dtype) for _ in range(3)]


def readable(one):
    return one.device.type == "cpu" and (one.is_sparse or one.untyped_storage().nbytes() > 16)


def resized(one):
    one = one.clone()
    one.untyped_storage().resize_(16)
    return one


@needs_compiler
@pytest.mark.parametrize("place", range(3))
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: torch.ones(4, 4), "has shape"),  # a vocabulary that grew, or was cut
        (lambda x: torch.ones(16, 4), "has shape"),
        (lambda x: torch.ones(8, 3), "has shape"),
        (lambda x: torch.ones(8), "has shape"),
        (lambda x: torch.ones(8, 4, device="meta"), "is on meta"),
        (lambda x: x.double(), "is of"),
        (lambda x: x.T.contiguous().T, "strides"),
        (lambda x: x.to_sparse(1), "layout"),
        (resized, "resized"),
    ],
)
def test_what_does_not_belong_together_is_refused_and_nothing_written(place, change, message):
    one = matrices()
    one[place] = change(one[place])
    before = [x.to_dense().clone() for x in one if readable(x)]
    with pytest.raises(ValueError, match=message):
        native.update(*one, torch.ones(4), weight=0.1, decay=0.0, maximize=False)
    after = [x.to_dense() for x in one if readable(x)]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


@needs_compiler
def test_rows_that_overlap_are_read_but_not_written():
    repeated = torch.ones(1, 4).expand(8, 4)
    assert (native.sum_of_squares(repeated) == 8).all()
    native.update(*matrices()[:1], repeated, matrices()[0], torch.ones(4), weight=0.1, decay=0.0,
                  maximize=False)  # fmt: skip
    for place in (0, 2):
        one = matrices()
        one[place] = repeated
        with pytest.raises(ValueError, match="overlap"):
            native.update(*one, torch.ones(4), weight=0.1, decay=0.0, maximize=False)


@needs_compiler
@pytest.mark.parametrize(
    "factor", [torch.ones(3), torch.ones(5), torch.ones(4).double(), torch.ones(4, device="meta")]
)
def test_a_factor_of_another_size_or_type_is_refused(factor):
    with pytest.raises(ValueError, match="factor"):
        native.update(*matrices(), factor, weight=0.1, decay=0.0, maximize=False)


@needs_compiler
@pytest.mark.parametrize(
    "bad", [torch.ones(8, 4).double(), torch.ones(8), resized(torch.ones(8, 4))]
)
def test_a_gradient_that_cannot_be_read_is_refused(bad):
    with pytest.raises(ValueError, match="gradient"):
        native.sum_of_squares(bad)


@needs_compiler
@pytest.mark.parametrize("shape", [(0, 4), (0, 0), (3, 0)])
def test_an_empty_shard_has_sums_of_zero(shape):
    assert torch.equal(native.sum_of_squares(torch.ones(shape)), torch.zeros(shape[1]))
    native.update(*matrices(shape), torch.ones(shape[1]), weight=0.1, decay=0.0, maximize=False)


@needs_compiler
@pytest.mark.parametrize("columns", [1023, 1024, 1025, 2300])
def test_wide_rows_are_summed_in_blocks(columns):
    gradient = torch.randn(300, columns, generator=torch.Generator().manual_seed(0))
    expected = gradient.double().square().sum(0)
    found = native.sum_of_squares(gradient).double()
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)


# Where the compiled sweeps cannot be had


@pytest.fixture
def afresh():
    """Nothing has been compiled before, nor will what the test makes be used by others."""
    native._compiled.cache_clear()
    yield
    native._compiled.cache_clear()


def why_with_operations():
    """Why the step, which agrees with the oracle, was made without C."""
    trial = Trial(BACKENDS["C"], "default", torch.float32, (12, 5))
    native.last_run = ""
    found, _ = trial.run(coupled=True)
    assert native.last_run == ""
    expected = backends.expected("default", torch.float32, (12, 5), trial.steps)
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-6)
    return native.unavailable(torch.float32)


def program(path, text, interpreter="/bin/sh"):
    path.write_text(f"#!{interpreter}\n{text}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


TARGET = 'while [ "$1" != -o ]; do shift; done; shift\n'
COMPILERS = {
    "writes nothing": ("exit 0", "made nothing"),
    "fails": ("echo step.c: error: no >&2; exit 1", "step.c: error: no"),
    "is killed": ("kill -9 $$", "was ended by signal 9"),
    "writes text": (TARGET + "echo something > $1", "cannot be used"),
    "writes an empty file": (TARGET + ": > $1", "cannot be used"),
    "makes a folder": (TARGET + "mkdir -p $1", "made nothing"),
    "makes a program": ('cc -x c -o "$(' + TARGET.replace("\n", "; ") + 'echo $1)" - <<END\n'
                        "int main(void) { return 0; }\nEND", "cannot be used"),
    "makes an object file": ('cc "$@" -c', "cannot be used"),
    "makes another library": ('cc -shared -fPIC -x c -o "$(' + TARGET.replace("\n", "; ")
                              + 'echo $1)" - <<END\nint other(void) { return 0; }\nEND',
                              "cannot be used"),
    "makes code that crashes": ('cc -shared -fPIC -x c -o "$(' + TARGET.replace("\n", "; ")
                                + 'echo $1)" - <<END\n'
                                "int works(void) { __builtin_trap(); }\nEND",
                                "was ended by signal"),
    "makes code for another machine": (TARGET + "cp \"$0.other\" $1", "cannot be used"),
    "removes its folder": (TARGET + 'rm -rf "$(dirname $1)"', ""),
}  # fmt: skip


@needs_compiler
@pytest.mark.parametrize("name", COMPILERS)
def test_a_compiler_that_makes_something_else(name, afresh, monkeypatch, tmp_path):
    text, reason = COMPILERS[name]
    script = program(tmp_path / "cc", text)
    library = tmp_path / "library.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, native._SOURCE], check=True)
    content = bytearray(library.read_bytes())
    content[18:20] = b"\xf3\x00"  # in an ELF file the machine that it is for
    Path(f"{script}.other").write_bytes(content)
    monkeypatch.setenv("CC", script)
    assert reason in why_with_operations()


@pytest.mark.parametrize(
    ("asked", "reason"),
    [
        ("/nowhere/cc", "/nowhere/cc"),
        ("/", "/"),  # a folder
        ("false", "false failed"),
        ("cc --no-such-option", "no-such-option"),
        ("cc -E", ""),
        ("cc 'open quotation", "quotation"),
        ("cat -", ""),
    ],
)
def test_cc_that_names_no_compiler(asked, reason, afresh, monkeypatch):
    monkeypatch.setenv("CC", asked)
    assert reason in why_with_operations()
    assert native.unavailable(torch.float32)


@needs_compiler
@pytest.mark.parametrize("asked", ["", "  ", "cc -O1 -g", "env LC_ALL=C cc", "'cc'", "cc -fopenmp"])
def test_cc_may_have_arguments(asked, afresh, monkeypatch):
    monkeypatch.setenv("CC", asked)
    assert native.unavailable(torch.float32) == ""
    assert native.sum_of_squares(torch.ones(5, 3)).tolist() == [5, 5, 5]


@needs_compiler
def test_cc_may_be_a_file_in_a_folder_with_a_blank(afresh, monkeypatch, tmp_path):
    folder = tmp_path / "my tools"
    folder.mkdir()
    monkeypatch.setenv("CC", program(folder / "cc", 'exec cc "$@"'))
    assert native.unavailable(torch.float32) == ""


def test_without_a_compiler(afresh, monkeypatch):
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr(compiler.shutil, "which", lambda _: None)
    assert "there is no C compiler" in why_with_operations()


def test_a_compiler_that_hangs_is_ended_with_all_that_it_started(afresh, monkeypatch, tmp_path):
    monkeypatch.setattr(compiler, "_SECONDS", 0.5)
    # A grandchild that keeps the output open.
    text = f"sleep 600 & echo $! > {tmp_path}/child; wait"
    monkeypatch.setenv("CC", program(tmp_path / "cc", text))
    started = time.monotonic()
    assert "took more than 0.5 seconds" in why_with_operations()
    assert time.monotonic() - started < 30
    child = int((tmp_path / "child").read_text())
    for _ in range(100):
        if (
            not Path(f"/proc/{child}/cmdline").exists()
            or not Path(f"/proc/{child}/cmdline").read_bytes()
        ):
            return
        time.sleep(0.05)
    pytest.fail("the grandchild is still there")


def test_no_folder_to_write_to(afresh, monkeypatch):
    def nowhere(*_, **__):
        raise FileNotFoundError("No usable temporary directory found")

    monkeypatch.setattr(tempfile, "mkdtemp", nowhere)
    assert "No usable temporary directory" in why_with_operations()


@needs_compiler
def test_a_folder_that_no_library_may_be_loaded_from(afresh, monkeypatch, tmp_path):
    folder = tmp_path / "noexec"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "noexec", "none", str(folder)],
        capture_output=True, check=False,
    )  # fmt: skip
    try:
        if mounted.returncode:  # only root may: what the loader says there

            def refused(*_, **__):
                raise OSError("failed to map segment from shared object")

            monkeypatch.setattr(compiler.ctypes, "CDLL", refused)
        monkeypatch.setattr(tempfile, "tempdir", str(folder))
        assert "failed to map segment" in why_with_operations()
    finally:
        monkeypatch.undo()
        if not mounted.returncode:
            subprocess.run(["umount", str(folder)], check=True)


@needs_compiler
@pytest.mark.parametrize("function", ["rmdir", "unlink"])
def test_a_folder_that_cannot_be_removed_is_left(function, afresh, monkeypatch, tmp_path):
    def refused(*_, **__):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with monkeypatch.context() as patched:
        patched.setattr(os, function, refused)
        assert native.unavailable(torch.float32) == ""


@needs_compiler
def test_a_program_that_ignores_its_children(afresh, monkeypatch, tmp_path):
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        assert native.unavailable(torch.float32) == ""
        native._compiled.cache_clear()
        monkeypatch.setenv("CC", program(tmp_path / "cc", TARGET + "echo nothing > $1"))
        assert why_with_operations()
    finally:
        signal.signal(signal.SIGCHLD, before)


@needs_compiler
def test_an_interruption_of_the_compiler_leaves_nothing_behind(afresh, monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    # A process that was started in the background ignores it.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    script = program(tmp_path / "cc", f"touch {tmp_path}/started; exec sleep 600")
    monkeypatch.setenv("CC", script)

    def interrupt():
        while not (tmp_path / "started").exists():
            time.sleep(0.01)
        signal.raise_signal(signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        native.unavailable(torch.float32)
    thread.join()
    signal.signal(signal.SIGINT, before)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cc", "started"]
    monkeypatch.delenv("CC")
    assert native.unavailable(torch.float32) == ""  # asked again


# Threads and processes


HEAD = """
    import os, sys, torch
    torch.set_num_threads(2)
    torch.ones(300, 300) @ torch.ones(300, 300)
    torch.ones(1 << 20).add_(1)
    def tasks(): return len(os.listdir("/proc/self/task"))
    def runtimes():
        files = {line.split()[-1] for line in open("/proc/self/maps")}
        return {file for file in files if "omp" in file.split("/")[-1]}
"""


def python(code, head=HEAD, **environment):
    """Run a program in a process of its own that has done an operation in PyTorch's team."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(head) + textwrap.dedent(code)],
        env={**os.environ, "OMP_NUM_THREADS": "2", **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


SWEEP = """
    from coupled_adam.optim import native
    before, threads = runtimes(), tasks()
    assert (native.sum_of_squares(torch.ones(4096, 128)) == 4096).all()
    assert runtimes() == before and tasks() == threads, (runtimes(), before, tasks(), threads)
    print(native.last_run)
"""
on_linux = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")


@pytest.fixture(scope="module")
def in_the_team():
    """What a program says of its first sweep, and of others after other numbers of threads."""
    if openmp.team()[0] is None:
        pytest.skip(openmp.team()[1])
    further = """
        for threads in (1, 2, 3, 2):
            torch.set_num_threads(threads)
            native.sum_of_squares(torch.ones(4096, 128))
            print(native.last_run)
    """
    return python(textwrap.dedent(SWEEP) + textwrap.dedent(further)).splitlines()


@needs_compiler
@on_linux
def test_the_sweeps_run_in_pytorchs_team_and_bring_no_second_runtime(in_the_team):
    assert in_the_team[0] == "C, in torch's OpenMP team of 2 threads"


@needs_compiler
@on_linux
@pytest.mark.parametrize("way", ["preloaded", "for all", "for itself"])
def test_another_runtime_in_the_process_is_not_taken_for_pytorchs(way):
    sklearn = pytest.importorskip("sklearn")
    found = list((Path(sklearn.__file__).parents[1] / "scikit_learn.libs").glob("libgomp*"))
    if not found or openmp.team()[0] is None:
        pytest.skip("no second OpenMP runtime on this machine")
    if way == "preloaded":
        said = python(SWEEP, LD_PRELOAD=str(found[0]))
    else:
        mode = {"for all": "RTLD_GLOBAL", "for itself": "RTLD_LOCAL"}[way]
        load = f"import ctypes; ctypes.CDLL({str(found[0])!r}, mode=ctypes.{mode})\n"
        said = python(load + textwrap.dedent(SWEEP))
    assert said == "C, in torch's OpenMP team of 2 threads\n"


@needs_compiler
@on_linux
def test_torchs_number_of_threads_is_followed(in_the_team):
    team = "C, in torch's OpenMP team of {} threads"
    assert in_the_team[1:] == ["C, on one thread", *(team.format(n) for n in (2, 3, 2))]


# What a process has done when it is forked: each in the one that has done all before.
BEFORE_A_FORK = {
    "nothing": "",  # imported by the child only
    "imported": "from coupled_adam.optim import native, openmp",
    "swept in the team": "native.sum_of_squares(torch.ones(4096, 128))",
    "swept in own threads": "openmp._find = lambda: (None, 'test');"
    "native.sum_of_squares(torch.ones(4096, 128))",
}
FORKED = """
import signal, warnings
warnings.simplefilter("ignore")
gradient = torch.ones(4096, 128)
for name, before in {steps!r}.items():
    exec(before)
    child = os.fork()
    if child == 0:
        # With the parent's team or threads it would wait for ever, as PyTorch's operations on
        # large tensors do.
        signal.alarm(30)
        from coupled_adam.optim import native
        right = (native.sum_of_squares(gradient) == 4096).all()
        right = right and native.last_run.endswith("threads of its own (this process was forked)")
        os._exit(0 if right else 1)
    print(os.waitpid(child, 0)[1], name)
"""


@pytest.fixture(scope="module")
def said_of_forks():
    return python(FORKED.format(steps=BEFORE_A_FORK)).splitlines()


@needs_compiler
@on_linux
@pytest.mark.parametrize("before", BEFORE_A_FORK)
def test_a_forked_process_has_threads_of_its_own(said_of_forks, before):
    assert f"0 {before}" in said_of_forks


@needs_compiler
@on_linux
def test_workers_that_are_forked_can_step():
    said = python("""
        import multiprocessing, warnings
        warnings.simplefilter("ignore")
        from coupled_adam import CoupledAdamW

        def step(number):
            torch.set_num_threads(1)  # as PyTorch's own workers do
            weight = torch.nn.Parameter(torch.zeros(4096, 128))
            weight.grad = torch.ones(4096, 128)
            CoupledAdamW([weight], lr=0.5, weight_decay=0.0, coupled=True, fused=True).step()
            return weight.mean().item()

        step(0)
        with multiprocessing.get_context("fork").Pool(2) as pool:
            print([round(x, 3) for x in pool.map_async(step, range(4)).get(60)])
    """)
    assert said == "[-0.5, -0.5, -0.5, -0.5]\n"


LATE = """
    import threading
    from coupled_adam import CoupledAdamW
    from coupled_adam.optim import native, openmp
    {before}

    def step():
        weight = torch.nn.Parameter(torch.zeros(4096, 128))
        weight.grad = torch.ones(4096, 128)
        CoupledAdamW([weight], lr=0.5, weight_decay=0.0, coupled=True, fused=True).step()
        print(round(weight.mean().item(), 3))

    {how}
"""
WAYS = {
    "in a thread": "threading.Thread("
    "target=lambda: (threading.main_thread().join(), step())).start()",
    "at exit": "import atexit; atexit.register(step)",
}
WITHOUT_A_TEAM = {
    "compiled then": "openmp._find = lambda: (None, 'test')",
    "compiled before": "openmp._find = lambda: (None, 'test');"
    "native.sum_of_squares(torch.ones(4096, 128))",
}


@needs_compiler
@pytest.mark.parametrize("how", WAYS)
def test_a_step_after_the_end_of_the_main_thread(how):
    assert python(LATE.format(before="", how=WAYS[how])) == "-0.5\n"


# Forked before PyTorch has a team, so that these imports are made once; what a child prints, and
# how it ends, is as of any program.
FORKS = """
import os, sys, torch, torch._dynamo
ends = {{}}
for name, program in {programs!r}.items():
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.dup2(writer, 1)
        exec(program, globals())
        break
    os.close(writer)
    said = open(reader).read()
    ends[name] = [os.waitpid(child, 0)[1], said]
else:
    print(ends)
"""


@pytest.fixture(scope="module")
def late_without_a_team():
    """How programs end that step at the end, and what they say."""
    programs = {
        f"{how}, {before}": textwrap.dedent(HEAD)
        + textwrap.dedent(LATE.format(before=WITHOUT_A_TEAM[before], how=WAYS[how]))
        for how in WAYS
        for before in WITHOUT_A_TEAM
    }
    return ast.literal_eval(python(FORKS.format(programs=programs), head=""))


@needs_compiler
@on_linux
@pytest.mark.parametrize("how", WAYS)
@pytest.mark.parametrize("before", WITHOUT_A_TEAM)
def test_a_step_in_own_threads_after_the_end_of_the_main_thread(late_without_a_team, how, before):
    assert late_without_a_team[f"{how}, {before}"] == [0, "-0.5\n"]


@needs_compiler
def test_a_signal_in_the_middle_leaves_a_whole_sweep(monkeypatch):
    monkeypatch.setattr(native, "_WORTH_SHARING", 0)
    monkeypatch.setattr(openmp, "team", lambda: (None, "as a test asks"))
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)

    class Interrupted:
        def submit(self, *_):
            raise KeyboardInterrupt

    monkeypatch.setattr(native, "_pool", lambda *_: Interrupted())
    parameter, gradient, moment = matrices((3000, 4))
    with pytest.raises(KeyboardInterrupt):
        native.update(
            parameter, gradient, moment, torch.ones(4), weight=0.5, decay=0.0, maximize=False
        )
    assert (parameter == 2).all()


@needs_compiler
def test_threads_that_come_too_late_touch_nothing(monkeypatch):
    monkeypatch.setattr(native, "_WORTH_SHARING", 0)
    monkeypatch.setattr(openmp, "team", lambda: (None, "as a test asks"))
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    late = []

    class Late:
        def submit(self, *work):
            late.append(work)

    monkeypatch.setattr(native, "_pool", lambda *_: Late())
    parameter, gradient, moment = matrices((3000, 4))
    native.update(parameter, gradient, moment, torch.ones(4), weight=0.5, decay=0.0, maximize=False)
    assert (parameter == 2).all()
    moment.fill_(7)
    for function, *arguments in late:
        function(*arguments)
    assert len(late) == 2 and (parameter == 2).all() and (moment == 7).all()


def compile_in(folder, answers):
    os.environ["TMPDIR"], tempfile.tempdir = str(folder), None
    native._compiled.cache_clear()
    answers.put(native.unavailable(torch.float32) or native.sum_of_squares(torch.ones(5, 1)).item())


@needs_compiler
def test_two_processes_compile_at_the_same_time(tmp_path):
    context = forks.context()
    answers = context.Queue()
    both = [context.Process(target=compile_in, args=(tmp_path, answers)) for _ in range(2)]
    for process in both:
        process.start()
    assert [answers.get(timeout=120) for _ in both] == [5.0, 5.0]
    for process in both:
        process.join()
    assert list(tmp_path.iterdir()) == []
