"""What the command line promises: the library's verbs, one-line errors, a way to go on."""

import dataclasses
import json
import os
import random
import shlex
import subprocess
import sys
import threading
from functools import partial

import numpy as np
import pytest
from typer.testing import CliRunner

from coupled_adam import benchmark, cli, experiments
from coupled_adam.errors import RefusedError
from coupled_adam.training import load_run, loop, presets

SMALL = ["--vocabulary-size", "300", "--steps", "4", "--batch-size", "2", "--device", "cpu"]


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "a text.txt"
    words = [f"{a}{b}{c}" for a in "bdfgk" for b in "aeiou" for c in "lmnrst"]
    chosen = random.Random(0).choices(words, k=20_000)
    path.write_text(" ".join(chosen))
    return path


@pytest.fixture(autouse=True)
def own_cache(text, monkeypatch):
    monkeypatch.setenv("COUPLED_ADAM_CACHE", str(text.parent / "cache"))


@pytest.fixture(autouse=True)
def short_turns(monkeypatch):
    """Numbers that nobody reads: small steps fill a turn of the usual length by the thousand."""
    compare = partial(benchmark.compare_steps, seconds=0.001)
    monkeypatch.setattr(benchmark, "compare_steps", compare)


def invoke(*arguments):
    return CliRunner().invoke(cli.app, [str(argument) for argument in arguments])


def test_prepare_says_what_it_made_and_train_finds_it(text, tmp_path, monkeypatch):
    result = invoke("prepare", text, "--vocabulary-size", 300)
    assert result.exit_code == 0, result.output
    assert "vocabulary 300" in result.stdout
    assert f"train --text '{text}' --vocabulary-size 300 --out FOLDER" in result.stdout
    (folder,) = [line.split(": ")[1] for line in result.stdout.splitlines() if "folder" in line]
    assert folder.startswith(str(text.parent / "cache"))
    # Found in the cache: nothing is encoded again.
    monkeypatch.setattr("coupled_adam.text.sources.write_text", lambda *_: pytest.fail("again"))
    result = invoke("train", "--text", text, *SMALL, "--out", tmp_path / "run")
    assert result.exit_code == 0, result.output


def test_a_streamed_collection_is_asked_for_by_name(text, monkeypatch):
    def seen(*asked):
        raise RefusedError(f"asked for {asked}")

    monkeypatch.setattr("coupled_adam.text.collection", seen)
    result = invoke("prepare", "fineweb", "--documents", 1000)
    assert result.stderr == "coupled-adam: asked for ('fineweb', 1000, 50257)\n"


def test_bench_measures_beside_torch_and_writes_a_record(tmp_path):
    options = ["--shape", "64x8", "--shape", "32x4", "--rounds", 2, "--threads", 1]
    result = invoke("bench", *options, "--out", tmp_path / "step.json")
    assert result.exit_code == 0, result.output
    # In the table for each shape, and once below where it says what ran.
    counts = {"AdamW fused": 3, "CoupledAdamW": 6, "CoupledAdamW unfused": 3}
    assert "CoupledAdamW unfused: PyTorch's operations\n" in result.stdout
    assert {name: result.stdout.count(name) for name in counts} == counts
    record = json.loads((tmp_path / "step.json").read_text())
    assert "CoupledAdamW" in json.dumps(record)


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--shape", "64", "as in 50304x768"),
        ("--shape", "ax8", "as in 50304x768"),
        ("--dtype", "int8", "choose float32"),
        ("--device", "cuda:9", "device="),
    ],
)
def test_bench_refuses_what_it_cannot_measure(option, value, message):
    result = invoke("bench", option, value)
    assert result.exit_code == 2
    assert message in result.stderr and result.stderr.count("\n") == 1


def test_train_takes_its_options_to_the_run(text, tmp_path):
    options = ["--optimizer", "adamw", "--seed", 3, "--accumulation", 2]
    options += ["--precision", "bfloat16", "--no-compiled", "--warmup-steps", 3]
    options += ["--evaluate-every", 2, "--evaluation-tokens", 600, "--checkpoint-every", 1]
    result = invoke("train", "--text", text, *SMALL, *options, "--out", tmp_path / "run")
    assert result.exit_code == 0, result.output
    run = load_run(tmp_path / "run")
    config = run.config
    assert (config.optimizer, config.seed, config.steps) == ("adamw", 3, 4)
    assert (config.batch_size, config.accumulation) == (2, 2)
    assert (config.precision, config.compiled) == ("bfloat16", False)
    assert config.learning_rate == 1e-3  # the preset's
    assert (config.evaluate_every, config.evaluation_tokens) == (2, 600)
    assert (config.checkpoint_every, config.warmup_steps) == (1, 3)
    assert f"4 steps, 1,024 tokens, adamw; validation loss {run.final.validation_loss:.4f}" in (
        result.stdout
    )


def test_a_preset_gives_model_and_recipe(text, tmp_path, monkeypatch):
    asked = []

    def no_training(config, corpus, folder, **_):
        asked.append((config, folder))
        raise RefusedError("seen enough")

    monkeypatch.setattr(cli, "train_run", no_training)
    arguments = ["--preset", "gpt2-355m", "--optimizer", "adamw", "--vocabulary-size", "300"]
    result = invoke("train", "--text", text, *arguments, "--out", tmp_path / "run")
    assert (result.exit_code, result.stderr) == (2, "coupled-adam: seen enough\n")
    ((config, folder),) = asked
    assert (config.model.layers, config.model.vocabulary_size) == (24, 320)
    assert (config.optimizer, config.steps, config.compiled) == ("adamw", 1000, True)
    assert folder == tmp_path / "run"


def test_an_interrupted_run_says_how_to_go_on_and_does(text, tmp_path, monkeypatch):
    arguments = ["train", "--text", text, *SMALL, "--out", tmp_path / "run"]
    batch = loop._batch

    def interrupt(corpus, config, step, device):
        if step == 3:
            raise KeyboardInterrupt
        return batch(corpus, config, step, device)

    monkeypatch.setattr(loop, "_batch", interrupt)
    result = invoke(*arguments)
    assert result.exit_code == 130
    assert f"interrupted; the same command goes on with the run in {tmp_path}" in result.stderr
    monkeypatch.setattr(loop, "_batch", batch)
    assert invoke(*arguments).exit_code == 0
    assert load_run(tmp_path / "run").metrics.step.tolist() == [0, 1, 2, 3, 4]
    rows = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(row)["step"] for row in rows] == [0, 1, 2, 3, 4]


def test_evaluate_measures_a_run_and_records_it(text, tmp_path):
    options = ["--optimizer", "adamw", "--seed", 3, "--evaluate-every", 2]
    options += ["--evaluation-tokens", 256, "--checkpoint-every", 3]
    result = invoke("train", "--text", text, *SMALL, *options, "--out", tmp_path / "my run")
    assert result.exit_code == 0, result.output
    out = tmp_path / "record.json"
    described = ["--description", "made-up words", "--device", "cpu", "--out", out]
    result = invoke("evaluate", tmp_path / "my run", "--text", text, *described)
    assert result.exit_code == 0, result.output
    record = experiments.read_record(out)
    loss = load_run(tmp_path / "my run").final.validation_loss
    assert record.final["validation_loss"] == pytest.approx(loss, rel=1e-6)
    assert f"{loss:.4f}" in result.stdout and "WordSim-353" in result.stdout
    assert record.metrics["step"].tolist() == [0, 2, 4]
    assert record.text["description"] == "made-up words"
    assert record.text["vocabulary_size"] == 300
    # The command makes the same run, where the text lies at hand.
    assert not [where for where in (tmp_path, text.parent) if str(where) in out.read_text()]
    program, *words = shlex.split(record.command)
    assert program == "coupled-adam" and words[-2:] == ["--out", "my run"]
    words[words.index("--text") + 1] = str(text)
    assert invoke(*words[:-1], tmp_path / "again").exit_code == 0
    assert load_run(tmp_path / "again").config == record.config


def test_evaluate_takes_the_word_pairs_that_it_is_given(text, tmp_path):
    invoke("train", "--text", text, *SMALL, "--out", tmp_path / "run")
    for name in ("one", "two"):
        (tmp_path / f"{name}.tsv").write_text("bal\tdem\t1\n" * 4)
    files = ["--word-pairs", tmp_path / "one.tsv", "--word-pairs", tmp_path / "two.tsv"]
    result = invoke("evaluate", tmp_path / "run", "--text", text, *files, "--tokens", 256)
    assert result.exit_code == 0, result.output
    assert "WordSim" not in result.stdout
    assert "one" in result.stdout and "two" in result.stdout


def test_evaluate_shows_and_records_everything(text, tmp_path):
    invoke("train", "--text", text, *SMALL, "--out", tmp_path / "run")
    (tmp_path / "moods.csv").write_text("label,text\n" + "good,bal bel\nbad,dem dim\n" * 15)
    (tmp_path / "mine.txt").write_text("bal bel dem dim\n")
    files = ["--labelled", tmp_path / "moods.csv", "--analogies", tmp_path / "mine.txt"]
    out = tmp_path / "record.json"
    arguments = ["evaluate", tmp_path / "run", "--text", text, *files, "--device", "cpu"]
    result = invoke(*arguments, "--out", out)
    assert result.exit_code == 0, result.output
    table = experiments.read_record(out).table
    assert set(table["set"]) >= {"moods", "mine", "Lee"} and "newsgroups" not in set(table["set"])
    # Every row is shown, with the reason where there is no value.
    assert all(measure in result.stdout for measure in table["measure"])
    assert "of at least 100 questions of single tokens" in result.stdout
    assert "nan" not in result.stdout.lower().partition("everything, with")[2]
    before = (tmp_path / "moods.csv").read_bytes()
    refused = invoke(*arguments, "--out", tmp_path / "moods.csv")
    assert refused.exit_code == 2 and "would replace what is read" in refused.stderr
    assert (tmp_path / "moods.csv").read_bytes() == before


@pytest.mark.parametrize("preset", ["gpt2-124m", "gpt2-774m"])
@pytest.mark.parametrize("processes", [1, 8])
def test_the_recorded_command_asks_for_the_recorded_run(
    text, tmp_path, monkeypatch, preset, processes
):
    """For a run that only a GPU can make: the command is read as the command line reads it."""
    corpus = cli._corpus(str(text), 300, None)
    changes = {"optimizer": "adamw", "seed": 2, "batch_size": 8}
    changes |= {"accumulation": 4, "compiled": False, "warmup_steps": 7, "learning_rate": 1e-3}
    changes |= {"embedding_betas": (0.8, 0.999), "embedding_eps": 1e-4, "weight_decay": 0.2}
    changes |= {"layers": 3, "width": 48, "heads": 4, "tied": False, "gradient_clip": 0.5}
    config = cli._config(preset, corpus, changes)
    session = {"device": "cuda:0 (some GPU)", "processes": processes}
    described = {"config": config.to_json(), "corpus": {}, "sessions": [session]}
    (tmp_path / "config.json").write_text(json.dumps(described))
    command = shlex.split(cli._train_command(tmp_path, config, str(text), None, corpus))
    if processes > 1:
        assert command[:4] == ["torchrun", "--standalone", "--nproc-per-node", "8"]
        assert command[4:6] == ["-m", "coupled_adam.cli"]
    words = command[command.index("train") :]
    assert "--optimizer adamw --seed 2" in shlex.join(words)
    assert words[words.index("--device") + 1] == "cuda"
    words[words.index("--device") + 1] = "cpu"
    words[words.index("--text") + 1] = str(text)
    asked = []

    def no_training(config, *_, **__):
        asked.append(config)
        raise RefusedError("seen enough")

    monkeypatch.setattr(cli, "train_run", no_training)
    assert "seen enough" in invoke(*words).stderr
    assert asked == [config]


def test_the_commands_of_the_presets_work_in_small(text, tmp_path, monkeypatch):
    """The same lines with a model and a text that any machine can do, run one after another."""
    monkeypatch.chdir(tmp_path)
    lines = presets.commands("gpt2-124m", "coupled", 1, str(text))
    small = [*SMALL, "--preset", "small"]
    given = {"prepare": SMALL[:2], "train": small, "evaluate": [], "export": []}
    for name, options in given.items():
        program, *words = shlex.split(lines[name])
        assert program == "coupled-adam"
        result = invoke(*words, *options)
        assert result.exit_code == 0, result.output
    assert experiments.read_record("gpt2-124m-coupled-1.json").config.seed == 1
    assert (tmp_path / "hf" / "gpt2-124m-coupled-1" / "config.json").exists()
    assert "pretrained=hf/gpt2-124m-coupled-1 " in lines["lm_eval"]


def test_the_recorded_command_names_optimizer_and_seed_also_where_they_are_the_defaults(
    text, tmp_path
):
    corpus = cli._corpus(str(text), 300, None)
    config = cli._config("small", corpus, {})
    session = {"device": "cpu (some CPU)"}
    described = {"config": config.to_json(), "corpus": {}, "sessions": [session]}
    (tmp_path / "config.json").write_text(json.dumps(described))
    command = cli._train_command(tmp_path, config, str(text), None, corpus)
    assert "--vocabulary-size 300 --optimizer coupled --seed 0 --device cpu" in command


def test_a_run_that_no_option_makes_has_no_command(text, tmp_path):
    corpus = cli._corpus(str(text), 300, None)
    config = dataclasses.replace(cli._config("small", corpus, {}), final_share=0.5)
    assert cli._train_command(tmp_path, config, str(text), None, corpus) is None


def test_export_writes_a_checkpoint(text, tmp_path):
    invoke("train", "--text", text, *SMALL, "--out", tmp_path / "run")
    result = invoke("export", tmp_path / "run", tmp_path / "hf")
    assert result.exit_code == 0, result.output
    assert json.loads((tmp_path / "hf" / "config.json").read_text())["model_type"] == "gpt2"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["prepare", "{tmp}/none"], "there is no file or folder {tmp}/none"),
        (["prepare", "{text}", "--vocabulary-size", "9"], "vocabulary_size must be a whole number"),
        (["train", "--text", "{text}", *SMALL, "--out", "{text}/run"], "Not a directory"),
        (["train", "--text", "{text}", *SMALL, "--steps", "0", "--out", "{tmp}/r"], "steps must"),
        (
            ["train", "--text", "{text}", *SMALL, "--out", "{tmp}/r", "--accumulation", "4"],
            "must divide",
        ),
        (["prepare", "{text}", "--documents", "9"], "--documents is for streamed collections"),
        (["export", "{tmp}", "{tmp}/hf"], "it is not a run folder"),
        (["evaluate", "{tmp}", "--text", "{text}"], "it is not a run folder"),
    ],
)
def test_what_is_refused_is_said_in_one_line(text, tmp_path, arguments, says):
    filled = [argument.format(text=text, tmp=tmp_path) for argument in arguments]
    result = invoke(*filled)
    assert result.exit_code == 2
    line = result.stderr.removesuffix("\n")
    assert line.startswith("coupled-adam: ") and says.format(tmp=tmp_path) in line
    assert "\n" not in line and "Traceback" not in line


@pytest.mark.parametrize("error", [ValueError, AttributeError, KeyError, ZeroDivisionError])
def test_a_mistake_of_ours_is_not_shown_as_the_user_s(text, tmp_path, monkeypatch, error):
    def mistake(*_, **__):
        raise error("not the user's")

    monkeypatch.setattr(cli, "train_run", mistake)
    command = ("train", "--text", text, *SMALL, "--out", tmp_path / "run")
    result = invoke(*command)
    assert result.exit_code == 1
    assert "a fault of the program, not of yours" in result.stderr
    assert f"({error.__name__}: " in result.stderr
    assert "COUPLED_ADAM_TRACEBACK=1" in result.stderr and result.stderr.count("\n") == 1
    monkeypatch.setenv("COUPLED_ADAM_TRACEBACK", "1")
    result = invoke(*command)
    assert result.exit_code == 1 and "Traceback (most recent call last)" in result.stderr
    assert f"{error.__name__}: " in result.stderr and "in mistake\n" in result.stderr


def test_a_run_that_diverges_is_one_line_too(text, tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "_validation_loss", lambda *_: np.nan)
    result = invoke("train", "--text", text, *SMALL, "--out", tmp_path / "run")
    assert result.exit_code == 2
    assert "diverged at step 0: validation loss nan" in result.stderr


# --- a sweep ---------------------------------------------------------------------------------


def test_a_sweep_prints_a_line_for_each_run_and_finds_them_again(text, tmp_path):
    options = ["--optimizer", "adamw", "--optimizer", "coupled", "--seed", 0, "--seed", 1]
    options += ["--steps", 3, "--vocabulary-size", 300, "--workers", 1, "--out", tmp_path / "runs"]
    first = invoke("sweep", "--text", text, *options)
    assert first.exit_code == 0, first.output
    lines = first.stdout.splitlines()
    assert [line.split(":")[0] for line in lines] == [
        "adamw, seed 0", "coupled, seed 0", "adamw, seed 1", "coupled, seed 1"
    ]  # fmt: skip
    stamps = [path.stat().st_mtime_ns for path in sorted(tmp_path.glob("runs/*/checkpoint.pt"))]
    again = invoke("sweep", "--text", text, *options)
    assert again.stdout == first.stdout
    assert stamps == [
        path.stat().st_mtime_ns for path in sorted(tmp_path.glob("runs/*/checkpoint.pt"))
    ]
    hot = ["--learning-rate", 1e4, "--embedding-multiplier", 30]
    diverged = invoke("sweep", "--text", text, *options, *hot)
    assert diverged.exit_code == 0 and "diverged at step" in diverged.stdout
    refused = invoke("sweep", "--text", text, *options, "--optimizer", "adam")
    assert refused.exit_code == 2 and "optimizer must be one of" in refused.stderr


# --- where results go ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(text, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COUPLED_ADAM_CACHE", str(text.parent / "cache"))
        assert invoke("train", "--text", text, *SMALL, "--out", folder).exit_code == 0
    return folder


@pytest.fixture
def pairs(tmp_path):
    path = tmp_path / "pairs.tsv"
    path.write_bytes("\ufeffbal\tbel\t1\nbil\tbol\t2\nbul\tdal\t0\n".encode())
    return path


def as_a_program(*arguments, **options):
    command = [sys.executable, "-m", "coupled_adam", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, timeout=120, **options)


BENCH = ["bench", "--shape", "16x4", "--rounds", 1, "--threads", 1]


@pytest.mark.parametrize("place", ["{tmp}", "{tmp}/none/x.json", "{tmp}/pairs.tsv/x.json"])
def test_a_place_that_cannot_be_written_is_refused_before_the_work(
    text, trained, pairs, tmp_path, monkeypatch, place
):
    monkeypatch.setattr(cli.evaluation, "evaluate", lambda *_, **__: pytest.fail("worked"))
    monkeypatch.setattr("coupled_adam.benchmark.compare_steps", lambda *_, **__: pytest.fail("so"))
    out = place.format(tmp=tmp_path)
    for command in (["evaluate", trained, "--text", text, "--word-pairs", pairs], BENCH):
        result = invoke(*command, "--out", out)
        assert result.exit_code == 2, result.output
        assert f"{out} cannot be written" in result.stderr


def test_a_link_stays_and_a_pipe_and_a_device_are_written_through(tmp_path):
    target, link, pipe = (tmp_path / name for name in ("target.json", "link.json", "pipe"))
    link.symlink_to(target)
    os.mkfifo(pipe)
    received = []
    reader = threading.Thread(target=lambda: received.append(pipe.read_bytes()))
    reader.start()
    for place in (link, pipe, "/dev/null"):
        assert invoke(*BENCH, "--out", place).exit_code == 0
    reader.join(60)
    assert link.is_symlink() and json.loads(target.read_text())["results"]
    assert json.loads(received[0])["results"]
    assert pipe.is_fifo() and os.path.exists("/dev/null") and not os.path.isfile("/dev/null")


def test_home_is_found_in_names_and_its_absence_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert invoke(*BENCH, "--out", "~/step.json").exit_code == 0
    assert (tmp_path / "step.json").exists()
    for unknown in ("~nobody_of_this_name/x.json", "~nobody_of_this_name"):
        result = invoke(*BENCH, "--out", unknown)
        assert result.exit_code == 2 and "there is no home folder" in result.stderr
    result = invoke("prepare", "~nobody_of_this_name/text.txt")
    assert result.exit_code == 2 and "there is no home folder" in result.stderr


@pytest.mark.parametrize(
    "console", [{"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "C", "PYTHONUTF8": "0"}]
)
def test_a_console_that_cannot_show_a_character_loses_nothing(text, trained, tmp_path, console):
    odd = tmp_path / "Wörter – 単語.tsv"
    odd.write_text("bal bel 1\nbil bol 2\nbul dal 0\n")
    out = tmp_path / "record.json"
    arguments = ["evaluate", trained, "--text", text, "--word-pairs", odd, "--out", out]
    done = as_a_program(*arguments, env=os.environ | console)
    assert done.returncode == 0, done.stderr
    assert json.loads(out.read_text())["word_pairs"][0]["name"] == "Wörter – 単語"


def test_a_reader_that_has_gone_loses_nothing(text, trained, pairs, tmp_path):
    out = tmp_path / "record.json"
    arguments = ["evaluate", trained, "--text", text, "--word-pairs", pairs, "--out", out]
    command = [sys.executable, "-m", "coupled_adam", *map(str, arguments)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.close()
    with process.stderr:
        complaint = process.stderr.read()
    assert process.wait(120) == 0 and complaint == b""
    assert json.loads(out.read_text())["kind"] == "training run"


def test_two_files_of_one_name_are_two_sets(text, trained, tmp_path):
    for number, folder in enumerate(("a", "b", "c")):
        (tmp_path / folder).mkdir()
        lines = ["bal bel 1", "bil bol 2", "bul dal 0", "dil dol 3"][: 3 + number % 2]
        (tmp_path / folder / ("ws.tsv" if folder != "c" else "other.tsv")).write_text(
            "\n".join(lines)
        )
    sets = [tmp_path / "a" / "ws.tsv", tmp_path / "b" / "ws.tsv", tmp_path / "c" / "other.tsv"]
    options = [part for path in sets for part in ("--word-pairs", path)]
    out = tmp_path / "record.json"
    result = invoke("evaluate", trained, "--text", text, *options, "--out", out)
    assert result.exit_code == 0, result.output
    found = {row["name"]: row["pairs"] for row in json.loads(out.read_text())["word_pairs"]}
    assert found == {"a/ws.tsv": 3, "b/ws.tsv": 4, "other.tsv": 3}


@pytest.mark.parametrize("damage", [b"", b"{", b"\xff\xfe", b"[1, 2]"])
def test_a_damaged_tokenizer_is_one_line(text, trained, tmp_path, damage):
    import shutil

    shutil.copytree(trained, tmp_path / "run")
    (tmp_path / "run" / "tokenizer.json").write_bytes(damage)
    result = invoke("evaluate", tmp_path / "run", "--text", text)
    assert result.exit_code == 2 and result.stderr.count("\n") == 1
    assert "tokenizer.json" in result.stderr
