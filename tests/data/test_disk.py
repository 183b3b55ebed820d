"""What may lie in a data folder besides images: nothing hangs, and nothing counts twice."""

from __future__ import annotations

import os
import socket
import stat
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from PIL import Image

from layerwise.data import decode, load
from layerwise.data.decode import fit, identify
from layerwise.data.sources import files, folder
from layerwise.data.sources.files import Tree, read_file
from layerwise.errors import InputError


@pytest.fixture
def place(tmp_path, class_folders):
    return class_folders(tmp_path / "set")


@pytest.fixture
def refused(tmp_path):
    """`refused(place)`: the line with which it is refused, within a few seconds."""

    def message(place, **options) -> str:
        began = time.perf_counter()
        with pytest.raises(InputError) as error:
            load(str(place), root=tmp_path / "cache", **options)
        assert time.perf_counter() - began < 5
        assert "\n" not in str(error.value)
        return str(error.value)

    return message


@pytest.mark.parametrize("to", [".", "..", "../bee", "deeper", "../../set"])
def test_a_link_to_a_folder_of_the_set(place, refused, to):
    """Its images would count again, some of them under another label."""
    (place / "ant" / "deeper").mkdir()
    (place / "ant" / "0.png").rename(place / "ant" / "deeper" / "0.png")
    (place / "ant" / "loop").symlink_to(to)
    said = refused(place)
    assert "count twice; remove this link" in said
    assert str(place / "ant" / "loop") in said or str(place / "bee") in said


def test_two_links_that_loop_do_not_hang(place, refused):
    for name in ("one", "two"):
        (place / "ant" / name).symlink_to(".")
    assert "count twice" in refused(place)


def test_one_part_that_leads_to_another(tmp_path, class_folders, refused):
    class_folders(tmp_path / "set" / "train")
    (tmp_path / "set" / "test").symlink_to("train")
    assert "count twice" in refused(tmp_path / "set")


def test_a_link_to_a_folder_elsewhere_is_followed(tmp_path, place):
    (place / "bee").rename(tmp_path / "elsewhere")
    (place / "bee").symlink_to(tmp_path / "elsewhere")
    (place / "ant" / "0.png").rename(tmp_path / "0.png")
    (place / "ant" / "0.png").symlink_to(tmp_path / "0.png")
    splits = load(str(place), root=tmp_path / "cache", validation=0)
    assert len(splits.train) + len(splits.test) == 10


@pytest.mark.parametrize("at", ["ant/5.png", "ant/more", "wasp"])
@pytest.mark.parametrize("to", ["nowhere", "itself"])
def test_a_link_that_leads_nowhere(place, refused, at, to):
    (place / at).symlink_to(place / at if to == "itself" else to)
    said = refused(place)
    assert f"{place / at} is a link that leads nowhere" in said
    assert "remove it" in said


def test_a_class_that_cannot_be_read_ends_in_one_line(tmp_path, place, refused, monkeypatch):
    """The link that is refused is named, also in the folder of all parts."""
    (place / "train").symlink_to(tmp_path / "gone")
    assert "train is a link that leads nowhere" in refused(place)


@pytest.mark.parametrize("kind", ["pipe", "socket", "device"])
def test_what_is_no_file_but_is_called_an_image(tmp_path, place, refused, kind, monkeypatch):
    path = place / "ant" / "x.png"
    monkeypatch.chdir(path.parent)  # the name of a socket must be short
    if kind == "pipe":
        os.mkfifo("x.png")
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as bound:
            bound.bind("x.png")
    else:
        path.symlink_to("/dev/zero")
    assert f"{path} is a {kind} and not a file; remove it" in refused(place)


@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_a_file_that_becomes_another_thing_after_it_was_listed(tmp_path, place, kind):
    source = folder.Files([place / "ant" / "0.png"])
    source.paths[0].unlink()
    if kind == "pipe":
        os.mkfifo(source.paths[0])
    else:
        source.paths[0].symlink_to("/dev/zero")
    with pytest.raises(InputError, match=f"0.png cannot be read as an image .it is a {kind}"):
        decode.pixels(source, 0)


def test_a_folder_that_is_called_an_image(place, refused):
    (place / "ant" / "x.png").mkdir()
    assert "x.png is a folder and not an image; rename or remove it" in refused(place)


def test_a_folder_of_images_may_have_any_name(tmp_path, place):
    (place / "ant" / "x.png").mkdir()
    (place / "ant" / "0.png").rename(place / "ant" / "x.png" / "0.png")
    splits = load(str(place), root=tmp_path / "cache", validation=0)
    assert len(splits.train) + len(splits.test) == 10


def test_a_file_that_may_not_be_read(tmp_path, place, refused, monkeypatch):
    denied = str(place / "bee" / "3.png")
    opened = os.open

    def refuse(path, *arguments, **options):
        if os.fspath(path) == denied:
            raise PermissionError(13, "Permission denied", denied)
        return opened(path, *arguments, **options)

    monkeypatch.setattr(os, "open", refuse)  # root may read everything
    assert "3.png cannot be read as an image ([Errno 13] Permission denied" in refused(place)


def test_a_huge_file(place, refused):
    with open(place / "ant" / "x.png", "wb") as file:
        file.truncate(1 << 40)  # takes no room on the disk
    assert "x.png cannot be read as an image (it has 1099511627776 bytes" in refused(place)


def test_a_decompression_bomb(place, refused, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 17)
    assert "0.png cannot be read as an image (Image size (36 pixels) exceeds" in refused(place)


def test_a_thin_image_is_not_scaled_as_a_whole(monkeypatch):
    """One pixel high, it would grow to gigabytes before its centre is cut out."""
    row = np.arange(60000, dtype=np.float32) / 60000 * 255
    image = Image.fromarray(row.round().astype(np.uint8)[None])
    assert fit(image, 224).size == (224, 224)
    # Where both ways are possible they agree but for rounding.
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8))
    whole = np.asarray(fit(image, 14, 16 / 14)).astype(int)
    monkeypatch.setattr(decode, "LARGEST_PIXELS", 10)
    centre = np.asarray(fit(image, 14, 16 / 14)).astype(int)
    assert np.abs(whole - centre)[1:-1, 1:-1].max() <= 1


def test_an_error_of_any_kind_in_a_decoder(place, refused, monkeypatch):
    def broken(*_, **__):
        raise ZeroDivisionError("in a decoder")

    monkeypatch.setattr(Image, "open", broken)
    assert "0.png cannot be read as an image (in a decoder)" in refused(place)


def test_programs_in_images_are_not_run(tmp_path):
    """Pillow runs Ghostscript on EPS, and it goes by the content, not by the name."""
    (tmp_path / "x.png").write_bytes(
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 4 4\n%%EndComments\nshowpage\n"
    )
    Image.open(tmp_path / "x.png").close()  # Pillow by itself would take it
    with pytest.raises(OSError, match="cannot identify"), open(tmp_path / "x.png", "rb") as file:
        identify(file)


def test_every_format_is_known():
    Image.init()
    assert set(decode.FORMATS) <= set(Image.OPEN)


@pytest.mark.parametrize("junk", [".ipynb_checkpoints", "__MACOSX", "@eaDir", ".thumbnails"])
@pytest.mark.parametrize("inside", ["", "ant"])
def test_folders_that_programs_add_are_left_out(tmp_path, place, junk, inside):
    (place / inside / junk).mkdir()
    Image.new("RGB", (6, 6)).save(place / inside / junk / "0-checkpoint.png")
    splits = load(str(place), root=tmp_path / "cache", validation=0)
    assert splits.classes == ("ant", "bee")
    assert len(splits.train) + len(splits.test) == 10


def test_formats_that_are_not_read_are_not_left_out_silently(place, refused):
    (place / "bee" / "5.heic").write_bytes(b"an image")
    assert "5.heic is of a format that is not read" in refused(place)


def test_the_order_is_that_of_the_paths(tmp_path):
    """Part by part of the path, whatever the order of characters."""
    names = ["a/x.png", "a-b/x.png", "a.png", "a/y/z.png", "b.png", "A.png", "a/Y.png"]
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    found = [file.path for file in Tree("set").below(tmp_path, lambda name: True)]
    assert found == sorted(tmp_path / name for name in names)


def test_nested_more_deeply_than_calls_may_be(tmp_path):
    here, depth = os.open(tmp_path, os.O_RDONLY), sys.getrecursionlimit() + 50
    for _ in range(depth):
        os.mkdir("d", dir_fd=here)
        here, before = os.open("d", os.O_RDONLY, dir_fd=here), here
        os.close(before)
    os.close(os.open("x.png", os.O_CREAT, dir_fd=here))
    os.close(here)
    (file,) = Tree("set").below(tmp_path, lambda name: True)
    assert file.path.name == "x.png"
    subprocess.run(["rm", "-r", str(tmp_path / "d")], check=True)


def test_read_file(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    assert read_file(tmp_path / "a") == b"abc"
    assert read_file(tmp_path / "a", 3) == b"abc"
    with pytest.raises(OSError, match="it has 3 bytes, more than 2"):
        read_file(tmp_path / "a", 2)
    with pytest.raises(OSError, match="it is a folder and not a file"):
        read_file(tmp_path)
    assert files.kind(stat.S_IFBLK) == "a device"


@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_a_text_that_is_no_file(tmp_path, refused, kind):
    path = tmp_path / "x.txt"
    os.mkfifo(path) if kind == "pipe" else path.symlink_to("/dev/zero")
    assert f"x.txt cannot be read: it is a {kind}" in refused(f"text:{path}")
    assert f"x.txt is a {kind} and not a file" in refused(f"text:{tmp_path}")


def turned(orientation: int, **options) -> tuple[Image.Image, dict]:
    """A 6x6 image whose upper left quarter is white, and what to save it with."""
    pixels = np.zeros((6, 6, 3), dtype=np.uint8)
    pixels[:3, :3] = 255
    exif = Image.Exif()
    exif[0x0112] = orientation
    return Image.fromarray(pixels), {"exif": exif}


# Where the upper left quarter belongs: row and column, by the EXIF standard.
PLACES = {1: (0, 0), 2: (0, 1), 3: (1, 1), 4: (1, 0), 5: (0, 0), 6: (0, 1), 7: (1, 1), 8: (1, 0)}


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
@pytest.mark.parametrize("orientation", PLACES)
def test_images_are_turned_as_their_exif_data_say(tmp_path, suffix, orientation):
    image, options = turned(orientation)
    image.save(tmp_path / f"x.{suffix}", **options)
    found = np.asarray(decode.pixels(folder.Files([tmp_path / f"x.{suffix}"]), 0))
    bright = found[..., 0].reshape(2, 3, 2, 3).mean((1, 3)) > 128
    assert np.argwhere(bright).tolist() == [list(PLACES[orientation])]


def test_sides_change_places(tmp_path, monkeypatch):
    image, options = turned(6)
    for name in ("a", "b"):
        (tmp_path / "set" / name).mkdir(parents=True)
        image.resize((8, 6)).save(tmp_path / "set" / name / "x.jpg", **options)
    assert load(str(tmp_path / "set"), root=tmp_path, validation=0).shape == (3, 8, 6)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_exif_data_that_cannot_be_read_leave_an_image_as_it_is(tmp_path):
    image, _ = turned(1)
    image.save(tmp_path / "x.jpg", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff")
    found = np.asarray(decode.pixels(folder.Files([tmp_path / "x.jpg"]), 0))
    assert found[0, 0, 0] > 128


def test_images_decoded_before_they_were_turned_are_not_served(tmp_path, place, monkeypatch):
    from layerwise.data.sources import cache

    root = tmp_path / "cache"
    with monkeypatch.context() as before:
        before.setattr(cache, "VERSION", 1)
        before.setattr(decode, "turn_upright", lambda image: None)
        image, options = turned(3)
        image.save(place / "ant" / "0.png", **options)
        load(str(place), root=root, validation=0)
    splits = load(str(place), root=root, validation=0)
    every = torch.cat([splits.train.images, splits.test.images])
    assert sum(torch.equal(x[3:, 3:], torch.full_like(x[3:, 3:], 255)) for x in every) == 1


def test_an_orientation_in_xmp(tmp_path):
    image, _ = turned(1)
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf tiff:Orientation="3"/></x:xmpmeta>'
    image.save(tmp_path / "x.webp", xmp=xmp, lossless=True)
    found = np.asarray(decode.pixels(folder.Files([tmp_path / "x.webp"]), 0))
    assert found[0, 0, 0] < 128 < found[5, 5, 0]


@pytest.mark.parametrize("kind", ["folder:", "text:", "hf:", ""])
@pytest.mark.parametrize("path", ["~nosuchuser/set", "/a\0b", "/" + "a" * 5000])
def test_what_is_no_path(refused, kind, path):
    assert len(refused(kind + path)) < 500
    with pytest.raises(InputError, match=r"cannot be used as a path|zero byte"):
        load("digits", root=path)


def test_hidden_texts_are_left_out(tmp_path):
    (tmp_path / ".ipynb_checkpoints").mkdir()
    (tmp_path / ".ipynb_checkpoints" / "a-checkpoint.txt").write_text("x" * 999)
    (tmp_path / "a.txt").write_text("abc" * 400)
    assert load(f"text:{tmp_path}").classes == ("a", "b", "c")
