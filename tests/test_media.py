import pytest

from tagreel import media
from tagreel.errors import DataError


def test_a_folder_gives_its_media_files_by_name_in_order(tmp_path):
    for name in ("b.mp4", "a/c.MKV", "a/notes.txt", ".hidden/x.mp4", ".y.mp4", "a/b.wav"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    found, ignored = media.files([str(tmp_path)])
    assert [file.name for file in found] == ["b.mp4", "a/b.wav", "a/c.MKV"]
    assert ignored == [str(tmp_path / "a/notes.txt")]


def test_a_file_named_itself_is_taken_whatever_it_is_called_and_once(tmp_path):
    (tmp_path / "notes.txt").write_bytes(b"x")
    (tmp_path / "v.mp4").write_bytes(b"x")
    found, _ = media.files([str(tmp_path / "notes.txt"), str(tmp_path / "v.mp4"), str(tmp_path)])
    assert [file.name for file in found] == ["notes.txt", "v.mp4"]


def test_what_is_not_there_or_holds_no_film_is_an_error(tmp_path):
    with pytest.raises(DataError, match="no such file or folder"):
        media.files([str(tmp_path / "x")])
    with pytest.raises(DataError, match=r"holds no media file by name \(\.3g2, "):
        media.files([str(tmp_path)])


def test_a_table_lists_files_tags_splits_and_groups(tmp_path):
    table = tmp_path / "videos.csv"
    table.write_text(
        "\ufeffpath,tags, id ,split,group\nx/a.mp4,cat; dog ;cat,,,\nb.mp4,,second,test,\nc.mp4,cat,,,g\n"
    )
    first, second, third = media.table(table)
    assert first.file == media.File("x/a.mp4", str(tmp_path / "x/a.mp4"))
    assert first.tags == ("cat", "dog")
    assert (first.split, first.group) == (None, None)
    assert (second.file.name, second.tags, second.split) == ("second", (), "test")
    assert third.group == "g"


def test_tags_may_stand_in_several_columns(tmp_path):
    table = tmp_path / "videos.csv"
    table.write_text("path,tag1,tag2\na.mp4,cat,dog|eel\n")
    assert media.table(table, separator="|")[0].tags == ("cat", "dog", "eel")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("file,labels\na,b\n", "has the columns file, labels; expected path and tags"),
        ("", "has the columns \\(none\\)"),
        ("path,tags\n", "lists no video"),
        ("path,tags\n,cat\n", "line 2: has no path"),
        ("path,tags\na\n", "line 2: has not the 2 columns"),
        ("path,tags\na,b,c\n", "line 2: has not the 2 columns"),
        ("path,tags\na,b\na,c\n", "line 3: 'a' is in line 2 already"),
    ],
)
def test_a_wrong_table_is_one_line(tmp_path, text, reason):
    (tmp_path / "videos.csv").write_text(text)
    with pytest.raises(DataError, match=reason):
        media.table(tmp_path / "videos.csv")


def test_a_table_that_is_missing_or_no_text_is_one_line(tmp_path):
    with pytest.raises(DataError, match="cannot be read: No such file"):
        media.table(tmp_path / "videos.csv")
    (tmp_path / "videos.csv").write_bytes(b"path,tags\n\xff\n")
    with pytest.raises(DataError, match="is not UTF-8 text: byte 10"):
        media.table(tmp_path / "videos.csv")
