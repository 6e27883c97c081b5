# Everything that a developer runs; `make` lists it.
SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help try test soak vm power bench e2e lint build image manifests root

# Tools that are installed by hand; sudo drops them from the path.
export PATH := $(PATH):$(HOME)/.cargo/bin:/usr/local/go/bin
BUILT := $(abspath $(or $(CARGO_TARGET_DIR),target))

help: ## List these commands
	@awk -F ':.*## ' '/^[a-z0-9]+:.*## / { printf "make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

try: root ## Show on this machine what the driver does, and leave nothing behind (as root)
	@tests/setup.sh try
	cargo build --release --locked
	$(BUILT)/release/orlop try

test: root ## Run every test, with real mounts and loop devices, and csi-sanity (as root)
	@tests/setup.sh
	cargo fmt --check
	cargo clippy --all-targets --locked -- -D warnings
	ORLOP_REQUIRE_ROOT=1 cargo test --locked
	tests/monitoring.sh
	cargo build --release --locked
	cd csi-sanity && go vet ./...
	cd csi-sanity && ORLOP_BIN=$(BUILT)/release/orlop go test -v -count=1 -timeout=60m ./...
	cd tests/deploy && go vet ./...
	cd tests/deploy && ORLOP_BIN=$(BUILT)/release/orlop go test -v -count=1 ./...

soak: root ## Kill a driver under random calls, ORLOP_SOAK (20) times as long as the tests do, then cut its power 300 times
	@tests/setup.sh try
	ORLOP_SOAK=$(or $(ORLOP_SOAK),20) cargo test --locked --test privileged_driver nothing_is_lost -- --nocapture
	@tests/setup.sh vm
	ORLOP_CUTS=$(or $(ORLOP_CUTS),300) tests/vm/power.sh

vm: ## Run in a virtual machine the tests that this machine's kernel cannot
	@tests/setup.sh vm
	tests/vm/run.sh $(TESTS)

power: ## Cut a virtual machine's power again and again, and look for what was lost (ORLOP_CUTS, ORLOP_SEED)
	@tests/setup.sh vm
	tests/vm/power.sh

bench: root ## Measure a release build beside what the machine itself takes (ORLOP_BASE: another binary to compare with)
	@tests/setup.sh try
	cargo build --release --locked
	ORLOP_BIN=$(BUILT)/release/orlop cargo bench --locked --bench rpc

e2e: root ## Test the chart in a Kubernetes of its own on this machine (as root; TESTS=Name for some)
	@tests/setup.sh e2e
	cargo build --release --locked
	cd tests/kubernetes && go vet ./... && ORLOP_BIN=$(BUILT)/release/orlop go run . $(if $(TESTS),-run '$(TESTS)')

lint: ## Check the format and the lints
	@tests/setup.sh build
	cargo fmt --check
	cargo clippy --all-targets --locked -- -D warnings

build: ## Build the release binary
	@tests/setup.sh build
	cargo build --release --locked

image: root ## Build the container image, without a registry, into target/image/orlop.tar (as root)
	@tests/setup.sh image
	deploy/image/build.sh

manifests: ## Render deploy/manifests, and the table of values in deploy/README.md, from the Helm chart
	@tests/setup.sh deploy
	deploy/manifests/render.sh
	cd tests/deploy && go test -count=1 -run TheTableOfValues . -update

# What must not be skipped must not pass either.
root:
	@if [ "$$(id -u)" -ne 0 ]; then \
		echo "make $(firstword $(MAKECMDGOALS)) makes mounts and loop devices: run it as root: sudo -E make $(firstword $(MAKECMDGOALS))" >&2; \
		exit 1; \
	fi
