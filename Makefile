# `make` without a target lists all targets. scripts/services starts the servers, with or without a Docker engine.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

# RABBITMQ=3.10 or RABBITMQ=4 uses that version instead of this machine's own, on a separate set of servers. With Docker, the set has
# another project name and other ports.
RABBITMQ ?=
ifneq ($(RABBITMQ),)
export OFFRAMP_SERVICES_RABBITMQ := $(RABBITMQ)
export OFFRAMP_SERVICES_DIR := $(CURDIR)/.services/rabbitmq-$(RABBITMQ)
export OFFRAMP_SERVICES_TOOLS := $(CURDIR)/.services/tools
export COMPOSE_PROJECT_NAME := offramp-rabbitmq-$(subst .,-,$(RABBITMQ))
digit := $(if $(filter 4,$(RABBITMQ)),3,4)
export RABBITMQ_PORT := 5$(digit)72
export RABBITMQ_ADMIN_PORT := 15$(digit)72
export MONGODB_PORT := 27$(digit)17
export SMTP_PORT := 1$(digit)25
export MAILPIT_PORT := 8$(digit)25
endif

# Sets the addresses of the running servers for one command line.
with_services := settings=$$(scripts/services env) && eval "$$settings" &&

.PHONY: help
help: ## list the targets
	@echo "Offramp ends monthly subscriptions. Start with: make demo, make test."
	@echo
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: demo
demo: cargo services-up ## start servers, build, and follow some cancellations from message to email
	@cargo build --locked --bin offramp --example demo
	@$(with_services) cargo run --quiet --locked --example demo

.PHONY: test
test: cargo services-up ## start servers, run all unit and integration tests, then a minute of chaos (RABBITMQ=4 or 3.10: with that version)
	@$(with_services) INSTA_UPDATE=no INSTA_REQUIRE_FULL_MATCH=1 cargo test --workspace --locked
	@$(MAKE) --no-print-directory chaos SECONDS=60 PROFILE=dev

# Private servers for `make chaos`, which kills them. With Docker, under another project name and on other ports.
chaos_services := export OFFRAMP_SERVICES_DIR=$(CURDIR)/.services/chaos OFFRAMP_SERVICES_TOOLS=$(CURDIR)/.services/tools \
	COMPOSE_PROJECT_NAME=offramp-chaos RABBITMQ_PORT=5772 RABBITMQ_ADMIN_PORT=15772 MONGODB_PORT=27117 SMTP_PORT=1125 \
	MAILPIT_PORT=8125 &&
SECONDS ?= 300
SEED ?=
PROFILE ?= release
PROGRAM ?=

.PHONY: chaos
chaos: cargo ## break everything for SECONDS=300, then look for lost or duplicated work (SEED=…: repeat a run; PROGRAM=path/to/offramp: another build)
	@$(chaos_services) trap 'scripts/services down' EXIT && scripts/services up && $(with_services) \
	cargo test --locked --profile $(PROFILE) --test chaos -- --seconds $(SECONDS) $(addprefix --seed ,$(SEED)) $(addprefix --program ,$(PROGRAM)) --logs .services/chaos/log

# `make chaos-cluster` starts its own three MongoDB and three RabbitMQ servers, as processes: links between containers could not be cut
# without root.
cluster_programs := export OFFRAMP_SERVICES_DIR=$(CURDIR)/.services/cluster OFFRAMP_SERVICES_TOOLS=$(CURDIR)/.services/tools && \
	programs=$$(scripts/services programs) && eval "$$programs" &&
BESIDE ?=
CLOCKS ?=
FAULTS ?=

.PHONY: chaos-cluster
chaos-cluster: cargo ## the same with three MongoDB and three RabbitMQ servers, and what can happen between them (BESIDE=path/to/offramp: every other worker runs that build; CLOCKS=10: two workers have clocks that are wrong by 10 s; FAULTS="leader-cut-off": nothing else happens)
	@$(cluster_programs) cargo test --locked --profile $(PROFILE) --test chaos -- --cluster .services/cluster --seconds $(SECONDS) \
	  $(addprefix --seed ,$(SEED)) $(addprefix --program ,$(PROGRAM)) $(addprefix --beside ,$(BESIDE)) $(addprefix --clocks ,$(CLOCKS)) $(addprefix --fault ,$(FAULTS)) --logs .services/cluster/log

PREVIOUS ?=

.PHONY: upgrade-trial
upgrade-trial: cargo services-up ## replace workers of the previous release under load, and back (PREVIOUS=path/to/offramp; SECONDS=30: how long each phase runs)
	@[ -x "$(PREVIOUS)" ] || { echo "Which program is the previous release? Build it from its tag, then: make upgrade-trial PREVIOUS=path/to/offramp" >&2; exit 1; }
	@cargo build --locked --profile $(PROFILE) --bin offramp
	@$(with_services) cargo test --locked --profile $(PROFILE) --test upgrade -- --previous $(PREVIOUS) \
	$(if $(filter file,$(origin SECONDS)),,--seconds $(SECONDS)) --logs .services/upgrade/log

.PHONY: upgrade-fixtures
upgrade-fixtures: cargo services-up ## record tests/fixtures/previous-release anew (PREVIOUS=path/to/offramp)
	@[ -x "$(PREVIOUS)" ] || { echo "Which program is the previous release? Build it from its tag, then: make upgrade-fixtures PREVIOUS=path/to/offramp" >&2; exit 1; }
	@$(with_services) cargo test --locked --test upgrade -- --previous $(PREVIOUS) --record tests/fixtures/previous-release
	@rm -rf tests/fixtures/previous-release/schemas && $(PREVIOUS) schemas --write tests/fixtures/previous-release/schemas

# Private servers for `make bench`, so that nothing else loads them while it measures.
bench_services := export OFFRAMP_SERVICES_DIR=$(CURDIR)/.services/bench OFFRAMP_SERVICES_TOOLS=$(CURDIR)/.services/tools \
	COMPOSE_PROJECT_NAME=offramp-bench RABBITMQ_PORT=5872 RABBITMQ_ADMIN_PORT=15872 MONGODB_PORT=27217 SMTP_PORT=1225 \
	MAILPIT_PORT=8225 &&
WHAT ?=
N ?=

.PHONY: bench
bench: cargo ## measure a release build on private servers (WHAT=latency: only that; N=500: nothing larger; BESIDE=path/to/offramp: compare with that build)
	@$(bench_services) trap 'scripts/services down' EXIT && scripts/services up && $(with_services) \
	cargo bench --locked --profile $(PROFILE) --bench measure -- $(WHAT) $(addprefix --n ,$(N)) $(addprefix --beside ,$(BESIDE)) --logs .services/bench/log

ONLY ?=

.PHONY: mail-audit
mail-audit: cargo ## check every email with Chromium, axe-core and SpamAssassin (ONLY=fr-CA/payment: only these)
	@scripts/mail-audit $(addprefix --only ,$(ONLY))

.PHONY: console-audit
console-audit: cargo services-up ## use `offramp console` in Chromium, with 100,000 subscriptions and 5,000 dead letters
	@$(with_services) scripts/mail-audit --only console --out target/console-audit

# libFuzzer's instrumentation needs a nightly compiler, or a stable one with RUSTC_BOOTSTRAP=1.
TARGET ?= command

.PHONY: fuzz
fuzz: cargo ## fuzz the command parser for SECONDS=300 (TARGET=frames: the filter of RabbitMQ's frames)
	@command -v cargo-fuzz >/dev/null || { echo "cargo-fuzz is missing: cargo install --locked cargo-fuzz" >&2; exit 1; }
	@[ -n "$${RUSTC_BOOTSTRAP:-}" ] || [[ $$(rustc --version) == *nightly* ]] || { \
	  echo "Fuzzing needs a nightly compiler: RUSTUP_TOOLCHAIN=nightly make fuzz (or RUSTC_BOOTSTRAP=1 make fuzz)" >&2; exit 1; }
	@cp Cargo.lock fuzz/Cargo.lock # exactly the program's dependencies
	@mkdir -p fuzz/corpus/$(TARGET)
	cargo fuzz run --sanitizer none $(TARGET) fuzz/corpus/$(TARGET) $(if $(filter command,$(TARGET)),schemas/examples/commands) -- \
	  -max_total_time=$(SECONDS) -max_len=270000 -timeout=10

.PHONY: check
check: cargo ## check formatting, lints and documentation; a warning is an error
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --locked -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --locked

.PHONY: lint
lint: cargo ## check spelling, shell scripts, dependencies (unused, licences, sources, vulnerabilities), alerts and manifests
	@scripts/lint

.PHONY: schemas
schemas: cargo ## regenerate schemas/ from the types in the code
	cargo run --quiet --locked -- schemas --write schemas

.PHONY: docs
docs: cargo ## regenerate the generated pages of docs/ from the code
	UPDATE_DOCS=1 cargo test --quiet --locked --lib --bins --test repository documentation

.PHONY: image
image: ## build the Docker image `offramp`, with the revision of the source
	docker build --build-arg REVISION=$$(git rev-parse HEAD) --tag offramp .

.PHONY: services-up
services-up: ## start RabbitMQ, MongoDB and an SMTP server, unless they are running
	@scripts/services up

.PHONY: services-down
services-down: ## stop them; their data is kept
	@scripts/services down

.PHONY: cargo
cargo:
	@command -v cargo >/dev/null || { \
	  echo "Rust is missing. Install it from https://rustup.rs; rust-version in Cargo.toml is the oldest supported version." >&2; \
	  exit 1; }
	@command -v cc >/dev/null || { \
	  echo "A C compiler is missing. On Debian, as root: apt-get install build-essential" >&2; exit 1; }
