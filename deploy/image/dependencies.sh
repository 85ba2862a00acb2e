#!/bin/sh
# Makes the virtual environment of an image, with the exact versions of constraints.txt, in the build stage.
#   dependencies.sh ENVIRONMENT VARIANT       VARIANT: cpu, or cuda for PyTorch's build for NVIDIA GPUs
set -eu
environment=$1
variant=$2
case $variant in
cpu) sources="--extra-index-url https://download.pytorch.org/whl/cpu" ;;
cuda) sources="" ;;
*)
    echo "VARIANT=$variant: write cpu or cuda" >&2
    exit 2
    ;;
esac
if ls /wheels/*.whl >/dev/null 2>&1; then
    sources="--no-index --find-links /wheels"
fi
python3 -m venv /opt/build
python3 -m venv --without-pip "$environment"
printf '%s\n' "$sources" >/opt/build/sources
python3 - >/opt/build/dependencies.txt <<'PYTHON'
import tomllib
with open("pyproject.toml", "rb") as file:
    print(*tomllib.load(file)["project"]["dependencies"], sep="\n")
PYTHON
# shellcheck disable=SC2086
/opt/build/bin/pip install --quiet --no-cache-dir $sources --constraint constraints.txt \
    'setuptools>=77' cyclonedx-bom==7.5.0
# shellcheck disable=SC2086
/opt/build/bin/pip --python "$environment/bin/python" install --quiet --no-cache-dir --no-compile $sources \
    --constraint constraints.txt --requirement /opt/build/dependencies.txt
found=$(PYTHONDONTWRITEBYTECODE=1 "$environment/bin/python" -c \
    'import torch; print("cpu" if torch.version.cuda is None else "cuda")')
if [ "$found" != "$variant" ]; then
    echo "VARIANT=$variant, but the PyTorch in deploy/wheels is built for $found; its .gitignore says how to fetch" >&2
    exit 1
fi

# What only whoever builds against these libraries needs, their own tests, and a package manager that Flower brings.
packages=$("$environment/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
rm -rf "$packages"/torch/include "$packages"/torch/test "$packages"/torch/share
find "$packages/torch/bin" -type f ! -name torch_shm_manager -delete
find "$packages" -type f -name '*.a' -delete
rm -f "$environment/bin/uv" "$environment/bin/uvx"
for library in matplotlib mpl_toolkits networkx nibabel numpy scipy sympy sqlalchemy; do
    find "$packages/$library" -type d -name tests -prune -exec rm -rf {} +
done
