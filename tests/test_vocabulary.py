from __future__ import annotations

import csv
import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tagreel.errors import DataError
from tagreel.vocabulary import _distinct, read_label_names


def _read(tmp_path, text):
    path = tmp_path / "labels.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_label_names(path)


@pytest.mark.parametrize(
    "text",
    [
        "Index,TrainVideoCount,KnowledgeGraphId,Name,WikiUrl\n0,788288,/m/03bt1gh,Game,x\n1,5,/m/01mw1,Car,y\n",
        "label_id,label_name\n0,Game\n1,Car\n",
        'index,mid,display_name\n0,/m/09x0r,"Game"\n1,/m/05zppz,"Car"\n',
        "id,name\n1,Car\n0,Game\n",
        "\ufeffid,name\r\n0,Game\r\n1, Car \r\n",
        "Game\nCar\n",
        "Game\r\nCar",
        "Game\nCar\n\n \n\n",
        "id,name\n0,Game\n\n1,Car\n\n",
    ],
    ids=[
        "yt8m",
        "label_names",
        "audioset",
        "any order",
        "excel",
        "plain",
        "plain, windows",
        "plain, blank end",
        "blank lines",
    ],
)
def test_known_files_give_the_names_in_the_order_of_the_ids(tmp_path, text):
    assert _read(tmp_path, text) == ["Game", "Car"]


def test_quoted_names_keep_their_commas_and_lines(tmp_path):
    text = 'index,mid,display_name\n0,a,"Male speech, man speaking"\n1,b,"Clip-\nclop ""x"""\n'
    assert _read(tmp_path, text) == ["Male speech, man speaking", 'Clip-\nclop "x"']


def test_empty_and_repeated_names_get_their_number(tmp_path):
    assert _read(tmp_path, "id,name\n0,Car\n1,\n2,Car\n3,Car\n") == ["Car", "(1)", "Car (2)", "Car (3)"]
    assert _read(tmp_path, "Car\nCar (2)\nCar\n") == ["Car", "Car (2)", "Car (2) (2)"]


@given(st.lists(st.sampled_from(["", "a", "a (1)", "a (2)", "(1)", "(3)", "a (2) (2)"]), max_size=8))
def test_names_are_distinct_whatever_they_were(names):
    found = _distinct(names)
    assert len(set(found)) == len(names)
    assert all(name.startswith(original) for name, original in zip(found, names, strict=True))


@given(
    st.lists(
        st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Zs", "Zl", "Zp"]), min_size=1),
        min_size=1,
    )
)
def test_any_names_survive_a_csv_file(tmp_path_factory, names):
    text = io.StringIO()
    csv.writer(text).writerows([("id", "name"), *enumerate(names)])
    path = tmp_path_factory.mktemp("names") / "labels.csv"
    path.write_text(text.getvalue(), encoding="utf-8")
    assert read_label_names(path) == _distinct(names)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("\n \n", "is empty"),
        ("id,name\n", "has a header and no classes"),
        ("id,name\n0,a\n2,b\n", "has 2 classes but none with id 1"),
        ("id,name\n0,a\n0,b\n", "line 3: id 0 occurs twice"),
        ("id,name\nx,a\n", "line 2: id is 'x'; expected a number"),
        ("id,name\n²,a\n", "line 2: id is '²'; expected a number"),
        ("id,name\n-1,a\n", "line 2: id is '-1'; expected a number"),
        ("id,name\n,a\n", "line 2: id is ''; expected a number"),
        ("id,name\n0,a\n\nx,b\n", "line 4: id is 'x'; expected a number"),
        ("Game\n\nCar\n", "line 2 is blank; expected the name of class 1, or no line"),
        ("\nGame\n", "line 1 is blank"),
        ("Index\n3\n7\n", "line 1, 'Index', is the header of a table; expected one class name a line"),
        ('"name"\n"Game"\n"Car"\n', "is the header of a table"),
        ("Display_Name\nGame", "is the header of a table"),
        ("id\tname\n0\tGame\n", "with commas between one of Index, "),
        ("id;name\n0;Game\n", "is the header of a table"),
        ("number,title\n0,a\n", "has the columns number, title; expected one of Index, "),
        (b"\xff\xfe\x00", "is not UTF-8 text"),
    ],
)
def test_what_cannot_be_read_is_named_with_its_place(tmp_path, text, message):
    with pytest.raises(DataError) as caught:
        _read(tmp_path, text)
    assert message in str(caught.value)
    assert "labels.csv" in str(caught.value)


def test_a_missing_file_is_named():
    with pytest.raises(DataError, match=r"^nowhere\.csv: cannot be read: No such file"):
        read_label_names("nowhere.csv")
