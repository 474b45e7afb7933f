#!/bin/sh
# The core tests on other versions than those of .venv: Python 3.11 with the oldest supported JAX,
# and Python 3.13 with the newest, each where that interpreter is present.
# Flax, Orbax and Equinox are left out there: their current releases need newer versions of JAX.
# Slow tests are run too. With the argument `here`: all tests in .venv first, and a table of the legs at the end.
set -eu

results=$(mktemp)
trap 'rm -f "$results"' EXIT

CORE="equations/test_formulas.py storage kernels step optimizers/test_family_check_*.py hints/test_keywords.py
rows optimizers/test_skip_spikes*.py devices/test_offload*.py watch/test_report.py watch/test_diagnostics*.py interop/test_convert*.py interop/test_extend*.py"

# The interpreter with this version, if there is one that runs.
find_python() {
    for candidate in "python$1" "$HOME/.pyenv/versions/$1".*/bin/python; do
        if "$candidate" -c 'import venv' 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
}

leg() { # name, version of Python, further test files
    name=$1
    python=$(find_python "$2")
    if [ -z "$python" ]; then
        echo "--- $name: no Python $2 here, skipped"
        return
    fi
    shift 2
    home=$VENV-$name
    constraints=constraints/$name.txt
    if [ ! -e "$home/ready" ] || [ "$constraints" -nt "$home/ready" ] || [ pyproject.toml -nt "$home/ready" ]; then
        "$python" -m venv "$home"
        PIP_CONSTRAINT=$constraints "$home/bin/pip" install --quiet --disable-pip-version-check \
            --editable . hypothesis mpmath optax pytest pytest-xdist
        touch "$home/ready"
    fi
    files=""
    for test in $CORE "$@"; do files="$files tests/$test"; done
    # shellcheck disable=SC2086 (several files)
    run "$name" "$home" $files
}

run() { # name, environment, test files
    name=$1
    home=$2
    shift 2
    versions=$("$home/bin/python" -c 'import chex, jax, sys
print(sys.version.split()[0], jax.__version__, chex.__version__, sep=" | ")')
    echo "--- $name: Python | jax | chex: $versions"
    log=$(mktemp)
    # The last line says how many passed; `tee` would hide the exit status.
    if JAX_PLATFORMS=cpu "$home/bin/python" -m pytest -q -n auto -m "" "$@" > "$log" 2>&1; then
        status=0
    else
        status=1
    fi
    cat "$log"
    echo "| $name | $versions | $(tail -n 1 "$log") |" >> "$results"
    rm -f "$log"
    return $status
}

if [ "${1:-}" = here ]; then
    run here "$VENV"
fi
leg oldest 3.11
leg newest 3.13 equations interop/test_optax_*.py
if [ "${1:-}" = here ]; then
    printf '\n| leg | Python | jax | chex | result |\n| --- | --- | --- | --- | --- |\n'
    cat "$results"
fi
