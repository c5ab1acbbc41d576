"""A file is replaced in one step or not at all."""

from __future__ import annotations

import os
import pathlib
import stat
import subprocess
import sys

import jax.numpy as jnp
import pytest

import moduli as nnx
from moduli_interop import CheckpointManager, atomic_write, load_state, save


class Boom(BaseException):
    """Not even an Exception, as a KeyboardInterrupt."""


def test_exception_leaves_the_old_file_and_no_temporary_one(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")
    with pytest.raises(Boom), atomic_write(str(path)) as file:
        file.write(b"new")
        raise Boom
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a.bin"]


@pytest.mark.parametrize("step", ["fsync", "chmod", "replace"])
def test_failure_of_each_step_leaves_the_old_file(
    step: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")

    def fail(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, step, fail)
    with pytest.raises(OSError, match="No space"), atomic_write(str(path)) as file:
        file.write(b"new")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a.bin"]


@pytest.mark.skipif(sys.platform != "linux", reason="room is reserved on Linux only")
def test_file_for_which_there_is_no_room_fails_before_it_is_written(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"old" * 2**20)
    begun = False
    with pytest.raises(OSError, match="bytes are to be written"):
        with atomic_write(path, nbytes=2**62):
            begun = True
    assert not begun
    assert path.read_bytes() == b"old" * 2**20
    assert os.listdir(tmp_path) == ["a.bin"]


def test_pipe_is_not_replaced(tmp_path: pathlib.Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(FileExistsError, match="is a pipe or a device"):
        save(tmp_path / "pipe", {"x": 1})
    assert stat.S_ISFIFO(os.stat(tmp_path / "pipe").st_mode)


def test_home_that_no_shell_wrote_out_is_no_folder(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for write in (
        lambda: save("~/a.safetensors", {"x": 1}),
        lambda: CheckpointManager(pathlib.Path("~/run")),
    ):
        with pytest.raises(FileNotFoundError, match=r"os\.path\.expanduser"):
            write()
    assert not os.listdir(tmp_path)
    os.mkdir("~")  # a folder may be called so
    CheckpointManager("~/run", asynchronous=False).save(0, {"x": 1})
    save(b"~/a.safetensors", {"x": 1})
    assert sorted(os.listdir("~")) == ["a.safetensors", "run"]


def test_what_was_reserved_and_not_written_is_no_part_of_the_file(tmp_path: pathlib.Path) -> None:
    for content in (b"first", b"second"):
        with atomic_write(tmp_path / "a.bin", nbytes=2**23) as file:
            file.write(content)
        assert (tmp_path / "a.bin").read_bytes() == content


def test_save_that_fails_halfway_leaves_the_old_checkpoint(
    file: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(file, nnx.Dict({"x": nnx.Param(1.0)}))
    written = 0

    def fail(stream: object, array: object, **_: object) -> None:
        nonlocal written
        written += 1
        if written == 2:
            raise Boom

    monkeypatch.setattr("numpy.lib.format.write_array", fail)
    model = nnx.Dict({"x": nnx.Param(jnp.ones(3)), "y": nnx.Param(jnp.ones(3))})
    with pytest.raises(Boom):
        save(file, model)
    monkeypatch.undo()
    assert written == 2
    assert load_state(file)["x"].value == 1.0
    assert os.listdir(file.parent) == ["model.npz"]


def test_process_that_is_killed_while_writing_leaves_the_old_file(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")
    program = (
        "import os, sys; from moduli_interop import atomic_write\n"
        "with atomic_write(sys.argv[1]) as file:\n"
        "    file.write(b'new'); file.flush(); os._exit(3)\n"
    )
    result = subprocess.run([sys.executable, "-c", program, str(path)], check=False)
    assert result.returncode == 3
    assert path.read_bytes() == b"old"


def test_readers_see_one_version_or_the_other(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")
    with atomic_write(str(path)) as file:
        file.write(b"new")
        file.flush()
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"


@pytest.mark.skipif(os.name != "posix", reason="permission bits and links as on POSIX")
def test_permissions_and_symbolic_links_are_kept(tmp_path: pathlib.Path) -> None:
    target, link = tmp_path / "target.bin", tmp_path / "link.bin"
    target.write_bytes(b"old")
    target.chmod(0o640)
    link.symlink_to(target)
    with atomic_write(str(link)) as file:
        file.write(b"new")
    assert link.is_symlink()
    assert target.read_bytes() == b"new"
    assert stat.S_IMODE(target.stat().st_mode) == 0o640


@pytest.mark.skipif(os.name != "posix", reason="umask")
def test_new_file_follows_the_umask(tmp_path: pathlib.Path) -> None:
    old = os.umask(0o027)
    try:
        with atomic_write(str(tmp_path / "a.bin")) as file:
            file.write(b"new")
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "a.bin").stat().st_mode) == 0o640


def test_directory_as_target_is_an_error(tmp_path: pathlib.Path) -> None:
    with pytest.raises(IsADirectoryError, match="is a directory; a checkpoint is one file"):
        save(tmp_path, nnx.Dict({"x": nnx.Param(1.0)}))
    with pytest.raises(FileNotFoundError):
        save(tmp_path / "no" / "such.npz", nnx.Dict({"x": nnx.Param(1.0)}))
    assert os.listdir(tmp_path) == []
