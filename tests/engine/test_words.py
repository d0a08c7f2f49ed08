import re
import subprocess
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

import recipes
from recipes.base.commands import setting
from recipes.config import compose as configuration
from recipes.config.suggestions import word

TEXTS = [
    "runs/a", "lr=1, w 8", "a b", "it's", 'say "x"', "a\\b", "a\\", 'a\\"b', "a\\'b", "${seed}", "x${oc.env:HOME}y",
    "\\${seed}", "null", "true", "1", "1e3", "[a]", "{a:b}", "~x", "$HOME", "`x`", "ünï 日本", "-x", "a:b", "  a ",
    "!x", "#x", "*", "a(b)", "'q'", "a;b&c|d", "", "a\tb", "%x", "@y", "nan",
]  # fmt: skip


def test_a_printed_setting_is_read_back_by_a_shell_and_by_the_command() -> None:
    words = [setting("out", text) for text in TEXTS]
    done = subprocess.run(["sh", "-c", f"printf '%s\\0' {' '.join(words)}"], capture_output=True, check=True)
    read = done.stdout.decode().split("\0")[:-1]
    assert [OverridesParser.create().parse_override(each).key_or_group for each in read] == ["out"] * len(TEXTS)
    for text, each in zip(TEXTS, read, strict=True):
        assert configuration.load("sample", ["run_dir=run", each])["out"] == text


def test_plain_paths_stay_plain() -> None:
    assert setting("run_dir", "/a/b-c_d.e/000001") == "run_dir=/a/b-c_d.e/000001"


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--run_dir", "my runs"], "'run_dir=my runs'"),
        (["run_dir=", "my runs"], "'run_dir=my runs'"),
        (["my runs/a,b"], """'run_dir="my runs/a,b"' or 'data.root="my runs/a,b"'"""),
    ],
)
def test_hints_can_be_pasted(arguments: list[str], told: str) -> None:
    assert told in (word(arguments, 0) or "")


def test_commands_that_are_printed_hold_any_path() -> None:
    """Every place that prints a command with a path writes it by `setting`, or by the words as they were typed."""
    root = Path(recipes.__path__[0])
    bare = re.compile(r"multisagd [a-z]+ [^\"]*?[\w.]+=\{(?!setting|shlex)")
    found = [path.name for path in root.rglob("*.py") if bare.search(path.read_text(encoding="utf-8"))]
    assert found == []
