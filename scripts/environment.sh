# Sourced by the scripts beside it; sets `root` and offers `use_environment`.

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"

# Take the active virtual environment, else the one at .venv (made if absent), and install vaefix, what its tests need
# and the peers they compare with, at the tested versions. Costs nothing when nothing changed since the last time.
use_environment() {
    local environment="${VIRTUAL_ENV:-$root/.venv}"
    [ -x "$environment/bin/python" ] || "${PYTHON:-python3}" -m venv "$environment"
    export VIRTUAL_ENV="$environment" PATH="$environment/bin:$PATH"

    local stamp="$environment/.vaefix-installed" wanted
    wanted="$(cd "$root" && { pwd; cat pyproject.toml constraints.txt scripts/environment.sh; } | sha256sum)"
    if [ "$wanted" != "$(cat "$stamp" 2>/dev/null)" ]; then
        install_vaefix
        echo "$wanted" >"$stamp"
    fi
}

install_vaefix() {
    local pip=(python -m pip --disable-pip-version-check install --quiet --constraint "$root/constraints.txt")
    echo "installing into $VIRTUAL_ENV (minutes the first time)" >&2
    "${pip[@]}" torch # alone and first, so that a CPU build that pip is configured to find is not passed over
    "${pip[@]}" --editable "$root[openvino,onnx,test]"
    # optimum-intel asks for torchvision, which breaks the import of transformers beside a CPU build of torch.
    "${pip[@]}" --no-deps optimum optimum-intel
}
