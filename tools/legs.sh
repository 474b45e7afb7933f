#!/bin/sh
# The core tests on other versions than those of .venv: the oldest supported JAX on this Python,
# and the newest JAX on Python 3.13 where that interpreter is present.
# Flax, Orbax and Equinox are left out there: their current releases need newer versions of JAX.
set -eu

CORE="test_formulas test_types test_step test_adam test_apply test_check test_properties"

leg() { # name, interpreter, further test files
    name=$1
    python=$2
    shift 2
    home=$VENV-$name
    constraints=constraints/$name.txt
    if [ ! -e "$home/ready" ] || [ "$constraints" -nt "$home/ready" ] || [ pyproject.toml -nt "$home/ready" ]; then
        "$python" -m venv "$home"
        PIP_CONSTRAINT=$constraints "$home/bin/pip" install --quiet --disable-pip-version-check \
            --editable . hypothesis mpmath optax pytest pytest-xdist
        touch "$home/ready"
    fi
    echo "--- $name: $("$home/bin/python" -c 'import jax, sys; print("Python", sys.version.split()[0], "jax", jax.__version__)')"
    files=""
    for test in $CORE "$@"; do files="$files tests/$test.py"; done
    JAX_PLATFORMS=cpu "$home/bin/python" -m pytest -q -n auto $files
}

# The interpreter with this version, if there is one that runs.
find_python() {
    for candidate in "python$1" "$HOME/.pyenv/versions/$1"*/bin/python; do
        if "$candidate" -c '' 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
}

leg oldest "$PYTHON"
newest=$(find_python 3.13)
if [ -n "$newest" ]; then
    leg newest "$newest" test_peers
else
    echo "--- newest: no Python 3.13 here, skipped"
fi
