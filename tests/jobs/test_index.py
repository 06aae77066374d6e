"""`pairstream index` as a user runs it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from infra.errors import UserError
from jobs.cli import main
from pipeline.config import override
from pipeline.data import check_data
from pipeline.recipes.digits import digits
from pipeline.rules import Rules
from tests.pipeline.test_indexing import pairs, tar

MAP = ["--map", "jpg=image", "cls=label"]
DIGITS = ["--map", "top.npy=top", "bottom.npy=bottom", "label.cls=label"]


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, dict]:
    code = main(["index", *map(str, arguments), "--json"])
    return code, json.loads(capsys.readouterr().out.splitlines()[-1])


def test_a_directory_of_shards_can_be_inspected_and_trained_on(
    digits_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, made = run(capsys, digits_dir, "--out", tmp_path / "i", *DIGITS, "--workers", 1)
    assert code == 0
    assert (made["samples"], made["members"], made["shards"]) == (1797, 5391, 3)
    assert [made[name] for name in ("unnamed", "interleaved", "duplicates", "damaged")] == [{}, [], [], []]
    assert run(capsys, digits_dir, "--out", tmp_path / "i", *DIGITS)[1] == made, "nothing to do"
    assert main(["inspect", str(tmp_path / "i"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["fingerprint"] == made["fingerprint"]
    recipe = override(digits(), {"data": str(tmp_path / "i")})
    assert check_data(recipe).fingerprint == made["fingerprint"]  # which shape a label has, the run knows
    rules = ["--map", "top.npy=label", "label.cls=top", "bottom.npy=bottom"]
    assert run(capsys, digits_dir, "--out", tmp_path / "swapped", *rules)[0] == 0
    with pytest.raises(UserError, match=r"modality top is \.cls of shape"):
        check_data(override(recipe, {"data": str(tmp_path / "swapped")}))


def test_a_damaged_shard_is_named_and_the_exit_code_is_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tar(tmp_path / "val-0.tar", [("k0.json", b"{}"), *pairs(["a", "b"])])
    path.write_bytes(path.read_bytes()[:6000])
    assert main(["index", str(path), "--out", str(tmp_path / "out"), *MAP]) == 1
    said = capsys.readouterr().out
    assert f"damaged: {path} at byte 5632: b cut off inside a tar header" in said
    assert "no rule names .json: 1 members" in said
    code, made = run(capsys, path, "--out", tmp_path / "out", *MAP)
    assert code == 1
    assert made["samples"] == 1
    assert made["damaged"] == [
        {"shard": str(path), "key": "b", "offset": 5632, "reason": "cut off inside a tar header"}
    ]


def test_a_modality_that_no_member_has_is_pointed_at(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tar(tmp_path / "a.tar", pairs(["a"]))
    assert main(["index", str(path), "--out", str(tmp_path / "o"), "--map", "cls=label", "jpeg=image"]) == 0
    assert "image (.jpeg): 0 members; did you mean 'jpg'?" in capsys.readouterr().out


def test_rules_from_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tar(tmp_path / "a.tar", [*pairs(["a"]), ("a.cap.txt", b"1"), ("a.w.0.txt", b"1"), ("a.w.1.txt", b"1")])
    file = tmp_path / "rules.toml"
    file.write_text('[modalities]\njpg = "image"\ncap.txt = "caption"\n"w.*.txt" = "words"\n')
    code, made = run(capsys, path, "--out", tmp_path / "out", "--rules", file, "--map", "cls=label")
    assert (code, made["modalities"]) == (0, {"label": 1, "image": 1, "caption": 1, "words": 2})


@pytest.mark.parametrize(
    ("rules", "words"),
    [
        ([], "no rule says which member is which modality"),
        (["jpg"], "--map jpg: write EXTENSION=MODALITY"),
        (["=image"], "write an extension like jpg"),
        (["jpg="], "name a modality"),
        (["jpg=_image"], "no '_' first"),
        (["a..jpg=image"], "write an extension"),
        (["*.jpg=image"], "write an extension"),
        (["caption.*=caption"], "write an extension"),
        (["a.*.b.*.jpg=image"], "write an extension"),
        (["cap*.txt=caption"], "write an extension"),
        (["jpg=image", "JPG=photo"], ".jpg is image already"),
        (["jpg=image", "png=image"], "image is .jpg already; give .png another modality"),
        ([f"e{n}.cls=m{n}" for n in range(65)], "65 modalities: a data set holds at most 64"),
    ],
)
def test_bad_rules_give_a_sentence(rules: list[str], words: str) -> None:
    with pytest.raises(UserError) as error:
        Rules.read(rules)
    assert words in str(error.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[modalities", "not TOML"),
        ("[modalites]\njpg = 'image'", "only a table [modalities] is known, not 'modalites'"),
        ("modalities = 3", "needs a table [modalities]"),
        ("[modalities]\njpg = 3", "name a modality"),
        (None, "No such file"),
    ],
)
def test_a_bad_rules_file_gives_a_sentence(text: str | None, words: str, tmp_path: Path) -> None:
    file = tmp_path / "rules.toml"
    if text is not None:
        file.write_text(text)
    with pytest.raises(UserError) as error:
        Rules.read([], file)
    assert words in str(error.value)
    assert str(file) in str(error.value)


def test_which_rule_fits() -> None:
    rules = Rules.read([".JPG=image", "thumb.jpg=small", "c.*.txt=caption", "c.0.txt=title", "txt=caption"])
    assert rules("jpg") == (0, "")
    assert rules("thumb.jpg") == (1, "")
    assert rules("c.12.txt") == (2, "c.12.txt")
    assert rules("c.0.txt") == (3, "")  # the exact rule
    assert rules("txt") == (2, "")
    for unnamed in ("x.jpg", "c.txt", "c.a.txt", "c..txt", "c.1.2.txt", "c.1.txt.gz", ""):
        assert rules(unnamed) is None


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--out", "o", *MAP], "no shards"),
        (["nowhere.tar", "--out", "o", *MAP], "nowhere.tar: no such file"),
        (["s3://bucket/a.tar", "--out", "o", *MAP], "only local tars"),
        (["empty", "--out", "o", *MAP], "no *.tar in this directory"),
        (["a.tar", "./a.tar", "--out", "o", *MAP], "is given 2 times"),
        (["a.tar", "--out", "o"], "no rule says"),
        (["a.tar", "--out", "o", *MAP, "--workers", "-1"], "choose 1 or more"),
        (["a.tar", "--out", "a.tar", *MAP], "cannot index into a.tar"),
        (["a.tar", "--out", "o", "--map", "png=image"], "no usable sample in 1 shards"),
    ],
)
def test_bad_input_gives_a_sentence(
    arguments: list[str],
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    tar(tmp_path / "a.tar", pairs(["a"]))
    (tmp_path / "empty").mkdir()
    assert main(["index", *arguments]) == 2
    assert words in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "o").exists()
