"""Pillow's warnings and lack of memory: what a damaged image makes of them, as a line with the file's name."""

import threading
import warnings

import pytest
from PIL import Image, ImageFile

from deform_attn.detr.data.picture_file import check_header, read_picture_file
from deform_attn.detr.data.pillow_warnings import heard_warnings
from deform_attn.detr.errors import DataError, DataWarning

SIZE = (48, 32)
CUT_EXIF = b"Exif\0\0II*\0\x08\0\0\0"  # ends where the number of entries should be
SAID = "{}: read, but Pillow warns: Corrupt EXIF data. Expecting to read 2 bytes but only got 0; check the image"

pytestmark = pytest.mark.filterwarnings("default")


@pytest.fixture
def damaged(tmp_path):
    path = tmp_path / "a.jpg"
    Image.new("RGB", SIZE).save(path, exif=CUT_EXIF)
    return path


def pillow_warns():
    """Warn of something as if a line of Pillow did."""
    warnings.warn_explicit("Truncated File Read", UserWarning, Image.__file__, 1)


@pytest.mark.parametrize(
    "read", [lambda path: check_header(path, SIZE, "a"), lambda path: read_picture_file(path, SIZE, "a")]
)
def test_what_pillow_warns_of_is_one_warning_of_ours_with_the_name_of_the_file(damaged, read):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        read(damaged)
    assert [one.category for one in caught] == [DataWarning]
    assert str(caught[0].message).startswith(SAID.format("a"))


def test_an_image_that_cannot_be_read_is_an_error_without_a_warning(damaged):
    damaged.write_bytes(damaged.read_bytes()[:400])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with pytest.raises(DataError):
            read_picture_file(damaged, SIZE, "a")
    assert caught == []


def test_warnings_of_others_and_of_other_threads_are_shown_as_ever():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with heard_warnings() as heard:
            pillow_warns()
            warnings.warn("mine", UserWarning, stacklevel=1)
            other = threading.Thread(target=pillow_warns)
            other.start()
            other.join()
    assert heard == ["Truncated File Read"]
    assert [str(one.message) for one in caught] == ["mine", "Truncated File Read"]


def test_threads_that_read_at_one_time_leave_warnings_as_they_were():
    before, entered, done = warnings.showwarning, threading.Event(), threading.Event()
    texts = []

    def read():
        with heard_warnings() as heard:
            entered.set()
            done.wait(10)
            pillow_warns()
        texts.extend(heard)

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        with heard_warnings():
            other = threading.Thread(target=read)
            other.start()
            entered.wait(10)
        done.set()
        other.join()
        assert warnings.showwarning is before
    assert texts == ["Truncated File Read"]


@pytest.mark.parametrize("size", [None, SIZE])
def test_an_image_for_which_memory_is_short_is_named(tmp_path, monkeypatch, size):
    def fail(*_args):
        raise MemoryError

    Image.new("RGB", SIZE).save(tmp_path / "a.png")
    monkeypatch.setattr(ImageFile.ImageFile, "load", fail)
    with pytest.raises(DataError, match=r"^a: the image is damaged, or larger than the memory; replace it or scale it"):
        read_picture_file(tmp_path / "a.png", size, "a")
