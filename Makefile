# Two commands from a fresh clone: `make demo` and `make test`. Both install what they need, once.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
INSTALLED := $(VENV)/.installed
# Without a GPU, one test process per core with one thread each is faster than torch's threads competing. Compiled tests
# are kept, even where the environment says otherwise: compiling them takes longer than importing all libraries.
TEST_ENVIRONMENT := OMP_NUM_THREADS=1 FLWR_TELEMETRY_ENABLED=0 PYTHONDONTWRITEBYTECODE=
# One more than cores: many tests wait for processes that they started.
TEST_PROCESSES ?= $(shell expr $$(getconf _NPROCESSORS_ONLN) + 1)

.PHONY: setup demo test test-fast test-network test-long test-flower test-deploy deploy-tools dicom-tools browser-tools lint format bench clean

setup: $(INSTALLED)

$(INSTALLED): constraints.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Fedvox needs Python 3.11 or newer: make setup PYTHON=/path/to/python3.11" >&2; exit 1; }
	$(PYTHON) -m venv --clear $(VENV)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt \
		--editable '.[dev,export,ray,tensorboard]'
	@touch $@

# make demo                 four simulated hospitals on phantoms, made here
# make demo DATA=DIR        three natural sites of the Decathlon hippocampus task in DIR
demo: $(INSTALLED)
ifdef DATA
	$(VENV)/bin/fedvox-server simulate deploy/examples/hippocampus.yaml --data '$(DATA)' --out runs/demo-hippocampus --resume
else
	$(VENV)/bin/fedvox-server simulate deploy/examples/phantom.yaml --out runs/demo-phantom --resume
endif

# make test-fast ARGS=tests/server    some of the first group
# What fails gets a second attempt by itself, which tells a machine that was busy from a defect.
test: $(INSTALLED) test-fast test-network

FAST_TESTS := $(TEST_ENVIRONMENT) $(VENV)/bin/python -m pytest -q -m 'not network and not deploy and not long'
test-fast: $(INSTALLED)
	$(FAST_TESTS) -n $(TEST_PROCESSES) --dist loadscope --no-loadscope-reorder $(ARGS) || $(FAST_TESTS) --last-failed --last-failed-no-failures=none $(ARGS)

# Real servers and sites on the loopback interface: one after another, for they share the cores.
NETWORK_TESTS := $(TEST_ENVIRONMENT) $(VENV)/bin/python -m pytest -q
test-network: $(INSTALLED)
	$(NETWORK_TESTS) -m 'network and not long' $(ARGS) || $(NETWORK_TESTS) -m 'network and not long' --last-failed --last-failed-no-failures=none $(ARGS)

# The rest of them: every process killed at eight points of a round, seventy random kills in one run, a firewall closed for a
# minute; and every damage to every file of a run folder.
test-long: $(INSTALLED)
	$(NETWORK_TESTS) -m long $(ARGS)

# make test-flower FLWR=1.41.0       the network tests with another version of Flower (deploy/docs/flower.md), before them
#                                    those of the processes by themselves
# In an environment of its own: all constraints but for Flower and the packages whose versions it pins differently.
FLWR_TESTS := tests/server/gateway tests/client/courier tests/client/runner tests/server/rounds/test_silence.py \
	tests/server/rounds/test_coming_and_going.py tests/test_flower_unpatched.py
FLWR_MOVES := flwr uv certifi
FLWR_VENV := .venv-flwr-$(FLWR)
test-flower: $(if $(FLWR),$(FLWR_VENV)/.installed)
	@test -n '$(FLWR)' || { echo "say which version: make test-flower FLWR=1.41.0" >&2; exit 2; }
	$(FLWR_VENV)/bin/python -c 'from importlib.metadata import version; assert version("flwr") == "$(FLWR)"'
	$(TEST_ENVIRONMENT) $(FLWR_VENV)/bin/python -m pytest -n $(TEST_PROCESSES) --dist loadscope -q -m 'not network' $(FLWR_TESTS)
	$(TEST_ENVIRONMENT) $(FLWR_VENV)/bin/python -m pytest -q -m 'network and not long' $(ARGS)

.venv-flwr-%/.installed: constraints.txt pyproject.toml
	$(PYTHON) -m venv --clear $(@D)
	grep -v $(FLWR_MOVES:%=-e '^%==') constraints.txt >$(@D)/constraints.txt
	echo 'flwr==$*' >>$(@D)/constraints.txt
	$(@D)/bin/python -m pip install --quiet --disable-pip-version-check --constraint $(@D)/constraints.txt \
		--editable '.[dev]'
	@touch $@

# Charts and units against their tools, nginx and HAProxy as fronts, lines, clocks and disks that fail, the container
# images and both compose files for real, with processes killed and lines cut: as root, on Debian. What images are built from is kept in
# $FEDVOX_DEPLOY_CACHE (default /var/tmp/fedvox-deploy).
# make test-deploy SELECT='deploy and not slow'    without what takes minutes each
SELECT ?= deploy
DEPLOY_PROGRAMS := podman buildah runc debootstrap iptables nginx haproxy faketime systemd-analyze ip tc
DEPLOY_PACKAGES := podman buildah runc netavark aardvark-dns debootstrap iptables nginx libnginx-mod-stream haproxy \
	faketime systemd iproute2
test-deploy: deploy-tools
	FEDVOX_REQUIRE_DEPLOY=1 $(TEST_ENVIRONMENT) $(VENV)/bin/python -m pytest -q -rP -m '$(SELECT)' tests/deploy $(ARGS)

deploy-tools: $(INSTALLED)
	@PATH="$$PATH:/usr/sbin:/sbin"; \
		for program in $(DEPLOY_PROGRAMS); do command -v $$program >/dev/null || missing=1; done; \
		test -z "$$missing" || { apt-get update -qq && DEBIAN_FRONTEND=noninteractive \
		apt-get install -y -qq --no-install-recommends $(DEPLOY_PACKAGES) >/dev/null; }
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[deploy]'

# Second opinions on DICOM, for tests that are skipped without them.
DICOM_PROGRAMS := dcm2niix dcmcjpeg dciodvfy Orthanc
DICOM_PACKAGES := dcm2niix dcmtk dicom3tools orthanc orthanc-dicomweb
dicom-tools:
	@for program in $(DICOM_PROGRAMS); do command -v $$program >/dev/null || missing=1; done; \
		test -z "$$missing" || { apt-get update -qq && DEBIAN_FRONTEND=noninteractive \
		apt-get install -y -qq --no-install-recommends $(DICOM_PACKAGES) >/dev/null; }

# For tests of pages in a browser, which are skipped without it.
browser-tools:
	@command -v chromium >/dev/null || { apt-get update -qq && DEBIAN_FRONTEND=noninteractive \
		apt-get install -y -qq --no-install-recommends chromium fonts-dejavu-core >/dev/null; }

lint: $(INSTALLED)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/codespell $$(git ls-files)
	$(VENV)/bin/vulture
	$(VENV)/bin/python -m mypy

format: $(INSTALLED)
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

bench: $(INSTALLED)
	$(VENV)/bin/python -m tests.benchmarks

clean:
	rm -rf $(VENV) .venv-flwr-* build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
