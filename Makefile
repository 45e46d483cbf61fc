# Every target prepares what it needs by itself (deploy/setup.sh: Debian packages, uv, the locked environment).
SHELL := bash
PY := .venv/bin/python
BIN := .venv/bin

.PHONY: help setup setup-libvirt demo demo-libvirt test test-libvirt model-check lint types contracts proto check-proto reference check-reference bench bench-verify bench-libvirt capture-boot lock format fuzz mutate coverage

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

setup:  ## install what is missing: Debian packages and the locked Python environment
	@deploy/setup.sh

demo: setup  ## the whole main job on real software TPMs, narrated and checked; KEEP=1 leaves it running
	@$(PY) deploy/demo $(if $(KEEP),--keep)

model-check: setup  ## search every state of the placement protocol's model (a minute)
	@PYTHONPATH=tests $(PY) -m support.modelcheck

test: setup  ## run the whole test suite
	@$(BIN)/pytest

setup-libvirt: setup
	@deploy/setup-libvirt.sh

# One more try for a test of real time on a machine that others use; none for what the referee finds.
test-libvirt: setup-libvirt  ## two real libvirt hosts on this machine: starts, moves, faults (root, 5 to 8 minutes)
	@$(BIN)/pytest -m libvirt -n 3 --reruns 2 --rerun-except 'two ran|two guests wrote' tests/libvirt

demo-libvirt: setup-libvirt  ## an encrypted VM starts, moves and is refused on two real libvirt hosts, narrated (root)
	@$(PY) deploy/demo-libvirt

fuzz: setup  ## fuzz the decoders with atheris; TARGET=x509 for one family, SECONDS=600 in all
	@PYTHONPATH=tests $(PY) -m fuzz $(if $(TARGET),--target $(TARGET)) --seconds $(or $(SECONDS),600)

COVERED := codec verification appraisal
COVERAGE_TESTS := tests/unit/codec tests/unit/verification tests/unit/appraisal tests/unit/cli tests/properties tests/fuzz tests/scenarios
coverage: setup  ## branch coverage of codec, verification and appraisal; fails when one is missed
	@$(BIN)/pytest $(COVERED:%=--cov=trustauthority/%) --cov-branch --cov-report=term-missing:skip-covered --cov-fail-under=100 --cov-precision=2 $(COVERAGE_TESTS)

mutate: setup  ## mutation testing; PACKAGE=codec|verification|appraisal, SAMPLE=400 SEED=1 for a sample, ROUGH=1 inside functions
	@PYTHONPATH=tests $(PY) -m mutate $(or $(PACKAGE),codec) --sample $(or $(SAMPLE),0) --seed $(or $(SEED),1) $(if $(ROUGH),--rough)

bench: setup  ## latency and CPU of attestation and release, in units of the same run
	@$(PY) benchmarks/service.py
	@$(PY) benchmarks/placement.py

bench-verify: setup  ## what verification costs, against bare OpenSSL and Keylime, with bounds; ROUNDS=9 is short
	@deploy/bench-peers.sh || true
	@$(PY) benchmarks/verify.py

bench-libvirt: setup-libvirt  ## what protection costs: start, move, time from revoke to gone (root)
	@$(PY) benchmarks/libvirt.py

lint: setup  ## ruff, buf lint, dependency hygiene
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@cd proto && ../$(BIN)/buf lint .

types: setup  ## mypy --strict
	@$(BIN)/mypy

contracts: setup  ## the layers of the architecture (import-linter)
	@$(BIN)/lint-imports --no-cache

proto: setup  ## regenerate the checked-in stubs from proto/
	@$(BIN)/python -m grpc_tools.protoc -Iproto --python_out=. --grpc_python_out=. --mypy_out=. --mypy_grpc_out=. \
	    --plugin=protoc-gen-mypy=$(BIN)/protoc-gen-mypy --plugin=protoc-gen-mypy_grpc=$(BIN)/protoc-gen-mypy_grpc \
	    proto/trustauthority/v1/*.proto
	@$(BIN)/python -m grpc_tools.protoc -I. --python_out=. --grpc_python_out=. --mypy_out=. --mypy_grpc_out=. \
	    --plugin=protoc-gen-mypy=$(BIN)/protoc-gen-mypy --plugin=protoc-gen-mypy_grpc=$(BIN)/protoc-gen-mypy_grpc \
	    hostagent/kubernetes/kms_v2.proto

check-proto: proto  ## fail when the checked-in stubs differ from proto/
	@git diff --exit-code --stat -- trustauthority/v1 hostagent/kubernetes || { echo "the stubs are stale: run make proto and commit"; exit 1; }

reference: setup  ## regenerate docs/reference/cli.md from the commands themselves
	@$(PY) -m trustauthority.cli.reference > docs/reference/cli.md

check-reference: reference  ## fail when docs/reference/cli.md is stale
	@git diff --exit-code --stat -- docs/reference/cli.md || { echo "docs/reference/cli.md is stale: run make reference and commit"; exit 1; }

format: setup  ## format the code
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix --quiet . || true

lock: setup  ## pin every dependency by hash again
	@.build/bootstrap/bin/uv pip compile -q --upgrade --generate-hashes --no-header --python-version 3.11 requirements/bootstrap.in -o requirements/bootstrap.txt
	@.build/bootstrap/bin/uv pip compile -q --upgrade --generate-hashes --no-header --python-version 3.11 --all-extras --group dev pyproject.toml -o requirements/dev.txt
	@.build/bootstrap/bin/uv pip compile -q --upgrade --generate-hashes --no-header --python-version 3.11 requirements/bench.in -o requirements/bench.txt

capture-boot:  ## boot real guests in QEMU and capture their evidence (root, about 10 minutes)
	@deploy/capture-boot/capture-boot.sh
