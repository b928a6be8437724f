#!/usr/bin/env bash
# Build sdist and wheel into the folder $1 (default: dist), check both, and with each in an empty
# environment run one training step and classify three pictures.  PYTHON names the interpreter.
set -euo pipefail
cd "$(dirname "$0")/.."
dist=${1:-dist}
python=${PYTHON:-$(command -v python3.11 || command -v python3)}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
quietly() { "$@" >"$work/log" 2>&1 || { cat "$work/log"; exit 1; }; }

"$python" -m venv "$work/tools"
tool() { "$work/tools/bin/python" -m "$@"; }
tool pip install --quiet "build>=1.2" "twine>=6.1" "check-wheel-contents>=0.6" \
  "validate-pyproject[all]>=0.23"

quietly tool validate_pyproject pyproject.toml
mkdir -p "$dist"
rm -f "$dist"/gpucnn-*.whl "$dist"/gpucnn-*.tar.gz
quietly tool build --outdir "$dist" .  # the wheel is built from the sdist
tool twine check --strict "$dist"/gpucnn-*
tool check_wheel_contents "$dist"/gpucnn-*.whl

for file in "$dist"/gpucnn-*.whl; do
  [ "$(wc -c <"$file")" -le 6000000 ] || { echo "$file has more than 6 MB"; exit 1; }
done

cp .ci/smoke.py tests/weights/cifar10_test_images.png "$work"
unset PYTHONPATH
for file in "$dist"/gpucnn-*; do
  rm -rf "$work/empty"
  "$python" -m venv "$work/empty"
  "$work/empty/bin/pip" install --quiet "$file[data]"
  printf '%s, %s KiB: ' "$(basename "$file")" "$(($(wc -c <"$file") / 1024))"
  (
    cd "$work"
    empty/bin/python smoke.py
    [ "$(empty/bin/gpucnn --version)" = "$(empty/bin/python -m gpucnn --version)" ]
  )
done
