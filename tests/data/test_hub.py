"""Hugging Face sets from local directories: columns by type, rows named in errors."""

import io
import os
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from layerwise.data import Augment, Loader, load, stream
from layerwise.errors import InputError

datasets = pytest.importorskip("datasets")

CIFAR = Path(__file__).parents[3] / "shared" / "data" / "cifar10"


@pytest.fixture(autouse=True)
def quiet_and_elsewhere(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "hf"))
    datasets.disable_progress_bars()


def png(array) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(array).save(stream, "PNG")
    return stream.getvalue()


@pytest.fixture
def write(tmp_path, picture):
    """Write parquet files with the columns of `features`, image `i` being picture(i)."""

    def make(splits, features=None, columns=None, images=None, name="set"):
        place = tmp_path / name
        place.mkdir(exist_ok=True)
        features = features or {
            "what": datasets.ClassLabel(names=["ant", "bee"]),
            "seen": datasets.Image(),
        }
        for split, count in splits.items():
            rows = {}
            for column, feature in features.items():
                if isinstance(feature, datasets.Image):
                    rows[column] = [
                        shown and {"bytes": shown, "path": None}
                        for shown in ((images or {}).get(i, png(picture(i))) for i in range(count))
                    ]
                elif columns and column in columns:
                    rows[column] = columns[column][:count]
                else:
                    rows[column] = [i % 2 for i in range(count)]
            table = datasets.Dataset.from_dict(rows, datasets.Features(features))
            table.to_parquet(str(place / f"{split}-00000-of-00001.parquet"))
        return place

    return make


@pytest.fixture
def read(tmp_path):
    return lambda place, **options: load(f"hf:{place}", root=tmp_path / "cache", **options)


def test_columns_are_found_by_their_type(write, read, picture):
    splits = read(write({"train": 10, "test": 4}), validation=0)
    assert splits.classes == ("ant", "bee")
    assert splits.shape == (3, 6, 6)
    assert (len(splits.train), len(splits.test)) == (10, 4)
    assert splits.train.labels.tolist() == [0, 1] * 5
    for i in range(10):
        assert np.array_equal(splits.train.images[i].numpy(), picture(i))


def test_a_validation_split_is_the_validation(write, read):
    splits = read(write({"train": 10, "validation": 3, "test": 4}))
    assert [len(p) for p in (splits.train, splits.validation, splits.test)] == [10, 3, 4]


def test_a_validation_split_alone_is_the_test(write, read):
    splits = read(write({"train": 20, "validation": 4}))
    assert [len(p) for p in (splits.train, splits.validation, splits.test)] == [18, 2, 4]


def test_a_test_split_without_labels_is_left_out(tmp_path, write, read):
    place = write({"train": 20, "validation": 4})
    features = {"what": datasets.ClassLabel(names=["ant", "bee"]), "seen": datasets.Image()}
    write({"test": 3}, features, {"what": [-1, -1, -1]})
    assert len(read(place).test) == 4


def test_a_single_split_is_cut(write, read):
    splits = read(write({"train": 20}), validation=0)
    assert (len(splits.train), len(splits.test)) == (16, 4)


def test_integers_are_labels_where_there_are_no_class_labels(write, read):
    features = {"y": datasets.Value("int32"), "seen": datasets.Image()}
    splits = read(write({"train": 6, "test": 3}, features, {"y": [7, 3, 7, 3, 9, 9]}), validation=0)
    assert splits.classes == ("3", "7", "9")
    assert splits.train.labels.tolist() == [1, 0, 1, 0, 2, 2]


def test_of_two_class_labels_the_finer_counts(write, read):
    features = {
        "coarse": datasets.ClassLabel(names=["a", "b"]),
        "fine": datasets.ClassLabel(names=["a", "b", "c"]),
        "seen": datasets.Image(),
    }
    columns = {"fine": [2, 1, 0, 1, 2, 1]}  # of coarse 0 1 0 1 0 1
    splits = read(write({"train": 6, "test": 3}, features, columns), validation=0)
    assert splits.classes == ("a", "b", "c")
    assert splits.train.labels.tolist() == [2, 1, 0, 1, 2, 1]


def test_the_second_time_datasets_is_not_needed(write, read, monkeypatch):
    place = write({"train": 10, "test": 4})
    first = read(place)
    monkeypatch.setitem(sys.modules, "datasets", None)
    assert torch.equal(read(place).train.images, first.train.images)


def test_without_the_package_the_extra_is_named(write, read, monkeypatch):
    place = write({"train": 10})
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(InputError, match=r"pip install layerwise\[hub\]"):
        read(place)


def test_a_set_saved_to_disk_is_read(write, read, tmp_path):
    whole = datasets.load_dataset(str(write({"train": 10, "test": 4})))
    whole.save_to_disk(str(tmp_path / "saved"))
    splits = read(tmp_path / "saved", validation=0)
    assert (len(splits.train), len(splits.test)) == (10, 4)


def test_rows_that_were_reordered_keep_their_images(write, read, tmp_path, picture):
    whole = datasets.load_dataset(str(write({"train": 10, "test": 4})))
    whole["train"] = whole["train"].select([5, 2, 8])
    whole.save_to_disk(str(tmp_path / "saved"))
    splits = read(tmp_path / "saved", validation=0)
    assert np.array_equal(splits.train.images[1].numpy(), picture(2))


def test_an_unwritable_hub_cache_does_not_matter(write, read, tmp_path, monkeypatch):
    place = write({"train": 10, "test": 4})
    (tmp_path / "file").write_text("a file where the folder should be")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "file" / "below"))
    assert len(read(place, validation=0).train) == 10


def test_a_large_set_is_streamed(write, read, monkeypatch, picture):
    place = write({"train": 10, "test": 4})
    monkeypatch.setattr(stream, "IN_MEMORY_BYTES", 100)
    splits = read(place, size=6, validation=0)
    assert type(splits.train).__name__ == "Stream"
    x = torch.cat(
        [x for x, _ in Loader(splits.train, 4, train=False, augment=Augment(normalize="none"))]
    )
    assert np.array_equal((x[7] * 255).round().byte().permute(1, 2, 0).numpy(), picture(7))


LABEL = {"what": datasets.ClassLabel(names=["ant", "bee"])}
IMAGE = {"seen": datasets.Image()}


@pytest.mark.parametrize(
    ("features", "columns", "images", "said"),
    [
        (LABEL, None, None, ["no image columns among what"]),
        (LABEL | IMAGE | {"too": datasets.Image()}, None, None, ["2 image columns"]),
        (IMAGE | {"text": datasets.Value("string")}, {"text": ["a"] * 9}, None, ["no label col"]),
        (
            IMAGE | {"id": datasets.Value("int64"), "age": datasets.Value("int8")},
            None,
            None,
            ["no label column among seen, id, age", "named 'label'"],
        ),
        (LABEL | IMAGE, None, {5: b"no image"}, ["row 5 of split 'train'", "replace or remove"]),
        (LABEL | IMAGE, None, {5: None}, ["row 5 of split 'train'", "replace or remove"]),
        (LABEL | IMAGE, None, {5: "other size"}, ["6x6 (row 0", "7x4 (row 5", "--data.size"]),
        (LABEL | IMAGE, {"what": [0, 1, -1, 0, 1, 0, 1, 0]}, None, ["row 2", "label -1"]),
    ],
)
def test_what_is_wrong_is_named_in_one_line(write, read, features, columns, images, said):
    if images and images[5] == "other size":
        images = {5: png(np.zeros((4, 7, 3), dtype=np.uint8))}
    place = write({"train": 8}, features, columns, images)
    with pytest.raises(InputError) as error:
        read(place)
    assert all(part in str(error.value) for part in said), str(error.value)
    assert "\n" not in str(error.value)


def test_different_classes_in_two_splits_are_named(write, read, tmp_path):
    parts = {}
    for split, names in (("train", ["ant", "bee"]), ("test", ["ant", "wasp"])):
        features = {"what": datasets.ClassLabel(names=names)} | IMAGE
        place = write({"train": 4}, features, name=split)
        parts[split] = datasets.load_dataset(str(place))["train"]
    datasets.DatasetDict(parts).save_to_disk(str(tmp_path / "saved"))
    with pytest.raises(InputError, match=r"other classes than 'train' \(\['bee', 'wasp'\]\)"):
        read(tmp_path / "saved")


def test_an_empty_directory_is_refused(tmp_path, read):
    (tmp_path / "set").mkdir()
    with pytest.raises(InputError, match="is empty"):
        read(tmp_path / "set")


def test_a_directory_of_something_else_is_refused(tmp_path, read):
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "notes.xyz").write_text("nothing")
    with pytest.raises(InputError) as error:
        read(tmp_path / "set")
    assert "check that it is an image data set" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("download", [True, False])
def test_a_name_out_of_reach_is_one_line(tmp_path, download):
    began = time.perf_counter()
    with pytest.raises(InputError) as error:
        load("hf:someone/nothing", root=tmp_path, download=download)
    assert "hf:DIRECTORY" in str(error.value)
    assert "\n" not in str(error.value)
    assert time.perf_counter() - began < 15  # and no half minute of retries
    assert not datasets.config.HF_HUB_OFFLINE


def test_a_name_is_found_in_the_cache_without_a_network(write, tmp_path):
    place = write({"train": 10, "test": 4}, name="nothing")
    datasets.load_dataset(str(place))
    # A set of the hub lies in the cache as OWNER___NAME, and otherwise as a local one does.
    (tmp_path / "hf" / "nothing").rename(tmp_path / "hf" / "someone___nothing")
    splits = load("hf:someone/nothing", root=tmp_path / "cache", validation=0, download=False)
    assert (len(splits.train), len(splits.test)) == (10, 4)


@pytest.mark.skipif(not CIFAR.is_dir(), reason="the copy of CIFAR-10 is not here")
def test_cifar10(tmp_path, read, monkeypatch):
    # Its test part alone: decoding all of it takes seconds.
    place = tmp_path / "cifar10"
    place.mkdir()
    (place / "train-00000-of-00001.parquet").symlink_to(CIFAR / "test-00000-of-00001.parquet")
    splits = read(place)
    assert splits.classes[:3] == ("airplane", "automobile", "bird")
    assert splits.shape == (3, 32, 32)
    assert [len(p) for p in (splits.train, splits.validation, splits.test)] == [7200, 800, 2000]
    assert torch.bincount(splits.validation.labels).tolist() == [80] * 10
    mean, std = splits.train.statistics
    # CIFAR-10's published training mean and deviation
    assert np.allclose(mean, (0.4914, 0.4822, 0.4465), atol=0.01)
    assert np.allclose(std, (0.2470, 0.2435, 0.2616), atol=0.01)


@pytest.mark.parametrize("name", ["dev", "Valid", "VALIDATION"])
def test_usual_names_of_splits(write, read, tmp_path, name):
    whole = datasets.load_dataset(str(write({"train": 10, "validation": 3, "test": 4})))
    names = {"train": "Training", "validation": name, "test": "Test"}
    renamed = datasets.DatasetDict({names[split]: table for split, table in whole.items()})
    renamed.save_to_disk(str(tmp_path / "saved"))
    splits = read(tmp_path / "saved")
    assert [len(p) for p in (splits.train, splits.validation, splits.test)] == [10, 3, 4]


def test_two_splits_for_one_part_are_refused(write, read, tmp_path):
    whole = datasets.load_dataset(str(write({"train": 10, "validation": 3, "test": 4})))
    whole["dev"] = whole["validation"]
    whole.save_to_disk(str(tmp_path / "saved"))
    with pytest.raises(InputError, match="both 'validation' and 'dev' are names of a validation"):
        read(tmp_path / "saved")


def test_a_split_that_is_left_out_is_named_every_time(write, read, tmp_path, caplog):
    whole = datasets.load_dataset(str(write({"train": 10, "validation": 3, "test": 4})))
    whole["extra"] = whole.pop("validation")
    whole.save_to_disk(str(tmp_path / "saved"))
    for _ in ("decoded", "from the cache"):
        caplog.clear()
        splits = read(tmp_path / "saved", validation=0)
        assert (len(splits.train), len(splits.test)) == (10, 4)
        assert "split 'extra' with 3 rows is left out" in caplog.text


def integers(**columns):
    features = {name: datasets.Value("int64") for name in columns}
    return features | IMAGE, {name: list(values) for name, values in columns.items()}


@pytest.mark.parametrize("name", ["label", "Labels", "target", "y", "class"])
def test_integers_of_a_usual_name_are_labels(write, read, name):
    features, columns = integers(id=range(8), **{name: [0, 1] * 4})
    assert read(write({"train": 8}, features, columns), validation=0).classes == ("0", "1")


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"id": range(8)}, "no label column among id, seen"),
        ({"image_id": range(8)}, "no label column among image_id, seen"),
        ({"age": [20, 30] * 4}, "no label column among age, seen"),
        ({"target": [0, 1] * 4, "y": [1, 0] * 4}, "no label column among target, y, seen"),
        ({"label": [3] * 8}, "a single class, 3, so every prediction is right"),
    ],
)
def test_integers_that_may_be_anything_are_refused(write, read, columns, said):
    with pytest.raises(InputError) as error:
        read(write({"train": 8}, *integers(**columns)))
    assert said in str(error.value)


def test_class_labels_that_do_not_decide_each_other_are_refused(write, read):
    features = {
        "camera": datasets.ClassLabel(names=["a", "b", "c"]),
        "animal": datasets.ClassLabel(names=["ant", "bee"]),
    } | IMAGE
    columns = {"camera": [0, 0, 1, 1, 2, 2]}
    with pytest.raises(InputError, match="columns camera, animal all hold class labels; keep one"):
        read(write({"train": 6}, features, columns))
    named = {"label" if name == "animal" else name: feature for name, feature in features.items()}
    assert read(write({"train": 6}, named, columns), validation=0).classes == ("ant", "bee")


@pytest.fixture
def with_row(write):
    """A set whose row 5 holds this instead of an image."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    def make(row) -> Path:
        place = write({"train": 8})
        (path,) = place.iterdir()
        table = pq.read_table(path)
        i = table.schema.get_field_index("seen")
        rows = table.column("seen").to_pylist()
        rows[5] = row
        column = pa.array(rows, table.schema.field("seen").type)
        pq.write_table(table.set_column(i, table.schema.field("seen"), column), path)
        return place

    return make


def test_a_row_without_bytes_and_path_is_named(with_row, read):
    place = with_row({"bytes": None, "path": None})
    with pytest.raises(InputError) as error:
        read(place)
    assert "row 5 of split 'train' (column 'seen') cannot be read as an image" in str(error.value)
    assert "neither bytes nor a path" in str(error.value)


@pytest.mark.parametrize("path", ["/dev/zero", "nowhere.png", "pipe"])
def test_a_row_whose_path_is_no_file_is_named(with_row, read, tmp_path, path):
    if path == "pipe":
        path = str(tmp_path / "pipe")
        os.mkfifo(path)
    place = with_row({"bytes": None, "path": path})
    with pytest.raises(InputError, match=r"row 5 of split 'train' .* cannot be read as an image"):
        read(place)


@pytest.mark.parametrize("kind", ["pipe", "link", "loop"])
def test_what_is_no_file_in_a_local_set_is_named(write, read, kind):
    place = write({"train": 8})
    if kind == "pipe":
        os.mkfifo(place / "test-00000-of-00001.parquet")
    else:
        (place / "test").symlink_to("nowhere" if kind == "link" else ".")
    said = {"pipe": "is a pipe", "link": "leads nowhere", "loop": "count twice"}
    with pytest.raises(InputError, match=said[kind]):
        read(place)


def test_images_of_a_table_are_turned_as_their_exif_data_say(write, read, picture):
    exif = Image.Exif()
    exif[0x0112] = 3
    stream = io.BytesIO()
    Image.fromarray(picture(1)).save(stream, "PNG", exif=exif)
    splits = read(write({"train": 8}, images={1: stream.getvalue()}), validation=0)
    every = torch.cat([splits.train.images, splits.test.images]).numpy()
    assert any(np.array_equal(image, picture(1)[::-1, ::-1]) for image in every)
    assert not any(np.array_equal(image, picture(1)) for image in every)
