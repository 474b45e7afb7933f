#!/bin/sh
# Builds the sdist and the wheel, installs each into an environment of its own that holds nothing
# else, and runs there README's quick start and the self-check.
set -eu

rm -rf dist
"$VENV/bin/python" -m build --outdir dist .
room=$(mktemp -d)
trap 'rm -rf "$room"' EXIT
sed -n '/^## Quick start/,/^```$/p' README.md | sed '1,/^```python/d; /^```$/d' > "$room/quick_start.py"
for package in dist/*.whl dist/*.tar.gz; do
    echo "--- $package"
    "$VENV/bin/python" -m venv --clear "$room/venv"
    "$room/venv/bin/pip" install --quiet --disable-pip-version-check "$package"
    # From elsewhere, so that the package is the installed one.
    (cd "$room" && venv/bin/python quick_start.py && venv/bin/python -m functional_adam)
done
