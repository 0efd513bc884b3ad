from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tagreel.readers._tfexample import MalformedError, encode_example, encode_sequence_example, parse

RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, (7, 1024), np.uint8)
AUDIO = RNG.integers(0, 256, (7, 128), np.uint8)
MEAN = RNG.normal(size=5).astype(np.float32)


def as_payload(content: bytes):
    return np.frombuffer(content, np.uint8)


@pytest.fixture(scope="module")
def messages():
    """Example and SequenceExample made by protobuf itself, from the fields that example.proto gives them."""
    descriptor_pb2 = pytest.importorskip("google.protobuf.descriptor_pb2")
    from google.protobuf import descriptor_pool, message_factory

    kinds = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="tagreel_test_example.proto", package="t", syntax="proto3")

    def message(name: str, *fields: tuple) -> None:
        made = file.message_type.add(name=name)
        for number, (field, kind, label, packed) in enumerate(fields, 1):
            added = made.field.add(name=field, number=number, label=label)
            if isinstance(kind, str):
                added.type, added.type_name = kinds.TYPE_MESSAGE, f".t.{kind}"
            else:
                added.type = kind
            if packed is not None:
                added.options.packed = packed

    one, many = kinds.LABEL_OPTIONAL, kinds.LABEL_REPEATED
    message("BytesList", ("value", kinds.TYPE_BYTES, many, None))
    for prefix, packed in (("", True), ("Unpacked", False)):
        message(f"{prefix}FloatList", ("value", kinds.TYPE_FLOAT, many, packed))
        message(f"{prefix}Int64List", ("value", kinds.TYPE_INT64, many, packed))
        lists = ("BytesList", f"{prefix}FloatList", f"{prefix}Int64List")
        fields = zip(("bytes_list", "float_list", "int64_list"), lists, strict=True)
        message(f"{prefix}Feature", *((name, kind, one, None) for name, kind in fields))
        message(
            f"{prefix}Entry",
            ("key", kinds.TYPE_STRING, one, None),
            ("value", f"{prefix}Feature", one, None),
        )
        message(f"{prefix}Features", ("feature", f"{prefix}Entry", many, None))
        message(f"{prefix}Example", ("features", f"{prefix}Features", one, None))
    message("FeatureList", ("feature", "Feature", many, None))
    message("ListEntry", ("key", kinds.TYPE_STRING, one, None), ("value", "FeatureList", one, None))
    message("FeatureLists", ("feature_list", "ListEntry", many, None))
    message(
        "SequenceExample",
        ("context", "Features", one, None),
        ("feature_lists", "FeatureLists", one, None),
    )
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return lambda name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"t.{name}"))


def filled(features, context):
    for name, (kind, values) in context.items():
        getattr(features.add(key=name).value, kind).value.extend(values)


CONTEXT = {
    "id": ("bytes_list", [b"abcd"]),
    "labels": ("int64_list", [3, 300, 4715, -1, 2**62, -(2**63)]),
    "mean_rgb": ("float_list", MEAN.tolist()),
}


@pytest.mark.parametrize("prefix", ["", "Unpacked"])
def test_an_example_of_protobuf_is_read(messages, prefix):
    message = messages(f"{prefix}Example")()
    filled(message.features.feature, CONTEXT)
    record = parse(as_payload(message.SerializeToString()))
    assert record.context["id"] == [b"abcd"]
    assert record.integers("labels").tolist() == CONTEXT["labels"][1]
    np.testing.assert_array_equal(record.floats("mean_rgb"), MEAN)
    assert record.lists == {}


def test_a_sequence_example_of_protobuf_is_read(messages):
    message = messages("SequenceExample")()
    filled(message.context.feature, CONTEXT)
    for name, frames in {"rgb": RGB, "audio": AUDIO}.items():
        entry = message.feature_lists.feature_list.add(key=name)
        for frame in frames:
            entry.value.feature.add().bytes_list.value.append(frame.tobytes())
    content = message.SerializeToString()
    record = parse(as_payload(content))
    np.testing.assert_array_equal(record.lists["rgb"], RGB)
    np.testing.assert_array_equal(record.lists["audio"], AUDIO)
    assert record.integers("labels").tolist() == CONTEXT["labels"][1]
    assert parse(as_payload(content), lists=False).lists == {}


def test_protobuf_reads_what_was_written(messages):
    context = {"id": "abcd", "labels": [3, 300, -7], "mean_rgb": MEAN, "empty": []}
    message = messages("SequenceExample").FromString(encode_sequence_example(context, {"rgb": RGB}))
    found = {entry.key: entry.value for entry in message.context.feature}
    assert list(found) == list(context)
    assert list(found["id"].bytes_list.value) == [b"abcd"]
    assert list(found["labels"].int64_list.value) == [3, 300, -7]
    assert list(found["mean_rgb"].float_list.value) == MEAN.tolist()
    assert list(found["empty"].int64_list.value) == []
    (entry,) = message.feature_lists.feature_list
    rows = [feature.bytes_list.value[0] for feature in entry.value.feature]
    assert (entry.key, rows) == ("rgb", [frame.tobytes() for frame in RGB])


def test_hand_written_bytes_are_read():
    labels = b"\n\x06labels\x12\x06\x1a\x04\n\x02\x05\x07"
    content = b"\n\x22" + b"\n\x0e\n\x02id\x12\x08\n\x06\n\x04abcd" + b"\n\x10" + labels
    record = parse(as_payload(content))
    assert (record.id("id"), record.labels().tolist()) == ("abcd", [5, 7])


def test_frames_are_a_view_of_the_payload():
    payload = as_payload(encode_sequence_example({"id": "a"}, {"rgb": RGB}))
    frames = parse(payload).lists["rgb"]
    np.testing.assert_array_equal(frames, RGB)
    assert np.shares_memory(frames, payload)


def test_float_frames_are_read():
    frames = RNG.normal(size=(4, 6)).astype(np.float32)
    read = parse(as_payload(encode_sequence_example({"id": "a"}, {"x": frames}))).lists["x"]
    np.testing.assert_array_equal(read, frames)
    assert read.flags.aligned


def test_a_list_without_frames_has_none():
    assert len(parse(as_payload(encode_sequence_example({}, {"rgb": RGB[:0]}))).lists["rgb"]) == 0


def test_a_frame_of_another_width_is_named():
    first = encode_sequence_example({}, {"rgb": RGB[:3]})
    narrow = encode_sequence_example({}, {"rgb": RGB[:1, :1000]})
    start = narrow.index(b"rgb") + 6  # the name, the value's tag and its two bytes of length
    frames = first[first.index(b"rgb") + 6 :] + narrow[start:]
    entry = b"\n\x03rgb\x12" + length(frames) + frames
    content = b"\n" + length(entry) + entry
    with pytest.raises(MalformedError, match="'rgb' frame 3 is 1,000 bytes wide, the frames before it 1,024"):
        parse(as_payload(b"\x12" + length(content) + content))


def test_frames_whose_headers_differ_but_not_their_width_are_read():
    # The last length takes two bytes where one would do, which is legal.
    plain = b"\n\x06\n\x04\n\x02ab"
    longer = b"\n\x07\n\x05\n\x82\x00cd"
    frames = plain + longer
    entry = b"\n\x01x\x12" + length(frames) + frames
    content = b"\n" + length(entry) + entry
    read = parse(as_payload(b"\x12" + length(content) + content)).lists["x"]
    assert [row.tobytes() for row in read] == [b"ab", b"cd"]


def test_an_empty_frame_is_named():
    frames = b"\n\x06\n\x04\n\x02ab\n\x00"
    entry = b"\n\x01x\x12" + length(frames) + frames
    content = b"\n" + length(entry) + entry
    with pytest.raises(MalformedError, match="'x' frame 1 should be a single bytes value"):
        parse(as_payload(b"\x12" + length(content) + content))


def test_unknown_fields_are_skipped():
    known = encode_example({"id": "abcd"})
    unknown = b"\x18\x96\x01" + b"\x25abcd" + b"\x29abcdefgh" + b"\x32\x02xy"
    assert parse(as_payload(unknown + known + unknown)).id("id") == "abcd"


def length(content: bytes) -> bytes:
    size = len(content)
    return bytes([size & 0x7F | 0x80, size >> 7 & 0x7F | 0x80, size >> 14])


def test_labels_are_unique_and_ascending():
    assert parse(as_payload(encode_example({"labels": [7, 3, 7]}))).labels().tolist() == [3, 7]


@pytest.mark.parametrize(
    ("context", "match"),
    [
        ({"labels": [3, -2]}, "label -2 is negative"),
        ({"labels": [0.5]}, "'labels' should hold integers, not floats"),
        ({"labels": "x"}, "'labels' should hold integers, not bytes"),
    ],
)
def test_labels_that_cannot_be_are_refused(context, match):
    with pytest.raises(MalformedError, match=match):
        parse(as_payload(encode_example(context))).labels()


def test_a_missing_id_is_told_with_what_there_is():
    record = parse(as_payload(encode_example({"image": b"x", "labels": [1]})))
    with pytest.raises(MalformedError, match=r"no 'id' or 'video_id' .*; it has: image, labels"):
        record.id("id", "video_id")


GOOD = encode_sequence_example(
    {"id": "abcd", "labels": [3, 300]}, {"rgb": RGB[:3, :20], "audio": AUDIO[:3, :4]}
)


@settings(max_examples=500, deadline=1000)
@given(st.binary(max_size=200))
def test_garbage_is_refused_or_harmless(content):
    attempt(content)


@settings(max_examples=500, deadline=1000)
@given(st.integers(0, len(GOOD) - 1), st.integers(0, 255), st.integers(0, len(GOOD)))
def test_a_changed_or_cut_message_is_refused_or_harmless(at, value, end):
    attempt((GOOD[:at] + bytes([value]) + GOOD[at + 1 :])[:end])


def attempt(content: bytes) -> None:
    try:
        record = parse(as_payload(content))
        record.id("id")
        record.labels()
        record.streams(renamed={})
    except MalformedError:
        pass
