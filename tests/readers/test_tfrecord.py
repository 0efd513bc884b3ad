from __future__ import annotations

import gzip
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tagreel.errors import DataError
from tagreel.readers import _tfrecord
from tagreel.readers._tfrecord import RecordFile, masked_crc, write


def crc32c(data: bytes) -> int:
    """CRC-32C bit by bit, from its definition."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def masked(data: bytes) -> int:
    crc = crc32c(data)
    return ((crc >> 15 | crc << 17 & 0xFFFFFFFF) + 0xA282EAD8) % 2**32


def frame(payload: bytes) -> bytes:
    length = struct.pack("<Q", len(payload))
    return length + struct.pack("<I", masked(length)) + payload + struct.pack("<I", masked(payload))


# All of different lengths, so that no deletion can turn one record's frame into another's.
PAYLOADS = [bytes((7 * i + j) % 251 for j in range(60 + 13 * i)) for i in range(12)]
PLAIN = b"".join(map(frame, PAYLOADS))
STARTS = np.cumsum([0] + [len(payload) + 16 for payload in PAYLOADS]).tolist()


def save(folder: Path, content: bytes, name: str = "a.tfrecord") -> Path:
    path = folder / name
    path.write_bytes(content)
    return path


def read_all(path: Path, *, check_crc: bool = True) -> tuple[list[bytes], list[DataError]]:
    file = RecordFile(path, check_crc=check_crc)
    payloads, errors = [], []
    for index in range(len(file)):
        try:
            payloads.append(file.payload(index).tobytes())
        except DataError as error:
            errors.append(error)
    assert {error.path for error in errors} <= {str(path)}
    return payloads, errors


def test_the_checksum_is_crc32c_masked():
    assert crc32c(b"123456789") == 0xE3069283  # the check value of every CRC catalogue
    assert masked_crc(b"123456789") == masked(b"123456789")


def test_the_table_lookups_agree_with_the_definition():
    words = np.random.default_rng(0).integers(0, 256, (50, 8), np.uint8)
    assert _tfrecord._masked_crcs(words).tolist() == [masked(word.tobytes()) for word in words]


def test_records_are_read_as_they_were_framed(tmp_path):
    assert read_all(save(tmp_path, PLAIN)) == (PAYLOADS, [])


def test_an_empty_record_is_a_record(tmp_path):
    assert read_all(save(tmp_path, frame(b"") + frame(b"x"))) == ([b"", b"x"], [])


def test_gzip_is_told_by_its_content_not_by_its_name(tmp_path):
    assert read_all(save(tmp_path, gzip.compress(PLAIN))) == (PAYLOADS, [])


def test_gzip_members_may_be_joined_anywhere_and_padded(tmp_path):
    cut = STARTS[4] + 31
    content = gzip.compress(PLAIN[:cut]) + gzip.compress(PLAIN[cut:]) + bytes(512)
    assert read_all(save(tmp_path, content)) == (PAYLOADS, [])


def test_what_was_written_is_what_the_format_says(tmp_path):
    write(tmp_path / "a.tfrecord", PAYLOADS)
    write(tmp_path / "a.tfrecord.gz", PAYLOADS)
    assert (tmp_path / "a.tfrecord").read_bytes() == PLAIN
    assert gzip.decompress((tmp_path / "a.tfrecord.gz").read_bytes()) == PLAIN


def test_a_writer_that_fails_leaves_nothing_behind(tmp_path):
    def payloads():
        yield b"one"
        raise KeyboardInterrupt

    save(tmp_path, PLAIN)
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "a.tfrecord", payloads())
    assert [path.name for path in tmp_path.iterdir()] == ["a.tfrecord"]
    assert (tmp_path / "a.tfrecord").read_bytes() == PLAIN


def test_an_empty_file_is_damaged(tmp_path):
    payloads, errors = read_all(save(tmp_path, b""))
    assert payloads == []
    assert [error.reason for error in errors] == ["the file is empty (0 bytes)"]


def test_a_file_that_is_not_there_is_a_data_error(tmp_path):
    with pytest.raises(DataError, match=r"no\.tfrecord: cannot be read: No such file"):
        RecordFile(tmp_path / "no.tfrecord")


def test_a_flipped_payload_costs_one_record_and_says_which(tmp_path):
    content = bytearray(PLAIN)
    content[STARTS[5] + 40] ^= 4
    payloads, errors = read_all(save(tmp_path, bytes(content)))
    assert payloads == PAYLOADS[:5] + PAYLOADS[6:]
    assert str(errors[0]).endswith("a.tfrecord, record 5: the checksum of its 125 bytes is wrong")


def test_checksums_of_payloads_can_be_left_out(tmp_path):
    content = bytearray(PLAIN)
    content[STARTS[5] + 40] ^= 4
    payloads, errors = read_all(save(tmp_path, bytes(content)), check_crc=False)
    assert len(payloads) == len(PAYLOADS)
    assert errors == []


def test_behind_a_damaged_header_the_next_record_is_found(tmp_path):
    content = bytearray(PLAIN)
    content[STARTS[3] + 2] ^= 1
    payloads, errors = read_all(save(tmp_path, bytes(content)))
    assert payloads == PAYLOADS[:3] + PAYLOADS[4:]
    assert errors[0].record == 3
    assert "length header is damaged" in errors[0].reason


def test_a_cut_tail_is_one_damaged_record(tmp_path):
    payloads, errors = read_all(save(tmp_path, PLAIN[:-20]))
    assert payloads == PAYLOADS[:-1]
    assert len(errors) == 1
    assert "cut short: 203 bytes long by its header, 187 are left" in errors[0].reason


def test_bytes_missing_inside_a_record_cost_no_other_record(tmp_path):
    at = STARTS[6] + 30
    payloads, errors = read_all(save(tmp_path, PLAIN[:at] + PLAIN[at + 50 :]))
    assert payloads == PAYLOADS[:6] + PAYLOADS[7:]
    assert len(errors) == 1
    assert "bytes are missing in it" in errors[0].reason


def test_the_next_header_is_found_beyond_a_long_hole(tmp_path):
    # Longer than the window of the search; zeros are the candidates that take it the longest.
    hole = bytes(3 * (1 << 20) + 5)
    payloads, errors = read_all(save(tmp_path, PLAIN[: STARTS[2]] + hole + PLAIN[STARTS[2] :]))
    assert payloads == PAYLOADS
    assert len(errors) == 1


def test_a_cut_gzip_stream_gives_all_before_the_cut(tmp_path):
    packed = gzip.compress(PLAIN, 0)  # stored, so that the cut's place in the content is known
    payloads, errors = read_all(save(tmp_path, packed[: -(len(PLAIN) - STARTS[7])]))
    assert payloads == PAYLOADS[:7]
    assert len(errors) == 1
    assert "gzip" in errors[0].reason


def test_a_wrong_gzip_trailer_is_told_at_the_end(tmp_path):
    packed = bytearray(gzip.compress(PLAIN))
    packed[-6] ^= 1
    payloads, errors = read_all(save(tmp_path, bytes(packed)))
    assert payloads == PAYLOADS
    assert [error.record for error in errors] == [len(PAYLOADS)]
    assert "incorrect data check" in errors[0].reason


def test_behind_a_damaged_gzip_member_the_next_one_is_read(tmp_path):
    first, second = (gzip.compress(part) for part in (PLAIN[: STARTS[6]], PLAIN[STARTS[6] :]))
    first = first[:30] + b"\xff" * 30 + first[60:]
    payloads, errors = read_all(save(tmp_path, first + second))
    assert payloads[-6:] == PAYLOADS[6:]
    assert errors


damage = st.tuples(
    st.sampled_from(["flip", "cut", "zero", "delete"]), st.floats(0, 1, exclude_max=True), st.integers(0, 255)
)


def damaged(content: bytes, kind: str, where: float, amount: int) -> tuple[bytes, int, int]:
    """The content damaged, and the first and last place where it is."""
    at = int(where * len(content))
    if kind == "flip":
        return content[:at] + bytes([content[at] ^ (1 << amount % 8)]) + content[at + 1 :], at, at + 1
    if kind == "cut":
        return content[:at], at, len(content)
    stop = min(at + 1 + amount % 59, len(content))  # less than the shortest record
    filling = bytes(stop - at) if kind == "zero" else b""
    return content[:at] + filling + content[stop:], at, stop


@settings(max_examples=300, deadline=2000)
@given(damage, st.booleans())
def test_damage_anywhere_costs_only_the_records_it_touches(tmp_path_factory, how, check_crc):
    content, at, stop = damaged(PLAIN, *how)
    path = save(tmp_path_factory.mktemp("plain"), content)
    payloads, errors = read_all(path, check_crc=check_crc)
    # A byte that already was zero stays undamaged, so a touched record may come out too, but only intact.
    untouched = [
        payload
        for payload, start in zip(PAYLOADS, STARTS, strict=False)
        if start + len(payload) + 16 <= at or start >= stop
    ]
    assert [payload for payload in payloads if payload in untouched] == untouched
    if not check_crc:
        return
    assert set(payloads) <= set(PAYLOADS)
    at_a_boundary = how[0] == "cut" and at in STARTS and at > 0  # which the format cannot tell
    assert how[0] == "cut" or len(payloads) + len(errors) >= len(PAYLOADS)
    assert at_a_boundary or errors or payloads == PAYLOADS


@settings(max_examples=200, deadline=2000)
@given(damage, st.booleans(), st.sampled_from([0, 6]))
def test_damage_anywhere_in_gzip_is_told(tmp_path_factory, how, check_crc, level):
    packed = gzip.compress(PLAIN, level, mtime=0)
    content, _, _ = damaged(packed, *how)
    path = save(tmp_path_factory.mktemp("gzip"), content)
    payloads, errors = read_all(path, check_crc=check_crc)
    assert errors or payloads == PAYLOADS
    if check_crc:
        assert set(payloads) <= set(PAYLOADS)


@settings(max_examples=200, deadline=2000)
@given(st.binary(max_size=400), st.booleans())
def test_garbage_is_a_data_error_and_no_other(tmp_path_factory, content, packed):
    content = gzip.compress(content)[:2] + content if packed else content
    payloads, errors = read_all(save(tmp_path_factory.mktemp("garbage"), content))
    assert errors
    assert payloads == []


def test_decompression_agrees_with_the_standard_library_up_to_the_damage(tmp_path):
    packed = gzip.compress(PLAIN * 40)
    cut = packed[: len(packed) // 2]
    sound = zlib.decompressobj(wbits=31).decompress(cut)
    data, problem = _tfrecord._inflate(np.frombuffer(cut, np.uint8), None)
    assert data.tobytes() == sound
    assert problem is not None
