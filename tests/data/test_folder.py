"""Class folders, with and without parts above them, and everything that can be wrong with them."""

import os
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from layerwise.data import load
from layerwise.errors import InputError


@pytest.fixture
def read(tmp_path):
    def make(place, **options):
        return load(str(place), root=tmp_path / "cache", **options)

    return make


def test_pixels_and_labels_are_those_of_the_files(tmp_path, class_folders, picture, read):
    place = class_folders(tmp_path / "set" / "train", ("bee", "ant"))
    class_folders(tmp_path / "set" / "test", ("bee", "ant"), count=2)
    splits = read(place.parent, validation=0)
    assert splits.classes == ("ant", "bee")  # sorted, whatever the order on disk
    assert splits.shape == (3, 6, 6)
    assert splits.train.labels.tolist() == [0] * 5 + [1] * 5
    assert np.array_equal(splits.train.images[0].numpy(), picture(100))
    assert np.array_equal(splits.test.images[3].numpy(), picture(1))
    assert splits.validation is None


@pytest.mark.parametrize("name", ["val", "valid", "validation"])
def test_a_validation_folder_is_the_validation(tmp_path, class_folders, read, name):
    for part, count in (("train", 5), (name, 3), ("test", 2)):
        class_folders(tmp_path / "set" / part, count=count)
    splits = read(tmp_path / "set")
    assert [len(p) for p in (splits.train, splits.validation, splits.test)] == [10, 6, 4]


def test_validation_alone_is_the_test(tmp_path, class_folders, read):
    class_folders(tmp_path / "set" / "train", count=10)
    class_folders(tmp_path / "set" / "val", count=3)
    splits = read(tmp_path / "set")
    assert [len(p) for p in (splits.train, splits.validation, splits.test)] == [18, 2, 6]


def test_a_folder_without_parts_is_cut(tmp_path, class_folders, read):
    splits = read(class_folders(tmp_path / "set", count=20), validation=0.25)
    assert [len(p) for p in (splits.train, splits.validation, splits.test)] == [24, 8, 8]
    for part in (splits.train, splits.validation, splits.test):
        assert torch.bincount(part.labels).unique().numel() == 1


def test_folder_and_path_are_one(tmp_path, class_folders, read):
    place = class_folders(tmp_path / "set")
    assert torch.equal(read(place).train.images, read(f"folder:{place}").train.images)


def test_images_below_a_class_folder_count(tmp_path, class_folders, read):
    place = class_folders(tmp_path / "set")
    (place / "ant" / "more").mkdir()
    (place / "ant" / "0.png").rename(place / "ant" / "more" / "0.PNG")
    (place / "ant" / ".hidden.png").write_text("no image")
    (place / "ant" / "notes.txt").write_text("no image")
    (place / ".git").mkdir()
    splits = read(place, validation=0)
    assert len(splits.train) + len(splits.test) == 10


def test_grey_images_stay_grey(tmp_path, read):
    for name in ("a", "b"):
        (tmp_path / "set" / name).mkdir(parents=True)
        for i in range(5):
            Image.new("L", (4, 4), 10 * i).save(tmp_path / "set" / name / f"{i}.png")
    splits = read(tmp_path / "set", validation=0)
    assert splits.shape == (1, 4, 4)
    (tmp_path / "set" / "b" / "0.png").unlink()
    Image.new("RGB", (4, 4), (1, 2, 3)).save(tmp_path / "set" / "b" / "0.png")
    assert read(tmp_path / "set", validation=0).shape == (3, 4, 4)


def test_other_modes_become_colour(tmp_path, read):
    (tmp_path / "set" / "a").mkdir(parents=True)
    made = [Image.new(mode, (4, 4)) for mode in ("P", "RGBA", "CMYK", "LA", "RGB")]
    for i, image in enumerate(made):
        image.save(tmp_path / "set" / "a" / f"{i}.{'jpg' if image.mode == 'CMYK' else 'png'}")
    palette = Image.new("P", (4, 4))
    palette.save(tmp_path / "set" / "a" / "transparent.png", transparency=b"\0\1\2")
    frames = [Image.new("P", (4, 4), i) for i in range(3)]
    frames[0].save(tmp_path / "set" / "a" / "moving.gif", save_all=True, append_images=frames[1:])
    frames[0].convert("L").save(tmp_path / "set" / "a" / "grey.tif")
    (tmp_path / "set" / "b").mkdir()
    made[0].save(tmp_path / "set" / "b" / "0.png")
    assert read(tmp_path / "set", validation=0).shape == (3, 4, 4)


def test_size_makes_images_of_different_sizes_one(tmp_path, class_folders, read):
    place = class_folders(tmp_path / "set", ("ant",), height=6, width=9)
    class_folders(place, ("bee",), height=8, width=5)
    splits = read(place, size=4, validation=0)
    assert splits.shape == (3, 4, 4)
    assert splits.train.images.dtype == torch.uint8


def spoil_size(place):
    Image.new("RGB", (7, 6)).save(place / "bee" / "3.png")


def spoil_bytes(place):
    (place / "bee" / "3.png").write_bytes(b"\x89PNG\r\n\x1a\nand then nothing")


def spoil_end(place):
    file = place / "bee" / "3.png"
    file.write_bytes(file.read_bytes()[:80])


def spoil_depth(place):
    Image.fromarray(np.zeros((6, 6), dtype=np.uint16)).save(place / "bee" / "3.png")


def spoil_class(place):
    for file in (place / "bee").iterdir():
        file.unlink()


def spoil_all(place):
    shutil.rmtree(place / "ant")
    shutil.rmtree(place / "bee")


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (spoil_size, ["different sizes", "6x6", "7x6", "bee/3.png", "give --data.size"]),
        (spoil_bytes, ["bee/3.png cannot be read as an image", "replace or remove"]),
        (spoil_end, ["bee/3.png cannot be read as an image", "replace or remove"]),
        (spoil_depth, ["bee/3.png", "8 bits"]),
        (spoil_class, ["class folder", "bee holds no images"]),
        (spoil_all, ["set has no class folders", "CLASS/IMAGE"]),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_what_is_wrong_is_named_in_one_line(tmp_path, class_folders, read, spoil, said):
    place = class_folders(tmp_path / "set")
    spoil(place)
    with pytest.raises(InputError) as error:
        read(place)
    assert all(part in str(error.value) for part in said)
    assert "\n" not in str(error.value)


def test_different_classes_in_two_parts_are_named(tmp_path, class_folders, read):
    class_folders(tmp_path / "set" / "train", ("ant", "bee"))
    class_folders(tmp_path / "set" / "test", ("ant", "wasp"))
    with pytest.raises(InputError, match="bee, wasp"):
        read(tmp_path / "set")


def test_parts_without_train_are_refused(tmp_path, class_folders, read):
    class_folders(tmp_path / "set" / "test")
    with pytest.raises(InputError, match="no train"):
        read(tmp_path / "set")


def test_a_folder_that_cannot_be_read_is_named(tmp_path, class_folders, read, monkeypatch):
    place = class_folders(tmp_path / "set")
    scandir = os.scandir

    def refuse(path):
        if os.fspath(path).endswith("bee"):
            raise PermissionError(13, "Permission denied", os.fspath(path))
        return scandir(path)

    with monkeypatch.context() as patched:
        patched.setattr(os, "scandir", refuse)  # root may read everything
        with pytest.raises(InputError, match=r"bee cannot be read \(Permission denied\)"):
            read(place)


NAMES = {
    "train": ["Train", "TRAIN", "training", "Training", "train_set", "trn"],
    "validation": ["Val", "VALID", "dev", "Development", "validation-set"],
    "test": ["Test", "testing", "TESTING", "test_set", "tst"],
}


@pytest.mark.parametrize(("role", "name"), [(r, n) for r, names in NAMES.items() for n in names])
def test_usual_names_of_parts(tmp_path, class_folders, read, role, name):
    counts = {"train": 5, "validation": 3, "test": 2}
    for part, count in counts.items():
        class_folders(tmp_path / "set" / (name if part == role else part), count=count)
    splits = read(tmp_path / "set")
    assert splits.classes == ("ant", "bee")
    assert [len(p) for p in (splits.train, splits.validation, splits.test)] == [10, 6, 4]


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        # Two folders for one part.
        (["train", "Train", "test"], "are names of a train part; rename or remove one"),
        (["train", "val", "dev", "test"], "are names of a validation part; rename or remove one"),
        # A folder of images that is no part.
        (["train", "test", "extra"], "holds extra next to train, which is the name of a part"),
        (["bus", "car", "train"], "put them into a folder named train"),
        # No training part.
        (["test", "val"], "no train; name one of them train"),
        (["Test", "ants", "bees"], "no train; name one of them train"),
        # Names that only resemble those of parts.
        (["train_images", "test_images"], "look like parts and not like classes; name them"),
        (["seg_train", "seg_test", "seg_pred"], "look like parts and not like classes"),
        (["train-64x64", "val-64x64"], "look like parts and not like classes"),
        # One level more above the parts or above the classes.
        (["set/train", "set/test"], "a single class folder, set, so every prediction is right;"),
        (["set"], "holds a single class folder, set, so every prediction is right; give "),
        (["first", "second"], "both hold the folders ant, bee, so these look like the classes"),
        (["ants/train", "ants/test", "bees/train", "bees/test"], "both hold the folders"),
        (["train/first", "train/second"], "both hold the folders ant, bee"),
        (["ants/Train", "ants/Test", "bees/train", "bees/test"], "both hold the folders"),
    ],
)
def test_a_layout_that_can_be_read_in_two_ways_is_refused(
    tmp_path, class_folders, read, parts, said
):
    for part in parts:
        class_folders(tmp_path / "set" / part)
    with pytest.raises(InputError) as error:
        read(tmp_path / "set")
    assert said in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("parts", [("",), ("train", "test")])
def test_a_single_class_is_refused(tmp_path, class_folders, read, parts):
    for part in parts:
        class_folders(tmp_path / "set" / part, ("ant",))
    with pytest.raises(
        InputError, match=r"single class folder, ant, .*; give at least two classes"
    ):
        read(tmp_path / "set")


def test_an_image_next_to_class_folders_is_refused(tmp_path, class_folders, read):
    place = class_folders(tmp_path / "set" / "train")
    (place / "bee" / "3.png").rename(place / "3.png")
    with pytest.raises(InputError, match=r"train/3\.png lies next to class folders and has no cla"):
        read(tmp_path / "set")


def test_layouts_that_are_clear_are_read(tmp_path, class_folders, read):
    """Folders without images next to the parts; one subfolder in every class, as in Tiny ImageNet;
    classes whose subfolders differ; a class with the name of a part, within a part."""
    for part, count in (("train", 5), ("test", 2)):
        for name in ("ant", "bee", "train"):
            class_folders(tmp_path / "set" / part / name, ("images",), count=count)
    (tmp_path / "set" / "annotations").mkdir()
    (tmp_path / "set" / "annotations" / "all.json").write_text("{}")
    class_folders(tmp_path / "set" / "train" / "ant", ("red", "black"), count=1)
    class_folders(tmp_path / "set" / "train" / "bee", ("tame", "wild"), count=1)
    splits = read(tmp_path / "set", validation=0)
    assert splits.classes == ("ant", "bee", "train")
    assert (len(splits.train), len(splits.test)) == (19, 6)


def test_an_empty_class_in_one_part_is_named(tmp_path, class_folders, read):
    class_folders(tmp_path / "set" / "train")
    class_folders(tmp_path / "set" / "test", ("ant",))
    (tmp_path / "set" / "test" / "bee").mkdir()
    with pytest.raises(InputError, match="bee holds no images"):
        read(tmp_path / "set")
