#compdef multisagd
# Completion of multisagd for zsh. For this shell, after `autoload -U compinit && compinit`:
#
#   eval "$(multisagd completion zsh)"
#
# For every new shell, in a folder of your $fpath that compinit reads:
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
