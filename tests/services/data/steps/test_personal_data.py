"""Personal data: what is found and what only looks like it, by kind; masking is idempotent and leaves all else alone."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from services.data.steps.text_records import apply_step, make_record, make_talk

from llamero.data.steps.personal_data import is_luhn, mask_text
from llamero.data.steps.record import Record

# Put together here, so that no scanner takes this file for a leak.
A36 = "a1B2c3D4e5F6g7H8i9J0k1L2m3N4o5P6q7R8"
KEYS = [
    "AKIA" + "IOSFODNN7EXAMPL2",
    "ghp_" + A36,
    "github_pat_" + A36,
    "glpat-" + A36[:20],
    "xoxb-" + "123456789012-" + A36[:24],
    "AIza" + A36[:35],
    "sk-" + A36,
    "sk-proj-" + A36,
    "sk-ant-" + "api03-" + A36,
    "sk_live_" + A36[:24],
    "hf_" + A36[:34],
    "npm_" + A36,
    "SG." + A36[:22] + "." + A36 + A36[:7],
    "eyJhbGciOiJIUzI1NiJ9." + "eyJzdWIiOiIxMjM0NTY3ODkwIn0." + "dozjgNryP4J3jVmNHl0w5N_XgL0n3I9PlFUP0THsR8U",
    "-----BEGIN RSA " + "PRIVATE KEY-----\nMIIEowIBAAKCAQEA\n1234\n-----END RSA PRIVATE KEY-----",
    "-----BEGIN OPENSSH " + "PRIVATE KEY-----\n" + A36 + "\n" + A36,
    "123456789:AA" + A36[:33],
]

FOUND = {
    "email": ["jane.doe@mail.example.com", "a@d.co", "first+tag@host.co.uk", "jörg@müller.de", "o'neill@host.org"],
    "phone": [
        "+49 30 901820",
        "+442079460958",
        "+1 (415) 555-2671",
        "+1-415-555-2671",
        "(415) 555-2671",
        "415-555-2671",
        "415.555.2671",
        "1-800-555-0199",
        "01 23 45 67 89",
        "020 7946 0958",
        "0171/1234567",
        "(030) 901820",
    ],
    "card": ["4242424242424242", "4242 4242 4242 4242", "5555-5555-5555-4444", "3782 822463 10005", "6011111111111117"],
    "ip": ["59.187.84.127", "http://128.178.163.54/index", "2001:4860:4801:10::25", "2a00:1450:4001:81b::200e"],
    "key": KEYS,
}

LEFT_ALONE = [
    # e-mail
    "git@github.com:owner/project.git",
    "icon@2x.png",
    "@property",
    "a @ b",
    "user@localhost",
    "react@17.0.2",
    "me@",
    # phone
    "from 1998-2004",
    "1,234,567.89",
    "$415-555-2671",
    "ISBN 0-306-40615-2",
    "ISBN 978-0-306-40615-7",
    "2020-01-31 12:30:45",
    "3.14159265358979",
    "x = 100 + 20000000",
    "10-12-2020",
    "order 415-555-26715",
    "order no. 415-555-2671",
    "123 456 789",
    "2,000 - 3,000 - 4,000",
    "12345678901",
    "3/4/2020 12/12",
    # cards
    "4242424242424241",
    "0000000000000000",
    "1234567812345670",
    "4242.4242.4242.4242",
    "42424242424242424242424242",
    # addresses
    "127.0.0.1",
    "10.0.0.8",
    "192.168.255.0",
    "172.16.4.9",
    "203.0.113.7",
    "255.256.12.1",
    "1.2.3.4",
    "8.8.8.8",
    "version 10.15.7.21",
    "v12.34.56.78",
    "Chrome/91.0.447.124",
    "52.95.110.0/24",
    "59.187.84.127.5",
    "fe80::1",
    "::1",
    "2001:db8::1",
    "std::vector",
    "12:30:45",
    "a::b",
    "59.187.84.999",
    # keys
    "sk-learn",
    "AKIA",
    "risk-" + A36,
    "eyJ.eyJ.eyJ",
    "hf_model",
    "-----BEGIN PUBLIC KEY-----",
    "ghp_short",
    "task-based-learning-approaches-for-students",
]


@pytest.mark.parametrize(("kind", "text"), [(kind, text) for kind, texts in FOUND.items() for text in texts])
def test_it_is_masked_wherever_it_stands(kind, text):
    for before, after in (
        ("", ""),
        ("It is ", "."),
        ("(", ")"),
        ("a\n", "\nb"),
        ("“", "”, and"),
        ("Contact: ", " or so"),
    ):
        masked, counts = mask_text(f"{before}{text}{after}")
        assert counts == {kind: 1}, masked
        assert masked.startswith(before) and masked.endswith(after)
        assert f"[{kind}]" in masked


@pytest.mark.parametrize("text", LEFT_ALONE)
def test_what_only_looks_like_it_stays(text):
    for before, after in (("", ""), ("It is ", ".")):
        assert mask_text(f"{before}{text}{after}") == (f"{before}{text}{after}", {})


def test_ten_digits_are_a_phone_number_where_the_text_says_so():
    assert mask_text("My phone number is 4155552671.")[0] == "My phone number is [phone]."
    assert mask_text("Call 415 555 2671 now")[0] == "Call [phone] now"
    assert mask_text("There are 4155552671 of them.")[1] == {}


def test_only_the_secret_of_a_setting_is_masked():
    secret = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY1"[:40]
    assert mask_text(f'aws_secret_access_key = "{secret}"')[0] == 'aws_secret_access_key = "[key]"'
    hook = "https://hooks.slack.com/services/" + "T00000000/B00000000/" + "X" * 24
    assert mask_text(hook)[0] == "https://hooks.slack.com/services/[key]"


@given(st.text(st.characters(codec="utf-8"), max_size=80))
def test_text_without_digits_marks_and_keys_is_never_changed(text):
    plain = "".join(c for c in text if c not in "@" and not c.isdecimal())
    assert mask_text(plain) == (plain, {})


PIECES = st.sampled_from([t for texts in FOUND.values() for t in texts] + LEFT_ALONE) | st.text(
    "ab1 .-+@:/([,\n0x", max_size=12
)


@settings(max_examples=300)
@given(st.lists(PIECES, max_size=6).map("".join) | st.lists(PIECES, max_size=6).map(" ".join))
def test_masking_again_finds_nothing_more_and_no_kind_is_missed(text):
    masked, counts = mask_text(text)
    assert mask_text(masked) == (masked, {})
    assert (masked == text) == (not counts)


def test_the_record_tells_how_many_of_each_kind_were_masked_in_all_its_turns_and_its_input():
    record = make_record(
        "Write to a@b.com", "I wrote to a@b.com from 59.187.84.127.", input="c@d.org", meta={"sourceId": "7"}
    )
    (masked,) = apply_step("personalData", [record])
    assert isinstance(masked, Record)
    assert [m.content for m in masked.messages] == ["Write to [email]", "I wrote to [email] from [ip]."]
    assert masked.input == "[email]"
    assert masked.meta == {"sourceId": "7", "personalData": {"email": 3, "ip": 1}}


def test_only_the_kinds_that_are_listed_are_masked():
    (masked,) = apply_step("personalData", [make_record(answer="a@b.com, 59.187.84.127")], kinds=["ip"])
    assert masked.answer == "a@b.com, [ip]"
    record = make_record(answer="a@b.com")
    assert apply_step("personalData", [record], kinds=["phone", "card"]) == [record]


def test_a_record_without_any_is_the_same_object():
    record = make_talk("Hello there", "It is 12:30 on 3 May 2020.")
    assert apply_step("personalData", [record])[0] is record


def test_a_dropped_record_says_what_kinds_it_held_and_never_the_data():
    (drop,) = apply_step("personalData", [make_record(answer="a@b.com, c@d.org, (415) 555-2671")], action="drop")
    assert drop.text is not None and "[email], [email], [phone]" in drop.text
    assert "a@b.com" not in drop.text
    assert (drop.rule, drop.value, drop.threshold) == ("kinds", 3, 0)
    assert drop.detail == "The record holds 2 e-mail addresses and a phone number."


@pytest.mark.parametrize(
    ("digits", "is_valid"), [("79927398713", True), ("79927398710", False), ("0", True), ("18", True)]
)
def test_luhn_s_check_digit(digits, is_valid):
    assert is_luhn(digits) == is_valid


@pytest.mark.parametrize(
    "text",
    [
        "+1" + "1" * 20_000 + "x",
        "1-" * 20_000,
        "a." * 20_000 + "@",
        "-----BEGIN PRIVATE KEY-----" * 300,
        "9 " * 20_000,
        "eyJ" + "a" * 20_000,
    ],
)
def test_no_text_takes_long(text):
    import time

    start = time.process_time()
    mask_text(text)
    assert time.process_time() - start < 2
