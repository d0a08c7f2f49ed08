"""Settings in printed commands are quoted so that a shell and the command read the same text back."""

import re
import subprocess
from pathlib import Path

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


def test_setting_is_read_back_by_a_shell_and_by_the_command() -> None:
    words = [setting("out", text) for text in TEXTS]
    done = subprocess.run(["sh", "-c", f"printf '%s\\0' {' '.join(words)}"], capture_output=True, check=True)
    read = done.stdout.decode().split("\0")[:-1]
    assert [OverridesParser.create().parse_override(each).key_or_group for each in read] == ["out"] * len(TEXTS)
    for text, each in zip(TEXTS, read, strict=True):
        assert configuration.load("sample", ["run_dir=run", each])["out"] == text
    assert setting("run_dir", "/a/b-c_d.e/000001") == "run_dir=/a/b-c_d.e/000001"


def test_word_suggests_quoted_settings() -> None:
    for arguments, quoted in (
        (["--run_dir", "my runs"], "'run_dir=my runs'"),
        (["run_dir=", "my runs"], "'run_dir=my runs'"),
        (["my runs/a,b"], """'run_dir="my runs/a,b"' or 'data.root="my runs/a,b"'"""),
    ):
        assert quoted in (word(arguments, 0) or "")


def test_printed_commands_quote_their_settings() -> None:
    root = Path(recipes.__path__[0])
    unquoted = re.compile(r"multisagd [a-z]+ [^\"]*?[\w.]+=\{(?!setting|shlex)")
    assert [path.name for path in root.rglob("*.py") if unquoted.search(path.read_text(encoding="utf-8"))] == []
