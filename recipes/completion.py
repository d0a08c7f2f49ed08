"""Print what lets a shell complete commands, choices, keys and files: `multisagd completion bash`.

The scripts are small: they ask `multisagd __complete`, so that they need not change when multisagd does.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from recipes.base.console import show

BASH = r"""# Completion of multisagd for bash. For this shell:
#
#   eval "$(multisagd completion bash)"
#
# For every shell, once and for all (in a folder that bash-completion reads, or else in ~/.bashrc by the line above):
#
#   mkdir -p ~/.local/share/bash-completion/completions
#   multisagd completion bash > ~/.local/share/bash-completion/completions/multisagd
_multisagd() {
    mapfile -t COMPREPLY < <(
        "${COMP_WORDS[0]}" __complete bash "${COMP_LINE:0:COMP_POINT}" "$COMP_WORDBREAKS" 2>/dev/null
    )
    [[ ${#COMPREPLY[@]} -eq 1 && -z ${COMPREPLY[0]} ]] && COMPREPLY=()
    # What goes on after a candidate is written without a blank.
    [[ ${#COMPREPLY[@]} -eq 1 && ${COMPREPLY[0]} == *[=./] ]] && compopt -o nospace
    return 0
}
complete -o nosort -F _multisagd multisagd
"""
ZSH = r"""#compdef multisagd
# Completion of multisagd for zsh. For this shell, after `autoload -U compinit && compinit`:
#
#   eval "$(multisagd completion zsh)"
#
# For every shell, once and for all, in a folder of your $fpath that compinit reads:
#
#   mkdir -p ~/.zfunc && multisagd completion zsh > ~/.zfunc/_multisagd
#   # and in ~/.zshrc, before compinit: fpath+=~/.zfunc
_multisagd() {
    local line name
    local -a ends goes_on shown_ends shown_goes_on
    while IFS= read -r line; do
        [[ -n $line ]] || continue
        name=${line%%$'\t'*}
        line=${line/$'\t'/  -- }
        if [[ $name == *[=./] ]]; then
            goes_on+=("$name") shown_goes_on+=("${line%  -- }")
        else
            ends+=("$name") shown_ends+=("${line%  -- }")
        fi
    done < <("${words[1]}" __complete zsh "${(@Q)words[2,CURRENT]}" 2>/dev/null)
    (( $#goes_on )) && compadd -S '' -l -d shown_goes_on -a goes_on
    (( $#ends )) && compadd -l -d shown_ends -a ends
    return 0
}
if [[ ${funcstack[1]} == _multisagd ]]; then
    _multisagd "$@"
else
    compdef _multisagd multisagd
fi
"""
FISH = r"""# Completion of multisagd for fish. For this shell:
#
#   multisagd completion fish | source
#
# For every shell, once and for all:
#
#   multisagd completion fish > ~/.config/fish/completions/multisagd.fish
function __multisagd
    set -l before (commandline -opc)
    $before[1] __complete fish $before[2..-1] (commandline -ct | string unescape) 2>/dev/null
end
complete -c multisagd -f -k -a '(__multisagd)'
"""
SCRIPTS = {"bash": BASH, "zsh": ZSH, "fish": FISH}
HELP = """examples:
  eval "$(multisagd completion bash)"         for this shell, in bash or zsh
  multisagd completion fish | source          in fish

The head of what is printed says how to have it in every shell.
read more: docs/command-line.md"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    parser = argparse.ArgumentParser(
        "multisagd completion", epilog=HELP, formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Prints what lets a shell complete commands, choices, keys and files of multisagd.",
    )  # fmt: skip
    parser.add_argument("shell", choices=SCRIPTS, help="your shell")
    show(SCRIPTS[parser.parse_args(arguments).shell].rstrip("\n"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
