"""Where a number comes from."""

import functools
import subprocess

from coupled_adam import provenance


def test_the_environment_names_versions_and_machine():
    described = provenance.environment()
    for name in ("torch", "numpy", "coupled_adam", "processor", "python", "threads", "device"):
        assert described[name], name
    assert described["processes"] == 1


def test_the_commit_is_known_only_in_the_projects_own_checkout(tmp_path, monkeypatch):
    git = functools.partial(subprocess.run, cwd=tmp_path, check=True, capture_output=True)
    author = ["-c", "user.name=n", "-c", "user.email=e@example.org"]
    file = tmp_path / "provenance.py"
    file.write_text("a = 1\n")
    monkeypatch.setattr(provenance, "__file__", str(file))
    assert provenance.commit() is None
    (tmp_path / "other.py").touch()
    git(["git", "init", "--quiet"])
    git(["git", "add", "other.py"])
    git(["git", *author, "commit", "--quiet", "-m", "somebody's environment"])
    assert provenance.commit() is None
    git(["git", "add", "."])
    git(["git", *author, "commit", "--quiet", "-m", "one"])
    head = git(["git", "rev-parse", "HEAD"]).stdout.decode().strip()
    assert provenance.commit() == head
    file.write_text("a = 2\n")
    assert provenance.commit() == f"{head}-dirty"
