import errno
import hashlib
import os

import pytest

from avalanche_cetl.common.files import WriteProblems, file_digest, write_atomically


class Unwritten(Exception):
    pass


PROBLEMS = WriteProblems(Unwritten, full="Make room.", read_only="Take another folder.")


def test_a_file_is_written_whole_into_folders_that_are_made(tmp_path):
    path = tmp_path / "new" / "folder" / "file"
    for content in (b"first", bytearray(b"second")):
        write_atomically(path, content, PROBLEMS)
        assert path.read_bytes() == content
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("call", ["fsync", "replace"])
@pytest.mark.parametrize(
    ("number", "message"),
    [
        (errno.ENOSPC, r"disk is full.*Make room\."),
        (errno.EROFS, r"read-only.*Take another folder\."),
        (errno.EIO, "could not be written"),
    ],
)
def test_a_write_that_fails_is_explained_and_leaves_what_was_there(
    tmp_path, monkeypatch, call, number, message
):
    path = tmp_path / "file"
    write_atomically(path, b"before", PROBLEMS)

    def fails(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, call, fails)
    with pytest.raises(Unwritten, match=message):
        write_atomically(path, b"after", PROBLEMS)
    assert path.read_bytes() == b"before" and list(tmp_path.iterdir()) == [path]


def test_the_digest_of_a_file_is_its_sha256_and_none_where_there_is_no_file(tmp_path):
    (tmp_path / "file").write_bytes(b"content")
    assert file_digest(tmp_path / "file") == hashlib.sha256(b"content").hexdigest()
    assert file_digest(tmp_path / "missing") is None
