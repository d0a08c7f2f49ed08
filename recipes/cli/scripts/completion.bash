# Completion of multisagd for bash. For this shell:
#
#   eval "$(multisagd completion bash)"
#
# For every new shell (in a folder that bash-completion reads, or else in ~/.bashrc by the line above):
#
#   mkdir -p ~/.local/share/bash-completion/completions
#   multisagd completion bash > ~/.local/share/bash-completion/completions/multisagd
_multisagd() {
    mapfile -t COMPREPLY < <(
        "${COMP_WORDS[0]}" __complete bash "${COMP_LINE:0:COMP_POINT}" "$COMP_WORDBREAKS" 2>/dev/null
    )
    [[ ${#COMPREPLY[@]} -eq 1 && -z ${COMPREPLY[0]} ]] && COMPREPLY=()
    # A candidate that can be continued is inserted without a space.
    [[ ${#COMPREPLY[@]} -eq 1 && ${COMPREPLY[0]} == *[=./] ]] && compopt -o nospace
    return 0
}
complete -o nosort -F _multisagd multisagd
