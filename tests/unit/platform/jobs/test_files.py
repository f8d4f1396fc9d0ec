"""What server and host tell each other through files."""

import os
from pathlib import Path

import pytest

from burnish.core.errors import TooLarge
from burnish.platform.jobs import files
from burnish.platform.jobs.files import (
    EVENTS_FILE,
    EventWriter,
    FolderLock,
    HostResult,
    is_locked,
    note_ran,
    noted_ran,
    read_events,
    read_json,
    result_path,
    write_json,
)


def test_events_are_read_from_an_offset_and_only_whole_lines(tmp_path: Path) -> None:
    assert read_events(tmp_path, 0, 1000) == ([], 0)
    writer = EventWriter(tmp_path)
    for number in range(5):
        writer.write("metric", {"step": number, "values": {"loss": 0.5}})
    with (tmp_path / EVENTS_FILE).open("ab") as stream:
        stream.write(b'{"type":"log","data":{"mess')
    found, offset = read_events(tmp_path, 0, 1 << 20)
    assert [event.data["step"] for event in found] == [0, 1, 2, 3, 4]
    assert read_events(tmp_path, offset, 1 << 20) == ([], offset)
    EventWriter(tmp_path).write("log", {"message": "next"})  # the next host cuts the half line off
    found, end = read_events(tmp_path, offset, 1 << 20)
    assert [event.data for event in found] == [{"level": "info", "message": "next"}]
    assert end == (tmp_path / EVENTS_FILE).stat().st_size


def test_small_batches_give_every_event_once(tmp_path: Path) -> None:
    writer = EventWriter(tmp_path)
    for number in range(50):
        writer.write("metric", {"note": "x" * (number * 7), "number": number})
    seen, offset = [], 0
    while True:
        found, after = read_events(tmp_path, offset, 64)
        if not found:
            break
        seen += [event.data["number"] for event in found]
        assert after > offset
        offset = after
    assert seen == list(range(50))


def test_odd_content_is_kept_and_an_unreadable_line_is_no_obstacle(tmp_path: Path) -> None:
    writer = EventWriter(tmp_path)
    writer.write("metric", {"step": 1, "values": {"loss": float("nan"), "other": float("-inf")}})
    writer.write("log", {"message": "line\u2028separator\nand \ud800 surrogate"})
    with (tmp_path / EVENTS_FILE).open("ab") as stream:
        stream.write(b"not json\n")
    writer.write("log", {"message": "after"})
    found, _ = read_events(tmp_path, 0, 1 << 20)
    assert found[0].data["values"] == {"loss": "nan", "other": "-inf"}
    assert str(found[1].data["message"]).startswith("line\u2028separator\nand ")
    assert "an unreadable line" in str(found[2].data["message"])
    assert found[3].data["message"] == "after"


def test_a_line_of_a_log_is_bounded_whoever_wrote_it(tmp_path: Path) -> None:
    """Breaks with: a job whose own code writes past the context, and makes the server look through 12 MB for secrets."""
    writer = EventWriter(tmp_path)
    writer.write("log", {"level": "warning", "message": "x" * 12_000_000, "id": "0-1", "at": "never"})
    writer.write("log", {"level": ["odd"], "text": "no message"})
    found, _ = read_events(tmp_path, 0, 1 << 10)
    assert set(found[0].data) == {"level", "message"}
    message = str(found[0].data["message"])
    assert (message[:9000].strip("x"), len(message) < 8100) == (" ... (11992000 characters cut)", True)
    found, _ = read_events(tmp_path, 0, 64 << 20)
    assert found[1].data == {"level": "info", "message": '{"level": ["odd"], "text": "no message"}'}


def test_a_line_without_end_is_left_out_told_once_and_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Breaks with: a job that has the server keep whatever it writes, or read it again at each look."""
    monkeypatch.setattr(files, "LONGEST_EVENT", 1 << 20)
    EventWriter(tmp_path).write("log", {"message": "before"})
    with (tmp_path / EVENTS_FILE).open("ab") as stream:
        stream.write(b'{"type":"metric","data":"' + b"y" * (3 << 20))
        stream.flush()
        found, offset = read_events(tmp_path, 0, 64 << 10)
        assert [event.data["message"] for event in found] == ["before"]
        found, offset = read_events(tmp_path, offset, 64 << 10)
        assert 'more than 1 MiB was left out; it begins with \'{"type":"metric' in str(found[0].data["message"])
        assert (len(found), offset) == (1, stream.tell()), "what was passed over is not read again"
        assert read_events(tmp_path, offset, 64 << 10) == ([], offset)
        stream.write(b"y" * (2 << 20))
        stream.flush()
        offset, before = stream.tell(), offset
        assert read_events(tmp_path, before, 64 << 10) == ([], offset)
        stream.write(b'"}\n{"type":"log","data":{"message":"after"}}\n')
    seen = []
    while (more := read_events(tmp_path, offset, 64 << 10))[1] != offset:
        seen += more[0]
        offset = more[1]
    assert [event.data["message"] for event in seen] == ["after"]
    assert offset == (tmp_path / EVENTS_FILE).stat().st_size


def test_what_would_be_left_out_is_refused_where_it_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "LONGEST_EVENT", 1 << 10)
    writer = EventWriter(tmp_path)
    with pytest.raises(TooLarge, match=r"one artifact has \d+ bytes"):
        writer.write("artifact", {"metadata": "x" * 2000})
    writer.write("artifact", {"metadata": "x" * 900})
    assert len(read_events(tmp_path, 0, 1 << 20)[0]) == 1


def test_a_result_appears_whole(tmp_path: Path) -> None:
    path = result_path(tmp_path, 3)
    assert read_json(path, HostResult) is None
    write_json(path, HostResult(status="succeeded", result={"n": 1}))
    found = read_json(path, HostResult)
    assert found is not None
    assert found.result == {"n": 1}
    assert os.listdir(tmp_path) == ["result.3.json"]


def test_how_long_a_host_ran_is_noted_over_and_over(tmp_path: Path) -> None:
    assert noted_ran(tmp_path, 1) == 0.0
    for seconds in (0.25, 12345.5, 12346.0):
        note_ran(tmp_path, 1, seconds)
        assert noted_ran(tmp_path, 1) == seconds
    assert noted_ran(tmp_path, 2) == 0.0
    (tmp_path / "ran.3").touch()  # a power cut may leave the file without its content
    assert noted_ran(tmp_path, 3) == 0.0


def test_one_lock_holder_at_a_time(tmp_path: Path) -> None:
    assert not is_locked(tmp_path)
    first, second = FolderLock(tmp_path), FolderLock(tmp_path)
    assert first.acquire()
    assert not second.acquire()
    assert is_locked(tmp_path)
    first.release()
    assert second.acquire()
    second.release()
    assert not is_locked(tmp_path)
