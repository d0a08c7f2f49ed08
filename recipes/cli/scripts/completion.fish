# Completion of multisagd for fish. For this shell:
#
#   multisagd completion fish | source
#
# For every new shell:
#
#   multisagd completion fish > ~/.config/fish/completions/multisagd.fish
function __multisagd
    set -l before (commandline -opc)
    $before[1] __complete fish $before[2..-1] (commandline -ct | string unescape) 2>/dev/null
end
complete -c multisagd -f -k -a '(__multisagd)'
