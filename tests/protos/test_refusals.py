"""Refusals: every code has one fixed sentence, and what a site knows beside it stays there."""

from protos.refusals import OtherVersion, Refusal, RefusalCode, explain


def test_every_code_has_a_sentence_of_its_own() -> None:
    sentences = [explain(code) for code in RefusalCode]
    assert len(set(sentences)) == len(RefusalCode)
    for sentence in sentences:
        assert sentence.endswith(".")
        assert "\n" not in sentence


def test_codes_keep_clear_of_flowers() -> None:
    assert min(RefusalCode) > 1000


def test_the_detail_stays() -> None:
    for code in RefusalCode:
        refusal = Refusal(code, "patient Jane Doe")
        assert refusal.reason == explain(code)
        assert "Jane" not in refusal.reason


def test_two_versions_are_told_apart() -> None:
    refusal = OtherVersion(7)
    assert refusal.code == RefusalCode.SCHEMA_VERSION
    assert "version 7" in refusal.reason
    assert "version 1" in refusal.reason


def test_a_code_of_nobody_is_told_as_such() -> None:
    assert "error 3," in explain(3)
