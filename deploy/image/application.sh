#!/bin/sh
# Adds Fedvox itself to an image's virtual environment, and writes down what is in there.
#   application.sh ENVIRONMENT MODULE...       MODULE: what the image's programs import
set -eu
environment=$1
shift
/opt/build/bin/pip --python "$environment/bin/python" install --quiet --no-compile --no-deps --no-build-isolation \
    --no-index .
# Bytecode of what is used; that of everything would be another 100 MB.
for module in "$@"; do
    (cd / && PYTHONDONTWRITEBYTECODE= FLWR_TELEMETRY_ENABLED=0 "$environment/bin/python" -c "import $module")
done
/opt/build/bin/cyclonedx-py environment --output-reproducible --of JSON --output-file "$environment/sbom.cdx.json" \
    "$environment/bin/python"
