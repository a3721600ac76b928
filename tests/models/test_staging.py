"""Folders that appear whole or not at all."""

from pathlib import Path

from models.staging import renewed


def test_what_a_killed_process_had_moved_aside_comes_back(tmp_path: Path) -> None:
    """Killed between moving the old folder away and the new one in: the next run finds the old one again, and replaces it whole."""
    folder, aside = tmp_path / "1", tmp_path / ".1.former"
    aside.mkdir()
    (aside / "model").write_text("old")
    with renewed(folder) as working:
        assert (folder / "model").read_text() == "old"
        (working / "model").write_text("new")
    assert (folder / "model").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["1"]
