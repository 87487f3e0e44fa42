"""What the contract does not say about files of this machine: links, and what is no regular file."""

from __future__ import annotations

import errno
import os
import shutil
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from modelcache.abc.source import RemoteFile
from modelcache.errors import AccessDenied, Cancelled, NotFound, OriginUnreachable, SourceChanged, UnsafePath
from modelcache.patience import Cancellation
from modelcache.ranges import ByteRange
from modelcache.sources.local import LocalSource
from modelcache.testing.source_contract import read, read_on, whole
from modelcache.uri import parse_uri


def paths_of(place: Path, selection: str = "") -> list[str]:
    return [file.path for file in listed(place, selection)]


def listed(place: Path, selection: str = "") -> tuple[RemoteFile, ...]:
    return LocalSource().list(parse_uri(f"file://{place}{selection}")[0], Cancellation()).files


def test_links_to_files_and_directories_are_followed(tmp_path: Path) -> None:
    """As in the Hub's cache (snapshots of links to blobs) and in volumes of Kubernetes (`..data` links to a directory)."""
    blobs, model = tmp_path / "blobs", tmp_path / "model"
    blobs.mkdir()
    (blobs / "abc").write_bytes(b"weights")
    model.mkdir()
    (model / "weights.bin").symlink_to("../blobs/abc")
    (model / "all").symlink_to(blobs)
    (tmp_path / "latest").symlink_to(model)
    files = listed(tmp_path / "latest")
    assert [file.path for file in files] == ["all/abc", "weights.bin"]
    assert [read(LocalSource(), file) for file in files] == [b"weights"] * 2


@pytest.mark.parametrize(
    ("name", "selection", "said"),
    [
        ("x" * 300, "", "no such file"),
        ("nothing", "", "no such file"),
        ("0123456789ab", "", "no such file"),
        ("sha256:0123456789ab", "", "no such file"),
        ("", "", "no file in the directory"),
        ("full", "#include=*.bin", "select"),
    ],
)
def test_what_is_not_there_is_told_at_once(tmp_path: Path, name: str, selection: str, said: str) -> None:
    if name == "full":
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").touch()
    with pytest.raises(NotFound, match=said) as caught:
        listed(tmp_path / name, selection)
    assert ("a digest" in str(caught.value.hint)) == ("ab" in name)


def make_loop(place: Path) -> None:
    place.symlink_to(place)


def make_upward(place: Path) -> None:
    place.symlink_to(place.parent)


def make_dangling(place: Path) -> None:
    place.symlink_to("nowhere")


def make_device(place: Path) -> None:
    place.symlink_to("/dev/zero")


def make_unsized(place: Path) -> None:
    place.symlink_to("/proc/self/status")


def make_socket(place: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(os.path.relpath(place))


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (make_loop, "loop"),
        (make_upward, "above"),
        (make_dangling, "nothing"),
        (make_device, "regular"),
        (make_unsized, "longer than it says"),
        (make_socket, "regular"),
        (os.mkfifo, "regular"),
    ],
)
def test_what_is_no_file_is_refused_unless_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Callable[[Path], None], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "f").write_bytes(b"x")
    make(tmp_path / "odd")
    with pytest.raises(UnsafePath, match=said) as caught:
        paths_of(tmp_path)
    assert caught.value.got == "'odd'"
    assert paths_of(tmp_path, "#exclude=odd") == ["f"]


def test_a_name_that_is_not_utf8_is_refused_unless_left_out(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"x")
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff\xfe")).write_bytes(b"x")
    with pytest.raises(UnsafePath, match="UTF-8"):
        paths_of(tmp_path)
    assert paths_of(tmp_path, "#include=f") == ["f"]


@pytest.mark.parametrize(("above", "said"), [(0, "over the limit of 1024"), (18, "too deep to be opened")])
def test_what_lies_too_deep_to_be_opened_is_told_as_that_unless_left_out(tmp_path: Path, above: int, said: str) -> None:
    """`above`: so many of the directories are above what is asked for: then its own paths are short."""
    (tmp_path / "f").write_bytes(b"x")
    directory, asked = os.open(tmp_path, os.O_RDONLY), tmp_path
    try:
        for depth in range(22):
            os.mkdir("d" * 200, dir_fd=directory)
            below = os.open("d" * 200, os.O_RDONLY, dir_fd=directory)
            os.close(directory)
            directory, asked = below, asked / ("d" * 200) if depth < above else asked
        os.mkdir("empty", dir_fd=directory)
    finally:
        os.close(directory)
    (asked / "f").write_bytes(b"x")
    with pytest.raises(UnsafePath, match=said):
        paths_of(asked)
    assert paths_of(asked, "#exclude=ddd*") == ["f"]
    with pytest.raises(NotFound) as caught:
        paths_of(tmp_path.joinpath(*["d" * 200] * 22))
    assert "4,096" in (caught.value.hint or "")
    shutil.rmtree(tmp_path)


def test_a_directory_without_files_is_not_found(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    with pytest.raises(NotFound):
        paths_of(tmp_path)
    with pytest.raises(NotFound):
        paths_of(tmp_path / "sub" / "absent")


@pytest.mark.parametrize("name", ["f", "sub"])
def test_a_file_that_became_something_else_has_changed(tmp_path: Path, name: str) -> None:
    place = tmp_path / name
    place.write_bytes(b"x" * 100)
    [file] = listed(place)
    place.unlink()
    if name == "f":
        os.mkfifo(place)
    else:
        place.mkdir()
    with pytest.raises(SourceChanged):
        read(LocalSource(), file)


@pytest.mark.parametrize("change", ["append", "truncate", "overwrite", "touch", "chmod"])
def test_any_change_of_an_open_file_is_noticed_before_a_byte_is_handed_out(tmp_path: Path, change: str) -> None:
    place = tmp_path / "f"
    place.write_bytes(b"x" * 5000)
    os.utime(place, ns=(1, 1))
    [file] = listed(place)
    body = LocalSource().open(file, whole(file), Cancellation())
    assert read_on(body, 10) == b"x" * 10
    if change == "append":
        with place.open("ab") as stream:
            stream.write(b"y")
    elif change == "truncate":
        os.truncate(place, 20)
    elif change == "overwrite":
        with place.open("r+b") as stream:
            stream.write(b"y" * 5000)
        os.utime(place, ns=(1, 1))
    elif change == "touch":
        os.utime(place)
    else:
        place.chmod(0o600)
    with pytest.raises(SourceChanged):
        body.readinto(memoryview(bytearray(10)))
    body.close()


def test_a_name_that_moves_to_another_file_while_it_is_read_is_told(tmp_path: Path) -> None:
    place = tmp_path / "f"
    place.write_bytes(b"old" * 1000)
    [file] = listed(place)
    body = LocalSource().open(file, ByteRange(0, 3000), Cancellation())
    place.rename(tmp_path / "moved")
    place.write_bytes(b"new" * 1000)
    with pytest.raises(SourceChanged):  # a rename changes the inode's ctime: told, though no byte changed
        read_on(body, 3000)
    body.close()


def test_denied_and_failing_files_say_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "f"
    place.write_bytes(b"x" * 100)
    [file] = listed(place)
    body = LocalSource().open(file, whole(file), Cancellation())

    def failing(number: int) -> Callable[..., int]:
        def fail(*_: object, **__: object) -> int:
            raise OSError(number, os.strerror(number))

        return fail

    for number, kind in ((errno.EACCES, AccessDenied), (errno.EIO, OriginUnreachable), (errno.ESTALE, OriginUnreachable)):
        with monkeypatch.context() as patch:
            patch.setattr(os, "open", failing(number))
            with pytest.raises(kind) as caught:
                LocalSource().open(file, whole(file), Cancellation())
            assert str(place) in str(caught.value)
        with monkeypatch.context() as patch:
            patch.setattr(os, "stat", failing(number))
            with pytest.raises(kind):
                listed(place)
        with monkeypatch.context() as patch:
            patch.setattr(os, "preadv", failing(number))
            with pytest.raises(kind):
                body.readinto(memoryview(bytearray(10)))
    body.close()


def test_a_long_listing_can_be_cancelled(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"x")
    cancel = Cancellation()
    cancel.cancel()
    with pytest.raises(Cancelled):
        LocalSource().list(parse_uri(f"file://{tmp_path}")[0], cancel)
