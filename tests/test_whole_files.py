"""Files appear whole or not at all."""

import pytest

from coupled_adam.files import whole_file


def files_of(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_whole_file_appears_with_its_last_byte(tmp_path):
    path = tmp_path / "x"
    with whole_file(path) as file:
        file.write(b"new")
        assert not path.exists()
    assert path.read_bytes() == b"new"
    assert files_of(tmp_path) == ["x"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError, MemoryError])
def test_a_whole_file_that_is_interrupted_is_as_it_was(tmp_path, error):
    path = tmp_path / "x"
    path.write_bytes(b"old")
    with pytest.raises(error), whole_file(path) as file:
        file.write(b"new")
        raise error
    assert path.read_bytes() == b"old"
    assert files_of(tmp_path) == ["x"]


def test_a_whole_file_takes_the_place_of_the_old_one_at_once(tmp_path):
    """Renamed, not copied over: whoever has the old file open still has all of it."""
    path = tmp_path / "x"
    path.write_bytes(b"old")
    with path.open("rb") as reader:
        with whole_file(path) as file:
            file.write(b"new")
        assert reader.read() == b"old"
    assert path.read_bytes() == b"new"


def test_a_whole_file_where_nothing_can_be_written(tmp_path):
    path = tmp_path / "no" / "x"
    with pytest.raises(OSError, match=f"could not write {path}: No such file"), whole_file(path):
        pass
