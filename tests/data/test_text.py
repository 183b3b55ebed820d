"""Text: windows and their shift, parts that share nothing, what cannot be read."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from layerwise.data import Augment, Curriculum, Loader, Text, load
from layerwise.data.sources.text_files import characters, read
from layerwise.errors import InputError


def counting(length: int = 21, context: int = 4) -> Text:
    """Token n is n, so that a window tells where it comes from."""
    return Text(torch.arange(length, dtype=torch.uint8), context)


def test_windows_and_shift_by_hand() -> None:
    """21 tokens predict 20, which are five windows of four; of 20 tokens the last one is left."""
    text = counting()
    x, y = text.windows(torch.tensor([0, 4, 1]))
    assert x.tolist() == [[0, 1, 2, 3], [16, 17, 18, 19], [4, 5, 6, 7]]
    assert y.tolist() == [[1, 2, 3, 4], [17, 18, 19, 20], [5, 6, 7, 8]]
    assert x.dtype == y.dtype == torch.int64
    assert (len(text), text.shape, len(counting(20))) == (5, (4,), 4)


def test_subsets_of_subsets() -> None:
    part = counting().subset(torch.tensor([4, 2, 0])).subset(torch.tensor([2, 0])).to("cpu")
    assert part.windows(torch.arange(2))[0].tolist() == [[0, 1, 2, 3], [16, 17, 18, 19]]


def test_a_cut_shares_no_token() -> None:
    """A quarter of 21, rounded, is 5."""
    first, second = counting(context=2).cut(0.25)
    assert (first.tokens.tolist(), second.tokens.tolist()) == ([*range(16)], [*range(16, 21)])


def test_parts_follow_one_another(tmp_path: Path) -> None:
    """1000 characters: 200 are the test, a tenth of the 800 before it the validation."""
    written = "".join(chr(0x100 + n) for n in range(1000))
    (tmp_path / "all.txt").write_text(written, encoding="utf-8")
    splits = load(f"text:{tmp_path / 'all.txt'}", context=10, seed=3)
    parts = (splits.train, splits.validation, splits.test)
    assert [len(part.tokens) for part in parts] == [720, 80, 200]
    assert torch.cat([part.tokens for part in parts]).tolist() == [*range(1000)]
    assert "".join(splits.classes) == written
    assert (splits.shape, splits.num_classes, splits.entropy_rate) == ((10,), 1000, None)
    seen = [{*torch.cat(p.windows(torch.arange(len(p)))).flatten().tolist()} for p in parts]
    assert not seen[0] & seen[1]
    assert not (seen[0] | seen[1]) & seen[2]


def test_characters() -> None:
    tokens, vocabulary = characters("babü€")
    assert (tokens.tolist(), vocabulary) == ([1, 0, 1, 2, 3], ("a", "b", "ü", "€"))
    assert tokens.dtype == torch.uint8


def test_a_folder_is_read_in_order(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    for name, text in (("c.txt", "3"), ("a.txt", "\ufeff1\r\n"), ("b/x.txt", "2"), ("a.md", "4")):
        (tmp_path / name).write_bytes(text.encode())
    assert read(tmp_path, "text:x") == "1\n\n2\n3"


def test_an_epoch_has_every_window_once_and_repeats() -> None:
    loader = Loader(counting(201), 10, train=True, seed=2)
    epoch = list(loader.epoch(1))
    starts = torch.cat([x[:, 0] for x, _ in epoch])
    assert sorted(starts.tolist()) == [*range(0, 200, 4)]
    assert starts.tolist() != sorted(starts.tolist())
    for (x, y), (u, v), labels in zip(
        epoch[2:], loader.epoch(1, start=2), loader.labels(1, start=2), strict=True
    ):
        assert torch.equal(x, u)
        assert torch.equal(y, v)
        assert torch.equal(y, labels)
        assert torch.equal(y, x + 1)
    assert (loader.tokens, loader.unit, loader.shape, len(loader)) == (True, "windows", (4,), 5)


def test_parts_of_a_batch_and_a_curriculum() -> None:
    whole = Loader(counting(201), 10, train=True, seed=2)
    parts = [Loader(counting(201), 10, train=True, seed=2, part=(k, 2)) for k in range(2)]
    for (x, _), (a, _), (b, _) in zip(whole, *parts, strict=True):
        assert torch.equal(x, torch.cat([a, b]))
    easiest = Curriculum(torch.arange(50), start=0.4)
    x, _ = next(iter(Loader(counting(201), 10, train=True, curriculum=easiest)))
    assert x.max() < 80


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"augment": Augment(flip=True)}, r"Loader\(augment\.flip\): these options are for images"),
        ({"views": 2, "channels_last": True}, r"Loader\(views, channels_last\)"),
        ({"batch_size": 6}, "the set holds 5 windows, so no batch is full"),
    ],
)
def test_options_of_images(options: dict, said: str) -> None:
    with pytest.raises(InputError, match=said):
        Loader(counting(), **{"batch_size": 2, "train": True, **options})


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("text:none.txt", {}, "none.txt cannot be read: No such file"),
        ("text:empty", {}, "empty holds no .txt file"),
        ("text:latin.txt", {}, "latin.txt is not UTF-8 at byte 2"),
        ("text:short.txt", {}, "leave no window of 64"),
        ("text:short.txt", {"context": 2, "validation": 0.01}, "leave no window of 2"),
        ("text:short.txt", {"size": 3}, "images have a size; leave it out for a text"),
        ("text:short.txt", {"context": 0}, "give 1 token or more"),
        ("text:", {}, "no such data set"),
        ("digits", {"context": 3}, "texts, such as markov, have a context"),
    ],
)
def test_what_cannot_be_read_is_said_in_one_line(
    name: str, options: dict, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "latin.txt").write_bytes("caé".encode("latin-1"))
    (tmp_path / "short.txt").write_text("a few words, and no more")
    with pytest.raises(InputError) as error:
        load(name, **options)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def contiguous(windows: int) -> Text:
    """Windows of one token; window n holds n."""
    return Text(torch.arange(windows + 1, dtype=torch.uint8), 1, contiguous=True)


@pytest.mark.parametrize("train", [False, True])
def test_each_row_of_a_contiguous_text_continues(train: bool) -> None:
    """Eleven windows in three rows are 4, 4 and 3; whole batches alone have 3 each."""
    loader = Loader(contiguous(11), 3, train=train)
    rows = [x.flatten().tolist() for x, _ in loader.epoch(1)]
    longer = [[0, 4, 8], [1, 5, 9], [2, 6, 10], [3, 7]]
    assert rows == ([[0, 3, 6], [1, 4, 7], [2, 5, 8]] if train else longer)
    assert len(rows) == len(loader)
    assert [x.flatten().tolist() for x, _ in loader.epoch(1, 2)] == rows[2:]
    assert [y.flatten().tolist() for y in loader.labels(1, 2)] == [
        [token + 1 for token in row] for row in rows[2:]
    ]


def test_fewer_contiguous_windows_than_rows() -> None:
    (x, _), *more = Loader(contiguous(3), 8, train=False).epoch(0)
    assert (x.tolist(), more) == ([[0], [1], [2]], [])


def test_no_curriculum_of_contiguous_windows() -> None:
    with pytest.raises(InputError, match="contiguous"):
        Loader(contiguous(8), 2, train=True, curriculum=Curriculum(torch.arange(8.0)))


def test_labels_of_tokens() -> None:
    """Two windows of three; a cut is between windows, and the shift by one is gone."""
    text = Text(torch.arange(6), 3, labels=torch.arange(10, 16))
    x, y = text.subset(torch.tensor([1])).windows(torch.tensor([0]))
    assert (x.tolist(), y.tolist()) == ([[3, 4, 5]], [[13, 14, 15]])
    first, second = text.cut(0.4)
    assert (len(first), len(second)) == (1, 1)
    assert second.windows(torch.tensor([0]))[1].tolist() == [[13, 14, 15]]
